//! SGD with random reshuffling: one worker after the other, in the order of a permutation; no gradient is late.
//!
//! ```text
//! x_{t+1} = x_t - η g_{χ(t mod n)}(x_t) ;   a new permutation χ every n updates (or one for ever)
//! ```
//!
//! Mishchenko, Khaled, Richtárik 2020; Islamov, Safaryan, Alistarh 2024 ("AsGrad", as a special case). Proved with
//! 20 L η n <= 1: L F0 n/T + (L F0 √n ζ/T)^{2/3}. Data points are the workers; the rule's time is the sum of all job times,
//! so it is a baseline over updates, not over time.

use super::support::draw::Order;
use super::{Arrival, Cost, Decision, Entry, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "rr",
    summary: "random reshuffling: one worker after the other in shuffled order, no delay",
    paper: "Mishchenko et al. 2020",
    source: include_str!("rr.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: false },
    keys: &[Key { name: "once", default: "false", meaning: "true: one permutation for the whole run" }],
    build: |keys, setting| Ok(Box::new(Reshuffled(Order::new(keys, setting)?))),
};

struct Reshuffled(Order);

impl Rule for Reshuffled {
    fn needs(&self) -> Needs {
        Needs { synchronous: true, ..Needs::default() }
    }

    fn begin(&mut self, _: usize) -> Vec<usize> {
        vec![self.0.turn()]
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        Decision::direct().start(Start::These(vec![self.0.turn()]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn one_at_a_time_and_everybody_once_a_round() {
        let mut rule = rule("rr:once", 3);
        let first = rule.begin(3);
        let turns: Vec<_> = (0..6).map(|t| arrive(&mut *rule, 0, t, t).start).collect();
        assert_eq!(
            (first.len(), &turns[2], &turns[5]),
            (1, &Start::These(first.clone()), &Start::These(first.clone()))
        );
        assert!(!turns[..2].contains(&turns[2]));
    }
}
