//! Cyclic hybrid SGD: a number of synchronous updates, then a number of asynchronous updates, and so on.
//!
//! ```text
//! P_sync times:   s += g_i / n for each of the n answers ;  x -= η s ;  s = 0 ;  x to all workers
//! P_async times:  x -= η g_i ;  x to worker i
//! with the last asynchronous update:  all other running jobs are cancelled and restart at x   (enter=cancel)
//! ```
//!
//! With `enter=drain` these jobs continue, and their stale gradients count in the first synchronous mean.
//!
//! This is the rule that summaries of Vora, Joshi, Patel 2024 (arXiv 2407.00101) describe. The paper itself
//! describes `hybrid`. Nothing is proved; in the asynchronous phases the rule drifts like pure asynchronous
//! SGD.

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
        Key { name: "enter", default: "cancel", meaning: "running jobs before a synchronous phase: cancel or drain" },
    ],
    build: |keys, setting| {
        let sync_updates = keys.count("sync", 100, 1..=1 << 40)? as u64;
        let async_updates = keys.count("async", 100, 1..=1 << 40)? as u64;
        let enter = keys.choice("enter", &[("cancel", Enter::Cancel), ("drain", Enter::Drain)])?;
        Ok(Box::new(Cyclic { n: setting.workers, sync_updates, async_updates, enter, answered: 0 }))
    },
};

/// What happens to running jobs when a synchronous phase begins.
#[derive(Clone, Copy, PartialEq)]
enum Enter {
    /// They are cancelled and restart.
    Cancel,
    /// They continue, and their gradients count in the first synchronous mean.
    Drain,
}

struct Cyclic {
    n: usize,
    /// P_sync.
    sync_updates: u64,
    /// P_async.
    async_updates: u64,
    enter: Enter,
    /// Number of answers since the last update of a synchronous phase.
    answered: usize,
}

impl Rule for Cyclic {
    fn needs(&self) -> Needs {
        Needs::sum()
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        let cycle = self.sync_updates + self.async_updates;
        let place = a.t % cycle;
        if place >= self.sync_updates {
            // x -= η g_i ;  x to worker i
            let decision = Decision::direct();
            let is_last = place + 1 == cycle;
            if is_last && self.enter == Enter::Cancel {
                // all other running jobs are cancelled and restart at x
                return decision.restart((0..self.n).filter(|i| *i != a.worker).collect());
            }
            return decision;
        }

        // s += g_i / n
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.n as f64 });
        self.answered += 1;
        if self.answered < self.n {
            return fold;
        }

        // x -= η s ;  s = 0 ;  x to all workers
        self.answered = 0;
        fold.step(0.0, Start::Everybody)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn phases_alternate() {
        let mut rule = rule("hybrid-cyclic:sync=1,async=1", 2);
        let decisions = [(0, 0), (1, 0), (1, 1), (0, 2)].map(|(i, t)| arrive(&mut *rule, i, t, t));
        assert_eq!(decisions.each_ref().map(|d| d.step.is_some()), [false, true, true, false]);
        assert_eq!(decisions[2].restart, [0]);
    }
}
