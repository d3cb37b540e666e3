//! Messages between the server and a worker: a job to the worker, a gradient back. Both hold handles; no
//! weights and no gradients are copied.

use super::gate::Permit;
use crate::problem::Snapshot;
use crossbeam_channel::{Receiver, Sender, bounded, never};
use stagger_kernels::{Buffer, Fence};
use std::sync::Arc;

/// A gradient to compute.
#[derive(Clone)]
pub struct Job {
    /// Number k of the worker's job. With the seed it determines the batch. Set when the job starts.
    pub number: u64,
    /// The model. Its fence is set when the job starts.
    pub snapshot: Snapshot,
    /// Version of the model.
    pub version: u64,
    /// Learning rate of local steps, and of a worker that writes the shared weights itself.
    pub lr: f32,
    /// Number of local steps, at most [`Local::steps`](crate::rule::Local::steps).
    pub steps: u32,
    /// Duration of the job as a share of a full job's duration.
    pub share: f64,
    /// Start time on the run's axis, in seconds. Workers take the permit in order of start time. Set when the
    /// job starts.
    pub began: f64,
    /// Simulated delay that the worker waits for, in seconds of real time; 0 under simulated time. Set when
    /// the job starts.
    pub delay: f64,
}

impl Job {
    /// A job that has not started: one gradient at this model.
    pub fn at(snapshot: Snapshot, version: u64) -> Self {
        Job { number: 0, snapshot, version, lr: 0.0, steps: 1, share: 1.0, began: 0.0, delay: 0.0 }
    }
}

/// A computed gradient.
#[derive(Clone)]
pub struct Gradient {
    /// Index of the worker, from 0.
    pub worker: usize,
    /// Number of the job.
    pub job: u64,
    /// One buffer per segment of the layout; a single flat buffer after local steps.
    pub buffers: Arc<[Buffer]>,
    /// One float by which the gradient is multiplied when it is read, if it is clipped.
    // Boxed, because few runs clip, and every gradient is moved.
    pub factor: Option<Box<Buffer>>,
    /// The batch loss: one float on the device.
    pub loss: Buffer,
    /// Orders a reader behind the backward pass.
    pub fence: Fence,
}

/// From the server to a worker's thread.
pub enum Request {
    /// Compute this job.
    Job(Job),
    /// Cancel the job of this number if it is still running.
    Cancel(u64),
}

/// From a worker to the server: exactly one per job.
// Boxing the gradient would cost an allocation per arrival.
#[allow(clippy::large_enum_variant)]
pub enum Reply {
    /// The gradient, and the permit for its memory, which is held until the server has received the gradient.
    Gradient(Gradient, Option<Permit>),
    /// The job was cancelled.
    Cancelled {
        /// Index of the worker.
        worker: usize,
    },
    /// The job failed.
    Failed {
        /// Index of the worker.
        worker: usize,
        /// Number of the job.
        job: u64,
        /// The error or panic message.
        reason: String,
    },
}

impl Reply {
    /// Index of the worker that sent the reply.
    pub fn worker(&self) -> usize {
        match self {
            Reply::Gradient(gradient, _) => gradient.worker,
            Reply::Cancelled { worker } | Reply::Failed { worker, .. } => *worker,
        }
    }
}

/// A worker's ends of its two channels.
pub struct Channels {
    /// Requests of the server.
    pub requests: Receiver<Request>,
    /// Replies to the server.
    pub replies: Sender<Reply>,
}

impl Channels {
    /// The channels of a worker without a thread: no request arrives, and the caller takes the reply.
    pub fn none() -> Self {
        Channels { requests: never(), replies: bounded(0).0 }
    }
}
