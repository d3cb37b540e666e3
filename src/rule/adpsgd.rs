//! AD-PSGD: no server; a worker that has a gradient averages its model with a neighbour's and steps.
//!
//! ```text
//! j a random neighbour of i ;   x_i, x_j = (x_i + x_j)/2 ;   x_i -= η g_i      (g_i at the x_i with which the job began)
//! ```
//!
//! Lian, Zhang, Zhang, Liu 2018. Proved: O(1/√K) with linear speed-up in n, for alike speeds in expectation; here fast workers
//! step more often and weigh more. The models live on one device; averages happen one after the other, so no deadlock can arise
//! and the graph need not be bipartite. What is evaluated and saved is the mean of all x_i. The version counts gradients.

use super::support::draw::pick;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "adpsgd",
    summary: "AD-PSGD: no server, models are averaged in pairs",
    paper: "Lian et al. 2018",
    source: include_str!("adpsgd.rs"),
    cost: Cost { server: "1", worker: "1", copies: "1", biased: true },
    keys: &[Key { name: "graph", default: "complete", meaning: "neighbours: complete or ring" }],
    build: |keys, setting| {
        let ring = keys.choice("graph", &[("complete", false), ("ring", true)])?;
        Ok(Box::new(AdPsgd { n: setting.workers, seed: setting.seed, ring, drawn: 0 }))
    },
};

struct AdPsgd {
    n: usize,
    seed: u64,
    ring: bool,
    drawn: u64,
}

impl Rule for AdPsgd {
    fn needs(&self) -> Needs {
        Needs { own: true, peers: true, mixes: true, ..Needs::default() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        self.drawn += 1;
        let away = match (self.n, self.ring) {
            (1, _) => None,
            (n, true) => Some([1, n - 1][pick(self.seed, self.drawn, 2)]),
            (n, false) => Some(1 + pick(self.seed, self.drawn, n - 1)),
        };
        Decision::fold(Fold::Pair { peer: away.map(|k| (a.worker + k) % self.n) }).step(1.0, Start::Sender)
    }
}

#[cfg(test)]
#[test]
fn nobody_is_its_own_neighbour() {
    let mut rule = super::tests::rule("adpsgd:graph=ring", 5);
    let peers: Vec<_> = (0..20).map(|t| super::tests::arrive(&mut *rule, 0, t, t).fold).collect();
    assert!(peers.iter().all(|p| [1, 4].map(|j| Fold::Pair { peer: Some(j) }).contains(p)));
}
