//! ACED: ACE with a bound on delay. Only the rows whose gradients began recently enough are averaged.
//!
//! ```text
//! on g_i, computed at version v:
//!   if t - v > max_age:  g_i is dropped ;  x_t to worker i
//!   else:                row_i = g_i, v_i = v ;  A = { j with a row : t - v_j <= max_age }
//!                        x_{t+1} = x_t - η (1/|A|) Σ_{j in A} row_j ;  x_{t+1} to worker i
//! first round (t = 0):   no step until every worker has a row, each waits after its answer ;  x_1 to all
//! ```
//!
//! Chang et al. 2025 (arXiv 2511.19066). The theorem is for ACE; the bound is the authors' practical form.
//! With an unlimited max_age the rule is ACE. A worker that is always too slow for max_age never counts, so a
//! small max_age biases the limit.
//!
//! Differences: we drop a gradient that is too old on arrival and its worker continues; the paper skips an
//! update only if A is empty. The paper fixes no max_age; our default is 2n.

use super::support::workers::Ages;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "aced",
    summary: "ACED: ACE over the gradients that are recent enough",
    paper: "Chang et al. 2025",
    source: include_str!("aced.rs"),
    cost: Cost { server: "2", worker: "1", copies: "1", biased: true },
    keys: &[Key {
        name: "max_age",
        default: "twice the workers",
        meaning: "largest age at which a gradient counts, in updates since its job began",
    }],
    build: |keys, setting| {
        let max_age = keys.count("max_age", 2 * setting.workers, 0..=usize::MAX)? as u64;
        let rows = Ages::new(setting.workers);
        Ok(Box::new(Aced { max_age, rows }))
    },
};

struct Aced {
    max_age: u64,
    /// A with its versions v_j: the workers whose rows count.
    rows: Ages,
}

impl Rule for Aced {
    fn needs(&self) -> Needs {
        Needs { derived: Some(1.0), ..Needs::table() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        // t - v > max_age: the gradient is dropped
        if a.staleness > self.max_age {
            return Decision::fold(Fold::Drop).start(Start::Sender);
        }

        // row_i = g_i, and s = Σ_{j in A} row_j: a row that was not in A enters s as a whole
        let was_active = self.rows.renew(a.worker, a.version);
        let row = Fold::Row { table: 0, mix: 1.0, scale: 1.0, forget: !was_active };

        // the rows with t - v_j > max_age leave A
        let retire = self.rows.retire(a.t.saturating_sub(self.max_age));
        let fold = Decision { retire, ..Decision::fold(row) };

        let is_first_round = a.t == 0;
        if is_first_round && !self.rows.is_whole() {
            return fold;
        }

        // x -= η s/|A|
        let active = self.rows.count() as f64;
        let start = if is_first_round { Start::Everybody } else { Start::Sender };
        fold.step(1.0, start).scaled(1.0 / active)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn old_rows_do_not_count() {
        let mut rule = rule("aced:max_age=1", 2);
        let arrivals = [(0, 0, 0), (1, 0, 0), (0, 1, 1), (0, 2, 2)];
        let decisions = arrivals.map(|(worker, version, t)| arrive(&mut *rule, worker, version, t));
        assert!(decisions[2].retire.is_empty());
        assert_eq!(decisions[3].retire, vec![1]);
        assert_eq!(decisions[3].step.unwrap().scale, 1.0);
    }
}
