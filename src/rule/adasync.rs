//! AdaSync: K-async whose K grows as the loss falls: quick steps first, exact steps later.
//! ```text
//! s += g_i / K  for K distinct workers, who wait ;   x_{t+1} = x_t - η s ;   K = K_0 √(F(x_0)/F(x_{t+1})), rounded, 1 to n
//! ```
//! Dutta, Wang, Joshi 2020 (arXiv 2003.10579): K minimises the bound A F(x) E[time](K)/(ηT) + B ησ²/K at every moment. F is the
//! mean of recent batch losses, known some arrivals late; K is chosen anew at every update (theirs: every so many seconds).

use super::support::shared::LossRatio;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Keys, Needs, Rule, Setting, Start};
use crate::error::Result;

pub(super) const ENTRY: Entry = Entry {
    name: "adasync",
    summary: "AdaSync: K-async with K growing as the loss falls",
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
    aware: bool, // of staleness: gradients count 1/τ (SA-AdaSync)
    senders: Vec<usize>,
    ratio: LossRatio,
}

impl AdaSync {
    pub(super) fn new(keys: &Keys, setting: &Setting, aware: bool) -> Result<Self> {
        let (n, k) = (setting.workers, keys.count("k0", 1, 1..=setting.workers)?);
        Ok(AdaSync { n, k0: k, k, aware, senders: Vec::new(), ratio: LossRatio::default() })
    }
}

impl Rule for AdaSync {
    fn needs(&self) -> Needs {
        Needs { loss: true, ..Needs::sum() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        self.senders.push(a.worker);
        let (ratio, tau) = (self.ratio.of(a.loss), if self.aware { a.staleness.max(1) } else { 1 });
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / (tau as f64 * self.k as f64) });
        if self.senders.len() < self.k {
            return fold;
        }
        self.k = (self.k0 as f64 * ratio.sqrt()).round().clamp(1.0, self.n as f64) as usize;
        fold.step(0.0, Start::These(std::mem::take(&mut self.senders)))
    }
}

#[cfg(test)]
#[test]
fn k_grows_as_the_loss_falls() {
    let mut rule = super::tests::rule("adasync", 3);
    let steps = |loss| rule.on_arrival(&Arrival { loss, ..Arrival::default() }).step.is_some();
    assert_eq!([Some(9.0), Some(2.0), None, None].map(steps), [true, true, false, true]);
}
