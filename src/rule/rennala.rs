//! Rennala SGD: all workers compute at the current model until the server has S gradients; step along their
//! mean.
//!
//! ```text
//! collect B_i gradients g_ij of each worker i at x_t until Σ_i B_i = S
//! x_{t+1} = x_t - η (1/S) Σ_i Σ_{j<=B_i} g_ij ;  x_{t+1} to all workers, running jobs are cancelled
//! ```
//!
//! Tyurin, Richtárik 2023. Proved: optimal time for homogeneous data with S = max(1, σ²/ε). With different
//! f_i the limit is biased, because fast workers have a larger weight. In the paper S depends on σ²/ε; our
//! default is n. S may exceed the number of workers.
//!
//! The rule equals K-batch-sync with K = S. So this entry builds `kbatchsync`.

use super::{Cost, Entry, Key, kbatchsync::KBatchSync};

pub(super) const ENTRY: Entry = Entry {
    name: "rennala",
    summary: "Rennala SGD: the mean of the first S gradients at the current model",
    paper: "Tyurin & Richtárik 2023",
    source: include_str!("rennala.rs"),
    cost: Cost { server: "2", worker: "0", copies: "n", biased: true },
    keys: &[Key { name: "s", default: "number of workers", meaning: "gradients per update" }],
    build: |keys, setting| {
        let n = setting.workers;
        let s = keys.count("s", n, 1..=1 << 20)?;
        Ok(Box::new(KBatchSync::new(n, s)))
    },
};

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn s_may_exceed_the_number_of_workers() {
        let mut rule = rule("rennala:s=4", 3);
        let steps = [0, 0, 1, 0].map(|i| arrive(&mut *rule, i, 0, 0).step.is_some());
        assert_eq!(steps, [false, false, false, true]);
    }
}
