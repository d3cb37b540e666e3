//! FedBuff: the server collects b model differences, weights them by staleness, and steps along their mean.
//!
//! ```text
//! worker i:  q steps  y -= η_l g_i(y)  from y = x_v ;  Δ_i = x_v - y
//! server:    on Δ_i with τ = t - v:  s += Δ_i (1+τ)^-exponent      (exponent = 0.5: Δ_i/√(1+τ))
//!            after b differences:    x -= η s/b ;  s = 0
//!            x to worker i at once, after every arrival
//! ```
//!
//! η is --lr and η_l is `local_lr`. With q = 1 and without `local_lr`, Δ_i is the gradient itself. b = 10 as
//! in the paper.
//!
//! Nguyen et al. 2022 (AISTATS). Proved: O(1/√(Tqb)) with bounded heterogeneity and staleness. Δ_i is the
//! difference from the model that the worker *received*, not from the current model. The sender continues at
//! once, so all n workers are always busy.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Local, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "fedbuff",
    summary: "FedBuff: the mean of b model differences, weighted by staleness",
    paper: "Nguyen et al. 2022",
    source: include_str!("fedbuff.rs"),
    cost: Cost { server: "2", worker: "0", copies: "b", biased: true },
    keys: &[
        Key { name: "b", default: "10", meaning: "differences per update" },
        Key { name: "q", default: "1", meaning: "local steps per job" },
        Key { name: "local_lr", default: "1 with q = 1", meaning: "η_l of the local steps; needed for q > 1" },
        Key { name: "exponent", default: "0.5", meaning: "exponent of the staleness weight (1+τ)^-exponent" },
    ],
    build: |keys, _| {
        let (local, factor) = keys.difference()?;
        let b = keys.count("b", 10, 1..=1 << 20)?;
        let exponent = keys.number("exponent", 0.5, 0.0..=10.0)?;
        Ok(Box::new(FedBuff { local, factor, b, exponent, count: 0 }))
    },
};

struct FedBuff {
    local: Local,
    /// η_l: turns the sum of a job's directions into Δ_i.
    factor: f64,
    b: usize,
    exponent: f64,
    /// Differences since the last update.
    count: usize,
}

impl Rule for FedBuff {
    fn needs(&self) -> Needs {
        Needs { local: self.local, ..Needs::sum_of(self.b) }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        // s += Δ_i (1+τ)^-exponent / b
        let weight = (1.0 + a.staleness as f64).powf(-self.exponent);
        let fold = Decision::fold(Fold::Sum { scale: self.factor * weight / self.b as f64 }).start(Start::Sender);
        self.count += 1;
        if self.count < self.b {
            return fold;
        }

        // x -= η s ;  s = 0
        self.count = 0;
        fold.step(0.0, Start::Sender)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};
    use super::*;

    #[test]
    fn late_differences_weigh_less() {
        let mut rule = rule("fedbuff:b=2,q=3,local_lr=0.5", 4);
        assert_eq!(arrive(&mut *rule, 0, 0, 3).fold, Fold::Sum { scale: 0.125 });
        assert!(arrive(&mut *rule, 1, 3, 3).step.is_some());
    }
}
