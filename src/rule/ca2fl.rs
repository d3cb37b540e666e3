//! CA²FL: FedBuff with cached update calibration.
//!
//! ```text
//! v = h + (1/b) Σ_{i in S} (g_i - row_i) ;  x -= η v ;  row_i = g_i for i in S ;  h = mean of all rows, after the step
//! ```
//!
//! Wang, Cao, Wu, Chen, Chen 2024 ("Tackling the data heterogeneity in asynchronous federated learning with cached update
//! calibration", ICLR). Proved: a rate without the joint effect of delay and heterogeneity that FedBuff has. With b = 1 it is
//! SAGA over workers, with b = n synchronous SGD. One local step here; senders wait for the update, so that S has no worker
//! twice. h is kept as h += (b/n) (v - h), which is the same number, and re-derived from the rows every so often.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "ca2fl",
    summary: "CA²FL: the mean of b gradients, calibrated by everybody's cached ones",
    paper: "Wang et al. 2024",
    source: include_str!("ca2fl.rs"),
    cost: Cost { server: "3", worker: "1", copies: "b", biased: false },
    keys: &[Key { name: "b", default: "half the workers", meaning: "gradients per update" }],
    build: |keys, setting| {
        let n = setting.workers;
        Ok(Box::new(Ca2fl { n, b: keys.count("b", n.div_ceil(2), 1..=n)?, senders: Vec::new() }))
    },
};

struct Ca2fl {
    n: usize,
    b: usize,
    senders: Vec<usize>,
}

impl Rule for Ca2fl {
    fn needs(&self) -> Needs {
        let derived = Some(1.0 / self.n as f64);
        Needs { base: true, derived, synchronous: self.b == self.n, gradients: self.b, ..Needs::table() }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        self.senders.push(arrival.worker);
        let fold = Decision::fold(Fold::row(1.0 / self.b as f64));
        if self.senders.len() < self.b {
            return fold;
        }
        let step = Step { scale: 1.0, rate: 1.0, keep: 0.0, follow: Some(self.b as f64 / self.n as f64) };
        Decision { step: Some(step), ..fold }.start(Start::These(self.senders.drain(..).collect()))
    }
}

#[cfg(test)]
#[test]
fn the_base_follows_by_b_over_n() {
    let mut rule = super::tests::rule("ca2fl:b=1", 4);
    assert_eq!(super::tests::arrive(&mut *rule, 2, 0, 0).step.unwrap().follow, Some(0.25));
}
