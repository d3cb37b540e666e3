//! Mini-batch SGD: b random workers compute at the same model; the server steps along the mean of their
//! gradients.
//!
//! ```text
//! x_t to b workers, each drawn as k ~ Uni{1..n}
//! on g_k:           s += g_k / b
//! after b answers:  x_{t+1} = x_t - η s ;  s = 0 ;  x_{t+1} to b new draws
//! ```
//!
//! Draws are with replacement. A worker that is drawn twice computes two gradients.
//!
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", section on known methods as special cases). The paper's data
//! points are the workers here. Proved with 20 L η <= 1: L F0/T + (L F0 ζ²/(Tb))^{1/2}. The paper fixes no b;
//! our default is n.

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
        let n = setting.workers;
        let b = keys.count("b", n, 1..=1 << 20)?;
        Ok(Box::new(Minibatch { n, seed: setting.seed, b, received: 0 }))
    },
};

struct Minibatch {
    n: usize,
    seed: u64,
    b: usize,
    /// Number of gradients received.
    received: usize,
}

impl Minibatch {
    /// The b random workers of the next update.
    fn draw(&self) -> Vec<usize> {
        (0..self.b).map(|k| pick(self.seed, (self.received + k) as u64, self.n)).collect()
    }
}

impl Rule for Minibatch {
    fn needs(&self) -> Needs {
        Needs { synchronous: true, ..Needs::sum() }
    }

    fn begin(&mut self, _: usize) -> Vec<usize> {
        self.draw()
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        // s += g_k / b
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.b as f64 });
        self.received += 1;
        if !self.received.is_multiple_of(self.b) {
            return fold;
        }

        // x -= η s ;  s = 0 ;  x to b new draws
        fold.step(0.0, Start::These(self.draw()))
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
