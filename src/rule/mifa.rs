//! MIFA (memory-augmented impatient federated averaging): rounds with the available workers only; each step
//! uses the latest gradients of all workers.
//!
//! ```text
//! round r, with the available workers A_r:  row_i = g_i(x_r) for i in A_r ;  x_{r+1} = x_r - η (1/n) Σ_j row_j
//! after the step:                           x_{r+1} to A_{r+1}
//! ```
//!
//! The first round waits for all workers.
//!
//! Gu, Huang, Zhang, Huang 2021. Proved: the rate of full participation, up to the devices' absences, without
//! an assumption of similar data.
//!
//! Difference: in the paper the availability comes from outside. Here each worker is available in a round
//! with a probability p, drawn from the seed; a round without workers is drawn again. With p = 1 it is
//! synchronous SGD.

use super::support::draw::present;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "mifa",
    summary: "MIFA: rounds with the available workers, along the mean of all latest gradients",
    paper: "Gu et al. 2021",
    source: include_str!("mifa.rs"),
    cost: Cost { server: "2", worker: "1", copies: "available", biased: false },
    keys: &[Key { name: "available", default: "0.5", meaning: "probability that a worker is available in a round" }],
    build: |keys, setting| {
        let n = setting.workers;
        let p = keys.number("available", 0.5, 0.001..=1.0)?;
        Ok(Box::new(Mifa { n, seed: setting.seed, p, rounds: 0, missing: n }))
    },
};

struct Mifa {
    n: usize,
    seed: u64,
    /// Probability that a worker is available in a round.
    p: f64,
    /// Number of rounds completed.
    rounds: u64,
    /// Number of workers whose answers the current round still waits for.
    missing: usize,
}

impl Rule for Mifa {
    fn needs(&self) -> Needs {
        let derived = Some(1.0 / self.n as f64);
        let gradients = (self.p * self.n as f64) as usize;
        let synchronous = self.p == 1.0;
        Needs { derived, gradients, synchronous, ..Needs::table() }
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        // s += (g_i - row_i)/n ;  row_i = g_i
        let fold = Decision::fold(Fold::row(1.0 / self.n as f64));
        self.missing -= 1;
        if self.missing > 0 {
            return fold;
        }

        // x -= η s ;  x to A_{r+1}
        self.rounds += 1;
        let available = present(self.seed, self.rounds, self.n, self.p);
        self.missing = available.len();
        fold.step(1.0, Start::These(available))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn the_first_round_waits_for_all() {
        let mut rule = rule("mifa", 3);
        let steps = [0, 1, 2].map(|i| arrive(&mut *rule, i, 0, 0).step.is_some());
        assert_eq!(steps, [false, false, true]);
    }
}
