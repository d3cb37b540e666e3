//! The three clocks: each decides whose gradient is next and what time it is. Everything else is the same for all.

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

/// A clock.
pub trait Clock: Send {
    /// Worker `worker` begins its job `job` at time `now`, which takes `share` of a full job's time. Returns the seconds that
    /// the worker has to wait for in reality.
    fn begin(&mut self, worker: usize, job: u64, now: f64, share: f64) -> f64;

    /// The next arrival and its time, or `None` when there is none to come.
    fn next(&mut self, pool: &mut WorkerPool) -> Result<Option<(f64, Gradient)>>;

    /// Whether the next arrival is there already.
    fn has_next(&mut self, pool: &mut WorkerPool) -> Result<bool> {
        Ok(pool.has_completed())
    }

    /// An arrival of a run that goes on is told again: whose job and when, by the log. An error if this clock had another in that place.
    fn passed(&mut self, _pool: &WorkerPool, _event: &Event) -> Result<()> {
        Ok(())
    }

    /// Told what became of the arrival, so that a replay can compare.
    fn decided(&mut self, _effect: Effect, _t: u64) -> Result<()> {
        Ok(())
    }
}
