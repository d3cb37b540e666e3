//! FedAsync: the server's model moves towards every model that arrives, and less towards a stale one.
//!
//! ```text
//! worker i:  q steps  y -= η (g_i(y) + μ (y - x_v))  from y = x_v
//! server:    on y with τ = t - v:  x = (1 - α_τ) x + α_τ y ,  α_τ = α s(τ) ;  x to worker i
//! s(τ):      constant 1 ;  hinge 1 if τ <= b, else min(1, 1/(a (τ - b))) ;  poly (1+τ)^-a
//! ```
//!
//! α = 0.6; a = 10 and b = 6 for hinge; a = 0.5 for poly; μ = 0.005. η is the learning rate at the start of
//! the job.
//!
//! Xie, Koyejo, Gupta 2019. Proved: linear convergence to a ball, for weakly convex f with bounded staleness.
//! Difference: our hinge is that of public code; the paper adds 1 to its denominator.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Local, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "fedasync",
    summary: "FedAsync: the server's model moves towards every model that arrives",
    paper: "Xie et al. 2019",
    source: include_str!("fedasync.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: true },
    keys: &[
        Key { name: "weighting", default: "constant", meaning: "weight s(τ) by staleness: constant, hinge or poly" },
        Key { name: "alpha", default: "0.6", meaning: "α: share of the way towards a model that is not stale" },
        Key { name: "a", default: "10, or 0.5 for poly", meaning: "parameter of hinge and poly" },
        Key { name: "b", default: "6", meaning: "parameter of hinge" },
        Key { name: "q", default: "1", meaning: "local steps per job" },
        Key { name: "mu", default: "0.005", meaning: "μ of the proximal term; it acts from the second local step" },
    ],
    build: |keys, _| {
        let weightings =
            [("constant", Weighting::Constant), ("hinge", Weighting::Hinge), ("poly", Weighting::Polynomial)];
        let weighting = keys.choice("weighting", &weightings)?;
        let alpha = keys.number("alpha", 0.6, 0.0..=1.0)?;
        let proximal = keys.number("mu", 0.005, 0.0..=1e6)?;
        let steps = keys.count("q", 1, 1..=1 << 16)? as u32;
        let a = keys.number("a", if weighting == Weighting::Polynomial { 0.5 } else { 10.0 }, 1e-6..=1e6)?;
        let b = keys.number("b", 6.0, 0.0..=1e9)?;
        let local = Local { steps, proximal, ..Local::default() };
        Ok(Box::new(FedAsync { local, weighting, alpha, a, b }))
    },
};

#[derive(Clone, Copy, PartialEq)]
enum Weighting {
    Constant,
    Hinge,
    Polynomial,
}

struct FedAsync {
    local: Local,
    weighting: Weighting,
    alpha: f64,
    a: f64,
    b: f64,
}

impl Rule for FedAsync {
    fn needs(&self) -> Needs {
        Needs { local: self.local, mixes: true, ..Needs::default() }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        let tau = arrival.staleness as f64;
        // s(τ)
        let weight = match self.weighting {
            Weighting::Hinge if tau > self.b => (1.0 / (self.a * (tau - self.b))).min(1.0),
            Weighting::Polynomial => (1.0 + tau).powf(-self.a),
            Weighting::Constant | Weighting::Hinge => 1.0,
        };
        // x = (1 - α_τ) x + α_τ y ,  α_τ = α s(τ)
        Decision::fold(Fold::Towards { alpha: self.alpha * weight }).step(1.0, Start::Sender)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};
    use super::*;

    #[test]
    fn a_stale_model_counts_less() {
        let mut rule = rule("fedasync:weighting=hinge,alpha=1", 2);
        assert_eq!(arrive(&mut *rule, 0, 0, 8).fold, Fold::Towards { alpha: 0.05 });
    }
}
