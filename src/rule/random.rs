//! Random (uniform) asynchronous SGD: every gradient is a step; the new model goes to a worker drawn at random.
//!
//! ```text
//! x_{t+1} = x_t - η g_i(x_{t-τ}) ;   x_{t+1} to k ~ Uni{1..n}, behind what k has to do already
//! ```
//!
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", Algorithm 4); Koloskova, Stich, Jaggi 2022. Proved (bounded gradients,
//! 30 L η n <= 1): no floor; ζ² enters only as (L F0 ζ²/T)^{1/2}. Everybody gets the same number of jobs, so the slowest
//! worker caps the pace. The authors' public code evaluates a new job on the data of the worker that just finished; here, as
//! in the paper, a job uses its own worker's data and the snapshot of the version at which it was assigned.

use super::support::draw::pick;
use super::{Arrival, Cost, Decision, Entry, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "random",
    summary: "uniform ASGD: step along every gradient, the new model goes to a random worker",
    paper: "Koloskova et al. 2022; Islamov et al. 2024",
    source: include_str!("random.rs"),
    cost: Cost { server: "1", worker: "0 + queue", copies: "1", biased: false },
    keys: &[],
    build: |_, setting| Ok(Box::new(Random { n: setting.workers, seed: setting.seed, drawn: 0 })),
};

struct Random {
    n: usize,
    seed: u64,
    drawn: u64,
}

impl Rule for Random {
    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        self.drawn += 1;
        Decision::direct().start(Start::These(vec![pick(self.seed, self.drawn, self.n)]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn one_worker_is_drawn_whoever_answered() {
        let mut rule = rule("random", 4);
        let targets: Vec<_> = (0..40).map(|t| arrive(&mut *rule, 0, t, t).start).collect();
        assert!((0..4).all(|k| targets.contains(&Start::These(vec![k]))));
    }
}
