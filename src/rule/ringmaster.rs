//! Ringmaster ASGD: pure asynchronous SGD that ignores gradients with a delay of R updates or more.
//!
//! ```text
//! on g_i with delay τ:  if τ < R:  x -= η g_i   (otherwise nothing) ;  x to worker i
//! with stops:           after each update, running jobs with the delay R are cancelled and restart at the current x
//! ```
//!
//! Maranjyan, Tyurin, Richtárik 2025 (ICML). Proved: optimal time for homogeneous data with R = max(1, σ²/ε)
//! and η = min(1/(2RL), ε/(4Lσ²)). A small R excludes slow workers, which is a bias when the data differ.
//! R = 1 is SGD on the fastest worker; without a limit R it is pure asynchronous SGD. Our default is R = n.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Rule, Start};
use std::collections::VecDeque;

pub(super) const ENTRY: Entry = Entry {
    name: "ringmaster",
    summary: "Ringmaster ASGD: pure asynchronous SGD without gradients that are R updates late",
    paper: "Maranjyan et al. 2025",
    source: include_str!("ringmaster.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1 + restarts", biased: true },
    keys: &[
        Key { name: "r", default: "number of workers", meaning: "smallest delay at which a gradient is ignored" },
        Key { name: "stops", default: "true", meaning: "true: jobs that have become too late are cancelled at once" },
    ],
    build: |keys, setting| {
        let n = setting.workers;
        let r = keys.count("r", n, 1..=usize::MAX)? as u64;
        let stops = keys.flag("stops", true)?;
        let queue = (0..n).map(|worker| (0, worker)).collect();
        Ok(Box::new(Ringmaster { r, stops, began: vec![0; n], queue }))
    },
};

struct Ringmaster {
    r: u64,
    /// Whether jobs that have become too late are cancelled.
    stops: bool,
    /// The version at which each worker's running job began.
    began: Vec<u64>,
    /// The same as pairs (version, worker), the oldest first. Contains finished jobs too.
    queue: VecDeque<(u64, usize)>,
}

impl Rule for Ringmaster {
    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        // τ >= R: nothing ;  x to worker i
        if a.staleness >= self.r {
            return Decision::fold(Fold::Drop).start(Start::Sender);
        }

        // running jobs with the delay R restart. A pair whose version is not the one in `began` is a finished job.
        let now = a.t + 1;
        let mut late = Vec::new();
        while let Some((version, worker)) = self.queue.pop_front_if(|(version, _)| now - *version >= self.r) {
            let is_running = self.began[worker] == version && worker != a.worker;
            if self.stops && is_running {
                late.push(worker);
            }
        }
        for worker in late.iter().copied().chain([a.worker]) {
            self.began[worker] = now;
            self.queue.push_back((now, worker));
        }

        // τ < R: x -= η g_i ;  x to worker i
        Decision::direct().restart(late)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn late_jobs_are_cancelled_with_stops() {
        let mut rule = rule("ringmaster:r=2", 2);
        let restarts = [0, 1].map(|t| arrive(&mut *rule, 0, t, t).restart);
        assert_eq!(restarts, [vec![], vec![1]]);
    }

    #[test]
    fn late_gradients_are_ignored_without_stops() {
        let mut rule = rule("ringmaster:r=2,stops=false", 2);
        let steps = [(0, 0), (1, 1), (0, 2)].map(|(v, t)| arrive(&mut *rule, 0, v, t).step.is_some());
        assert_eq!(steps, [true, true, false]);
    }
}
