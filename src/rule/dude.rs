//! DuDe-ASGD: step along the mean of every worker's latest gradient, which is kept incrementally.
//!
//! ```text
//! on g_i:             s += (g_i - row_i)/n ;  row_i = g_i
//! after c answers:    x -= η s ;  x to these c workers, each of which waits after its answer
//! first round, init:
//!   barrier           all workers answer once at x_0 ;  then  x_1 = x_0 - η s ;  x_1 to all workers
//!   keep-busy         a worker that answers gets x_0 again and replaces its row, until every worker has a row.
//!                     The answer that completes the rows makes no step either. Then the count of c answers begins.
//!   zero              none: all rows begin at 0 and the count of c answers begins at once
//! ```
//!
//! Wang, Sun, Wai, Zhang 2024 (arXiv 2405.16966; also called IA²SGD). Proved: the mean of ‖∇f‖² falls as
//! √(L τ_max F0/(nT)) with F0 = f(x_0) - f*; the bound contains no heterogeneity ζ. c = n is `sync`. The
//! paper's first round was not available to us, so there are three to choose from. s is recomputed from the
//! rows every 4,096 arrivals, against rounding drift.

use super::support::workers::PendingWorkers;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "dude",
    summary: "DuDe-ASGD: step along the mean of every worker's latest gradient",
    paper: "Wang et al. 2024",
    source: include_str!("dude.rs"),
    cost: Cost { server: "2", worker: "1", copies: "c", biased: false },
    keys: &[
        Key { name: "c", default: "1", meaning: "answers per update, 1 to the number of workers" },
        Key { name: "init", default: "barrier", meaning: "first round: barrier, keep-busy or zero" },
    ],
    build: |keys, setting| {
        let n = setting.workers;
        let c = keys.count("c", 1, 1..=n)?;
        let first_rounds =
            [("barrier", FirstRound::Barrier), ("keep-busy", FirstRound::KeepBusy), ("zero", FirstRound::Zero)];
        let first_round = keys.choice("init", &first_rounds)?;
        let without_row = PendingWorkers::new(n, first_round != FirstRound::Zero);
        Ok(Box::new(Dude { n, c, first_round, without_row, answered: Vec::new() }))
    },
};

#[derive(Clone, Copy, PartialEq)]
enum FirstRound {
    /// No worker continues until all have answered.
    Barrier,
    /// Workers continue at x_0 until all have answered.
    KeepBusy,
    /// There is no first round: the rows begin at zero.
    Zero,
}

struct Dude {
    n: usize,
    c: usize,
    first_round: FirstRound,
    /// The workers that the first round still waits for.
    without_row: PendingWorkers,
    /// The workers that have answered since the last update.
    answered: Vec<usize>,
}

impl Rule for Dude {
    fn needs(&self) -> Needs {
        let derived = Some(1.0 / self.n as f64);
        let synchronous = self.c == self.n;
        Needs { derived, synchronous, ..Needs::table() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        // s += (g_i - row_i)/n ;  row_i = g_i
        let fold = Decision::fold(Fold::row(1.0 / self.n as f64));
        if !self.without_row.is_empty() {
            let is_whole = self.without_row.remove(a.worker);
            return match self.first_round {
                FirstRound::Barrier => fold.step_if(is_whole, 1.0, || Start::Everybody),
                FirstRound::KeepBusy | FirstRound::Zero => fold.start(Start::Sender),
            };
        }

        // after c answers:  x -= η s ;  x to these c workers
        self.answered.push(a.worker);
        if self.answered.len() < self.c {
            return fold;
        }
        fold.step(1.0, Start::These(std::mem::take(&mut self.answered)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};
    use super::*;

    #[test]
    fn the_workers_that_answered_continue() {
        let mut rule = rule("dude:c=2,init=zero", 3);
        let starts = [2, 0].map(|worker| arrive(&mut *rule, worker, 0, 0).start);
        assert_eq!(starts, [Start::Nobody, Start::These(vec![2, 0])]);
    }
}
