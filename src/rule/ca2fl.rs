//! CA²FL: FedBuff with cached update calibration: all workers' cached gradients correct the mean of b new ones.
//!
//! ```text
//! after b answers, from the set of workers S:
//!   v = h + (1/b) Σ_{i in S} (g_i - row_i) ;  x -= η v ;  x to S
//!   row_i = g_i for i in S ;  h = (1/n) Σ row_j, after the step
//! ```
//!
//! All rows and h begin at 0. A worker of S waits until the update, so S contains no worker twice.
//!
//! Wang, Cao, Wu, Chen, Chen 2024 ("Tackling the data heterogeneity in asynchronous federated learning with
//! cached update calibration", ICLR). Proved: a rate without FedBuff's term for the joint effect of delay and
//! heterogeneity. With b = 1 the rule is SAGA over workers; with b = n it is synchronous SGD. Here a job is
//! one gradient, not several local steps.
//!
//! h is kept as h += (b/n)(v - h), which equals the mean of the rows. It is recomputed from the rows every
//! 4,096 arrivals, against rounding drift.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "ca2fl",
    summary: "CA²FL: the mean of b gradients, corrected by all workers' cached gradients",
    paper: "Wang et al. 2024",
    source: include_str!("ca2fl.rs"),
    cost: Cost { server: "3", worker: "1", copies: "b", biased: false },
    keys: &[Key { name: "b", default: "half the workers", meaning: "gradients per update" }],
    build: |keys, setting| {
        let n = setting.workers;
        let b = keys.count("b", n.div_ceil(2), 1..=n)?;
        Ok(Box::new(Ca2fl { n, b, senders: Vec::new() }))
    },
};

struct Ca2fl {
    n: usize,
    b: usize,
    /// S: the workers that have answered since the last update.
    senders: Vec<usize>,
}

impl Rule for Ca2fl {
    fn needs(&self) -> Needs {
        let derived = Some(1.0 / self.n as f64);
        let synchronous = self.b == self.n;
        Needs { base: true, derived, synchronous, gradients: self.b, ..Needs::table() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        self.senders.push(a.worker);

        // s += (g_i - row_i)/b ;  row_i = g_i
        let fold = Decision::fold(Fold::row(1.0 / self.b as f64));
        if self.senders.len() < self.b {
            return fold;
        }

        // v = h + s ;  x -= η v ;  h += (b/n) s ;  s = 0
        let follow = Some(self.b as f64 / self.n as f64);
        let step = Step { scale: 1.0, rate: 1.0, keep: 0.0, follow };
        let senders = std::mem::take(&mut self.senders);
        Decision { step: Some(step), ..fold }.start(Start::These(senders))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn h_moves_by_b_over_n_of_the_sum() {
        let mut rule = rule("ca2fl:b=1", 4);
        assert_eq!(arrive(&mut *rule, 2, 0, 0).step.unwrap().follow, Some(0.25));
    }
}
