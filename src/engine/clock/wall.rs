//! The wall clock: the gradient that reaches the server first is next.

use super::Clock;
use crate::engine::clock::delay::DelayModel;
use crate::engine::clock::stopwatch::Stopwatch;
use crate::engine::job::Gradient;
use crate::engine::worker_pool::WorkerPool;
use crate::error::Result;
use crate::fault::Faults;
use std::sync::Arc;

/// The clock of real time. Workers wait for simulated delays.
pub struct Wall {
    /// The run's real time.
    pub stopwatch: Arc<Stopwatch>,
    /// The delay model.
    pub delay: DelayModel,
    /// Seconds of real time per second of the delay model.
    pub time_scale: f64,
    /// Random seed of the delay model.
    pub seed: u64,
    /// Injected delays.
    pub faults: Faults,
}

impl Clock for Wall {
    fn begin(&mut self, worker: usize, job: u64, _now: f64, share: f64) -> f64 {
        (self.delay.draw(self.seed, worker, job) * share + self.faults.delay(worker, job)) * self.time_scale
    }

    fn next(&mut self, pool: &mut WorkerPool) -> Result<Option<(f64, Gradient)>> {
        let gradient = pool.next_completed()?;
        Ok(Some((self.stopwatch.seconds(), gradient)))
    }
}
