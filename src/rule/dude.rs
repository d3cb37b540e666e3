//! DuDe-ASGD: step along the mean of every worker's latest gradient, kept incrementally.
//!
//! ```text
//! on g_i:  s += (g_i - row_i) / n ;  row_i = g_i ;  after c answers:  x -= η s ,  x to those c
//! ```
//!
//! Wang, Sun, Wai, Zhang 2024 (arXiv 2405.16966); c = n is synchronous SGD. Unbiased under unequal speeds and different f_i.
//! Its start was not available: `barrier` waits for all, `keep-busy` renews rows at x_0 meanwhile, `zero` steps at once.

use super::{Arrival, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "dude",
    summary: "DuDe-ASGD: step along the mean of every worker's latest gradient",
    paper: "Wang et al. 2024",
    keys: &[
        Key { name: "c", default: "1", meaning: "answers per update, 1 to the number of workers" },
        Key { name: "init", default: "barrier", meaning: "first round: barrier, keep-busy or zero" },
    ],
    build: |keys, n| {
        // (Is there a first round that everybody answers? Do fast workers wait in it?)
        let inits = [("barrier", (true, true)), ("keep-busy", (true, false)), ("zero", (false, false))];
        let (c, (round, waits)) = (keys.count("c", 1, 1..=n)?, keys.choice("init", &inits)?);
        Ok(Box::new(Dude { n, c, waits, silent: (0..if round { n } else { 0 }).collect(), answered: Vec::new() }))
    },
};

struct Dude {
    n: usize,
    c: usize,
    waits: bool,
    silent: Vec<usize>,   // has not answered at all yet
    answered: Vec<usize>, // has answered since the last update
}

impl Rule for Dude {
    fn needs(&self) -> Needs {
        Needs { sum: true, table: true, ..Needs::default() }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        let fold = Decision::fold(Fold::Table { scale: 1.0 / self.n as f64 });
        if !self.silent.is_empty() {
            self.silent.retain(|i| *i != arrival.worker);
            return match (self.waits, self.silent.is_empty()) {
                (true, true) => fold.step(1.0, Start::Everybody),
                (true, false) => fold,
                (false, _) => Decision { start: Start::Sender, ..fold },
            };
        }
        if self.c == 1 {
            return fold.step(1.0, Start::Sender);
        }
        self.answered.push(arrival.worker);
        if self.answered.len() < self.c {
            return fold;
        }
        fold.step(1.0, Start::These(self.answered.drain(..).collect()))
    }
}
