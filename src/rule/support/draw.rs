//! Random draws of rules. A draw is a function of the seed and of its number, so a run is reproducible under
//! every clock.

use super::super::{Keys, Setting};
use crate::error::{Error, Result};
use rand_distr::{Distribution, Uniform};
use stagger_datasets::keyed;

/// Separates the draws of rules from all other draws with the same seed.
const PURPOSE: u64 = 0x72756c65;

/// Draw number `k`: one of `0..n`, uniformly.
pub(in crate::rule) fn pick(seed: u64, k: u64, n: usize) -> usize {
    Uniform::new(0, n as u64).expect("n is at least 1").sample(&mut keyed([seed, PURPOSE, k, 0])) as usize
}

/// Draw number `k`: a permutation of `0..n` (Fisher-Yates).
pub(in crate::rule) fn permutation(seed: u64, k: u64, n: usize) -> Vec<usize> {
    let mut random = keyed([seed, PURPOSE, k, 1]);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let j = Uniform::new_inclusive(0, i as u64).expect("0 is at most i").sample(&mut random);
        order.swap(i, j as usize);
    }
    order
}

/// Draw number `k`: a non-empty subset of `0..n`. Each worker is in it with probability `p`; an empty set is
/// drawn again.
pub(in crate::rule) fn present(seed: u64, k: u64, n: usize, p: f64) -> Vec<usize> {
    let mut random = keyed([seed, PURPOSE, k, 2]);
    let unit = Uniform::new(0.0, 1.0).expect("0 is less than 1");
    loop {
        let workers: Vec<usize> = (0..n).filter(|_| unit.sample(&mut random) < p).collect();
        if !workers.is_empty() {
            return workers;
        }
    }
}

/// The workers in the order of a permutation, round after round.
pub(in crate::rule) struct WorkerOrder {
    workers: usize,
    seed: u64,
    /// All rounds have the same permutation.
    once: bool,
    /// The order that the user has set.
    fixed: Option<Vec<usize>>,
    /// The permutation of the current round.
    round: Vec<usize>,
    /// Number of workers returned so far.
    count: usize,
}

impl WorkerOrder {
    /// Reads the parameters `once` and `order`.
    pub(in crate::rule) fn new(keys: &Keys, setting: &Setting) -> Result<Self> {
        let workers = setting.workers;
        let mut fixed = None;
        if let Some(text) = keys.text("order") {
            let order: Vec<usize> = text.split('-').map(|i| i.parse().unwrap_or(usize::MAX)).collect();
            if order.len() != workers || !(0..workers).all(|i| order.contains(&i)) {
                return Err(Error::usage(format!("--rule: order={text} must name each worker once, like 2-0-1")));
            }
            fixed = Some(order);
        }
        let once = keys.flag("once", false)?;
        Ok(WorkerOrder { workers, seed: setting.seed, once, fixed, round: Vec::new(), count: 0 })
    }

    /// The next worker.
    pub(in crate::rule) fn next_worker(&mut self) -> usize {
        let place = self.count % self.workers;
        if place == 0 {
            let number = if self.once { 0 } else { (self.count / self.workers) as u64 };
            self.round = self.fixed.clone().unwrap_or_else(|| permutation(self.seed, number, self.workers));
        }
        self.count += 1;
        self.round[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_uniform_and_reproducible() {
        let n = 8;
        let mut counts = [0f64; 8];
        (0..8000).for_each(|k| counts[pick(3, k, n)] += 1.0);
        // Chi-square with seven degrees of freedom: the probability of a value above 24.3 is 1/1000.
        assert!(counts.iter().map(|c| (c - 1000.0).powi(2) / 1000.0).sum::<f64>() < 24.3, "{counts:?}");
        let mut sorted = permutation(3, 5, n);
        assert_eq!(sorted, permutation(3, 5, n));
        assert_ne!(sorted, permutation(3, 6, n));
        sorted.sort();
        assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        assert!((0..100).all(|k| !present(3, k, 2, 0.05).is_empty()));
    }
}
