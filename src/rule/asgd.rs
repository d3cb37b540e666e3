//! Pure (vanilla) asynchronous SGD: every gradient is a step, its sender goes on with the new model.
//!
//! ```text
//! x_{t+1} = x_t - η g_i(x_{t-τ}) ;   x_{t+1} to i
//! ```
//!
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", Algorithm 2); Mishchenko et al. 2022. With unequal speeds s_i it converges
//! to the minimiser of Σ f_i / s_i, not of Σ f_i: a floor of order ζ² that no learning rate removes.

use super::{Arrival, Decision, Entry, Needs, Rule};

pub(super) const ENTRY: Entry = Entry {
    name: "asgd",
    summary: "pure asynchronous SGD: step along every gradient as it comes",
    paper: "Mishchenko et al. 2022; Islamov et al. 2024",
    keys: &[],
    build: |_, _| Ok(Box::new(Asgd)),
};

struct Asgd;

impl Rule for Asgd {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        Decision::direct()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RuleSpec, Start, tests::arrive};

    #[test]
    fn every_arrival_is_a_step_and_its_sender_goes_on() {
        let mut rule = "asgd".parse::<RuleSpec>().unwrap().build(3).unwrap();
        let decision = arrive(&mut *rule, 2, 0, 5);
        assert!(decision.step.is_some() && decision.start == Start::Sender);
    }
}
