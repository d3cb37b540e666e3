//! What is minimised: a model, its data and who holds them.

mod evaluation;
mod images;
pub mod model;
pub mod params;
mod stacked;
mod step;
mod theory;

pub use evaluation::{Columns, Evaluation};
pub use images::{ImageOptions, StepKind, images};
pub use theory::{Regularizer, libsvm, quadratic};

use crate::error::Result;
use stagger_kernels::{Buffer, Fence, Layout};
use std::sync::Arc;

/// The weights of one version, shared and never written again (I2). Cloning copies no byte.
#[derive(Clone)]
pub struct Snapshot {
    /// The flat weights.
    pub weights: Buffer,
    /// Orders a reader behind whoever made them; of a snapshot in the server's own hands the default, given when a job is sent.
    pub fence: Fence,
}

/// A worker's objective f_i. The one seam of a worker's step: (weights, job number) → gradient buffers and loss.
pub trait Objective: Send {
    /// Computes the gradient of batch `job` at `snapshot`: one buffer per segment of the layout, and the batch loss (one
    /// float). Its first launch binds the snapshot's fence. The result depends on its arguments, the seed and the worker
    /// alone (I5), and nothing waits for the device. The buffers may be the same ones at every call: whoever reads them does so
    /// before the worker's next job.
    fn gradient(&mut self, snapshot: &Snapshot, job: u64) -> Result<(Arc<[Buffer]>, Buffer)>;

    /// Whether [`Objective::gradient`] is a few launches now, and not hundreds.
    fn is_recorded(&self) -> bool {
        false
    }
}

/// One of the jobs that are computed in one pass.
pub struct StackedJob<'a> {
    /// Whose.
    pub worker: usize,
    /// Its model.
    pub weights: &'a Buffer,
    /// The worker's job number.
    pub job: u64,
}

/// The workers' objectives as one, which computes several gradients in one pass.
pub trait Stacked: Send {
    /// The gradients of these jobs, each what [`Objective::gradient`] would give, up to rounding. It runs on the stream that makes the
    /// models, so no fence is needed.
    fn gradients(&mut self, jobs: &[StackedJob]) -> Result<Vec<(Arc<[Buffer]>, Buffer)>>;
}

/// The objective as a whole, for the server's thread.
pub trait Evaluator: Send {
    /// Evaluates `weights` on the test set, or the full training objective.
    fn evaluate(&mut self, weights: &Buffer) -> Result<Evaluation>;
}

/// Workers whose part [`Problem::description`] shows.
const SHOWN: usize = 16;

/// A problem, ready to run.
pub struct Problem {
    /// Where each parameter lies.
    pub layout: Layout,
    /// The first weights, as long as the layout.
    pub initial: Vec<f32>,
    /// One objective per worker; none where they are stacked.
    pub objectives: Vec<Box<dyn Objective>>,
    /// All workers' objectives as one, and how many jobs it computes together at most.
    pub stacked: Option<(Box<dyn Stacked>, usize)>,
    /// The whole.
    pub evaluator: Box<dyn Evaluator>,
    /// What its metrics are.
    pub columns: Columns,
    /// Samples per gradient of each worker.
    pub batches: Vec<usize>,
    /// Training samples that somebody holds.
    pub samples: usize,
    /// Names of the classes, and worker by worker how many samples of each it holds; none where there are no classes.
    pub held: Option<(Vec<String>, Vec<Vec<usize>>)>,
    /// Bytes of batch and activations of one worker's step, about.
    pub step_bytes: u64,
    /// Bytes of an evaluation, about.
    pub evaluation_bytes: u64,
    /// Bytes of the data on the device.
    pub data_bytes: u64,
    /// Whether a gradient costs less than handing it from thread to thread.
    pub cheap: bool,
    /// Whether workers record their step and replay it.
    pub recorded: bool,
    /// Lines for people: the data, and who holds what.
    pub description: Vec<String>,
}
