//! Shuffled asynchronous SGD: every gradient is a step. New models go to the workers in the order of a
//! permutation.
//!
//! ```text
//! on g_i, computed at x_{t-τ}:  x_{t+1} = x_t - η g_i(x_{t-τ}) ;  x_{t+1} to worker χ(t mod n)
//! every n updates:              a new permutation χ   (once: the same permutation for the whole run)
//! ```
//!
//! A busy worker queues the job with its snapshot and begins it as soon as it is free.
//!
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", Algorithm 6). Proved (bounded gradients, 30 L η n <= 1): no
//! error floor; ζ enters as (L F0 √n ζ/T)^{2/3}, which is better than random asynchronous SGD if ζ >= √(nε).
//!
//! Difference: the authors' public code leaves a worker idle where we queue the job.

use super::support::draw::WorkerOrder;
use super::{Arrival, Cost, Decision, Entry, Key, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "shuffled",
    summary: "shuffled asynchronous SGD: step along every gradient, send new models in shuffled order",
    paper: "Islamov et al. 2024",
    source: include_str!("shuffled.rs"),
    cost: Cost { server: "1", worker: "0 + queue", copies: "1", biased: false },
    keys: &[
        Key { name: "once", default: "false", meaning: "true: one permutation for the whole run" },
        Key { name: "order", default: "random", meaning: "a fixed permutation such as 2-0-1" },
    ],
    build: |keys, setting| {
        let order = WorkerOrder::new(keys, setting)?;
        Ok(Box::new(Shuffled { order }))
    },
};

struct Shuffled {
    /// χ.
    order: WorkerOrder,
}

impl Rule for Shuffled {
    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        // x -= η g_i ;  x to worker χ(t mod n)
        let worker = self.order.next_worker();
        Decision::direct().start(Start::These(vec![worker]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::*;

    #[test]
    fn every_worker_gets_one_model_per_round() {
        let mut rule = rule("shuffled", 3);
        let targets: Vec<_> = (0..30).map(|t| arrive(&mut *rule, 0, t, t).start).collect();
        assert!(targets.chunks(3).all(|round| round[0] != round[1] && round[1] != round[2] && round[0] != round[2]));
    }
}
