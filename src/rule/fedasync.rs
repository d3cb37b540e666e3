//! FedAsync: the server's model moves towards every model that comes, the less the staler it is.
//!
//! ```text
//! worker: q steps y -= η (g_i(y) + μ (y - x_v)) from y = x_v      server: x = (1 - α_τ) x + α_τ y,  α_τ = α s(τ) ;  x to i
//! s: constant 1 ;  hinge 1 if τ <= b, else min(1, 1/(a (τ - b))) ;  poly (1+τ)^-a
//! ```
//!
//! Xie, Koyejo, Gupta 2019. Proved: linear convergence to a ball for weakly convex f with bounded staleness. α = 0.6, a = 10 and
//! b = 6 for hinge, a = 0.5 for poly, μ = 0.005. The hinge is that of public code; the paper adds 1 to its denominator.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Local, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "fedasync",
    summary: "FedAsync: the model moves towards every model that comes",
    paper: "Xie et al. 2019",
    source: include_str!("fedasync.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: true },
    keys: &[
        Key { name: "weighting", default: "constant", meaning: "constant, hinge or poly" },
        Key { name: "alpha", default: "0.6", meaning: "α" },
        Key { name: "a", default: "10, or 0.5 for poly", meaning: "parameter of hinge and poly" },
        Key { name: "b", default: "6", meaning: "parameter of hinge" },
        Key { name: "q", default: "1", meaning: "local steps per job" },
        Key { name: "mu", default: "0.005", meaning: "μ of the proximal term, from the second local step on" },
    ],
    build: |keys, _| {
        let kind = keys.choice("weighting", &[("constant", 'c'), ("hinge", 'h'), ("poly", 'p')])?;
        let (alpha, proximal) = (keys.number("alpha", 0.6, 0.0..=1.0)?, keys.number("mu", 0.005, 0.0..=1e6)?);
        let local = Local { steps: keys.count("q", 1, 1..=1 << 16)? as u32, proximal, ..Local::default() };
        let a = keys.number("a", if kind == 'p' { 0.5 } else { 10.0 }, 1e-6..=1e6)?;
        Ok(Box::new(FedAsync(local, kind, [alpha, a, keys.number("b", 6.0, 0.0..=1e9)?])))
    },
};

struct FedAsync(Local, char, [f64; 3]);

impl Rule for FedAsync {
    fn needs(&self) -> Needs {
        Needs { local: self.0, mixes: true, ..Needs::default() }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        let (tau, [alpha, a, b]) = (arrival.staleness as f64, self.2);
        let weight = match self.1 {
            'h' if tau > b => (1.0 / (a * (tau - b))).min(1.0),
            'p' => (1.0 + tau).powf(-a),
            _ => 1.0,
        };
        Decision::fold(Fold::Towards { alpha: alpha * weight }).step(1.0, Start::Sender)
    }
}

#[cfg(test)]
#[test]
fn the_stale_move_it_less() {
    let alpha = |text: &str| super::tests::arrive(&mut *super::tests::rule(text, 2), 0, 0, 8).fold;
    assert_eq!(alpha("fedasync:weighting=hinge,alpha=1"), Fold::Towards { alpha: 0.05 });
}
