//! What the pool knows of one worker: its current job, its queue, its failures.
//!
//! # A slot's state machine
//!
//! Each worker has a slot: idle, draining, gone, or working on a current job in one of four phases (held,
//! running, finished, delivered):
//!
//! | from | event | to |
//! | --- | --- | --- |
//! | Idle | a job starts | Running, or Held while the log is replayed |
//! | Running | the executor replies with the gradient | Finished |
//! | Running | the job fails; the policy restarts it | Running (submitted again) |
//! | Running, Held | the job fails or the worker hangs; the policy does not restart it | Finished (with the failure) |
//! | Running | the rule cancels the job; the executor will still reply | Draining |
//! | Running | the rule cancels the job; the executor will not reply | Idle |
//! | Running | the executor computes the job when the clock asks for it | Delivered |
//! | Finished | the clock takes the gradient | Delivered |
//! | Finished, Delivered | the rule cancels the job | Idle |
//! | Delivered | the server accepts the arrival | Idle |
//! | Draining | a job starts | Held |
//! | Draining | the executor replies | Idle |
//! | Held | the executor replies for the cancelled job | Running (submitted) |
//! | Held | the rule cancels the job | Draining; Idle while the log is replayed |
//! | Held | the replay of the log ends | Running (submitted) |
//! | Held, Running, Finished | the run stops | Delivered (a checkpoint saves the job) |
//! | any | the run drops the worker | Gone |

use super::job::{Gradient, Job};
use crate::error::Failure;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// State of a worker's slot. The head of the module has the table of transitions.
#[derive(Default)]
pub(super) enum SlotState {
    /// No job.
    #[default]
    Idle,
    /// No job; the executor will still reply for a cancelled one.
    Draining,
    /// The run continues without the worker.
    Gone,
    /// A current job. The job is not moved when its phase changes.
    Working(Job, Phase),
}

/// Progress of a worker's current job.
// Boxing the gradient would cost an allocation per arrival.
#[allow(clippy::large_enum_variant)]
pub(super) enum Phase {
    /// The job waits until the executor has replied for a cancelled one, or until the replay of the log ends.
    Held,
    /// The job is submitted; the executor has not replied.
    Running,
    /// The reply has arrived; the clock has not asked for it.
    Finished(std::result::Result<Gradient, Failure>),
    /// The clock has taken the gradient; the server has not yet accepted the arrival.
    Delivered,
}

impl SlotState {
    /// The current job.
    pub(super) fn job(&self) -> Option<&Job> {
        if let SlotState::Working(job, _) = self { Some(job) } else { None }
    }

    /// The current job.
    pub(super) fn job_mut(&mut self) -> Option<&mut Job> {
        if let SlotState::Working(job, _) = self { Some(job) } else { None }
    }

    pub(super) fn is_finished(&self) -> bool {
        matches!(self, SlotState::Working(_, Phase::Finished(_)))
    }

    /// Takes the job out. The slot is idle afterwards.
    pub(super) fn take_job(&mut self) -> Option<Job> {
        match std::mem::take(self) {
            SlotState::Working(job, _) => Some(job),
            other => {
                *self = other;
                None
            }
        }
    }

    /// Moves the current job to another phase.
    pub(super) fn set_phase(&mut self, next: Phase) {
        if let SlotState::Working(_, phase) = self {
            *phase = next;
        }
    }
}

/// One worker in the pool's books.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) state: SlotState,
    /// Jobs that start after the current one.
    pub(super) queue: VecDeque<Job>,
    /// Number of the next job.
    pub(super) next_job: u64,
    /// Number of times that the current job has failed.
    pub(super) attempts: u32,
    /// When the current job was submitted. Set only if there is a timeout.
    pub(super) submitted: Option<Instant>,
    /// Time that the current job may take in addition to the timeout.
    pub(super) extension: Duration,
    /// The failure of a worker that hangs. All its further jobs fail in the same way.
    pub(super) hung: Option<Failure>,
}
