//! Errors and their exit codes. Only the command line prints them.

use serde::{Deserialize, Serialize};
use stagger_kernels::Cause;
use std::fmt;

/// Why a command failed.
#[derive(Debug)]
pub enum Error {
    /// The user can fix it: a wrong flag or file, or a missing device. Exit code 2.
    Usage(String),
    /// The run failed. Exit code 1.
    Failed(String),
    /// A worker failed. The server continues if the policy allows it; otherwise exit code 1.
    Worker(Failure),
    /// The user interrupted the run; its state is saved. Exit code 130.
    Interrupted(String),
}

/// The result of a command.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The exit code of the process.
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
    /// Index of the worker, from 0.
    pub worker: usize,
    /// Number of the worker's job, from 0.
    pub job: u64,
    /// What went wrong.
    pub reason: String,
    /// Whether the worker's thread hangs, so that it cannot be joined.
    pub hung: bool,
    /// How the run handled the failure.
    pub handled: Handled,
}

/// How a run handled a worker's failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Handled {
    /// The run ended.
    Stopped,
    /// The run continued without the worker.
    Dropped,
    /// The worker computed the job again.
    Restarted,
    /// The job failed too many times; the run ended.
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
                write!(f, "{failure}; --on-failure drop continues without it, --on-failure restart tries again")
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
                "the device has no memory left ({root}): use fewer --workers, a smaller --batch, --step eager or --table-dtype bf16, or close other programs that use the device"
            ),
            Cause::Lost => format!(
                "the device was lost ({root}): its driver or the card failed, and the system log may say why; when the device works again, `stagger train --resume` continues from the newest checkpoint, if there is one"
            ),
            Cause::Kernel => format!(
                "a kernel cannot be built for this device ({root}): a newer driver or a complete CUDA toolkit may help, or use another --backend"
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
