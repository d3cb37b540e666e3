//! Malenia SGD: all workers compute at the current model until each has sent enough gradients; step along the
//! mean of the workers' means.
//!
//! ```text
//! collect B_i gradients g_ij of each worker i at x_t until ((1/n) Σ_i 1/B_i)^-1 > S/n
//! x_{t+1} = x_t - η (1/n) Σ_i (1/B_i) Σ_j g_ij ;  x_{t+1} to all workers, running jobs are cancelled
//! ```
//!
//! The left side of the condition is the harmonic mean of the B_i. Without the parameter `s` the condition
//! holds as soon as every worker has sent one gradient.
//!
//! Tyurin, Richtárik 2023. Proved: optimal time for heterogeneous data, s_max LΔ/ε + mean(s) σ²LΔ/(nε²), with
//! the job times s_i; unbiased.
//!
//! Each worker's mean is updated at every arrival (row += (g - row)/B), so an arrival costs one update for
//! any n.

use super::support::workers::Tally;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "malenia",
    summary: "Malenia SGD: the mean of all workers' means at the current model",
    paper: "Tyurin & Richtárik 2023",
    source: include_str!("malenia.rs"),
    cost: Cost { server: "2", worker: "1", copies: "n", biased: false },
    keys: &[Key {
        name: "s",
        default: "one gradient of each",
        meaning: "the harmonic mean of the B_i must exceed s/n",
    }],
    build: |keys, setting| {
        let n = setting.workers;
        let s = keys.count("s", 0, 1..=1 << 20)?;
        Ok(Box::new(Malenia { bound: s as f64 / n as f64, batches: Tally::new(n) }))
    },
};

struct Malenia {
    /// S/n.
    bound: f64,
    /// B_i of each worker.
    batches: Tally,
}

impl Rule for Malenia {
    fn needs(&self) -> Needs {
        Needs { synchronous: true, ..Needs::table() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        let n = self.batches.workers();
        let b = self.batches.add(a.worker);

        // row_i += (g - row_i)/B_i ;  s = (1/n) Σ row_j.  The first gradient of an update replaces the row.
        let row = Fold::Row { table: 0, mix: 1.0 / b as f64, scale: 1.0 / n as f64, forget: b == 1 };
        let fold = Decision::fold(row);
        if !self.batches.exceeds(self.bound) {
            return fold.start(Start::Sender);
        }

        // x -= η s ;  s = 0 ;  x to all workers
        self.batches.clear();
        let others = (0..n).filter(|i| *i != a.worker).collect();
        fold.step(0.0, Start::Sender).restart(others)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn it_waits_until_the_harmonic_mean_is_large_enough() {
        let mut rule = rule("malenia:s=3", 2);
        let steps = [0, 1, 0, 1].map(|i| arrive(&mut *rule, i, 0, 0).step.is_some());
        // Harmonic means of (B_0, B_1): (1, 1) has 1, (2, 1) has 4/3, (2, 2) has 2 > 3/2.
        assert_eq!(steps, [false, false, false, true]);
    }
}
