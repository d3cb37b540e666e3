//! What a run minimises: a model, its data, and the division of the data among workers.

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

/// The weights of one version. They are shared and never written again (I2). A clone shares the buffer.
#[derive(Clone)]
pub struct Snapshot {
    /// The flat weights.
    pub weights: Buffer,
    /// Orders a reader on another stream behind the launch that wrote the weights. It is empty while only the
    /// server holds the snapshot, and is set when the snapshot is sent with a job.
    pub fence: Fence,
}

/// A worker's objective f_i: maps (weights, job number) to gradient buffers and a loss.
pub trait Objective: Send {
    /// Computes the gradient of batch `job` at `snapshot`. Returns one buffer per segment of the layout, and
    /// the batch loss (one float).
    ///
    /// The first launch binds the snapshot's fence. The result depends only on the arguments, the seed and the
    /// worker (I5). The call does not wait for the device. Every call may return the same buffers, so they must
    /// be read before the worker's next job.
    fn gradient(&mut self, snapshot: &Snapshot, job: u64) -> Result<(Arc<[Buffer]>, Buffer)>;

    /// Whether the step is recorded, so that [`Objective::gradient`] makes a few launches instead of hundreds.
    fn is_recorded(&self) -> bool {
        false
    }
}

/// One job of a stacked pass.
pub struct StackedJob<'a> {
    /// Index of the worker, from 0.
    pub worker: usize,
    /// The flat weights of the job's snapshot.
    pub weights: &'a Buffer,
    /// Number of the worker's job, from 0.
    pub job: u64,
}

/// The objectives of all workers, which computes the gradients of several jobs in one pass.
pub trait Stacked: Send {
    /// Returns the gradients of these jobs, in their order. Each one equals the result of
    /// [`Objective::gradient`] up to rounding. The pass runs on the stream that writes the models, so it needs
    /// no fence.
    fn gradients(&mut self, jobs: &[StackedJob]) -> Result<Vec<(Arc<[Buffer]>, Buffer)>>;
}

/// Evaluates a model on the server's thread.
pub trait Evaluator: Send {
    /// Evaluates the flat `weights`: on the test set for images, and on the full training objective for the
    /// theory problems.
    fn evaluate(&mut self, weights: &Buffer) -> Result<Evaluation>;
}

/// Maximum number of workers whose parts [`Problem::description`] lists.
const SHOWN: usize = 16;

/// A problem, ready to run.
pub struct Problem {
    /// The position of each parameter in the flat weights.
    pub layout: Layout,
    /// The initial weights; as long as the layout.
    pub initial: Vec<f32>,
    /// One objective per worker. Empty if `stacked` is used instead.
    pub objectives: Vec<Box<dyn Objective>>,
    /// The objectives of all workers for stacked passes, and the maximum number of jobs per pass.
    pub stacked: Option<(Box<dyn Stacked>, usize)>,
    /// Evaluates the server's model.
    pub evaluator: Box<dyn Evaluator>,
    /// The metrics of this problem.
    pub columns: Columns,
    /// Samples per gradient of each worker.
    pub batches: Vec<usize>,
    /// Number of training samples that the workers hold together.
    pub samples: usize,
    /// Names of the classes, and the number of samples of each class per worker: `held[worker][class]`. `None`
    /// for problems without classes.
    pub held: Option<(Vec<String>, Vec<Vec<usize>>)>,
    /// Approximate number of bytes of the batch and the activations of one worker's step.
    pub step_bytes: u64,
    /// Approximate number of bytes of an evaluation.
    pub evaluation_bytes: u64,
    /// Number of bytes of the data on the device.
    pub data_bytes: u64,
    /// Whether a gradient takes less time than its transfer between two threads.
    pub cheap: bool,
    /// Whether workers record their step and replay it (CUDA graph).
    pub recorded: bool,
    /// Lines of the run's header that describe the data and the workers' parts.
    pub description: Vec<String>,
}
