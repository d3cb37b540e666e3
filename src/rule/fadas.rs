//! FADAS: FedBuff whose mean difference feeds AMSGrad at the server, with a smaller step when differences were late.
//! ```text
//! Δ = (1/b) Σ Δ_i ;  m = β1 m + (1-β1) Δ ;  u = β2 u + (1-β2) Δ² ;  û = max(û, u) ;  x -= η_t m/(√û + ε)
//! η_t = η / τ_max of the buffer  if τ_max > τ_c,  else η
//! ```
//! Wang, Wang, Lu, Chen 2024 (ICML). Proved: O(1/√(Tb)) for nonconvex f; the delay-adaptive step takes τ_max out of the leading
//! term. η is --lr (the authors: 1e-4, adaptive 1e-3); Δ_i as in `fedbuff`. No bias correction and η/τ_max as in their code.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Local, Needs, Rule, ServerOptimizer, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "fadas",
    summary: "FADAS: the mean of b model differences through AMSGrad",
    paper: "Wang et al. 2024",
    source: include_str!("fadas.rs"),
    cost: Cost { server: "5", worker: "0", copies: "b", biased: true },
    keys: &[
        Key { name: "b", default: "5", meaning: "differences per update" },
        Key { name: "q", default: "1", meaning: "local steps per job" },
        Key { name: "local_lr", default: "1 with q = 1", meaning: "η_l of the local steps; needed for q > 1" },
        Key { name: "tau_c", default: "1", meaning: "delay up to which the step is whole" },
    ],
    build: |keys, _| {
        let ((local, factor), b) = (keys.difference()?, keys.count("b", 5, 1..=1 << 20)?);
        let tau_c = keys.count("tau_c", 1, 1..=usize::MAX)? as u64;
        Ok(Box::new(Fadas { local, factor, b, tau_c, count: 0, late: 0 }))
    },
};

struct Fadas {
    local: Local,
    factor: f64,
    b: usize,
    tau_c: u64,
    count: usize,
    late: u64, // the largest delay in the buffer
}

impl Rule for Fadas {
    fn needs(&self) -> Needs {
        Needs { local: self.local, optimizer: ServerOptimizer::AmsGrad(0.9, 0.99, 1e-8), ..Needs::sum_of(self.b) }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        (self.count, self.late) = ((self.count + 1) % self.b, self.late.max(a.staleness));
        let fold = Decision::fold(Fold::Sum { scale: self.factor / self.b as f64 }).start(Start::Sender);
        let late = if self.count == 0 { std::mem::take(&mut self.late) } else { 0 };
        let scale = if late > self.tau_c { 1.0 / late as f64 } else { 1.0 };
        fold.step_if(self.count == 0, 0.0, || Start::Sender).rated(scale)
    }
}

#[cfg(test)]
#[test]
fn late_buffers_step_less() {
    let mut rule = super::tests::rule("fadas:b=2", 4);
    let step = |tau| super::tests::arrive(&mut *rule, 0, 0, tau).step.map(|s| s.rate);
    assert_eq!([4, 2, 1, 0].map(step), [None, Some(0.25), None, Some(1.0)]);
}
