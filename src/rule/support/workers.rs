//! State per worker that rules keep. On average an arrival costs the same for any number of workers, except
//! for a logarithm in [`Ages`].

use std::collections::BTreeSet;

/// A set of workers that a rule still waits for.
pub(in crate::rule) struct PendingWorkers {
    /// Whether each worker is in the set.
    pending: Vec<bool>,
    /// Number of workers in the set.
    count: usize,
}

impl PendingWorkers {
    /// The set of all workers 0 to n-1 if `all` is true, otherwise the empty set.
    pub(in crate::rule) fn new(n: usize, all: bool) -> Self {
        PendingWorkers { pending: vec![all; n], count: if all { n } else { 0 } }
    }

    /// Whether the worker is in the set.
    pub(in crate::rule) fn has(&self, worker: usize) -> bool {
        self.pending[worker]
    }

    pub(in crate::rule) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Removes the worker if it is in the set. Returns whether the set is empty now.
    pub(in crate::rule) fn remove(&mut self, worker: usize) -> bool {
        self.count -= std::mem::take(&mut self.pending[worker]) as usize;
        self.is_empty()
    }

    /// Puts all workers into the set.
    pub(in crate::rule) fn refill(&mut self) {
        self.pending.fill(true);
        self.count = self.pending.len();
    }
}

/// Number of gradients from each worker.
pub(in crate::rule) struct Tally {
    counts: Vec<u32>,
    /// Number of workers with the count 0.
    missing: usize,
    /// Sum of 1/count over the workers with a count above 0, up to rounding.
    inverses: f64,
}

impl Tally {
    /// Zero for each of `n` workers.
    pub(in crate::rule) fn new(n: usize) -> Self {
        Tally { counts: vec![0; n], missing: n, inverses: 0.0 }
    }

    /// Number of workers n.
    pub(in crate::rule) fn workers(&self) -> usize {
        self.counts.len()
    }

    /// Counts one more gradient. Returns the new count of the worker.
    pub(in crate::rule) fn add(&mut self, worker: usize) -> u32 {
        let before = self.counts[worker];
        self.counts[worker] += 1;
        self.missing -= (before == 0) as usize;
        self.inverses += 1.0 / (before as f64 + 1.0) - if before == 0 { 0.0 } else { 1.0 / before as f64 };
        before + 1
    }

    /// Whether every worker has a count above 0.
    pub(in crate::rule) fn is_whole(&self) -> bool {
        self.missing == 0
    }

    /// Whether the harmonic mean of the counts is larger than `bound`. Near the bound the mean is computed
    /// from the counts, so that the rounding errors of the running sum do not change the result.
    pub(in crate::rule) fn exceeds(&self, bound: f64) -> bool {
        let n = self.counts.len() as f64;
        let is_near_or_above = || n / self.inverses >= bound * (1.0 - 1e-6);
        let mean = || n / self.counts.iter().map(|b| 1.0 / *b as f64).sum::<f64>();
        self.is_whole() && is_near_or_above() && mean() > bound
    }

    /// Sets all counts to 0.
    pub(in crate::rule) fn clear(&mut self) {
        self.counts.fill(0);
        self.missing = self.counts.len();
        self.inverses = 0.0;
    }
}

/// A set of workers with a version each, for example the version at which a worker's row was computed.
pub(in crate::rule) struct Ages {
    /// The version of each worker; `None` if the worker is not in the set.
    versions: Vec<Option<u64>>,
    /// The same as pairs (version, worker), the oldest first.
    sorted: BTreeSet<(u64, usize)>,
}

impl Ages {
    /// The empty set for `n` workers.
    pub(in crate::rule) fn new(n: usize) -> Self {
        Ages { versions: vec![None; n], sorted: BTreeSet::new() }
    }

    /// Number of workers in the set.
    pub(in crate::rule) fn count(&self) -> usize {
        self.sorted.len()
    }

    /// Whether all workers are in the set.
    pub(in crate::rule) fn is_whole(&self) -> bool {
        self.count() == self.versions.len()
    }

    /// Sets the worker's version. Returns whether the worker was in the set before.
    pub(in crate::rule) fn renew(&mut self, worker: usize, version: u64) -> bool {
        let before = self.versions[worker].replace(version);
        if let Some(before) = before {
            self.sorted.remove(&(before, worker));
        }
        self.sorted.insert((version, worker));
        before.is_some()
    }

    /// Removes the workers whose version is older than `version`. Returns them in ascending order.
    pub(in crate::rule) fn retire(&mut self, version: u64) -> Vec<usize> {
        let mut retired = Vec::new();
        while let Some((_, worker)) = self.sorted.first().copied().filter(|(oldest, _)| *oldest < version) {
            self.sorted.pop_first();
            self.versions[worker] = None;
            retired.push(worker);
        }
        retired.sort_unstable();
        retired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_removed_once() {
        let mut pending = PendingWorkers::new(2, true);
        assert_eq!([0, 0, 1].map(|worker| pending.remove(worker)), [false, false, true]);
        assert!(!pending.has(0) && pending.is_empty());
        assert!(PendingWorkers::new(2, false).is_empty());
        pending.refill();
        assert!(pending.has(0) && !pending.is_empty());
    }

    /// Compares with the definition, also for bounds that the mean equals exactly.
    #[test]
    fn exceeds_agrees_with_the_definition_of_the_harmonic_mean() {
        let n = 7;
        let mut tally = Tally::new(n);
        let mut counts = [0u32; 7];
        for k in 0..3000usize {
            let worker = if k % 21 < 14 { k % 7 } else { (k * k / 3) % 7 };
            counts[worker] += 1;
            assert_eq!(tally.add(worker), counts[worker]);
            let mean = n as f64 / counts.iter().map(|b| 1.0 / *b as f64).sum::<f64>();
            assert_eq!(tally.is_whole(), !counts.contains(&0));
            for bound in [0.0, 1.0, k as f64 / 7.0, mean, (mean - 1e-9).max(0.0), mean + 1e-9] {
                assert_eq!(tally.exceeds(bound), mean > bound, "{counts:?} and {bound}");
            }
        }
        tally.clear();
        assert!(!tally.is_whole() && !tally.exceeds(0.0));
    }

    #[test]
    fn old_versions_retire_in_order_of_the_workers() {
        let mut ages = Ages::new(4);
        assert_eq!([(3, 1), (0, 5), (1, 1), (2, 0)].map(|(worker, v)| ages.renew(worker, v)), [false; 4]);
        assert!(ages.renew(2, 2));
        assert_eq!(ages.retire(1), Vec::<usize>::new());
        assert!(ages.is_whole());
        assert_eq!(ages.retire(3), [1, 2, 3]);
        assert_eq!(ages.count(), 1);
        assert!(!ages.renew(1, 9));
        assert!(ages.renew(0, 9));
    }
}
