//! Malenia SGD: everybody computes at the current model until all are heard well enough; step along the mean of their means.
//!
//! ```text
//! collect B_i gradients of each i at x_t until  ((1/n) Σ 1/B_i)^-1 > S/n ;   x_{t+1} = x_t - η (1/n) Σ_i (1/B_i) Σ_j g_ij ;
//! x_{t+1} to all, unfinished work is given up
//! ```
//!
//! Tyurin, Richtárik 2023. Proved: optimal time for heterogeneous data, s_max LΔ/ε + mean(s) σ²LΔ/(nε²); unbiased. Each
//! worker's mean is kept as it grows (row += (g - row)/B), so an arrival costs one update whatever n. Without `s` it stops
//! once everybody has answered.

use super::support::crowd::Tally;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "malenia",
    summary: "Malenia SGD: the mean of all workers' means at the current model",
    paper: "Tyurin & Richtárik 2023",
    source: include_str!("malenia.rs"),
    cost: Cost { server: "2", worker: "1", copies: "n", biased: false },
    keys: &[Key { name: "s", default: "everybody once", meaning: "the harmonic mean of the B_i is to exceed s/n" }],
    build: |keys, setting| {
        let (n, s) = (setting.workers, keys.count("s", 0, 1..=1 << 20)?);
        Ok(Box::new(Malenia { bound: s as f64 / n as f64, batches: Tally::new(n) }))
    },
};

struct Malenia {
    bound: f64,
    batches: Tally,
}

impl Rule for Malenia {
    fn needs(&self) -> Needs {
        Needs { synchronous: true, ..Needs::table() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        let (n, b) = (self.batches.workers(), self.batches.add(a.worker));
        let row = Fold::Row { table: 0, mix: 1.0 / b as f64, scale: 1.0 / n as f64, forget: b == 1 };
        if !self.batches.exceeds(self.bound) {
            return Decision::fold(row).start(Start::Sender);
        }
        self.batches.clear();
        Decision::fold(row).step(0.0, Start::Sender).restart((0..n).filter(|i| *i != a.worker).collect())
    }
}

#[cfg(test)]
#[test]
fn it_waits_until_the_harmonic_mean_is_large_enough() {
    let mut rule = super::tests::rule("malenia:s=3", 2);
    let steps = [0, 1, 0, 1].map(|i| super::tests::arrive(&mut *rule, i, 0, 0).step.is_some());
    assert_eq!(steps, [false, false, false, true]); // (1, 1): 1; (2, 1): 4/3; (2, 2): 2 > 3/2
}
