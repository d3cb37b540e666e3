//! EASGD, elastic averaging: every worker keeps its own model; it and the centre pull at each other every so often.
//!
//! ```text
//! worker: `period` steps y -= η g_i(y) from y = x_i     exchange: e = y - x̃ ;  x_i = y - α e ;  x̃ += α e ;  x_i to i
//! ```
//!
//! Zhang, Choromanska, LeCun 2015 (asynchronous form). Proved: stability of the centre for α below a bound that depends on n
//! (quadratic case). α = β/n with β = 0.9; the paper tries periods 1, 4, 16, 64, ours is 4. x_i lives at the server; the version
//! counts exchanges. The centre follows fast workers more. There is no server direction, so no momentum and no decay.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Local, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "easgd",
    summary: "EASGD: own models that are tied to a centre by elastic averaging",
    paper: "Zhang et al. 2015",
    source: include_str!("easgd.rs"),
    cost: Cost { server: "1", worker: "1", copies: "1", biased: true },
    keys: &[
        Key { name: "period", default: "4", meaning: "local steps between exchanges" },
        Key { name: "alpha", default: "0.9/n", meaning: "α of an exchange" },
    ],
    build: |keys, setting| {
        let alpha = keys.number("alpha", 0.9 / setting.workers as f64, 0.0..=1.0)?;
        Ok(Box::new(Easgd { steps: keys.count("period", 4, 1..=1 << 16)? as u32, alpha }))
    },
};

struct Easgd {
    steps: u32,
    alpha: f64,
}

impl Rule for Easgd {
    fn needs(&self) -> Needs {
        let local = Local { steps: self.steps, ..Local::default() };
        Needs { local, own: true, mixes: true, ..Needs::default() }
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        Decision::fold(Fold::Elastic { alpha: self.alpha }).step(1.0, Start::Sender)
    }
}

#[cfg(test)]
#[test]
fn the_pull_is_shared_by_all() {
    let mut rule = super::tests::rule("easgd", 9);
    assert_eq!(super::tests::arrive(&mut *rule, 0, 0, 0).fold, Fold::Elastic { alpha: 0.1 });
}
