//! K-sync SGD: step along the mean of the gradients of the first K workers; the other workers' jobs are
//! cancelled.
//!
//! ```text
//! on g_i(x_t):      s += g_i / K ;  worker i waits
//! after K answers:  x_{t+1} = x_t - η s ;  s = 0 ;  x_{t+1} to all workers, running jobs are cancelled
//! ```
//!
//! Dutta, Joshi, Ghosh, Dube, Nagpurkar 2018; Dutta, Wang, Joshi 2020 (arXiv 2003.10579). Proved: noise of
//! order ησ²/K; (H_n - H_{n-K})/μ seconds per update for exponential job times of rate μ, with the harmonic
//! numbers H. With fixed speeds the n-K slowest workers never contribute. The paper fixes no K; our default
//! is n/2, rounded up.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "ksync",
    summary: "K-sync: the mean of the first K workers, the others restart",
    paper: "Dutta et al. 2018",
    source: include_str!("ksync.rs"),
    cost: Cost { server: "2", worker: "0", copies: "n", biased: true },
    keys: &[Key { name: "k", default: "half the workers", meaning: "workers per update, 1 to all" }],
    build: |keys, setting| {
        let n = setting.workers;
        let k = keys.count("k", n.div_ceil(2), 1..=n)?;
        Ok(Box::new(KSync { k, answered: vec![false; n], count: 0 }))
    },
};

struct KSync {
    k: usize,
    /// Whether each worker has answered since the last update.
    answered: Vec<bool>,
    /// Number of workers that have answered.
    count: usize,
}

impl Rule for KSync {
    fn needs(&self) -> Needs {
        Needs { synchronous: true, ..Needs::sum() }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        self.answered[arrival.worker] = true;
        self.count += 1;

        // s += g_i / K
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.k as f64 });
        if self.count < self.k {
            return fold;
        }

        // x -= η s ;  s = 0 ;  x to all workers
        let n = self.answered.len();
        let idle = (0..n).filter(|&i| self.answered[i]).collect();
        let busy = (0..n).filter(|&i| !self.answered[i]).collect();
        self.answered.fill(false);
        self.count = 0;
        fold.step(0.0, Start::These(idle)).restart(busy)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn workers_that_have_not_answered_restart() {
        let mut rule = rule("ksync:k=2", 3);
        arrive(&mut *rule, 2, 0, 0);
        let last = arrive(&mut *rule, 0, 0, 0);
        assert_eq!(last.start, Start::These(vec![0, 2]));
        assert_eq!(last.restart, [1]);
    }
}
