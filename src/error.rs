//! Errors and the exit code of each kind. Only the command line prints them.

use serde::{Deserialize, Serialize};
use stagger_kernels::Cause;
use std::fmt;

/// Why a command did not end well.
#[derive(Debug)]
pub enum Error {
    /// The user can fix it: a flag, a file, a device that is not there. Exit code 2.
    Usage(String),
    /// The run failed. Exit code 1.
    Failed(String),
    /// A worker failed; the run may go on without it.
    Worker(Failure),
    /// Somebody asked the run to stop; what was reached is saved. Exit code 130.
    Interrupted(String),
}

/// The result of a command.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Failed(_) | Error::Worker(_) => 1,
            Error::Usage(_) => 2,
            Error::Interrupted(_) => 130,
        }
    }

    /// Shorthand for [`Error::Usage`].
    pub fn usage(text: impl Into<String>) -> Self {
        Error::Usage(text.into())
    }

    /// Shorthand for [`Error::Failed`].
    pub fn failed(text: impl Into<String>) -> Self {
        Error::Failed(text.into())
    }
}

/// A worker's failure.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The worker, counted from 0.
    pub worker: usize,
    /// The number of its job.
    pub job: u64,
    /// What went wrong.
    pub reason: String,
    /// Whether its thread hangs, so that it cannot be joined.
    pub hung: bool,
    /// What the run did about it.
    pub handled: Handled,
}

/// What a run did about a worker's failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Handled {
    /// The run ended.
    Stopped,
    /// The run went on without the worker.
    Dropped,
    /// The worker computed the job again.
    Restarted,
    /// The job failed too often; the run ended.
    #[serde(rename = "given up")]
    GivenUp,
    /// A stacked pass failed; the run ended.
    #[serde(rename = "given up, with those that were computed together")]
    GivenUpStacked,
}

impl fmt::Display for Handled {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Handled::Stopped => "stopped",
            Handled::Dropped => "dropped",
            Handled::Restarted => "restarted",
            Handled::GivenUp => "given up",
            Handled::GivenUpStacked => "given up, with those that were computed together",
        })
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{self} ({})", self.handled)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "worker {} failed in its job {}: {}", self.worker, self.job, self.reason)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Usage(text) | Error::Failed(text) | Error::Interrupted(text) => write!(f, "{text}"),
            Error::Worker(failure) if failure.handled == Handled::Stopped => {
                write!(f, "{failure}; --on-failure drop goes on without it, --on-failure restart tries again")
            }
            Error::Worker(failure) => write!(f, "{failure}; {}", failure.handled),
        }
    }
}

impl std::error::Error for Error {}

impl From<stagger_datasets::DataError> for Error {
    fn from(error: stagger_datasets::DataError) -> Self {
        Error::Usage(error.0)
    }
}

impl From<stagger_kernels::DeviceError> for Error {
    fn from(error: stagger_kernels::DeviceError) -> Self {
        let root = error.root();
        Error::Failed(match error.cause() {
            Cause::Memory => format!(
                "the device has no memory left ({root}): use fewer --workers, a smaller --batch, --step eager or --table-dtype bf16, or end what else uses the device"
            ),
            Cause::Lost => format!(
                "the device was lost ({root}): its driver or the card has given up, the system's log may say why; when it works again, `stagger train --resume` goes on from the newest checkpoint, if there is one"
            ),
            Cause::Kernel => format!(
                "a kernel cannot be built for this device ({root}): a newer driver or a whole CUDA toolkit may help, another --backend may do without"
            ),
            Cause::Other => error.to_string(),
        })
    }
}

/// The message of a caught panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
        .unwrap_or_else(|| "panic without a message".into())
}
