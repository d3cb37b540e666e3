//! ACE (all-client engagement): at every arrival, step along the mean of all workers' latest gradients.
//!
//! ```text
//! first round:  row_i = g_i(x_0) for every worker i ;  u = (1/n) Σ row_i ;  x_1 = x_0 - η u ;  x_1 to all workers
//! then on g_i:  u += (g_i - row_i)/n ;  row_i = g_i ;  x -= η u ;  x to worker i
//! ```
//!
//! Chang et al. 2025 (arXiv 2511.19066). Proved: the error has no term for heterogeneity ("participation
//! imbalance"); the best η is of order √(n/T). With one local gradient per job, ACE equals DuDe with c = 1
//! and init = barrier. So this entry builds that DuDe rule.

use super::{Cost, Entry, RuleSpec};

pub(super) const ENTRY: Entry = Entry {
    name: "ace",
    summary: "ACE: at every arrival, step along the mean of all workers' latest gradients",
    paper: "Chang et al. 2025",
    source: include_str!("ace.rs"),
    cost: Cost { server: "2", worker: "1", copies: "1", biased: false },
    keys: &[],
    build: |_, setting| "dude:c=1,init=barrier".parse::<RuleSpec>()?.build(setting),
};

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn ace_equals_dude_with_a_barrier_start() {
        let mut ace = rule("ace", 3);
        let mut dude = rule("dude", 3);
        for (worker, version, t) in [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 1), (0, 2, 2), (1, 1, 3)] {
            assert_eq!(arrive(&mut *ace, worker, version, t), arrive(&mut *dude, worker, version, t));
        }
    }
}
