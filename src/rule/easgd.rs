//! EASGD (elastic averaging SGD): every worker keeps its own model, which is regularly averaged with a centre.
//!
//! ```text
//! worker i:  `period` steps  y -= η g_i(y)  from y = x_i
//! exchange:  e = y - x̃ ;  x_i = y - α e ;  x̃ += α e ;  x_i to worker i
//! ```
//!
//! x̃, the centre, is the model of the server; x_i is stored at the server too. All begin at x_0. The version
//! counts exchanges. α = β/n with β = 0.9. `period` is 4; the paper tries 1, 4, 16 and 64. η is the learning
//! rate at the start of the job.
//!
//! Zhang, Choromanska, LeCun 2015 (asynchronous form). Proved, for quadratic f: the centre is stable for α
//! below a bound that depends on n. The centre follows fast workers more. The server has no direction, so
//! momentum and weight decay do not apply.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Local, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "easgd",
    summary: "EASGD: each worker's own model is tied to a centre by elastic averaging",
    paper: "Zhang et al. 2015",
    source: include_str!("easgd.rs"),
    cost: Cost { server: "1", worker: "1", copies: "1", biased: true },
    keys: &[
        Key { name: "period", default: "4", meaning: "local steps between two exchanges" },
        Key { name: "alpha", default: "0.9/n", meaning: "α: share of the difference that each model moves by" },
    ],
    build: |keys, setting| {
        let alpha = keys.number("alpha", 0.9 / setting.workers as f64, 0.0..=1.0)?;
        let steps = keys.count("period", 4, 1..=1 << 16)? as u32;
        Ok(Box::new(Easgd { steps, alpha }))
    },
};

struct Easgd {
    /// Local steps per job.
    steps: u32,
    alpha: f64,
}

impl Rule for Easgd {
    fn needs(&self) -> Needs {
        let local = Local { steps: self.steps, ..Local::default() };
        Needs { local, own: true, mixes: true, ..Needs::default() }
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        // e = y - x̃ ;  x_i = y - α e ;  x̃ += α e
        Decision::fold(Fold::Elastic { alpha: self.alpha }).step(1.0, Start::Sender)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};
    use super::*;

    #[test]
    fn alpha_is_divided_by_the_workers() {
        let mut rule = rule("easgd", 9);
        assert_eq!(arrive(&mut *rule, 0, 0, 0).fold, Fold::Elastic { alpha: 0.1 });
    }
}
