//! AD-PSGD: no server. A worker with a new gradient averages its model with a random neighbour's, then steps.
//!
//! ```text
//! on g_i:      j = a random neighbour of i ;  x_i, x_j = (x_i + x_j)/2 ;  x_i -= η g_i ;  worker i continues from x_i
//! g_i:         computed at the x_i with which the job began (other workers' averages may have changed x_i since)
//! neighbours:  complete: all other workers      ring: i-1 and i+1 modulo n      n = 1: none, and no averaging
//! ```
//!
//! All x_i begin at x_0; every neighbour is equally likely. η is the learning rate at the start of the job.
//!
//! Lian, Zhang, Zhang, Liu 2018. Proved: O(1/√K) after K gradients, with linear speed-up in n, if all workers
//! are equally fast in expectation. Here fast workers step more often and so weigh more. All models are on
//! one device and the averages happen one after another: no deadlock can arise, so the graph need not be
//! bipartite. The mean of all x_i is evaluated and saved. The version counts gradients.

use super::support::draw::pick;
use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "adpsgd",
    summary: "AD-PSGD: no server; workers average their models in pairs",
    paper: "Lian et al. 2018",
    source: include_str!("adpsgd.rs"),
    cost: Cost { server: "1", worker: "1", copies: "1", biased: true },
    keys: &[Key { name: "graph", default: "complete", meaning: "neighbours of a worker: complete or ring" }],
    build: |keys, setting| {
        let graph = keys.choice("graph", &[("complete", Graph::Complete), ("ring", Graph::Ring)])?;
        Ok(Box::new(AdPsgd { n: setting.workers, seed: setting.seed, graph, draws: 0 }))
    },
};

#[derive(Clone, Copy)]
enum Graph {
    Complete,
    Ring,
}

struct AdPsgd {
    n: usize,
    seed: u64,
    graph: Graph,
    /// Number of the latest random draw.
    draws: u64,
}

impl Rule for AdPsgd {
    fn needs(&self) -> Needs {
        Needs { own: true, peers: true, mixes: true, ..Needs::default() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        // j = i + distance modulo n
        self.draws += 1;
        let distance = match (self.n, self.graph) {
            (1, _) => None,
            (n, Graph::Ring) => Some([1, n - 1][pick(self.seed, self.draws, 2)]),
            (n, Graph::Complete) => Some(1 + pick(self.seed, self.draws, n - 1)),
        };
        let peer = distance.map(|distance| (a.worker + distance) % self.n);

        // x_i, x_j = (x_i + x_j)/2 ;  x_i -= η g_i
        Decision::fold(Fold::Pair { peer }).step(1.0, Start::Sender)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};
    use super::*;

    #[test]
    fn a_ring_has_two_neighbours_and_not_the_worker_itself() {
        let mut rule = rule("adpsgd:graph=ring", 5);
        let neighbours = [1, 4].map(|j| Fold::Pair { peer: Some(j) });
        for t in 0..20 {
            let fold = arrive(&mut *rule, 0, t, t).fold;
            assert!(neighbours.contains(&fold), "{fold:?}");
        }
    }
}
