//! Ringmaster ASGD: pure ASGD that ignores gradients which are R updates late or more.
//! ```text
//! on g_i:  if τ < R:  x -= η g_i  (else nothing) ;   x to i
//! with stops:  after each update, whoever's running job has reached the delay R begins again at the current x
//! ```
//! Maranjyan, Tyurin, Richtárik 2025 (ICML). Proved: optimal time for homogeneous data with R = max(1, σ²/ε) and η = min(1/(2RL),
//! ε/(4Lσ²)). A small R silences slow workers: a bias when data differ. R = 1 is SGD on the fastest, R without end pure ASGD; ours is n.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "ringmaster",
    summary: "Ringmaster ASGD: pure ASGD without gradients that are R updates late",
    paper: "Maranjyan et al. 2025",
    source: include_str!("ringmaster.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1 + restarts", biased: true },
    keys: &[
        Key { name: "r", default: "the workers", meaning: "the delay from which on gradients are ignored" },
        Key { name: "stops", default: "true", meaning: "true: work that comes too late is given up at once" },
    ],
    build: |keys, setting| {
        let r = keys.count("r", setting.workers, 1..=usize::MAX)? as u64;
        let (began, queue) = (vec![0; setting.workers], (0..setting.workers).map(|i| (0, i)).collect());
        Ok(Box::new(Ringmaster { r, stops: keys.flag("stops", true)?, began, queue }))
    },
};

struct Ringmaster {
    r: u64,
    stops: bool,
    began: Vec<u64>,                                 // the version of each running job
    queue: std::collections::VecDeque<(u64, usize)>, // the same by age, and jobs that are over
}

impl Rule for Ringmaster {
    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        if a.staleness >= self.r {
            return Decision::fold(Fold::Drop).start(Start::Sender);
        }
        let now = a.t + 1;
        let oldest = std::iter::from_fn(|| self.queue.pop_front_if(|(v, _)| now - *v >= self.r));
        let late = oldest.filter(|(v, i)| self.stops && self.began[*i] == *v && *i != a.worker);
        let late: Vec<usize> = late.map(|(_, i)| i).collect();
        for i in late.iter().copied().chain([a.worker]) {
            self.began[i] = now;
            self.queue.push_back((now, i));
        }
        Decision::direct().restart(late)
    }
}

#[cfg(test)]
#[test]
fn late_work_is_ignored_or_stopped() {
    use super::tests::*;
    let (mut stops, mut ignores) = (rule("ringmaster:r=2", 2), rule("ringmaster:r=2,stops=false", 2));
    assert_eq!([0, 1].map(|t| arrive(&mut *stops, 0, t, t).restart), [vec![], vec![1]]);
    let steps = [(0, 0), (1, 1), (0, 2)].map(|(v, t)| arrive(&mut *ignores, 0, v, t).step.is_some());
    assert_eq!(steps, [true, true, false]);
}
