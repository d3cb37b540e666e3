//! SA-AdaSync: AdaSync (K-async) whose gradients are divided by their staleness.
//!
//! ```text
//! s += g_i / (K max(1, τ_i)) ;   after K distinct workers:  x_{t+1} = x_t - η s ,  K = K_0 √(F(x_0)/F(x_{t+1}))
//! ```
//!
//! Dutta, Wang, Joshi 2020 with the staleness-aware step of Zhang, Gupta, Lian, Liu 2016; a baseline of Tan, Zhu, Zhang 2023
//! (ABS), which names the combination but whose exact form was not available to us. Nothing is proved for the combination.

use super::{Cost, Entry, Key, adasync::AdaSync};

pub(super) const ENTRY: Entry = Entry {
    name: "sa-adasync",
    summary: "SA-AdaSync: AdaSync with gradients divided by their staleness",
    paper: "Dutta et al. 2020; Zhang et al. 2016",
    source: include_str!("sa_adasync.rs"),
    cost: Cost { server: "2", worker: "0", copies: "K", biased: true },
    keys: &[Key { name: "k0", default: "1", meaning: "K at the start" }],
    build: |keys, setting| Ok(Box::new(AdaSync::new(keys, setting, true)?)),
};

#[cfg(test)]
#[test]
fn late_gradients_count_less_and_k_grows_as_the_loss_falls() {
    use super::*;
    let mut rule = tests::rule("sa-adasync", 3);
    let mut arrive =
        |worker, staleness, loss| rule.on_arrival(&Arrival { worker, staleness, loss, ..Arrival::default() });
    assert_eq!(arrive(0, 4, Some(9.0)).fold, Fold::Sum { scale: 0.25 });
    assert!(arrive(0, 0, Some(2.25)).step.is_some());
    assert_eq!([arrive(0, 0, None), arrive(1, 3, None)].map(|d| d.step.is_some()), [false, true]);
}
