//! Hogwild!: all workers write the shared model at once, without any lock or order; what that loses is lost.
//!
//! ```text
//! worker, for ever:  y = x as it is seen now ;   x_k -= η g_i(y)_k  for every parameter k, each for itself
//! ```
//!
//! Recht, Ré, Wright, Niu 2011. Proved: near-linear speed-up for *sparse* gradients. Dense gradients overwrite each other, so
//! this is a bound on throughput and no method to train with. It does not repeat itself: the order of writes is the hardware's,
//! and neither `virtual` nor `replay` can run it. Its server only counts arrivals; staleness is in arrivals, too.

use super::{Arrival, Cost, Decision, Entry, Fold, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "hogwild",
    summary: "Hogwild!: everybody writes the shared model without a lock (not repeatable)",
    paper: "Recht et al. 2011",
    source: include_str!("hogwild.rs"),
    cost: Cost { server: "1", worker: "1", copies: "1", biased: true },
    keys: &[],
    build: |_, _| Ok(Box::new(Hogwild)),
};

struct Hogwild;

impl Rule for Hogwild {
    fn needs(&self) -> Needs {
        Needs { live: true, ..Needs::default() }
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        Decision::fold(Fold::Live).step(1.0, Start::Sender)
    }
}

#[cfg(test)]
#[test]
fn the_server_only_counts() {
    assert_eq!(super::tests::arrive(&mut *super::tests::rule("hogwild", 2), 0, 0, 1).fold, Fold::Live);
}
