//! The three clocks. A clock decides which worker's gradient is next, and at which time. Everything else is
//! the same for all clocks.

pub mod delay;
mod replay;
pub mod stopwatch;
mod virtual_time;
mod wall;

pub use replay::Replay;
pub use virtual_time::Virtual;
pub use wall::Wall;

use crate::engine::job::Gradient;
use crate::engine::worker_pool::WorkerPool;
use crate::error::Result;
use crate::record::{Effect, Event};

/// Decides which gradient is next, and at which time.
pub trait Clock: Send {
    /// Worker `worker` begins its job `job` at time `now`, in seconds. The job takes `share` of a full job's
    /// time. Returns the seconds of real time that the worker must wait for.
    fn begin(&mut self, worker: usize, job: u64, now: f64, share: f64) -> f64;

    /// The time of the next arrival, in seconds, and its gradient. `None` if no arrival follows.
    fn next(&mut self, pool: &mut WorkerPool) -> Result<Option<(f64, Gradient)>>;

    /// Whether the gradient of the next arrival is ready.
    fn has_next(&mut self, pool: &mut WorkerPool) -> Result<bool> {
        Ok(pool.has_completed())
    }

    /// Replays an arrival of a resumed run, as the log records it.
    ///
    /// # Errors
    ///
    /// If this clock would have had another arrival at this place.
    fn passed(&mut self, _pool: &WorkerPool, _event: &Event) -> Result<()> {
        Ok(())
    }

    /// Reports the effect of the last arrival and the version after it.
    ///
    /// # Errors
    ///
    /// If a replayed log records another effect or version.
    fn decided(&mut self, _effect: Effect, _t: u64) -> Result<()> {
        Ok(())
    }
}
