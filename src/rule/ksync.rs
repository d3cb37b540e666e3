//! K-sync SGD: step along the mean of the first K workers to answer; the others' work is given up.
//!
//! ```text
//! s += g_i / K  for the first K distinct workers at x_t ;   x_{t+1} = x_t - η s ;  s = 0 ;   x_{t+1} to all, stragglers restart
//! ```
//!
//! Dutta, Joshi, Ghosh, Dube, Nagpurkar 2018; Dutta, Wang, Joshi 2020 (arXiv 2003.10579). Proved: noise as ησ²/K at a time per
//! update of (H_n - H_{n-K})/μ for exponential job times. With fixed speeds it never hears the n-K slowest workers. The paper
//! fixes no K; ours is half the workers.

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
        Ok(Box::new(KSync { k: keys.count("k", n.div_ceil(2), 1..=n)?, answered: vec![false; n], count: 0 }))
    },
};

struct KSync {
    k: usize,
    answered: Vec<bool>,
    count: usize,
}

impl Rule for KSync {
    fn needs(&self) -> Needs {
        Needs { synchronous: true, ..Needs::sum() }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        (self.answered[arrival.worker], self.count) = (true, self.count + 1);
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.k as f64 });
        if self.count < self.k {
            return fold;
        }
        self.count = 0;
        let (idle, late) = (0..self.answered.len()).partition(|i| std::mem::take(&mut self.answered[*i]));
        fold.step(0.0, Start::These(idle)).restart(late)
    }
}

#[cfg(test)]
#[test]
fn stragglers_restart() {
    use super::tests::*;
    let mut rule = rule("ksync:k=2", 3);
    let last = [2, 0].map(|i| arrive(&mut *rule, i, 0, 0))[1].clone();
    assert_eq!((last.start, last.restart), (Start::These(vec![0, 2]), vec![1]));
}
