//! Synchronous SGD: wait for all, average, broadcast.
//!
//! ```text
//! s += g_i / n  for each of the n answers at x_t ;   x_{t+1} = x_t - η s ;   s = 0 ;   x_{t+1} to all
//! ```
//!
//! The baseline of every paper of the field (for instance Dekel et al. 2012, "Optimal distributed online prediction using
//! mini-batches"). Every worker weighs 1/n whatever the size of its part. Proved: rate O(1/√(nT)) under any heterogeneity,
//! at the pace of the slowest worker.

use super::{Arrival, Cost, Decision, Entry, Fold, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "sync",
    summary: "synchronous SGD: wait for all workers, step along their mean",
    paper: "Dekel et al. 2012",
    source: include_str!("sync.rs"),
    cost: Cost { server: "2", worker: "0", copies: "n", biased: false },
    keys: &[],
    build: |_, setting| Ok(Box::new(Sync { workers: setting.workers, answered: 0 })),
};

struct Sync {
    workers: usize,
    answered: usize,
}

impl Rule for Sync {
    fn needs(&self) -> Needs {
        Needs { synchronous: true, ..Needs::sum() }
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.workers as f64 });
        self.answered += 1;
        if self.answered < self.workers {
            return fold;
        }
        self.answered = 0;
        fold.step(0.0, Start::Everybody)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn it_steps_once_all_have_answered() {
        let mut rule = rule("sync", 2);
        assert!(arrive(&mut *rule, 1, 0, 0).step.is_none());
        let last = arrive(&mut *rule, 0, 0, 0);
        assert!(last.step.is_some_and(|s| s.keep == 0.0) && last.start == Start::Everybody);
    }
}
