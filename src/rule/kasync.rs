//! K-async SGD: step along the mean of the gradients of the first K workers; the other workers' gradients
//! come later and are stale.
//!
//! ```text
//! on g_i:           s += g_i / K ;  worker i waits
//! after K answers:  x_{t+1} = x_t - η s ;  s = 0 ;  x_{t+1} to these K workers
//! ```
//!
//! Dutta, Joshi, Ghosh, Dube, Nagpurkar 2018; Dutta, Wang, Joshi 2020 (arXiv 2003.10579). Proved: noise of
//! order ησ²/K times a staleness factor, in less time per update than K-sync. K = 1 is pure asynchronous SGD,
//! K = n is synchronous SGD. The paper fixes no K; our default is n/2, rounded up.
//!
//! The rule equals AsGrad's pure asynchronous SGD with waiting. So this entry builds `waiting` with b = K.

use super::{Cost, Entry, Key, waiting::Waiting};

pub(super) const ENTRY: Entry = Entry {
    name: "kasync",
    summary: "K-async: the mean of the first K workers, the other gradients come later",
    paper: "Dutta et al. 2018",
    source: include_str!("kasync.rs"),
    cost: Cost { server: "2", worker: "0", copies: "K", biased: true },
    keys: &[Key { name: "k", default: "half the workers", meaning: "workers per update, 1 to all" }],
    build: |keys, setting| {
        let n = setting.workers;
        let k = keys.count("k", n.div_ceil(2), 1..=n)?;
        Ok(Box::new(Waiting::new(n, k)))
    },
};

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn it_equals_pure_asgd_with_waiting() {
        let mut kasync = rule("kasync:k=2", 3);
        let mut waiting = rule("waiting:b=2", 3);
        for (worker, version, t) in [(0, 0, 0), (1, 0, 0), (2, 0, 1), (0, 1, 1)] {
            assert_eq!(arrive(&mut *kasync, worker, version, t), arrive(&mut *waiting, worker, version, t));
        }
    }
}
