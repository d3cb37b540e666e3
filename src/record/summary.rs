//! `summary.json`: what a run came to.

use super::device::Occupancy;
use crate::error::Failure;
use serde::Serialize;

/// `summary.json`.
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
    /// Server updates: the final version.
    pub updates: u64,
    /// Arrivals.
    pub gradients: u64,
    /// Arrivals that were not applied.
    pub dropped: u64,
    /// Jobs that were given up and never arrived.
    pub restarted: u64,
    /// Arrivals whose gradient or loss was not finite; what was not was left out.
    pub not_finite: u64,
    /// The last arrival's time on the run's axis, in seconds.
    pub time: f64,
    /// Real seconds from the first job to the last arrival, without evaluation.
    pub wall_seconds: f64,
    pub gradients_per_second: f64,
    pub samples_per_second: f64,
    pub mean_staleness: f64,
    pub max_staleness: u64,
    /// Mean of the latest batch losses, or the full objective where it is evaluated.
    pub final_train_loss: Option<f64>,
    pub final_grad_norm: Option<f64>,
    pub final_test_loss: Option<f64>,
    pub final_test_accuracy: Option<f64>,
    /// Launches of the fused update kernel (0 on the CPU).
    pub update_launches: u64,
    /// Cores of the host that computed, on average (evaluations included); unknown where the system does not tell.
    pub cores_busy: Option<f64>,
    /// Bytes that the run was expected to need.
    pub memory_estimate: u64,
    /// Bytes that it took: of the process on the CPU, of the device's pools on a GPU.
    pub memory: Option<u64>,
    /// Workers that failed, in which job, why, and what was done about it.
    pub failures: Vec<Failure>,
    /// How busy the device was while it was noted when it computed what (`device.csv`).
    pub occupancy: Option<Occupancy>,
    pub weights_sha256: String,
    pub version: String,
    pub interrupted: bool,
}
