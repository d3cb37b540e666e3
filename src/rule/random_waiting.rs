//! Random asynchronous SGD with waiting: step along the mean of b gradients, then send the new model to b
//! random workers.
//!
//! ```text
//! on g_i:            s += g_i / b
//! after b arrivals:  x_{t+1} = x_t - η s ;  s = 0 ;  x_{t+1} to b workers, each drawn as k ~ Uni{1..n}
//! ```
//!
//! Draws are with replacement. A busy worker queues the job with its snapshot.
//!
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", Algorithm 5), which is FedBuff with one local step. Proved
//! (bounded gradients, 30 L η max(b, n) <= b): the rate of random asynchronous SGD with the noise and ζ²
//! terms divided by b, and no error floor. The paper fixes no b; our default is n/2, rounded up.

use super::support::draw::pick;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "random-waiting",
    summary: "random asynchronous SGD with waiting: the mean of b gradients, then b random workers start",
    paper: "Islamov et al. 2024",
    source: include_str!("random_waiting.rs"),
    cost: Cost { server: "2", worker: "0 + queue", copies: "b", biased: false },
    keys: &[Key { name: "b", default: "half the workers", meaning: "gradients per update" }],
    build: |keys, setting| {
        let n = setting.workers;
        let b = keys.count("b", n.div_ceil(2), 1..=n)?;
        Ok(Box::new(RandomWaiting { n, seed: setting.seed, b, received: 0 }))
    },
};

struct RandomWaiting {
    n: usize,
    seed: u64,
    b: usize,
    /// Number of gradients received.
    received: u64,
}

impl Rule for RandomWaiting {
    fn needs(&self) -> Needs {
        Needs::sum_of(self.b)
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        // s += g_i / b
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.b as f64 });
        self.received += 1;
        let b = self.b as u64;
        if !self.received.is_multiple_of(b) {
            return fold;
        }

        // x -= η s ;  s = 0 ;  x to b workers k ~ Uni{1..n}
        let workers = (0..b).map(|k| pick(self.seed, self.received - k, self.n)).collect();
        fold.step(0.0, Start::These(workers))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn b_workers_start_after_b_answers() {
        let mut rule = rule("random-waiting:b=3", 4);
        let last = (0..3).map(|i| arrive(&mut *rule, i, 0, 0)).last().unwrap();
        assert!(last.step.is_some() && matches!(last.start, Start::These(w) if w.len() == 3));
    }
}
