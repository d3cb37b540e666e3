//! The batch losses that were read from the device.

use std::collections::VecDeque;

/// Largest number of losses that stay on the device until they are read together. Also the number of losses
/// in [`Losses::recent_mean`].
const RING: usize = 64;
/// Shortest ring for a rule that uses the loss. Such a rule gets a mean once per n arrivals with n workers,
/// but not more often than once per this number.
const SHORTEST_RING: usize = 8;

/// Length of the ring of losses on the device.
pub fn ring_length(rule_follows_loss: bool, workers: usize) -> usize {
    if rule_follows_loss { workers.clamp(SHORTEST_RING, RING) } else { RING }
}

/// The latest losses, and the mean of the last complete block.
pub struct Losses {
    /// The latest losses, for the mean that is displayed.
    recent: VecDeque<f64>,
    /// Losses of the current block. A block is a number of arrivals, so an evaluation does not end it.
    block: Vec<f64>,
    /// Mean of the last complete block, for the rule.
    block_mean: Option<f64>,
    /// Arrivals per block.
    ring: usize,
}

impl Losses {
    /// No losses, and blocks of `ring` arrivals.
    pub fn new(ring: usize) -> Self {
        Losses { recent: VecDeque::new(), block: Vec::new(), block_mean: None, ring }
    }

    /// Arrivals per block, which is also the length of the ring on the device.
    pub fn ring(&self) -> usize {
        self.ring
    }

    /// Adds the loss of one arrival.
    pub fn push(&mut self, loss: f64) {
        if self.recent.len() == RING {
            self.recent.pop_front();
        }
        self.recent.push_back(loss);
        self.block.push(loss);
        if self.block.len() == self.ring {
            self.block_mean = Some(self.block.drain(..).sum::<f64>() / self.ring as f64);
        }
    }

    /// Mean of the last complete block. `None` before the first one is complete.
    pub fn block_mean(&self) -> Option<f64> {
        self.block_mean
    }

    /// Mean of the latest losses, at most 64 of them. `None` without a loss.
    pub fn recent_mean(&self) -> Option<f64> {
        (!self.recent.is_empty()).then(|| self.recent.iter().sum::<f64>() / self.recent.len() as f64)
    }
}
