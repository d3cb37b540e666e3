//! How a job becomes a gradient. [`WorkerPool`](super::worker_pool::WorkerPool) keeps track of the jobs and
//! calls an executor through one trait.
//!
//! | executor | a gradient is computed | by | used for |
//! | --- | --- | --- | --- |
//! | [`Inline`] | when the clock asks for it | the server's thread | cheap CPU problems; virtual and replay clocks |
//! | [`Threads`] | once the worker has a permit | one thread per worker | CPU; eager GPU steps; delays; timeouts |
//! | [`Streams`] | when the job is submitted | the server's thread, on the worker's stream | recorded steps on a GPU |
//! | [`Stacked`] | when the clock asks for it, several in one pass | the server's thread | `--step stacked` |
//!
//! Contract: the pool submits at most one job per worker at a time (I1). The executor sends exactly one
//! [`Reply`] for each submitted job, unless [`Executor::cancel`] returns [`Cancelled::Now`]. A gradient
//! depends on (snapshot, seed, worker, job number) alone (I5).

mod inline;
mod stacked;
mod streams;
mod threads;

pub use inline::Inline;
pub use stacked::Stacked;
pub use streams::Streams;
pub use threads::Threads;

use super::job::{Job, Reply};
use crate::error::{Error, Result};
use std::time::Duration;

/// What became of a submitted job.
// Boxing the reply would cost an allocation per arrival.
#[allow(clippy::large_enum_variant)]
pub enum Submitted {
    /// The reply comes later.
    Accepted,
    /// The job was computed by the call.
    Replied(Reply),
    /// The worker's thread has ended. The worker's last reply contains the reason.
    Gone,
}

/// What became of a cancelled job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// No reply follows: the worker is free.
    Now,
    /// One more reply follows, then the worker is free.
    AfterReply,
}

/// The pool's jobs as an executor sees them.
pub trait Jobs {
    /// Number of workers.
    fn workers(&self) -> usize;

    /// The worker's submitted job, until the executor has replied.
    fn submitted(&self, worker: usize) -> Option<&Job>;

    /// Whether the worker has a submitted job or a finished one.
    fn has_job(&self, worker: usize) -> bool;
}

/// Computes jobs. See the module's contract.
pub trait Executor: Send {
    /// Takes a job. The worker's first launch must wait for the fence of the job's snapshot.
    fn submit(&mut self, worker: usize, job: &Job) -> Submitted;

    /// Cancels the worker's submitted job.
    fn cancel(&mut self, worker: usize, job: u64) -> Cancelled;

    /// Computes the worker's submitted job now and returns its reply, for executors that compute on demand.
    /// If other workers' jobs are computed with it, [`Executor::try_reply`] returns their replies. `None` for
    /// executors that reply without being asked.
    fn complete(&mut self, worker: usize, jobs: &dyn Jobs) -> Result<Option<Reply>>;

    /// Under the wall clock: the worker whose gradient is next, for executors whose jobs do not complete in
    /// an order of their own.
    fn next_worker(&mut self, _jobs: &dyn Jobs) -> Option<usize> {
        None
    }

    /// A reply that is ready. Does not wait.
    fn try_reply(&mut self) -> Option<Reply> {
        None
    }

    /// Waits for a reply, at most for `timeout`.
    fn wait_reply(&mut self, _timeout: Duration) -> Result<Option<Reply>> {
        Err(Error::failed("this executor computes on demand and never waits"))
    }

    /// Whether [`Executor::try_reply`] has a reply.
    fn has_reply(&self) -> bool {
        false
    }

    /// Whether the server's thread computes the jobs, one at a time.
    fn is_inline(&self) -> bool {
        false
    }

    /// Whether a gradient may be ready before the clock asks for it.
    fn runs_ahead(&self) -> bool {
        true
    }

    /// Waits until the device has finished all launched steps.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Abandons a worker that hangs: it gets no more jobs, and the permits that it may hold are replaced.
    fn abandon(&mut self, _worker: usize) {}

    /// Drops a worker: the run continues without it.
    fn drop_worker(&mut self, _worker: usize) {}

    /// Ends the workers and waits for them. Called at least once.
    fn stop(&mut self) {}
}

/// Serves workers in turn: the one that was served longest ago is next, so that a worker whose jobs are
/// cancelled does not starve.
#[derive(Default)]
struct RoundRobin {
    served: Vec<u64>,
    count: u64,
}

impl RoundRobin {
    /// The next worker that has a job. Ties go to the lowest index.
    fn next(&mut self, jobs: &dyn Jobs) -> Option<usize> {
        self.served.resize(jobs.workers(), 0);
        let waiting = (0..jobs.workers()).filter(|worker| jobs.has_job(*worker));
        let next = waiting.min_by_key(|worker| self.served[*worker])?;
        self.count += 1;
        self.served[next] = self.count;
        Some(next)
    }
}

/// The error of a run that is interrupted before its first job.
fn interrupted_while_warming_up() -> Error {
    Error::Interrupted(
        "interrupted during the warm-up of the workers: no job was started, and earlier checkpoints are unchanged"
            .into(),
    )
}

/// The error of a worker that fails before its first job.
fn failed_warm_up(worker: usize, reason: &str) -> Error {
    Error::failed(format!("worker {worker} failed before its first job: {reason}"))
}
