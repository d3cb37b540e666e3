//! Rennala SGD: everybody computes at the current model until S gradients are there; step along their mean.
//!
//! ```text
//! collect at x_t until Σ_i B_i = S ;   x_{t+1} = x_t - η (1/S) Σ_i Σ_{j<=B_i} g_ij ;   x_{t+1} to all, unfinished work is given up
//! ```
//!
//! Tyurin, Richtárik 2023. Proved: optimal time for homogeneous data with S = max(1, σ²/ε); with different f_i it is biased,
//! for fast workers weigh more. It is K-batch-sync with K = S, and that is what runs here; S may exceed the number of workers.
//! S depends on σ²/ε in the paper; ours is the number of workers.

use super::{Cost, Entry, Key, kbatchsync::KBatchSync};

pub(super) const ENTRY: Entry = Entry {
    name: "rennala",
    summary: "Rennala SGD: the mean of the first S gradients at the current model",
    paper: "Tyurin & Richtárik 2023",
    source: include_str!("rennala.rs"),
    cost: Cost { server: "2", worker: "0", copies: "n", biased: true },
    keys: &[Key { name: "s", default: "the workers", meaning: "gradients per update" }],
    build: |keys, setting| {
        let k = keys.count("s", setting.workers, 1..=1 << 20)?;
        Ok(Box::new(KBatchSync { n: setting.workers, k, count: 0 }))
    },
};

#[cfg(test)]
#[test]
fn a_batch_may_exceed_the_workers() {
    use super::tests::*;
    let mut rule = rule("rennala:s=4", 3);
    let steps = [0, 0, 1, 0].map(|i| arrive(&mut *rule, i, 0, 0).step.is_some());
    assert_eq!(steps, [false, false, false, true]);
}
