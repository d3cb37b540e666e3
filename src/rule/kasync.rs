//! K-async SGD: step along the mean of the first K workers to answer; the others' gradients come later, with a delay.
//!
//! ```text
//! s += g_i / K  for the first K distinct workers, who wait ;   x_{t+1} = x_t - η s ;  s = 0 ;   x_{t+1} to those K
//! ```
//!
//! Dutta, Joshi, Ghosh, Dube, Nagpurkar 2018; Dutta, Wang, Joshi 2020 (arXiv 2003.10579). Proved: noise as ησ²/K times a
//! staleness factor, in less time per update than K-sync. It is AsGrad's pure ASGD with waiting (`waiting:b=K`), and that is
//! what runs here; K = 1 is pure ASGD, K = n synchronous SGD. The paper fixes no K; ours is half the workers.

use super::{Cost, Entry, Key, waiting::Waiting};

pub(super) const ENTRY: Entry = Entry {
    name: "kasync",
    summary: "K-async: the mean of the first K workers, the others' gradients come later",
    paper: "Dutta et al. 2018",
    source: include_str!("kasync.rs"),
    cost: Cost { server: "2", worker: "0", copies: "K", biased: true },
    keys: &[Key { name: "k", default: "half the workers", meaning: "workers per update, 1 to all" }],
    build: |keys, setting| {
        let n = setting.workers;
        Ok(Box::new(Waiting::new(n, keys.count("k", n.div_ceil(2), 1..=n)?)))
    },
};

#[cfg(test)]
#[test]
fn it_is_pure_asgd_with_waiting() {
    use super::tests::*;
    let (mut kasync, mut waiting) = (rule("kasync:k=2", 3), rule("waiting:b=2", 3));
    for (i, v, t) in [(0, 0, 0), (1, 0, 0), (2, 0, 1), (0, 1, 1)] {
        assert_eq!(arrive(&mut *kasync, i, v, t), arrive(&mut *waiting, i, v, t));
    }
}
