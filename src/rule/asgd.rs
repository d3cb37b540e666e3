//! Pure (vanilla) asynchronous SGD: every gradient is a step, its sender goes on with the new model.
//!
//! ```text
//! x_{t+1} = x_t - η g_i(x_{t-τ}) ;   x_{t+1} to i
//! ```
//!
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", Algorithm 2); Mishchenko et al. 2022. Proved: with 20 L η √(τ_max n) <= 1 it
//! comes as near as a floor of order ζ² that no learning rate removes; with unequal speeds s_i its limit is the minimiser of
//! Σ f_i / s_i, not of Σ f_i.

use super::{Arrival, Cost, Decision, Entry, Rule};

pub(super) const ENTRY: Entry = Entry {
    name: "asgd",
    summary: "pure asynchronous SGD: step along every gradient as it comes",
    paper: "Mishchenko et al. 2022; Islamov et al. 2024",
    source: include_str!("asgd.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: true },
    keys: &[],
    build: |_, _| Ok(Box::new(Asgd)),
};

struct Asgd;

impl Rule for Asgd {
    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        Decision::direct()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn every_arrival_is_a_step_and_its_sender_goes_on() {
        let decision = arrive(&mut *rule("asgd", 3), 2, 0, 5);
        assert!(decision.step.is_some() && decision.start == Start::Sender);
    }
}
