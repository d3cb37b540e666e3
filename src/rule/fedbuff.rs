//! FedBuff: the server gathers b model differences, each weighted by its staleness, and steps along their mean.
//!
//! ```text
//! worker: q steps y -= η_l g_i(y) from y = x_v ;  Δ_i = x_v - y     server: s += Δ_i/√(1+τ) ;  after b:  x -= η s/b,  s = 0 ;  x to i
//! ```
//!
//! Nguyen et al. 2022 (AISTATS). Proved: O(1/√(Tqb)) with bounded heterogeneity and staleness. η is --lr, η_l `local_lr`; with
//! q = 1 and no local_lr, Δ_i is the gradient itself. The difference is to the model *received*. The sender goes on at once
//! with the current model, so that n are always at work. b = 10 as in the paper.

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
        Key { name: "exponent", default: "0.5", meaning: "of the weight (1+τ)^-exponent" },
    ],
    build: |keys, _| {
        let ((local, factor), b) = (keys.difference()?, keys.count("b", 10, 1..=1 << 20)?);
        Ok(Box::new(FedBuff { local, factor, b, exponent: keys.number("exponent", 0.5, 0.0..=10.0)?, count: 0 }))
    },
};

struct FedBuff {
    local: Local,
    factor: f64,
    b: usize,
    exponent: f64,
    count: usize,
}

impl Rule for FedBuff {
    fn needs(&self) -> Needs {
        Needs { local: self.local, ..Needs::sum_of(self.b) }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        let weight = (1.0 + a.staleness as f64).powf(-self.exponent);
        let fold = Decision::fold(Fold::Sum { scale: self.factor * weight / self.b as f64 }).start(Start::Sender);
        self.count = (self.count + 1) % self.b;
        if self.count == 0 { fold.step(0.0, Start::Sender) } else { fold }
    }
}

#[cfg(test)]
#[test]
fn late_differences_weigh_less() {
    let mut rule = super::tests::rule("fedbuff:b=2,q=3,local_lr=0.5", 4);
    assert_eq!(super::tests::arrive(&mut *rule, 0, 0, 3).fold, Fold::Sum { scale: 0.125 });
    assert!(super::tests::arrive(&mut *rule, 1, 3, 3).step.is_some());
}
