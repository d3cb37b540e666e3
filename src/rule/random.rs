//! Random (uniform) asynchronous SGD: every gradient is a step. The new model goes to a random worker.
//!
//! ```text
//! on g_i, computed at x_{t-τ}:  x_{t+1} = x_t - η g_i(x_{t-τ}) ;  x_{t+1} to a worker k ~ Uni{1..n}
//! ```
//!
//! A busy worker queues the job with its snapshot. Every worker gets the same number of jobs on average, so the
//! slowest worker limits the pace.
//!
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", Algorithm 4); Koloskova, Stich, Jaggi 2022. Proved (bounded
//! gradients, 30 L η n <= 1): no error floor; ζ² enters only as (L F0 ζ²/T)^{1/2}.
//!
//! Difference: the authors' public code evaluates a new job on the data of the worker that just finished.
//! Here, as in the paper, a job uses the data of its own worker and the snapshot of the version at which it
//! was assigned.

use super::support::draw::pick;
use super::{Arrival, Cost, Decision, Entry, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "random",
    summary: "uniform asynchronous SGD: step along every gradient, send the new model to a random worker",
    paper: "Koloskova et al. 2022; Islamov et al. 2024",
    source: include_str!("random.rs"),
    cost: Cost { server: "1", worker: "0 + queue", copies: "1", biased: false },
    keys: &[],
    build: |_, setting| Ok(Box::new(Random { n: setting.workers, seed: setting.seed, draws: 0 })),
};

struct Random {
    n: usize,
    seed: u64,
    /// Number of the latest random draw.
    draws: u64,
}

impl Rule for Random {
    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        // x -= η g_i ;  x to k ~ Uni{1..n}
        self.draws += 1;
        let worker = pick(self.seed, self.draws, self.n);
        Decision::direct().start(Start::These(vec![worker]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn any_worker_is_drawn_for_any_sender() {
        let mut rule = rule("random", 4);
        let targets: Vec<_> = (0..40).map(|t| arrive(&mut *rule, 0, t, t).start).collect();
        assert!((0..4).all(|k| targets.contains(&Start::These(vec![k]))));
    }
}
