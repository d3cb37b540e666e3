//! SA-AdaSync: AdaSync (K-async SGD with a K that grows) whose gradients are divided by their staleness.
//!
//! ```text
//! on g_i with staleness τ:  s += g_i / (K max(1, τ)) ;  worker i waits
//! after K answers:          x_{t+1} = x_t - η s ;  s = 0 ;  x_{t+1} to these K workers
//!                           K = K_0 √(F(x_0)/F(x_{t+1})), rounded, from 1 to n
//! ```
//!
//! F is measured as in `adasync`.
//!
//! Dutta, Wang, Joshi 2020 with the staleness-aware step of Zhang, Gupta, Lian, Liu 2016; a baseline of Tan,
//! Zhu, Zhang 2023 (ABS). Their paper names the combination, but its exact form was not available to us.
//! Nothing is proved for the combination.

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
mod tests {
    use super::super::{Arrival, Fold, tests::rule};

    #[test]
    fn stale_gradients_count_less_and_k_grows_as_the_loss_falls() {
        let mut rule = rule("sa-adasync", 3);
        let mut arrive =
            |worker, staleness, loss| rule.on_arrival(&Arrival { worker, staleness, loss, ..Arrival::default() });
        assert_eq!(arrive(0, 4, Some(9.0)).fold, Fold::Sum { scale: 0.25 });
        assert!(arrive(0, 0, Some(2.25)).step.is_some());
        assert_eq!([arrive(0, 0, None), arrive(1, 3, None)].map(|d| d.step.is_some()), [false, true]);
    }
}
