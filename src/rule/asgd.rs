//! Pure (vanilla) asynchronous SGD: every gradient is a step, and its sender continues with the new model.
//!
//! ```text
//! on g_i, computed at x_{t-τ}:  x_{t+1} = x_t - η g_i(x_{t-τ}) ;  x_{t+1} to worker i
//! ```
//!
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", Algorithm 2); Mishchenko et al. 2022. Proved: with
//! 20 L η √(τ_max n) <= 1 the method converges to an error floor of order ζ² that no learning rate removes
//! (ζ bounds ‖∇f_i - ∇f‖). If worker i takes the time s_i for a gradient, the limit is the minimiser of
//! Σ f_i / s_i, not of Σ f_i.

use super::{Arrival, Cost, Decision, Entry, Rule};

pub(super) const ENTRY: Entry = Entry {
    name: "asgd",
    summary: "pure asynchronous SGD: step along every gradient when it arrives",
    paper: "Mishchenko et al. 2022; Islamov et al. 2024",
    source: include_str!("asgd.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: true },
    keys: &[],
    build: |_, _| Ok(Box::new(Asgd)),
};

struct Asgd;

impl Rule for Asgd {
    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        // x -= η g_i ;  x to worker i
        Decision::direct()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn every_arrival_steps_and_its_sender_continues() {
        let decision = arrive(&mut *rule("asgd", 3), 2, 0, 5);
        assert!(decision.step.is_some() && decision.start == Start::Sender);
    }
}
