//! FADAS: FedBuff with AMSGrad at the server, and a smaller step if a model difference of the update was late.
//!
//! ```text
//! worker i:  q steps  y -= η_l g_i(y)  from y = x_v ;  Δ_i = x_v - y
//! server:    after b differences:  Δ = (1/b) Σ Δ_i
//!              m = β1 m + (1-β1) Δ ;  u = β2 u + (1-β2) Δ² ;  û = max(û, u) ;  x -= η_t m/(√û + ε)
//!              η_t = η/τ_max  if τ_max > τ_c, else η      (τ_max: the largest delay among the b differences)
//!            x to worker i at once, after every arrival
//! ```
//!
//! β1 = 0.9, β2 = 0.99, ε = 1e-8; m, u and û begin at 0. η is --lr (the authors: 1e-4, delay-adaptive 1e-3).
//! With q = 1 and without `local_lr`, Δ_i is the gradient itself, as in `fedbuff`. No bias correction and
//! η/τ_max as in the authors' code.
//!
//! Wang, Wang, Lu, Chen 2024 (ICML). Proved: O(1/√(Tb)) for nonconvex f; the delay-adaptive step removes
//! τ_max from the leading term.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Local, Needs, Rule, ServerOptimizer, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "fadas",
    summary: "FADAS: an AMSGrad step along the mean of b model differences",
    paper: "Wang et al. 2024",
    source: include_str!("fadas.rs"),
    cost: Cost { server: "5", worker: "0", copies: "b", biased: true },
    keys: &[
        Key { name: "b", default: "5", meaning: "differences per update" },
        Key { name: "q", default: "1", meaning: "local steps per job" },
        Key { name: "local_lr", default: "1 with q = 1", meaning: "η_l of the local steps; needed for q > 1" },
        Key { name: "tau_c", default: "1", meaning: "largest delay with a full step" },
    ],
    build: |keys, _| {
        let (local, factor) = keys.difference()?;
        let b = keys.count("b", 5, 1..=1 << 20)?;
        let tau_c = keys.count("tau_c", 1, 1..=usize::MAX)? as u64;
        Ok(Box::new(Fadas { local, factor, b, tau_c, count: 0, max_delay: 0 }))
    },
};

struct Fadas {
    local: Local,
    /// η_l: turns the sum of a job's directions into Δ_i.
    factor: f64,
    b: usize,
    tau_c: u64,
    /// Differences since the last update.
    count: usize,
    /// τ_max: the largest delay since the last update.
    max_delay: u64,
}

impl Rule for Fadas {
    fn needs(&self) -> Needs {
        let optimizer = ServerOptimizer::AmsGrad(0.9, 0.99, 1e-8);
        Needs { local: self.local, optimizer, ..Needs::sum_of(self.b) }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        // Δ += Δ_i/b
        let fold = Decision::fold(Fold::Sum { scale: self.factor / self.b as f64 }).start(Start::Sender);
        self.count += 1;
        self.max_delay = self.max_delay.max(a.staleness);
        if self.count < self.b {
            return fold;
        }

        // η_t = η/τ_max  if τ_max > τ_c, else η
        self.count = 0;
        let max_delay = std::mem::take(&mut self.max_delay);
        let rate = if max_delay > self.tau_c { 1.0 / max_delay as f64 } else { 1.0 };

        // x -= η_t m/(√û + ε) ;  Δ = 0 ; the server's optimizer keeps m, u and û
        fold.step(0.0, Start::Sender).rated(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn late_differences_make_a_smaller_step() {
        let mut rule = rule("fadas:b=2", 4);
        let rates = [4, 2, 1, 0].map(|tau| arrive(&mut *rule, 0, 0, tau).step.map(|step| step.rate));
        assert_eq!(rates, [None, Some(0.25), None, Some(1.0)]);
    }
}
