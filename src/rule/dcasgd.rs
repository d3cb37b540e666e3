//! DC-ASGD: pure asynchronous SGD; a diagonal estimate of the curvature corrects each gradient for its delay.
//!
//! ```text
//! on g_i, computed at x_v:  x -= η (g_i + λ g_i⊙g_i⊙(x - x_v)) ;  x to worker i
//! adaptive:                 q_i = m q_i + (1-m) g_i⊙g_i ;  λ = λ_0/√(q_i + 1e-7), per parameter
//! ```
//!
//! λ = 0.04; if adaptive, λ_0 = 2 and m = 0.95. The running square q_i is per worker, as in the authors'
//! code, and begins at 0. x_v is the model that worker i was sent; the server keeps that snapshot until the
//! answer.
//!
//! Zheng et al. 2017 (arXiv 1609.08326). Proved, for identical data on all workers: the rate of ASGD without
//! the delay's first-order error.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "dcasgd",
    summary: "DC-ASGD: pure asynchronous SGD with gradients corrected for their delay",
    paper: "Zheng et al. 2017",
    source: include_str!("dcasgd.rs"),
    cost: Cost { server: "1", worker: "1, adaptive 2", copies: "1", biased: true },
    keys: &[
        Key { name: "lambda", default: "0.04, adaptive 2", meaning: "λ, or λ_0 if adaptive" },
        Key { name: "adaptive", default: "false", meaning: "true: divide λ_0 by the root of a running mean square" },
        Key { name: "m", default: "0.95", meaning: "decay of the running mean square" },
    ],
    build: |keys, _| {
        let adaptive = keys.flag("adaptive", false)?;
        let lambda = keys.number("lambda", if adaptive { 2.0 } else { 0.04 }, 0.0..=1e6)?;
        let m = keys.number("m", 0.95, 0.0..=1.0)?;
        Ok(Box::new(DcAsgd { lambda, decay: adaptive.then_some(m) }))
    },
};

struct DcAsgd {
    /// λ, or λ_0 in the adaptive form.
    lambda: f64,
    /// m, in the adaptive form.
    decay: Option<f64>,
}

impl Rule for DcAsgd {
    fn needs(&self) -> Needs {
        Needs { squares: self.decay.is_some(), ..Needs::default() }
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        // x -= η (g_i + λ g_i⊙g_i⊙(x - x_v))
        Decision::fold(Fold::Compensated { lambda: self.lambda, decay: self.decay }).step(1.0, Start::Sender)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rule;

    #[test]
    fn only_the_adaptive_form_needs_squares() {
        assert!(rule("dcasgd:adaptive", 2).needs().squares);
        assert!(!rule("dcasgd:lambda=0.1", 2).needs().squares);
    }
}
