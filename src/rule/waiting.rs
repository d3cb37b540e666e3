//! Pure asynchronous SGD with waiting: step along the mean of b gradients. Their senders wait and continue
//! together.
//!
//! ```text
//! on g_i:           s += g_i / b ;  worker i waits
//! after b answers:  x_{t+1} = x_t - η s ;  s = 0 ;  x_{t+1} to these b workers
//! ```
//!
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", Algorithm 3). Proved: the rate of pure asynchronous SGD with
//! the noise term divided by b; the error floor of order ζ² remains. The paper fixes no b; our default is
//! n/2, rounded up.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "waiting",
    summary: "pure asynchronous SGD with waiting: step along the mean of b gradients, their senders wait",
    paper: "Islamov et al. 2024",
    source: include_str!("waiting.rs"),
    cost: Cost { server: "2", worker: "0", copies: "b", biased: true },
    keys: &[Key { name: "b", default: "half the workers", meaning: "gradients per update" }],
    build: |keys, setting| {
        let n = setting.workers;
        let b = keys.count("b", n.div_ceil(2), 1..=n)?;
        Ok(Box::new(Waiting::new(n, b)))
    },
};

/// Waits for `b` answers of `n` workers. K-async SGD is the same rule with b = K.
pub(super) struct Waiting {
    n: usize,
    b: usize,
    /// The workers that have answered since the last update.
    senders: Vec<usize>,
}

impl Waiting {
    pub(super) fn new(n: usize, b: usize) -> Self {
        Waiting { n, b, senders: Vec::with_capacity(b) }
    }
}

impl Rule for Waiting {
    fn needs(&self) -> Needs {
        let synchronous = self.b == self.n;
        Needs { synchronous, ..Needs::sum_of(self.b) }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        self.senders.push(arrival.worker);

        // s += g_i / b
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.b as f64 });
        if self.senders.len() < self.b {
            return fold;
        }

        // x -= η s ;  s = 0 ;  x to these b workers
        fold.step(0.0, Start::These(self.senders.drain(..).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn workers_that_waited_continue_together() {
        let mut rule = rule("waiting:b=2", 3);
        assert_eq!(arrive(&mut *rule, 2, 0, 0).start, Start::Nobody);
        assert_eq!(arrive(&mut *rule, 0, 0, 0).start, Start::These(vec![2, 0]));
    }
}
