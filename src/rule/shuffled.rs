//! Shuffled asynchronous SGD: every gradient is a step; new models go round in the order of a permutation of the workers.
//!
//! ```text
//! x_{t+1} = x_t - η g_i(x_{t-τ}) ;   x_{t+1} to χ(t mod n) ;   a new permutation χ every n updates (or one for ever)
//! ```
//!
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", Algorithm 6). Proved (bounded gradients, 30 L η n <= 1): no floor, and ζ enters
//! as (L F0 √n ζ/T)^{2/3}, better than random ASGD once ζ >= √(nε). A busy worker queues the job with its snapshot and begins
//! it at once when it is free (the authors' public code leaves such a worker idle).

use super::support::draw::Order;
use super::{Arrival, Cost, Decision, Entry, Key, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "shuffled",
    summary: "shuffled ASGD: step along every gradient, new models go round in shuffled order",
    paper: "Islamov et al. 2024",
    source: include_str!("shuffled.rs"),
    cost: Cost { server: "1", worker: "0 + queue", copies: "1", biased: false },
    keys: &[
        Key { name: "once", default: "false", meaning: "true: one permutation for the whole run" },
        Key { name: "order", default: "random", meaning: "a fixed permutation such as 2-0-1" },
    ],
    build: |keys, setting| Ok(Box::new(Shuffled(Order::new(keys, setting)?))),
};

struct Shuffled(Order);

impl Rule for Shuffled {
    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        Decision::direct().start(Start::These(vec![self.0.turn()]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::*;

    #[test]
    fn everybody_has_a_turn_in_any_round() {
        let mut rule = rule("shuffled", 3);
        let turns: Vec<_> = (0..30).map(|t| arrive(&mut *rule, 0, t, t).start).collect();
        assert!(turns.chunks(3).all(|round| round[0] != round[1] && round[1] != round[2] && round[0] != round[2]));
    }
}
