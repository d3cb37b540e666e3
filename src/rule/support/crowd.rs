//! What rules keep of every worker, so that an arrival costs the same however many workers there are.

use std::collections::BTreeSet;

/// Workers who are awaited.
pub(in crate::rule) struct PendingWorkers {
    who: Vec<bool>,
    count: usize,
}

impl PendingWorkers {
    /// Everybody or nobody of `n`.
    pub(in crate::rule) fn new(n: usize, everybody: bool) -> Self {
        PendingWorkers { who: vec![everybody; n], count: if everybody { n } else { 0 } }
    }

    pub(in crate::rule) fn has(&self, worker: usize) -> bool {
        self.who[worker]
    }

    pub(in crate::rule) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The worker is no more; gives whether nobody is.
    pub(in crate::rule) fn remove(&mut self, worker: usize) -> bool {
        self.count -= std::mem::take(&mut self.who[worker]) as usize;
        self.is_empty()
    }

    /// Everybody is.
    pub(in crate::rule) fn refill_if(&mut self, begins: bool) {
        if begins {
            self.who.fill(true);
            self.count = self.who.len();
        }
    }
}

/// How many gradients came from each worker.
pub(in crate::rule) struct Tally {
    counts: Vec<u32>,
    silent: usize,
    /// The sum of 1/count over those who are not silent, but for rounding.
    inverses: f64,
}

impl Tally {
    pub(in crate::rule) fn new(n: usize) -> Self {
        Tally { counts: vec![0; n], silent: n, inverses: 0.0 }
    }

    pub(in crate::rule) fn workers(&self) -> usize {
        self.counts.len()
    }

    /// One more; gives how many they are now.
    pub(in crate::rule) fn add(&mut self, worker: usize) -> u32 {
        let before = self.counts[worker];
        self.counts[worker] += 1;
        self.silent -= (before == 0) as usize;
        self.inverses += 1.0 / (before as f64 + 1.0) - if before == 0 { 0.0 } else { 1.0 / before as f64 };
        before + 1
    }

    /// Everybody has sent one.
    pub(in crate::rule) fn is_whole(&self) -> bool {
        self.silent == 0
    }

    /// The harmonic mean of the counts is larger. Near the bound it is computed anew, so that what was rounded on the way decides nothing.
    pub(in crate::rule) fn exceeds(&self, bound: f64) -> bool {
        let n = self.counts.len() as f64;
        let is_near = || n / self.inverses >= bound * (1.0 - 1e-6);
        self.is_whole() && is_near() && n / self.counts.iter().map(|b| 1.0 / *b as f64).sum::<f64>() > bound
    }

    pub(in crate::rule) fn clear(&mut self) {
        self.counts.fill(0);
        (self.silent, self.inverses) = (self.counts.len(), 0.0);
    }
}

/// At which version something of a worker began, for those who have it.
pub(in crate::rule) struct Ages {
    began: Vec<Option<u64>>,
    /// The same, the oldest first.
    sorted: BTreeSet<(u64, usize)>,
}

impl Ages {
    pub(in crate::rule) fn new(n: usize) -> Self {
        Ages { began: vec![None; n], sorted: BTreeSet::new() }
    }

    /// How many have it.
    pub(in crate::rule) fn count(&self) -> usize {
        self.sorted.len()
    }

    /// Everybody has.
    pub(in crate::rule) fn is_whole(&self) -> bool {
        self.count() == self.began.len()
    }

    /// It began at `version`; gives whether the worker had one before.
    pub(in crate::rule) fn renew(&mut self, worker: usize, version: u64) -> bool {
        let before = self.began[worker].replace(version);
        before.inspect(|version| _ = self.sorted.remove(&(*version, worker)));
        self.sorted.insert((version, worker));
        before.is_some()
    }

    /// Takes those that began before `version` away; gives whose they were, in order.
    pub(in crate::rule) fn retire(&mut self, version: u64) -> Vec<usize> {
        let mut gone = Vec::new();
        while let Some((_, worker)) = self.sorted.first().copied().filter(|(began, _)| *began < version) {
            self.sorted.pop_first();
            self.began[worker] = None;
            gone.push(worker);
        }
        gone.sort_unstable();
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_awaited_twice() {
        let mut awaited = PendingWorkers::new(2, true);
        assert_eq!([0, 0, 1].map(|worker| awaited.remove(worker)), [false, false, true]);
        assert!(!awaited.has(0) && awaited.is_empty() && PendingWorkers::new(2, false).is_empty());
        awaited.refill_if(false);
        assert!(awaited.is_empty());
        awaited.refill_if(true);
        assert!(awaited.has(0) && !awaited.is_empty());
    }

    /// Against the definition, for counts that come to every bound exactly.
    #[test]
    fn the_harmonic_mean_is_the_definitions() {
        let (mut tally, mut counts, n) = (Tally::new(7), [0u32; 7], 7);
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
    fn the_old_retire_in_order() {
        let mut ages = Ages::new(4);
        assert_eq!([(3, 1), (0, 5), (1, 1), (2, 0)].map(|(worker, v)| ages.renew(worker, v)), [false; 4]);
        assert!(ages.renew(2, 2));
        assert_eq!((ages.retire(1), ages.count()), (vec![], 4));
        assert!(ages.is_whole());
        assert_eq!((ages.retire(3), ages.count()), (vec![1, 2, 3], 1));
        assert!(!ages.renew(1, 9) && ages.renew(0, 9));
    }
}
