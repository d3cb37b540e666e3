//! When a run stops, and what it came to: plain numbers.

use super::device::Occupancy;
use crate::error::Failure;
use crate::problem::Evaluation;

/// When to stop; whichever comes first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// After so many updates.
    pub updates: Option<u64>,
    /// At the first arrival after so many seconds on the run's axis.
    pub time: Option<f64>,
    /// When so many samples have been drawn by the gradients that arrived.
    pub samples: Option<u64>,
    /// At the first evaluation of this test accuracy, 0 to 1.
    pub accuracy: Option<f64>,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The final version.
    pub updates: u64,
    /// Arrivals.
    pub gradients: u64,
    /// Their number when the last update was made.
    pub stepped: u64,
    /// The most gradients between two updates.
    pub longest: u64,
    /// Samples that they drew.
    pub samples: u64,
    /// Arrivals that were not applied.
    pub dropped: u64,
    /// Gradients with numbers that are none.
    pub not_finite: u64,
    /// Failures of workers.
    pub failures: Vec<Failure>,
    /// Workers that were dropped, each with the number of gradients that had arrived then.
    pub lost: Vec<(usize, u64)>,
    /// Jobs given up.
    pub restarted: u64,
    /// The last arrival's time.
    pub time: f64,
    /// Real seconds, evaluation left out.
    pub wall_seconds: f64,
    /// Sum of all staleness.
    pub staleness: u64,
    /// The largest staleness.
    pub max_staleness: u64,
    /// Mean of the latest batch losses.
    pub recent_loss: Option<f64>,
    /// The last evaluation.
    pub evaluation: Evaluation,
    /// The version of that evaluation.
    pub evaluated: Option<u64>,
    /// How busy the device was while it was noted when it computed what.
    pub occupancy: Option<Occupancy>,
    /// Gradients and updates that were noted, and of which the device did not tell.
    pub untold: usize,
    /// Somebody asked to stop.
    pub interrupted: bool,
}
