//! DuDe-ASGD: step along the mean of every worker's latest gradient, kept incrementally.
//!
//! ```text
//! on g_i:  s += (g_i - row_i) / n ;  row_i = g_i ;  after c answers:  x -= η s ,  x to those c
//! ```
//!
//! Wang, Sun, Wai, Zhang 2024 (arXiv 2405.16966); c > 1 is its semi-asynchronous form, c = n is synchronous SGD. Unbiased
//! under unequal speeds and different f_i. The paper's start was not available: `barrier` waits for everybody's first
//! answer, `keep-busy` lets fast workers renew their row at x_0 meanwhile, `zero` steps at once from rows of zero.

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
        let inits = [("barrier", Init::Barrier), ("keep-busy", Init::KeepBusy), ("zero", Init::Zero)];
        let (c, init) = (keys.count("c", 1, 1..=n)?, keys.choice("init", &inits)?);
        Ok(Box::new(Dude {
            n,
            c,
            init,
            silent: if init == Init::Zero { vec![] } else { (0..n).collect() },
            answered: vec![],
        }))
    },
};

#[derive(Clone, Copy, PartialEq)]
#[rustfmt::skip]
enum Init { Barrier, KeepBusy, Zero }

/// `silent`: who has not answered at all yet; `answered`: who has since the last update.
#[rustfmt::skip]
struct Dude { n: usize, c: usize, init: Init, silent: Vec<usize>, answered: Vec<usize> }

impl Rule for Dude {
    fn needs(&self) -> Needs {
        Needs { sum: true, table: true, ..Needs::default() }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        let fold = Decision::fold(Fold::Table { scale: 1.0 / self.n as f64 });
        if !self.silent.is_empty() {
            self.silent.retain(|i| *i != arrival.worker);
            return match self.init {
                Init::Barrier if self.silent.is_empty() => fold.step(1.0, Start::Everybody),
                Init::Barrier => fold,
                _ => Decision { start: Start::Sender, ..fold },
            };
        }
        self.answered.push(arrival.worker);
        match self.answered.len() == self.c {
            true => fold.step(1.0, Start::These(std::mem::take(&mut self.answered))),
            false => fold,
        }
    }
}
