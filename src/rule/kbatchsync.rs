//! K-batch-sync SGD: step along the mean of the first K gradients at the current model, whoever computes them.
//!
//! ```text
//! s += g_i / K  for the first K gradients at x_t (a worker that answers computes again at x_t) ;
//! x_{t+1} = x_t - η s ;  s = 0 ;   x_{t+1} to all, unfinished work is given up
//! ```
//!
//! Dutta, Wang, Joshi 2020 (arXiv 2003.10579). Proved: noise as ησ²/K at K/(nμ) seconds per update for exponential job times.
//! Fast workers weigh more, even with K = n. The paper fixes no K; ours is half the workers.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "kbatchsync",
    summary: "K-batch-sync: the mean of the first K gradients at the current model, all restart",
    paper: "Dutta et al. 2020",
    source: include_str!("kbatchsync.rs"),
    cost: Cost { server: "2", worker: "0", copies: "n", biased: true },
    keys: &[Key { name: "k", default: "half the workers", meaning: "gradients per update" }],
    build: |keys, setting| {
        let n = setting.workers;
        Ok(Box::new(KBatchSync { n, k: keys.count("k", n.div_ceil(2), 1..=1 << 20)?, count: 0 }))
    },
};

/// Gathers `k` gradients of `n` workers at the current model; also Rennala SGD.
pub(super) struct KBatchSync {
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) count: usize,
}

impl Rule for KBatchSync {
    fn needs(&self) -> Needs {
        Needs { synchronous: true, ..Needs::sum() }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.k as f64 }).start(Start::Sender);
        self.count += 1;
        if self.count < self.k {
            return fold;
        }
        self.count = 0;
        fold.step(0.0, Start::Sender).restart((0..self.n).filter(|i| *i != arrival.worker).collect())
    }
}

#[cfg(test)]
#[test]
fn the_sender_computes_again_until_all_restart() {
    use super::tests::*;
    let mut rule = rule("kbatchsync:k=2", 3);
    assert_eq!(arrive(&mut *rule, 0, 0, 0).start, Start::Sender);
    assert_eq!(arrive(&mut *rule, 0, 0, 0).restart, [1, 2]);
}
