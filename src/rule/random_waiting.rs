//! Random asynchronous SGD with waiting: step along the mean of b gradients, then b random workers get the new model.
//!
//! ```text
//! s += g_i / b ;   after b arrivals:  x_{t+1} = x_t - η s ,  s = 0 ,  x_{t+1} to b draws k ~ Uni{1..n}
//! ```
//!
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", Algorithm 5), which is FedBuff with one local step. Proved (bounded gradients,
//! 30 L η max(b, n) <= b): the rate of random ASGD with noise and ζ² terms divided by b, no floor. Draws are with replacement;
//! a busy worker queues. The paper fixes no b; ours is half the workers.

use super::support::draw::pick;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "random-waiting",
    summary: "random ASGD with waiting: step along the mean of b gradients, b random workers go on",
    paper: "Islamov et al. 2024",
    source: include_str!("random_waiting.rs"),
    cost: Cost { server: "2", worker: "0 + queue", copies: "b", biased: false },
    keys: &[Key { name: "b", default: "half the workers", meaning: "gradients per update" }],
    build: |keys, setting| {
        let n = setting.workers;
        Ok(Box::new(RandomWaiting { n, seed: setting.seed, b: keys.count("b", n.div_ceil(2), 1..=n)?, received: 0 }))
    },
};

struct RandomWaiting {
    n: usize,
    seed: u64,
    b: usize,
    received: u64,
}

impl Rule for RandomWaiting {
    fn needs(&self) -> Needs {
        Needs::sum_of(self.b)
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        self.received += 1;
        let (fold, b) = (Decision::fold(Fold::Sum { scale: 1.0 / self.b as f64 }), self.b as u64);
        if !self.received.is_multiple_of(b) {
            return fold;
        }
        fold.step(0.0, Start::These((0..b).map(|k| pick(self.seed, self.received - k, self.n)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn as_many_are_drawn_as_have_answered() {
        let mut rule = rule("random-waiting:b=3", 4);
        let last = (0..3).map(|i| arrive(&mut *rule, i, 0, 0)).last().unwrap();
        assert!(last.step.is_some() && matches!(last.start, Start::These(w) if w.len() == 3));
    }
}
