//! ACED, ACE with a bound on delay: only rows whose gradients began recently enough count.
//! ```text
//! on g_i:  row_i = g_i ;  A = { j : t - v_j <= max_age } ;  x -= η (1/|A|) Σ_{j in A} row_j ;  x to i
//! ```
//! Chang et al. 2025 (arXiv 2511.19066). v_j is the version at which row j was computed. Starts like ACE, with a barrier. A
//! gradient that is too old when it comes is dropped, and its worker goes on (the paper skips an update only if A is empty).
//! With an unlimited age it is ACE; a worker that is never young enough does not count, so a small age is a bias. Proved for
//! ACE; the bound is the authors' practical form. The paper fixes no age; ours is twice the workers.

use super::support::crowd::Ages;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "aced",
    summary: "ACED: ACE over the gradients that are young enough",
    paper: "Chang et al. 2025",
    source: include_str!("aced.rs"),
    cost: Cost { server: "2", worker: "1", copies: "1", biased: true },
    keys: &[Key { name: "max_age", default: "twice the workers", meaning: "updates since a row's gradient began" }],
    build: |keys, setting| {
        let max_age = keys.count("max_age", 2 * setting.workers, 0..=usize::MAX)? as u64;
        Ok(Box::new(Aced { max_age, rows: Ages::new(setting.workers) }))
    },
};

struct Aced {
    max_age: u64,
    rows: Ages, // those that count
}

impl Rule for Aced {
    fn needs(&self) -> Needs {
        Needs { derived: Some(1.0), ..Needs::table() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        if a.staleness > self.max_age {
            return Decision::fold(Fold::Drop).start(Start::Sender);
        }
        let forget = !self.rows.renew(a.worker, a.version);
        let old = self.rows.retire(a.t.saturating_sub(self.max_age));
        let active = self.rows.count() as f64;
        let fold = Decision { retire: old, ..Decision::fold(Fold::Row { table: 0, mix: 1.0, scale: 1.0, forget }) };
        match (a.t, self.rows.is_whole()) {
            (0, false) => fold,
            (0, true) => fold.step(1.0, Start::Everybody).scaled(1.0 / active),
            _ => fold.step(1.0, Start::Sender).scaled(1.0 / active),
        }
    }
}

#[cfg(test)]
#[test]
fn old_rows_do_not_count() {
    let mut rule = super::tests::rule("aced:max_age=1", 2);
    let all = [(0, 0, 0), (1, 0, 0), (0, 1, 1), (0, 2, 2)].map(|(i, v, t)| super::tests::arrive(&mut *rule, i, v, t));
    assert_eq!((&all[2].retire, &all[3].retire, all[3].step.unwrap().scale), (&vec![], &vec![1], 1.0));
}
