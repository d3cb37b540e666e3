//! AdaSync: K-async SGD whose K grows as the loss falls: fast updates first, exact updates later.
//!
//! ```text
//! on g_i:           s += g_i / K ;  worker i waits
//! after K answers:  x_{t+1} = x_t - η s ;  s = 0 ;  x_{t+1} to these K workers
//!                   K = K_0 √(F(x_0)/F(x_{t+1})), rounded, from 1 to n
//! ```
//!
//! F is the mean batch loss of the last complete block of arrivals: n arrivals per block, at least 8 and at
//! most 64. So F is some arrivals late. F(x_0) is the first such mean; the ratio is 1 until then. K shrinks
//! again if the loss rises.
//!
//! Dutta, Wang, Joshi 2020 (arXiv 2003.10579). K minimises the authors' error bound
//! A F(x) E[time](K)/(ηT) + B ησ²/K at every moment. Difference: we choose K at every update; they choose it at
//! fixed intervals in seconds.

use super::support::shared::LossRatio;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Keys, Needs, Rule, Setting, Start};
use crate::error::Result;

pub(super) const ENTRY: Entry = Entry {
    name: "adasync",
    summary: "AdaSync: K-async SGD with a K that grows as the loss falls",
    paper: "Dutta et al. 2020",
    source: include_str!("adasync.rs"),
    cost: Cost { server: "2", worker: "0", copies: "K", biased: true },
    keys: &[Key { name: "k0", default: "1", meaning: "K at the start" }],
    build: |keys, setting| Ok(Box::new(AdaSync::new(keys, setting, false)?)),
};

pub(super) struct AdaSync {
    n: usize,
    k0: usize,
    k: usize,
    /// Whether each gradient is divided by its staleness (SA-AdaSync).
    staleness_aware: bool,
    /// The workers that have answered since the last update.
    senders: Vec<usize>,
    ratio: LossRatio,
}

impl AdaSync {
    pub(super) fn new(keys: &Keys, setting: &Setting, staleness_aware: bool) -> Result<Self> {
        let n = setting.workers;
        let k0 = keys.count("k0", 1, 1..=n)?;
        Ok(AdaSync { n, k0, k: k0, staleness_aware, senders: Vec::new(), ratio: LossRatio::default() })
    }
}

impl Rule for AdaSync {
    fn needs(&self) -> Needs {
        Needs { loss: true, ..Needs::sum() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        self.senders.push(a.worker);
        // Asked at every arrival, because the first known loss becomes F(x_0).
        let ratio = self.ratio.of(a.loss);

        // s += g_i / K, and in SA-AdaSync  s += g_i / (K max(1, τ))
        let tau = if self.staleness_aware { a.staleness.max(1) } else { 1 };
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / (tau as f64 * self.k as f64) });
        if self.senders.len() < self.k {
            return fold;
        }

        // x -= η s ;  K = K_0 √(F(x_0)/F(x_{t+1})), rounded, from 1 to n
        self.k = (self.k0 as f64 * ratio.sqrt()).round().clamp(1.0, self.n as f64) as usize;
        fold.step(0.0, Start::These(std::mem::take(&mut self.senders)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rule;
    use super::*;

    #[test]
    fn k_grows_as_the_loss_falls() {
        let mut rule = rule("adasync", 3);
        let steps = |loss| rule.on_arrival(&Arrival { loss, ..Arrival::default() }).step.is_some();
        assert_eq!([Some(9.0), Some(2.0), None, None].map(steps), [true, true, false, true]);
    }
}
