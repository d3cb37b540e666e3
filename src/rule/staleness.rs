//! Staleness-aware asynchronous SGD: pure ASGD whose step is divided by the gradient's staleness.
//!
//! ```text
//! x_{t+1} = x_t - (η / max(1, τ)) g_i(x_{t-τ}) ;   x_{t+1} to i
//! ```
//!
//! Zhang, Gupta, Lian, Liu 2016 ("Staleness-aware Async-SGD for distributed deep learning"), with an update per gradient
//! (their n-softsync with n learners). Proved there: the rate of ASGD when the step follows the delay; with different f_i slow
//! workers get fewer *and* smaller steps, so its limit lies farther off than that of pure ASGD.

use super::{Arrival, Cost, Decision, Entry, Rule};

pub(super) const ENTRY: Entry = Entry {
    name: "staleness",
    summary: "staleness-aware ASGD: the step is divided by the gradient's staleness",
    paper: "Zhang et al. 2016",
    source: include_str!("staleness.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: true },
    keys: &[],
    build: |_, _| Ok(Box::new(Staleness)),
};

struct Staleness;

impl Rule for Staleness {
    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        Decision::direct().scaled(1.0 / arrival.staleness.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::*;

    #[test]
    fn the_step_is_divided_by_the_staleness() {
        let mut rule = rule("staleness", 3);
        let scales: Vec<_> = [0, 1, 4].map(|tau| arrive(&mut *rule, 0, 0, tau).step.unwrap().scale).to_vec();
        assert_eq!(scales, [1.0, 1.0, 0.25]);
    }
}
