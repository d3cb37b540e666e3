//! The wall clock: whichever worker's message comes first through the channel is next.

use super::Clock;
use crate::engine::clock::delay::DelayModel;
use crate::engine::clock::stopwatch::Stopwatch;
use crate::engine::job::Gradient;
use crate::engine::worker_pool::WorkerPool;
use crate::error::Result;
use crate::fault::Faults;
use std::sync::Arc;

/// Real time. Injected delays are waited for by the workers.
pub struct Wall {
    /// The run's clock.
    pub stopwatch: Arc<Stopwatch>,
    /// Injected job times.
    pub delay: DelayModel,
    /// Seconds of reality per second of the delay model.
    pub time_scale: f64,
    /// Keys the draws.
    pub seed: u64,
    /// Jobs that take longer on purpose.
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
