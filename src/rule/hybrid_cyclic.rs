//! Cyclic hybrid SGD: so many updates of synchronous SGD, then so many of asynchronous SGD, and so on.
//! ```text
//! P_sync times:   s += g_i / n  for all n ;  x -= η s ;  x to all
//! P_async times:  x -= η g_i ;  x to i          then, on entering the synchronous phase, running jobs are given up (or drained)
//! ```
//! What summaries of Vora, Joshi, Patel 2024 (arXiv 2407.00101) describe, and not what the paper does (`hybrid` is that).
//! Nothing is proved; its asynchronous phases drift like pure ASGD. With `enter=drain` the late gradients count in the first
//! synchronous mean.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "hybrid-cyclic",
    summary: "cyclic hybrid SGD: phases of synchronous and of asynchronous updates",
    paper: "after Vora et al. 2024",
    source: include_str!("hybrid_cyclic.rs"),
    cost: Cost { server: "2", worker: "0", copies: "n or 1", biased: true },
    keys: &[
        Key { name: "sync", default: "100", meaning: "updates of a synchronous phase" },
        Key { name: "async", default: "100", meaning: "updates of an asynchronous phase" },
        Key { name: "enter", default: "cancel", meaning: "running jobs are to cancel or drain" },
    ],
    build: |keys, setting| {
        let phases = [keys.count("sync", 100, 1..=1 << 40)? as u64, keys.count("async", 100, 1..=1 << 40)? as u64];
        let drains = keys.choice("enter", &[("cancel", false), ("drain", true)])?;
        Ok(Box::new(Cyclic { n: setting.workers, phases, drains, answered: 0 }))
    },
};

struct Cyclic {
    n: usize,
    phases: [u64; 2],
    drains: bool,
    answered: usize,
}

impl Rule for Cyclic {
    fn needs(&self) -> Needs {
        Needs::sum()
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        let place = a.t % (self.phases[0] + self.phases[1]);
        if place >= self.phases[0] {
            let enters = place + 1 == self.phases[0] + self.phases[1] && !self.drains;
            return Decision::direct().restart((0..self.n).filter(|i| enters && *i != a.worker).collect());
        }
        self.answered = (self.answered + 1) % self.n;
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.n as f64 });
        fold.step_if(self.answered == 0, 0.0, || Start::Everybody)
    }
}

#[cfg(test)]
#[test]
fn phases_take_turns() {
    let mut rule = super::tests::rule("hybrid-cyclic:sync=1,async=1", 2);
    let all = [(0, 0), (1, 0), (1, 1), (0, 2)].map(|(i, t)| super::tests::arrive(&mut *rule, i, t, t));
    assert_eq!((all.each_ref().map(|d| d.step.is_some()), &all[2].restart), ([false, true, true, false], &vec![0]));
}
