//! Staleness-aware asynchronous SGD: pure asynchronous SGD whose steps are divided by the gradient's staleness.
//!
//! ```text
//! on g_i with staleness τ:  x_{t+1} = x_t - (η / max(1, τ)) g_i(x_{t-τ}) ;  x_{t+1} to worker i
//! ```
//!
//! Zhang, Gupta, Lian, Liu 2016 ("Staleness-aware Async-SGD for distributed deep learning"), with one update
//! per gradient (the authors' n-softsync with n learners). Proved there: the rate of asynchronous SGD when
//! the step follows the delay. With different f_i, slow workers take fewer *and* smaller steps, so the limit
//! is farther from the minimiser than that of pure asynchronous SGD.

use super::{Arrival, Cost, Decision, Entry, Rule};

pub(super) const ENTRY: Entry = Entry {
    name: "staleness",
    summary: "staleness-aware asynchronous SGD: the step is divided by the gradient's staleness",
    paper: "Zhang et al. 2016",
    source: include_str!("staleness.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: true },
    keys: &[],
    build: |_, _| Ok(Box::new(Staleness)),
};

struct Staleness;

impl Rule for Staleness {
    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        // x -= (η / max(1, τ)) g_i ;  x to worker i
        let tau = arrival.staleness.max(1) as f64;
        Decision::direct().scaled(1.0 / tau)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::*;

    #[test]
    fn the_step_is_divided_by_the_staleness() {
        let mut rule = rule("staleness", 3);
        let scales = [0, 1, 4].map(|tau| arrive(&mut *rule, 0, 0, tau).step.unwrap().scale);
        assert_eq!(scales, [1.0, 1.0, 0.25]);
    }
}
