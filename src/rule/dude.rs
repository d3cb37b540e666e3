//! DuDe-ASGD: step along the mean of every worker's latest gradient, kept incrementally.
//! ```text
//! on g_i:  s += (g_i - row_i) / n ;  row_i = g_i ;  after c answers:  x -= η s ,  x to those c
//! ```
//! Wang, Sun, Wai, Zhang 2024 (arXiv 2405.16966; IA²SGD). Proved: mean ‖∇f‖² falls as √(L τ_max F0/(nT)), no ζ anywhere. c = n is
//! `sync`. Its start was not available to us: `barrier` waits for all, `keep-busy` renews rows at x_0, `zero` steps at once.

use super::support::crowd::PendingWorkers;
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
        let (n, inits) =
            (setting.workers, [("barrier", (true, true)), ("keep-busy", (true, false)), ("zero", (false, false))]);
        let (c, (first, waits)) = (keys.count("c", 1, 1..=n)?, keys.choice("init", &inits)?);
        Ok(Box::new(Dude { n, c, waits, silent: PendingWorkers::new(n, first), answered: Vec::new() }))
    },
};

struct Dude {
    n: usize,
    c: usize,
    waits: bool,
    silent: PendingWorkers, // has not answered at all yet
    answered: Vec<usize>,   // has answered since the last update
}

impl Rule for Dude {
    fn needs(&self) -> Needs {
        Needs { derived: Some(1.0 / self.n as f64), synchronous: self.c == self.n, ..Needs::table() }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        let fold = Decision::fold(Fold::row(1.0 / self.n as f64));
        if !self.silent.is_empty() {
            let all = self.silent.remove(arrival.worker);
            return if self.waits { fold.step_if(all, 1.0, || Start::Everybody) } else { fold.start(Start::Sender) };
        }
        self.answered.push(arrival.worker);
        let fires = self.answered.len() == self.c;
        fold.step_if(fires, 1.0, || Start::These(self.answered.drain(..).collect()))
    }
}

#[cfg(test)]
#[test]
fn those_who_answered_go_on() {
    let mut rule = super::tests::rule("dude:c=2,init=zero", 3);
    let starts = [2, 0].map(|i| super::tests::arrive(&mut *rule, i, 0, 0).start);
    assert_eq!(starts, [Start::Nobody, Start::These(vec![2, 0])]);
}
