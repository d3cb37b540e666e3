//! Ringleader ASGD: rounds of n updates, one per worker, along the mean of the workers' means. No gradient is
//! discarded.
//!
//! ```text
//! phase 1, on g_i:  G_i += g_i, b_i += 1 ;  worker i continues at the same x      until every b_j >= 1
//! phase 2, on g_i:
//!   worker i has had no update in this round:  G_i += g_i, b_i += 1 ;  x -= η (1/n) Σ_j G_j/b_j ;  x to worker i
//!   worker i has had its update:               G+_i += g_i, b+_i += 1 ;  worker i continues at the current x
//! after n updates:  (G, b) = (G+, b+) ;  (G+, b+) = 0 ;  phase 1 again
//! ```
//!
//! The gradient that completes phase 1 makes the first update of phase 2.
//!
//! Maranjyan, Richtárik 2026 (ICLR; arXiv 2509.22860). Proved: optimal time for heterogeneous data, with
//! delays of at most 2n-2. The quotients G_j/b_j are kept as running means. A worker that never answers
//! blocks phase 1.

use super::support::workers::{PendingWorkers, Tally};
use super::{Arrival, Cost, Decision, Entry, Fold, Needs, Rule, Start};

/// Index of (G, b), the table and the counts of this round.
const CURRENT: usize = 0;
/// Index of (G+, b+), the table and the counts of the next round.
const NEXT: usize = 1;

pub(super) const ENTRY: Entry = Entry {
    name: "ringleader",
    summary: "Ringleader ASGD: n updates per round along the mean of all workers' means",
    paper: "Maranjyan & Richtárik 2026",
    source: include_str!("ringleader.rs"),
    cost: Cost { server: "3", worker: "2", copies: "1", biased: false },
    keys: &[],
    build: |_, setting| {
        let n = setting.workers;
        let counts = [Tally::new(n), Tally::new(n)];
        let without_update = PendingWorkers::new(n, false);
        Ok(Box::new(Ringleader { counts, without_update }))
    },
};

struct Ringleader {
    /// b and b+.
    counts: [Tally; 2],
    /// The workers that have had no update in this round. Empty in phase 1.
    without_update: PendingWorkers,
}

impl Rule for Ringleader {
    fn needs(&self) -> Needs {
        Needs { tables: 2, ..Needs::sum() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        let n = self.counts[CURRENT].workers();
        let is_phase_1 = self.without_update.is_empty();
        let is_early = !is_phase_1 && !self.without_update.has(a.worker);

        // G_i += g_i, b_i += 1, or the same of G+ and b+.  row = G_i/b_i ;  s = (1/n) Σ_j G_j/b_j
        let table = if is_early { NEXT } else { CURRENT };
        let b = self.counts[table].add(a.worker) as f64;
        let row = Fold::Row { table, mix: 1.0 / b, scale: 1.0 / n as f64, forget: b == 1.0 };
        let fold = Decision::fold(row);
        if is_early || !self.counts[CURRENT].is_whole() {
            // worker i continues
            return fold.start(Start::Sender);
        }

        // every b_j >= 1: phase 2
        if is_phase_1 {
            self.without_update.refill();
        }
        let is_end_of_round = self.without_update.remove(a.worker);
        if is_end_of_round {
            // (G, b) = (G+, b+) ;  (G+, b+) = 0
            self.counts.swap(CURRENT, NEXT);
            self.counts[NEXT].clear();
        }

        // x -= η s ;  x to worker i ;  s = 0 at the end of the round
        let keep = if is_end_of_round { 0.0 } else { 1.0 };
        Decision { swap: is_end_of_round, ..fold.step(keep, Start::Sender) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn each_worker_has_one_update_per_round() {
        let mut rule = rule("ringleader", 2);
        let decisions = [0, 1, 1, 0, 0].map(|i| arrive(&mut *rule, i, 0, 0));
        assert_eq!(decisions.each_ref().map(|d| d.step.is_some()), [false, true, false, true, true]);
        assert_eq!(decisions.each_ref().map(|d| d.swap), [false, false, false, true, false]);
    }
}
