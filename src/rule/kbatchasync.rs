//! K-batch-async SGD: step along the mean of K gradients. No worker waits: each continues with the current
//! model.
//!
//! ```text
//! on g_i:             s += g_i / K
//! after K gradients:  x_{t+1} = x_t - η s ;  s = 0
//! after every g_i:    the current x to worker i
//! ```
//!
//! Dutta, Wang, Joshi 2020 (arXiv 2003.10579). Proved: K E[s]/n seconds per update for any distribution of
//! the job time s; noise of order ησ²/K times a staleness factor. Fast workers have a larger weight. The
//! paper fixes no K; our default is n/2, rounded up.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "kbatchasync",
    summary: "K-batch-async: the mean of K gradients, no worker waits",
    paper: "Dutta et al. 2020",
    source: include_str!("kbatchasync.rs"),
    cost: Cost { server: "2", worker: "0", copies: "K", biased: true },
    keys: &[Key { name: "k", default: "half the workers", meaning: "gradients per update" }],
    build: |keys, setting| {
        let k = keys.count("k", setting.workers.div_ceil(2), 1..=1 << 20)?;
        Ok(Box::new(KBatchAsync { k, count: 0 }))
    },
};

struct KBatchAsync {
    k: usize,
    /// Number of gradients since the last update.
    count: usize,
}

impl Rule for KBatchAsync {
    fn needs(&self) -> Needs {
        Needs::sum_of(self.k)
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        // s += g_i / K ;  x to worker i
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.k as f64 }).start(Start::Sender);
        self.count += 1;
        if self.count < self.k {
            return fold;
        }

        // x -= η s ;  s = 0 ;  x to worker i
        self.count = 0;
        fold.step(0.0, Start::Sender)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn no_worker_waits() {
        let mut rule = rule("kbatchasync:k=2", 3);
        let decisions = [0, 0].map(|i| arrive(&mut *rule, i, 0, 0));
        assert!(decisions.iter().all(|d| d.start == Start::Sender));
        assert_eq!(decisions.map(|d| d.step.is_some()), [false, true]);
    }
}
