//! Hybrid SGD with a smooth switch: asynchronous at first, and then ever more gradients are gathered before a step.
//! ```text
//! s += g_i, u += 1 ;   if count >= K(u):  x -= η s/count  (or η s),  s = 0 ;   i goes on at once with the current x
//! step K = 1 + u/S   linear 1 + (n-1) u/U   exp n^{u/U}   sigmoid 1 + (n-1)/(1 + e^{-k(u/U - 1/2)})   loss √(F_0/F)
//! ```
//! Vora, Joshi, Patel 2024 (arXiv 2407.00101); `step`, with S = 300 and 500, is theirs, the other thresholds are ours. Nothing is
//! proved. Whether a flush is a mean or a sum and whether K ends at n is not stated; here K does. At its end it is K-batch-async
//! with K = n: fast workers keep weighing more.

use super::support::shared::Threshold;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "hybrid",
    summary: "hybrid SGD: asynchronous at first, then ever more gradients per step",
    paper: "Vora et al. 2024",
    source: include_str!("hybrid.rs"),
    cost: Cost { server: "2", worker: "0", copies: "K", biased: true },
    keys: &[
        Key { name: "threshold", default: "step", meaning: "step, linear, exp, sigmoid or loss" },
        Key { name: "step", default: "300", meaning: "S, gradients from one K to the next" },
        Key { name: "horizon", default: "10000", meaning: "U, gradients until K = n" },
        Key { name: "steepness", default: "10", meaning: "k of sigmoid" },
        Key { name: "flush", default: "mean", meaning: "mean or sum" },
    ],
    build: |keys, setting| {
        let (threshold, sums) =
            (Threshold::new(keys, setting)?, keys.choice("flush", &[("mean", false), ("sum", true)])?);
        Ok(Box::new(Hybrid { threshold, sums, count: 0 }))
    },
};

struct Hybrid {
    threshold: Threshold,
    sums: bool,
    count: usize,
}

impl Rule for Hybrid {
    fn needs(&self) -> Needs {
        Needs { loss: self.threshold.by_loss(), ..Needs::sum() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        self.count += 1;
        let fold = Decision::fold(Fold::Sum { scale: 1.0 }).start(Start::Sender);
        if self.count < self.threshold.next(a.loss) {
            return fold;
        }
        let count = std::mem::take(&mut self.count) as f64;
        fold.step(0.0, Start::Sender).scaled(if self.sums { 1.0 } else { 1.0 / count })
    }
}

#[cfg(test)]
#[test]
fn steps_become_rarer() {
    let mut rule = super::tests::rule("hybrid:step=2", 3);
    let steps = [0; 6].map(|i| super::tests::arrive(&mut *rule, i, 0, 0).step.map_or(0.0, |s| s.scale));
    assert_eq!(steps, [1.0, 0.0, 0.5, 0.0, 0.0, 1.0 / 3.0]);
}
