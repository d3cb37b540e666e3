//! The limits and the outcome of a run, as plain numbers.

use super::device::Occupancy;
use crate::error::Failure;
use crate::problem::Evaluation;

/// The limits of a run. The run stops at the first one that it reaches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Number of updates.
    pub updates: Option<u64>,
    /// Seconds on the run's time axis. The run stops at the first arrival after this time.
    pub time: Option<f64>,
    /// Number of samples drawn by the gradients that have arrived.
    pub samples: Option<u64>,
    /// Test accuracy, 0 to 1. The run stops at the first evaluation that reaches it.
    pub accuracy: Option<f64>,
}

/// The outcome of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The final version.
    pub updates: u64,
    /// Number of arrivals.
    pub gradients: u64,
    /// Number of arrivals at the last update.
    pub stepped: u64,
    /// Largest number of arrivals from one update to the next.
    pub longest: u64,
    /// Number of samples drawn by the gradients that arrived.
    pub samples: u64,
    /// Number of arrivals whose gradient was not used.
    pub dropped: u64,
    /// Number of arrivals whose gradient or loss had non-finite values.
    pub not_finite: u64,
    /// The workers' failures.
    pub failures: Vec<Failure>,
    /// Dropped workers, each with the number of gradients that had arrived by then.
    pub lost: Vec<(usize, u64)>,
    /// Number of cancelled jobs.
    pub restarted: u64,
    /// Time of the last arrival on the run's time axis, in seconds.
    pub time: f64,
    /// Real time in seconds, without evaluations.
    pub wall_seconds: f64,
    /// Sum of the staleness of all arrivals.
    pub staleness: u64,
    /// The largest staleness.
    pub max_staleness: u64,
    /// Mean of the latest batch losses.
    pub recent_loss: Option<f64>,
    /// The last evaluation.
    pub evaluation: Evaluation,
    /// The version of the last evaluation.
    pub evaluated: Option<u64>,
    /// How busy the device was while its work was recorded.
    pub occupancy: Option<Occupancy>,
    /// Number of recorded gradients and updates whose times the device did not report.
    pub untold: usize,
    /// Whether a signal ended the run.
    pub interrupted: bool,
}
