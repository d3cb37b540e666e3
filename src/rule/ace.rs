//! ACE, all-client engagement: step at every arrival along the mean of all clients' latest gradients.
//!
//! ```text
//! u_0 = mean of g_i(x_0), x_1 = x_0 - η u_0 to all ;   on g_i:  u += (g_i - row_i) / n ;  row_i = g_i ;  x -= η u ;  x to i
//! ```
//!
//! Chang et al. 2025 (arXiv 2511.19066). Proved: no term for heterogeneity ("participation imbalance") remains, with the best
//! η of order √(n/T). With one local gradient it is DuDe with c = 1 and a barrier start, which is what runs here.

use super::{Cost, Entry, RuleSpec};

pub(super) const ENTRY: Entry = Entry {
    name: "ace",
    summary: "ACE: at every arrival, along the mean of all latest gradients",
    paper: "Chang et al. 2025",
    source: include_str!("ace.rs"),
    cost: Cost { server: "2", worker: "1", copies: "1", biased: false },
    keys: &[],
    build: |_, setting| "dude:c=1,init=barrier".parse::<RuleSpec>()?.build(setting),
};

#[cfg(test)]
#[test]
fn it_is_dude_after_a_barrier() {
    use super::tests::*;
    let (mut ace, mut dude) = (rule("ace", 3), rule("dude", 3));
    for (i, v, t) in [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 1), (0, 2, 2), (1, 1, 3)] {
        assert_eq!(arrive(&mut *ace, i, v, t), arrive(&mut *dude, i, v, t));
    }
}
