//! Launches a recorded step on the worker's own stream when the job is submitted. The server's thread submits
//! for all streams.
//!
//! A step waits for what the server had launched when the job was submitted, and for nothing later. So the
//! steps of different streams overlap on the device as they would with one thread per worker.

use super::{Cancelled, Executor, Jobs, RoundRobin, Submitted, failed_warm_up, interrupted_while_warming_up};
use crate::engine::job::{Job, Reply};
use crate::engine::worker::Worker;
use crate::error::{Result, panic_text};
use crate::host::signals::INTERRUPTED;
use stagger_kernels::Stream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

/// The workers of a run with recorded steps, each with its stream.
pub struct Streams {
    workers: Vec<(Worker, Stream)>,
    turns: RoundRobin,
}

impl Streams {
    /// Gives each worker a stream and warms it up there.
    pub fn start(workers: Vec<Worker>) -> Result<Self> {
        let mut started = Vec::with_capacity(workers.len());
        for (i, mut worker) in workers.into_iter().enumerate() {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Err(interrupted_while_warming_up());
            }
            let stream = Stream::after_current(i as u64);
            let warm = catch_unwind(AssertUnwindSafe(|| stream.enter(|| worker.warm_up())));
            let warm = warm.unwrap_or_else(|panic| Err(panic_text(&*panic)));
            warm.map_err(|reason| failed_warm_up(i, &reason))?;
            started.push((worker, stream));
        }
        Ok(Streams { workers: started, turns: RoundRobin::default() })
    }

    fn compute(&mut self, worker: usize, job: &Job) -> Reply {
        let (worker, stream) = &mut self.workers[worker];
        stream.enter(|| worker.answer(job))
    }
}

impl Executor for Streams {
    fn submit(&mut self, worker: usize, job: &Job) -> Submitted {
        Submitted::Replied(self.compute(worker, job))
    }

    fn cancel(&mut self, _worker: usize, _job: u64) -> Cancelled {
        Cancelled::Now
    }

    fn complete(&mut self, worker: usize, jobs: &dyn Jobs) -> Result<Option<Reply>> {
        Ok(jobs.submitted(worker).map(|job| self.compute(worker, job)))
    }

    fn next_worker(&mut self, jobs: &dyn Jobs) -> Option<usize> {
        self.turns.next(jobs)
    }

    fn is_inline(&self) -> bool {
        true
    }

    fn synchronize(&self) -> Result<()> {
        for (worker, stream) in &self.workers {
            stream.enter(|| worker.device.sync())?;
        }
        Ok(())
    }
}
