//! Computes the jobs of several workers in one pass, as one network with a replica per job.
//!
//! A pass computes the job of the worker that the clock asks for, and jobs of other workers in worker order.
//! The other replies wait until the clock asks for them. The size of a pass is a power of two, so that few
//! shapes occur. Which workers share a pass depends on the clock alone, so a run can be repeated.

use super::{Cancelled, Executor, Jobs, Submitted, interrupted_while_warming_up};
use crate::engine::job::{Gradient, Job, Reply};
use crate::error::{Error, Failure, Handled, Result, panic_text};
use crate::host::signals::INTERRUPTED;
use crate::problem::{Snapshot, Stacked as StackedObjective, StackedJob};
use stagger_kernels::{Device, Fence, Layout, clip};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

/// All workers of a run as one network.
pub struct Stacked {
    /// The objectives of all workers.
    pub objectives: Box<dyn StackedObjective>,
    /// Largest number of jobs in one pass.
    pub most: usize,
    /// The device.
    pub device: Device,
    /// Layout of one model.
    pub layout: Layout,
    /// Gradients are clipped to this norm.
    pub clip: Option<f32>,
    /// Replies that the clock has not asked for yet.
    pub replies: VecDeque<Reply>,
}

impl Stacked {
    /// With a `warm_up` model, computes one pass of every size and throws it away. Kernels are then compiled,
    /// and memory is allocated, before the clock starts.
    pub fn start(mut self, warm_up: Option<&Snapshot>) -> Result<Self> {
        let Some(snapshot) = warm_up else { return Ok(self) };
        for size in (0..=self.most.ilog2()).map(|k| 1 << k) {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Err(interrupted_while_warming_up());
            }
            let job = |worker| StackedJob { worker, weights: &snapshot.weights, job: 0 };
            let jobs: Vec<StackedJob> = (0..size).map(job).collect();
            let gradients = self.objectives.gradients(&jobs)?;
            self.device.was_written(gradients.iter().flat_map(|(buffers, loss)| buffers.iter().chain([loss])))?;
        }
        Ok(self)
    }
}

impl Executor for Stacked {
    fn submit(&mut self, _worker: usize, _job: &Job) -> Submitted {
        Submitted::Accepted
    }

    fn cancel(&mut self, _worker: usize, _job: u64) -> Cancelled {
        Cancelled::Now
    }

    fn complete(&mut self, worker: usize, jobs: &dyn Jobs) -> Result<Option<Reply>> {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err(Error::Interrupted("interrupted".into()));
        }
        let others = (0..jobs.workers()).filter(|other| *other != worker);
        let with_job = std::iter::once(worker).chain(others).filter_map(|i| Some((i, jobs.submitted(i)?)));
        let mut pass: Vec<(usize, &Job)> = with_job.take(self.most).collect();
        pass.truncate(1 << pass.len().ilog2());
        let numbers: Vec<(usize, u64)> = pass.iter().map(|(worker, job)| (*worker, job.number)).collect();
        let stacked: Vec<StackedJob> = pass
            .iter()
            .map(|(worker, job)| StackedJob { worker: *worker, weights: &job.snapshot.weights, job: job.number })
            .collect();
        let computed = catch_unwind(AssertUnwindSafe(|| self.objectives.gradients(&stacked)));
        let computed = computed.unwrap_or_else(|panic| Err(Error::failed(panic_text(&*panic))));
        let gradients = computed.map_err(|error| {
            let (job, handled) = (numbers[0].1, Handled::GivenUpStacked);
            Error::Worker(Failure { worker, job, reason: error.to_string(), hung: false, handled })
        })?;
        for ((worker, job), (buffers, loss)) in numbers.into_iter().zip(gradients) {
            let clipped = |limit| Box::new(clip::factor(&self.device, &self.layout, &buffers, limit));
            let factor = self.clip.map(clipped);
            // The pass runs on the server's own stream, so no fence is needed.
            let gradient = Gradient { worker, job, buffers, factor, loss, fence: Fence::default() };
            self.replies.push_back(Reply::Gradient(gradient, None));
        }
        // The first reply belongs to the requested worker.
        Ok(self.replies.pop_front())
    }

    fn try_reply(&mut self) -> Option<Reply> {
        self.replies.pop_front()
    }

    fn has_reply(&self) -> bool {
        !self.replies.is_empty()
    }
}
