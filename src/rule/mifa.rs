//! MIFA, memory-augmented impatient federated averaging: rounds over whoever is there, with everybody's latest gradient.
//!
//! ```text
//! round r: A_r those who are there ;  row_i = g_i(x_r) for i in A_r ;  x_{r+1} = x_r - η (1/n) Σ_j row_j
//! ```
//!
//! Gu, Huang, Zhang, Huang 2021. Proved: the rate of full participation, up to the devices' absences, without assuming alike
//! data. The first round waits for all. Presence comes from outside in the paper; here worker i is there in a round with a
//! probability, drawn from the seed (1: everybody is always there, and it is synchronous SGD).

use super::support::draw::present;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "mifa",
    summary: "MIFA: rounds over whoever is there, along the mean of all latest gradients",
    paper: "Gu et al. 2021",
    source: include_str!("mifa.rs"),
    cost: Cost { server: "2", worker: "1", copies: "those there", biased: false },
    keys: &[Key { name: "available", default: "0.5", meaning: "probability of being there in a round" }],
    build: |keys, setting| {
        let (n, p) = (setting.workers, keys.number("available", 0.5, 0.001..=1.0)?);
        Ok(Box::new(Mifa { n, seed: setting.seed, p, rounds: 0, awaited: n }))
    },
};

struct Mifa {
    n: usize,
    seed: u64,
    p: f64,
    rounds: u64,
    awaited: usize,
}

impl Rule for Mifa {
    fn needs(&self) -> Needs {
        let derived = Some(1.0 / self.n as f64);
        let gradients = (self.p * self.n as f64) as usize;
        Needs { derived, gradients, synchronous: self.p == 1.0, ..Needs::table() }
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        let fold = Decision::fold(Fold::row(1.0 / self.n as f64));
        self.awaited -= 1;
        if self.awaited > 0 {
            return fold;
        }
        self.rounds += 1;
        let there = present(self.seed, self.rounds, self.n, self.p);
        self.awaited = there.len();
        fold.step(1.0, Start::These(there))
    }
}

#[cfg(test)]
#[test]
fn the_first_round_waits_for_all() {
    use super::tests::*;
    let mut rule = rule("mifa", 3);
    assert_eq!([0, 1, 2].map(|i| arrive(&mut *rule, i, 0, 0).step.is_some()), [false, false, true]);
}
