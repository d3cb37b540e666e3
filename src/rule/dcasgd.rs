//! DC-ASGD: pure ASGD whose gradient is corrected for its delay by a diagonal estimate of curvature.
//!
//! ```text
//! x -= η (g_i + λ g_i⊙g_i⊙(x - x_v)) ;   x to i         adaptive: λ = λ_0/√(q_i + 1e-7),  q_i = m q_i + (1-m) g_i⊙g_i
//! ```
//!
//! Zheng et al. 2017 (arXiv 1609.08326). Proved: the rate of ASGD with the first-order error of the delay taken out, for alike
//! data. x_v is the model that worker i was sent, whose snapshot the server still holds. λ = 0.04 and, adaptive, λ_0 = 2,
//! m = 0.95. The running square is per worker, as in the authors' code, and begins at 0.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "dcasgd",
    summary: "DC-ASGD: pure ASGD with gradients corrected for their delay",
    paper: "Zheng et al. 2017",
    source: include_str!("dcasgd.rs"),
    cost: Cost { server: "1", worker: "1, adaptive 2", copies: "1", biased: true },
    keys: &[
        Key { name: "lambda", default: "0.04, adaptive 2", meaning: "λ or λ_0" },
        Key { name: "adaptive", default: "false", meaning: "true: λ is divided by a running root mean square" },
        Key { name: "m", default: "0.95", meaning: "memory of the running square" },
    ],
    build: |keys, _| {
        let adaptive = keys.flag("adaptive", false)?;
        let lambda = keys.number("lambda", if adaptive { 2.0 } else { 0.04 }, 0.0..=1e6)?;
        let decay = adaptive.then_some(keys.number("m", 0.95, 0.0..=1.0)?);
        Ok(Box::new(DcAsgd { lambda, decay }))
    },
};

struct DcAsgd {
    lambda: f64,
    decay: Option<f64>,
}

impl Rule for DcAsgd {
    fn needs(&self) -> Needs {
        Needs { squares: self.decay.is_some(), ..Needs::default() }
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        Decision::fold(Fold::Compensated { lambda: self.lambda, decay: self.decay }).step(1.0, Start::Sender)
    }
}

#[cfg(test)]
#[test]
fn the_adaptive_form_asks_for_squares() {
    let needs = |text: &str| super::tests::rule(text, 2).needs().squares;
    assert!(needs("dcasgd:adaptive") && !needs("dcasgd:lambda=0.1"));
}
