//! K-batch-async SGD: step along the mean of K gradients; whoever answers goes on at once with the current model.
//!
//! ```text
//! s += g_i / K ;   x to i ;   after K gradients:  x_{t+1} = x_t - η s ,  s = 0
//! ```
//!
//! Dutta, Wang, Joshi 2020 (arXiv 2003.10579). Proved: K E[s]/n seconds per update whatever the distribution of job times,
//! noise as ησ²/K times a staleness factor. Fast workers weigh more. The paper fixes no K; ours is half the workers.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "kbatchasync",
    summary: "K-batch-async: the mean of K gradients, nobody waits",
    paper: "Dutta et al. 2020",
    source: include_str!("kbatchasync.rs"),
    cost: Cost { server: "2", worker: "0", copies: "K", biased: true },
    keys: &[Key { name: "k", default: "half the workers", meaning: "gradients per update" }],
    build: |keys, setting| {
        Ok(Box::new(KBatchAsync { k: keys.count("k", setting.workers.div_ceil(2), 1..=1 << 20)?, count: 0 }))
    },
};

struct KBatchAsync {
    k: usize,
    count: usize,
}

impl Rule for KBatchAsync {
    fn needs(&self) -> Needs {
        Needs::sum_of(self.k)
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.k as f64 }).start(Start::Sender);
        self.count = (self.count + 1) % self.k;
        if self.count == 0 { fold.step(0.0, Start::Sender) } else { fold }
    }
}

#[cfg(test)]
#[test]
fn nobody_waits() {
    use super::tests::*;
    let mut rule = rule("kbatchasync:k=2", 3);
    let two = [0, 0].map(|i| arrive(&mut *rule, i, 0, 0));
    assert!(two.iter().all(|d| d.start == Start::Sender) && two[0].step.is_none() && two[1].step.is_some());
}
