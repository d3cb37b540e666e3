//! SGD with random reshuffling: one worker after another, in the order of a permutation. No gradient is stale.
//!
//! ```text
//! x_{t+1} = x_t - η g_{χ(t mod n)}(x_t)
//! every n updates:  a new permutation χ   (once: the same permutation for the whole run)
//! ```
//!
//! Mishchenko, Khaled, Richtárik 2020; Islamov, Safaryan, Alistarh 2024 ("AsGrad", as a special case). Proved
//! with 20 L η n <= 1: L F0 n/T + (L F0 √n ζ/T)^{2/3}. The paper's data points are the workers here. Only one
//! worker computes at a time and the simulated time is the sum of all job times. So this is a baseline over
//! updates, not over time.

use super::support::draw::WorkerOrder;
use super::{Arrival, Cost, Decision, Entry, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "rr",
    summary: "random reshuffling: one worker after another in shuffled order, no staleness",
    paper: "Mishchenko et al. 2020",
    source: include_str!("rr.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: false },
    keys: &[Key { name: "once", default: "false", meaning: "true: one permutation for the whole run" }],
    build: |keys, setting| {
        let order = WorkerOrder::new(keys, setting)?;
        Ok(Box::new(Reshuffled { order }))
    },
};

struct Reshuffled {
    /// χ.
    order: WorkerOrder,
}

impl Rule for Reshuffled {
    fn needs(&self) -> Needs {
        Needs { synchronous: true, ..Needs::default() }
    }

    fn begin(&mut self, _: usize) -> Vec<usize> {
        vec![self.order.next_worker()]
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        // x -= η g_i ;  x to the next worker of χ
        let worker = self.order.next_worker();
        Decision::direct().start(Start::These(vec![worker]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn each_worker_computes_once_per_round() {
        let mut rule = rule("rr:once", 3);
        let first = rule.begin(3);
        assert_eq!(first.len(), 1);
        let targets: Vec<_> = (0..6).map(|t| arrive(&mut *rule, 0, t, t).start).collect();
        assert_eq!(targets[2], Start::These(first.clone()));
        assert_eq!(targets[5], Start::These(first));
        assert!(!targets[..2].contains(&targets[2]));
    }
}
