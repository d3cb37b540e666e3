//! Damped ASGD: pure asynchronous SGD whose step is scaled down by a power of the gradient's staleness.
//!
//! ```text
//! x_{t+1} = x_t - η (1+τ)^-p g_i(x_{t-τ}) ;   x_{t+1} to i
//! ```
//!
//! An exercise (2026), between pure ASGD (p = 0) and approximately the staleness-aware step of Zhang et al.
//! 2016 (p = 1).

use stagger::rule::{Arrival, Cost, Decision, Entry, Key, Rule};

pub const ENTRY: Entry = Entry {
    name: "damped",
    summary: "damped ASGD: the step is scaled down by a power of the staleness",
    paper: "an exercise, 2026",
    source: include_str!("damped.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: true },
    keys: &[Key { name: "p", default: "0.5", meaning: "exponent" }],
    build: |keys, _setting| Ok(Box::new(Damped { p: keys.number("p", 0.5, 0.0..=10.0)? })),
};

struct Damped {
    p: f64,
}

impl Rule for Damped {
    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        Decision::direct().scaled((1.0 + arrival.staleness as f64).powf(-self.p))
    }
}

#[test]
fn a_stale_gradient_takes_a_smaller_step() {
    let mut rule = Damped { p: 0.5 };
    let late = Arrival { staleness: 3, ..Arrival::default() };
    assert_eq!(rule.on_arrival(&late).step.unwrap().scale, 0.5);
}
