//! Computes a gradient on the server's thread when the clock asks for it: no hand-over between threads per
//! arrival.

use super::{Cancelled, Executor, Jobs, RoundRobin, Submitted};
use crate::engine::job::{Job, Reply};
use crate::engine::worker::Worker;
use crate::error::Result;

/// The workers of a run whose gradients cost less than a hand-over between threads.
pub struct Inline {
    workers: Vec<Worker>,
    turns: RoundRobin,
}

impl Inline {
    /// An executor for these workers.
    pub fn new(workers: Vec<Worker>) -> Self {
        Inline { workers, turns: RoundRobin::default() }
    }
}

impl Executor for Inline {
    fn submit(&mut self, _worker: usize, _job: &Job) -> Submitted {
        Submitted::Accepted
    }

    fn cancel(&mut self, _worker: usize, _job: u64) -> Cancelled {
        Cancelled::Now
    }

    fn complete(&mut self, worker: usize, jobs: &dyn Jobs) -> Result<Option<Reply>> {
        Ok(jobs.submitted(worker).map(|job| self.workers[worker].answer(job)))
    }

    fn next_worker(&mut self, jobs: &dyn Jobs) -> Option<usize> {
        self.turns.next(jobs)
    }

    fn is_inline(&self) -> bool {
        true
    }

    fn runs_ahead(&self) -> bool {
        false
    }
}
