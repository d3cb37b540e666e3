//! Random draws of rules: functions of (seed, number of the draw), so that a run repeats itself under every clock.

use super::super::{Keys, Setting};
use crate::error::{Error, Result};
use rand_distr::{Distribution, Uniform};
use stagger_datasets::keyed;

/// Keeps the rules' draws apart from all others of the same seed.
const PURPOSE: u64 = 0x72756c65;

/// Draw `k`: one of `0..n`, each as likely.
pub(in crate::rule) fn pick(seed: u64, k: u64, n: usize) -> usize {
    Uniform::new(0, n as u64).expect("somebody to pick").sample(&mut keyed([seed, PURPOSE, k, 0])) as usize
}

/// Draw `k`: a permutation of `0..n` (Fisher and Yates).
pub(in crate::rule) fn permutation(seed: u64, k: u64, n: usize) -> Vec<usize> {
    let mut random = keyed([seed, PURPOSE, k, 1]);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, Uniform::new_inclusive(0, i as u64).expect("a range").sample(&mut random) as usize);
    }
    order
}

/// Draw `k`: those of `0..n` that are there with probability `p` each; drawn again until somebody is.
pub(in crate::rule) fn present(seed: u64, k: u64, n: usize, p: f64) -> Vec<usize> {
    let mut random = keyed([seed, PURPOSE, k, 2]);
    let unit = Uniform::new(0.0, 1.0).expect("a range");
    loop {
        let who: Vec<usize> = (0..n).filter(|_| unit.sample(&mut random) < p).collect();
        if !who.is_empty() {
            return who;
        }
    }
}

/// The workers in shuffled order, round after round.
pub(in crate::rule) struct Order {
    setting: Setting,
    once: bool,
    fixed: Option<Vec<usize>>,
    round: Vec<usize>,
    turns: usize,
}

impl Order {
    /// An order by the parameters `once` and `order`.
    pub(in crate::rule) fn new(keys: &Keys, setting: &Setting) -> Result<Self> {
        let mut fixed = None;
        if let Some(text) = keys.text("order") {
            let order: Vec<usize> = text.split('-').map(|i| i.parse().unwrap_or(usize::MAX)).collect();
            if order.len() != setting.workers || !(0..setting.workers).all(|i| order.contains(&i)) {
                return Err(Error::usage(format!("--rule: order={text} must name each worker once, like 2-0-1")));
            }
            fixed = Some(order);
        }
        Ok(Order { setting: setting.clone(), once: keys.flag("once", false)?, fixed, round: Vec::new(), turns: 0 })
    }

    /// Whose turn it is.
    pub(in crate::rule) fn turn(&mut self) -> usize {
        let n = self.setting.workers;
        if self.turns.is_multiple_of(n) {
            let number = if self.once { 0 } else { (self.turns / n) as u64 };
            self.round = self.fixed.clone().unwrap_or_else(|| permutation(self.setting.seed, number, n));
        }
        self.turns += 1;
        self.round[(self.turns - 1) % n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_fair_and_repeat_themselves() {
        let n = 8;
        let mut counts = [0f64; 8];
        (0..8000).for_each(|k| counts[pick(3, k, n)] += 1.0);
        // Chi-square with seven degrees of freedom: 24.3 is exceeded once in a thousand.
        assert!(counts.iter().map(|c| (c - 1000.0).powi(2) / 1000.0).sum::<f64>() < 24.3, "{counts:?}");
        let mut sorted = permutation(3, 5, n);
        assert_eq!(sorted, permutation(3, 5, n));
        assert_ne!(sorted, permutation(3, 6, n));
        sorted.sort();
        assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        assert!((0..100).all(|k| !present(3, k, 2, 0.05).is_empty()));
    }
}
