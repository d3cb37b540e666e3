//! Hybrid SGD with a smooth switch: asynchronous SGD at first, then more and more gradients per step.
//!
//! ```text
//! on g_i:  s += g_i ;  count += 1 ;  u += 1
//!          if count >= K(u):  x -= η s/count  (flush=sum: x -= η s) ;  s = 0 ;  count = 0
//!          the current x to worker i
//! K(u):    step 1 + floor(u/S)        linear ceil(1 + (n-1) u/U)        exp ceil(n^{u/U})
//!          sigmoid 1 + floor((n-1)/(1 + e^{-k(u/U - 1/2)}))             loss √(F_0/F), rounded
//! ```
//!
//! K is from 1 to n and never decreases. F is the mean batch loss of a recent block of arrivals, F_0 the
//! first one.
//!
//! Vora, Joshi, Patel 2024 (arXiv 2407.00101). `step` with S = 300 and 500 is theirs; the other thresholds
//! are ours. Nothing is proved. The paper does not state whether an update uses the mean or the sum, nor
//! whether K ends at n; here it does. At its end the rule is K-batch-async with K = n, so fast workers still
//! have a larger weight.

use super::support::shared::Threshold;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "hybrid",
    summary: "hybrid SGD: asynchronous at first, then more and more gradients per step",
    paper: "Vora et al. 2024",
    source: include_str!("hybrid.rs"),
    cost: Cost { server: "2", worker: "0", copies: "K", biased: true },
    keys: &[
        Key { name: "threshold", default: "step", meaning: "step, linear, exp, sigmoid or loss" },
        Key { name: "step", default: "300", meaning: "S, gradients from one K to the next" },
        Key { name: "horizon", default: "10000", meaning: "U, gradients until K = n" },
        Key { name: "steepness", default: "10", meaning: "k of sigmoid" },
        Key { name: "flush", default: "mean", meaning: "step along the mean or the sum of the gradients" },
    ],
    build: |keys, setting| {
        let threshold = Threshold::new(keys, setting)?;
        let flush = keys.choice("flush", &[("mean", Flush::Mean), ("sum", Flush::Sum)])?;
        Ok(Box::new(Hybrid { threshold, flush, count: 0 }))
    },
};

/// The direction of an update.
#[derive(Clone, Copy)]
enum Flush {
    /// s/count.
    Mean,
    /// s.
    Sum,
}

struct Hybrid {
    threshold: Threshold,
    flush: Flush,
    /// Number of gradients since the last update.
    count: usize,
}

impl Rule for Hybrid {
    fn needs(&self) -> Needs {
        Needs { loss: self.threshold.by_loss(), ..Needs::sum() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        // s += g_i ;  count += 1 ;  u += 1 ;  x to worker i
        let fold = Decision::fold(Fold::Sum { scale: 1.0 }).start(Start::Sender);
        self.count += 1;
        let k = self.threshold.next(a.loss);
        if self.count < k {
            return fold;
        }

        // x -= η s/count, or x -= η s ;  s = 0 ;  x to worker i
        let count = std::mem::take(&mut self.count) as f64;
        let scale = match self.flush {
            Flush::Mean => 1.0 / count,
            Flush::Sum => 1.0,
        };
        fold.step(0.0, Start::Sender).scaled(scale)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn the_number_of_gradients_per_step_grows() {
        let mut rule = rule("hybrid:step=2", 3);
        let scales = [0; 6].map(|i| arrive(&mut *rule, i, 0, 0).step.map_or(0.0, |s| s.scale));
        assert_eq!(scales, [1.0, 0.0, 0.5, 0.0, 0.0, 1.0 / 3.0]);
    }
}
