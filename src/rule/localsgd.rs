//! Local SGD: all workers take U steps from the same model, then their models are averaged.
//!
//! ```text
//! worker i:         y = x_t ;  U times  y -= η g_i(y) ;  the answer is G_i, the sum of these U gradients
//! after n answers:  x_{t+1} = x_t - (η/n) Σ_i G_i, the mean of all y ;  x_{t+1} to all workers
//! ```
//!
//! Stich 2019; McMahan et al. 2017 (FedAvg). Proved: O(1/√(TnU)) for nonconvex f (Yu, Yang, Zhu 2019), with a
//! drift of order η²U²ζ² when the f_i differ. The papers fix no U; our default is 5.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Local, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "localsgd",
    summary: "local SGD: U local steps per worker, then the mean of all models",
    paper: "Stich 2019",
    source: include_str!("localsgd.rs"),
    cost: Cost { server: "2", worker: "0", copies: "n", biased: false },
    keys: &[Key { name: "u", default: "5", meaning: "local steps per job" }],
    build: |keys, setting| {
        let steps = keys.count("u", 5, 1..=1 << 16)? as u32;
        Ok(Box::new(LocalSgd { n: setting.workers, steps, answered: 0 }))
    },
};

struct LocalSgd {
    n: usize,
    /// U: local steps per job.
    steps: u32,
    /// Number of workers that have answered since the last update.
    answered: usize,
}

impl Rule for LocalSgd {
    fn needs(&self) -> Needs {
        let local = Local { steps: self.steps, ..Local::default() };
        Needs { local, synchronous: true, ..Needs::sum() }
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        // s += G_i / n
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.n as f64 });
        self.answered += 1;
        if self.answered < self.n {
            return fold;
        }

        // x -= η s ;  s = 0 ;  x to all workers
        self.answered = 0;
        fold.step(0.0, Start::Everybody)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn it_is_synchronous_sgd_over_local_steps() {
        let mut rule = rule("localsgd:u=3", 2);
        assert_eq!(rule.needs().local.steps, 3);
        let steps = [0, 1].map(|i| arrive(&mut *rule, i, 0, 0).step.is_some());
        assert_eq!(steps, [false, true]);
    }
}
