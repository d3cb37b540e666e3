//! Mini-batch SGD: b workers drawn at random compute at the same model, and the server steps along their mean.
//!
//! ```text
//! x_t to b draws k ~ Uni{1..n} ;   s += g_k / b ;   after all b:  x_{t+1} = x_t - η s ,  s = 0
//! ```
//!
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", section on known methods as special cases): data points are the workers. Proved
//! with 20 L η <= 1: L F0/T + (L F0 ζ²/(Tb))^{1/2}. Draws are with replacement, so a worker that is drawn twice computes twice.
//! The paper fixes no b; ours is the number of workers.

use super::support::draw::pick;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "minibatch",
    summary: "mini-batch SGD: b random workers at the same model, step along their mean",
    paper: "Islamov et al. 2024",
    source: include_str!("minibatch.rs"),
    cost: Cost { server: "2", worker: "0", copies: "b", biased: false },
    keys: &[Key { name: "b", default: "all workers", meaning: "draws per update" }],
    build: |keys, setting| {
        let b = keys.count("b", setting.workers, 1..=1 << 20)?;
        Ok(Box::new(Minibatch { n: setting.workers, seed: setting.seed, b, received: 0 }))
    },
};

struct Minibatch {
    n: usize,
    seed: u64,
    b: usize,
    received: usize,
}

impl Rule for Minibatch {
    fn needs(&self) -> Needs {
        Needs { synchronous: true, ..Needs::sum() }
    }

    fn begin(&mut self, _: usize) -> Vec<usize> {
        (0..self.b).map(|k| pick(self.seed, (self.received + k) as u64, self.n)).collect()
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        self.received += 1;
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.b as f64 });
        if self.received.is_multiple_of(self.b) { fold.step(0.0, Start::These(self.begin(self.n))) } else { fold }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::*;

    #[test]
    fn it_steps_when_all_draws_have_answered() {
        let mut rule = rule("minibatch:b=5", 3);
        assert_eq!(rule.begin(3).len(), 5);
        assert_eq!((0..10).filter(|_| arrive(&mut *rule, 0, 0, 0).step.is_some()).count(), 2);
    }
}
