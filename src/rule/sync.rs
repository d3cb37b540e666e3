//! Synchronous SGD: wait for all workers, step along the mean of their gradients, send the new model to all.
//!
//! ```text
//! on g_i:           s += g_i / n ;  worker i waits
//! after n answers:  x_{t+1} = x_t - η s ;  s = 0 ;  x_{t+1} to all workers
//! ```
//!
//! The baseline of all papers in the field (for example Dekel et al. 2012, "Optimal distributed online
//! prediction using mini-batches"). Proved: rate O(1/√(nT)) for any heterogeneity, at the pace of the slowest
//! worker. Every worker has the weight 1/n, whatever the size of its part of the data.

use super::{Arrival, Cost, Decision, Entry, Fold, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "sync",
    summary: "synchronous SGD: wait for all workers, step along their mean",
    paper: "Dekel et al. 2012",
    source: include_str!("sync.rs"),
    cost: Cost { server: "2", worker: "0", copies: "n", biased: false },
    keys: &[],
    build: |_, setting| Ok(Box::new(Sync { n: setting.workers, answered: 0 })),
};

struct Sync {
    n: usize,
    /// Number of workers that have answered since the last update.
    answered: usize,
}

impl Rule for Sync {
    fn needs(&self) -> Needs {
        Needs { synchronous: true, ..Needs::sum() }
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
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
    use super::super::{Start, tests::*};

    #[test]
    fn it_steps_once_all_have_answered() {
        let mut rule = rule("sync", 2);
        assert!(arrive(&mut *rule, 1, 0, 0).step.is_none());
        let last = arrive(&mut *rule, 0, 0, 0);
        assert!(last.step.is_some_and(|s| s.keep == 0.0) && last.start == Start::Everybody);
    }
}
