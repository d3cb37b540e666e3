//! Hogwild!: all workers write the shared model at once, without a lock or an order; some writes get lost.
//!
//! ```text
//! every worker, in a loop:  y = x, read while others write it ;  x_k -= η g_i(y)_k  for every parameter k, one by one
//! ```
//!
//! Recht, Ré, Wright, Niu 2011. Proved: near-linear speed-up for *sparse* gradients. Dense gradients
//! overwrite each other, so use this rule to bound the throughput, not to train. A run is not reproducible:
//! the hardware decides the order of writes, so the clocks `virtual` and `replay` cannot run it. The server
//! only counts arrivals, and staleness is counted in arrivals.

use super::{Arrival, Cost, Decision, Entry, Fold, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "hogwild",
    summary: "Hogwild!: all workers write the shared model without a lock (not reproducible)",
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
        // The worker has already written x -= η g_i.
        Decision::fold(Fold::Live).step(1.0, Start::Sender)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};
    use super::*;

    #[test]
    fn the_server_only_counts_arrivals() {
        let mut rule = rule("hogwild", 2);
        assert_eq!(arrive(&mut *rule, 0, 0, 1).fold, Fold::Live);
    }
}
