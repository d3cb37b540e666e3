//! Ringleader ASGD: rounds of n updates, one per worker, along the mean of all workers' means; no gradient is lost.
//! ```text
//! 1  G_i += g, b_i += 1, i goes on at the same x, until every b_j >= 1 ;  then for whoever came last, and for i not yet served:
//! 2  G_i += g, b_i += 1 ;  x -= η (1/n) Σ_j G_j/b_j ;  x to i    (i served: G+_i += g, b+_i += 1, i goes on at the current x)
//!    when all are served:  (G, b) = (G+, b+),  (G+, b+) = 0,  and 1 again
//! ```
//! Maranjyan, Richtárik 2026 (ICLR; arXiv 2509.22860). Proved: optimal time for heterogeneous data, delays at most 2n-2. The
//! G_j/b_j are kept as running means. A worker that never answers blocks phase 1.

use super::support::crowd::{PendingWorkers, Tally};
use super::{Arrival, Cost, Decision, Entry, Fold, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "ringleader",
    summary: "Ringleader ASGD: n updates a round along the mean of all workers' means",
    paper: "Maranjyan & Richtárik 2026",
    source: include_str!("ringleader.rs"),
    cost: Cost { server: "3", worker: "2", copies: "1", biased: false },
    keys: &[],
    build: |_, set| {
        let (counts, waiting) = ([set.workers; 2].map(Tally::new), PendingWorkers::new(set.workers, false));
        Ok(Box::new(Ringleader { counts, waiting }))
    },
};

struct Ringleader {
    counts: [Tally; 2],      // b and b+
    waiting: PendingWorkers, // for their update of this round; nobody in phase 1
}

impl Rule for Ringleader {
    fn needs(&self) -> Needs {
        Needs { tables: 2, ..Needs::sum() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        let (i, n, collects) = (a.worker, self.counts[0].workers(), self.waiting.is_empty());
        let table = (!collects && !self.waiting.has(i)) as usize;
        let b = self.counts[table].add(i) as f64;
        let row = Decision::fold(Fold::Row { table, mix: 1.0 / b, scale: 1.0 / n as f64, forget: b == 1.0 });
        if table == 1 || !self.counts[0].is_whole() {
            return row.start(Start::Sender);
        }
        self.waiting.refill_if(collects);
        let swap = self.waiting.remove(i);
        if swap {
            self.counts.swap(0, 1);
            self.counts[1].clear();
        }
        Decision { swap, ..row.step(!swap as u8 as f64, Start::Sender) }
    }
}

#[cfg(test)]
#[test]
fn everybody_has_one_update_a_round() {
    let mut rule = super::tests::rule("ringleader", 2);
    let steps = [0, 1, 1, 0, 0].map(|i| super::tests::arrive(&mut *rule, i, 0, 0)).map(|d| (d.step.is_some(), d.swap));
    assert_eq!(steps, [(false, false), (true, false), (false, false), (true, true), (true, false)]);
}
