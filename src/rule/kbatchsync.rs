//! K-batch-sync SGD: step along the mean of the first K gradients at the current model, from any workers.
//!
//! ```text
//! on g_i(x_t):        s += g_i / K ;  worker i computes another gradient at x_t
//! after K gradients:  x_{t+1} = x_t - η s ;  s = 0 ;  x_{t+1} to all workers, running jobs are cancelled
//! ```
//!
//! Dutta, Wang, Joshi 2020 (arXiv 2003.10579). Proved: noise of order ησ²/K; K/(nμ) seconds per update for
//! exponential job times of rate μ. Fast workers have a larger weight, even with K = n. The paper fixes no K;
//! our default is n/2, rounded up.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "kbatchsync",
    summary: "K-batch-sync: the mean of the first K gradients at the current model, then all restart",
    paper: "Dutta et al. 2020",
    source: include_str!("kbatchsync.rs"),
    cost: Cost { server: "2", worker: "0", copies: "n", biased: true },
    keys: &[Key { name: "k", default: "half the workers", meaning: "gradients per update" }],
    build: |keys, setting| {
        let n = setting.workers;
        let k = keys.count("k", n.div_ceil(2), 1..=1 << 20)?;
        Ok(Box::new(KBatchSync::new(n, k)))
    },
};

/// Collects `k` gradients of `n` workers at the current model. Rennala SGD is the same rule with K = S.
pub(super) struct KBatchSync {
    n: usize,
    k: usize,
    /// Number of gradients since the last update.
    count: usize,
}

impl KBatchSync {
    pub(super) fn new(n: usize, k: usize) -> Self {
        KBatchSync { n, k, count: 0 }
    }
}

impl Rule for KBatchSync {
    fn needs(&self) -> Needs {
        Needs { synchronous: true, ..Needs::sum() }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        // s += g_i / K ;  worker i computes again at x_t
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.k as f64 }).start(Start::Sender);
        self.count += 1;
        if self.count < self.k {
            return fold;
        }

        // x -= η s ;  s = 0 ;  x to all workers
        self.count = 0;
        let others = (0..self.n).filter(|i| *i != arrival.worker).collect();
        fold.step(0.0, Start::Sender).restart(others)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn the_sender_computes_again_until_all_restart() {
        let mut rule = rule("kbatchsync:k=2", 3);
        assert_eq!(arrive(&mut *rule, 0, 0, 0).start, Start::Sender);
        assert_eq!(arrive(&mut *rule, 0, 0, 0).restart, [1, 2]);
    }
}
