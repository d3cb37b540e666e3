//! `summary.json`: the settings and the outcome of a run.

use super::device::Occupancy;
use crate::error::Failure;
use serde::Serialize;

/// The content of `summary.json`.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Summary {
    pub rule: String,
    pub workers: usize,
    pub backend: String,
    pub device: String,
    pub clock: String,
    pub dataset: String,
    pub partition: String,
    pub model: String,
    pub parameters: usize,
    pub batch: usize,
    pub lr: f64,
    pub seed: u64,
    pub threads_per_worker: Option<usize>,
    /// Number of server updates, which is the final version.
    pub updates: u64,
    /// Number of arrivals.
    pub gradients: u64,
    /// Number of arrivals whose gradient was not used.
    pub dropped: u64,
    /// Number of cancelled jobs; they never arrived.
    pub restarted: u64,
    /// Number of arrivals whose gradient or loss was not finite. The non-finite values were left out.
    pub not_finite: u64,
    /// Time of the last arrival on the run's time axis, in seconds.
    pub time: f64,
    /// Real seconds from the first job to the last arrival, without evaluations.
    pub wall_seconds: f64,
    pub gradients_per_second: f64,
    pub samples_per_second: f64,
    pub mean_staleness: f64,
    pub max_staleness: u64,
    /// Mean of the latest batch losses; for theory problems the full objective.
    pub final_train_loss: Option<f64>,
    pub final_grad_norm: Option<f64>,
    pub final_test_loss: Option<f64>,
    pub final_test_accuracy: Option<f64>,
    /// Number of launches of the fused update kernel (0 on the CPU).
    pub update_launches: u64,
    /// Mean number of busy CPU cores, including evaluations. `None` if the system does not report it.
    pub cores_busy: Option<f64>,
    /// Estimated memory in bytes.
    pub memory_estimate: u64,
    /// Peak memory in bytes: of the process on the CPU, of the device's memory pools on a GPU.
    pub memory: Option<u64>,
    /// The workers' failures: worker, job, reason, and how each one was handled.
    pub failures: Vec<Failure>,
    /// How busy the device was while its work was recorded (`device.csv`).
    pub occupancy: Option<Occupancy>,
    pub weights_sha256: String,
    pub version: String,
    pub interrupted: bool,
}
