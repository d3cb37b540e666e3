//! The parts of a run's server, grouped, and how they become a running one.

use super::{Losses, Server, losses};
use crate::engine::checkpoint::{Checkpoint, Manifest, Saver};
use crate::engine::clock::Clock;
use crate::engine::clock::stopwatch::Stopwatch;
use crate::engine::gate::Gate;
use crate::engine::state::{State, UpdateSettings};
use crate::engine::timeline::Timeline;
use crate::engine::worker_pool::WorkerPool;
use crate::error::Result;
use crate::problem::{Columns, Evaluator};
use crate::record::{Limits, Outcome, RunFolder};
use crate::rule::Rule;
use crate::view::progress::Progress;
use stagger_kernels::{Buffer, Device, Layout, Live};
use std::sync::Arc;

/// The device, and how the server uses it.
pub struct DeviceContext {
    /// The device.
    pub device: Device,
    /// The workers' permits. The server closes the gate during an evaluation.
    pub gate: Gate,
    /// Issue an update before anything else is enqueued. With recorded steps this takes one hand-over between
    /// threads for the whole update. With eager steps it must be off, because the thread that issues launches
    /// would run out of work while the server waits for it.
    pub update_at_once: bool,
    /// On a GPU: a second instance of the rule, which is rehearsed before the clock starts, and whether
    /// gradients are clipped.
    pub rehearsal: Option<(Box<dyn Rule>, bool)>,
    /// Shared weights that the workers write themselves.
    pub live: Option<Live>,
    /// Records when the device computes the first gradients.
    pub timeline: Timeline,
}

/// How the run evaluates its model, and when.
pub struct EvaluationPlan {
    /// Evaluates on the test set, or on the full objective.
    pub evaluator: Box<dyn Evaluator>,
    /// The metrics of an evaluation.
    pub columns: Columns,
    /// Number of updates between two evaluations; 0 for one evaluation, at the end.
    pub every: u64,
}

/// When the run ends.
pub struct Stops {
    /// Limits on updates, time, samples and accuracy.
    pub limits: Limits,
    /// The order of arrivals comes from a log, and the run ends where the log ends.
    pub at_end_of_log: bool,
    /// The run ends at a non-finite gradient.
    pub at_nan: bool,
}

/// How the run saves checkpoints, and when.
pub struct CheckpointPlan {
    /// Writes checkpoints; `None` saves none.
    pub saver: Option<Saver>,
    /// Number of updates between two checkpoints; 0 for one checkpoint, at the end.
    pub every: u64,
    /// The fields that all checkpoints of the run share.
    pub manifest: Manifest,
    /// The checkpoint from which the run continues.
    pub past: Option<Checkpoint>,
}

/// The parts of a run's server.
pub struct ServerSetup<'a> {
    /// Decides about every arrival.
    pub rule: Box<dyn Rule>,
    /// The workers.
    pub pool: WorkerPool,
    /// Decides which gradient is next.
    pub clock: Box<dyn Clock>,
    /// The run's real time.
    pub stopwatch: Arc<Stopwatch>,
    /// Samples per gradient of each worker.
    pub batches: Vec<usize>,
    /// The run's folder.
    pub folder: &'a mut RunFolder,
    /// The display of the progress.
    pub progress: Progress,
    /// The device.
    pub device: DeviceContext,
    /// Evaluations.
    pub evaluation: EvaluationPlan,
    /// Checkpoints.
    pub checkpoints: CheckpointPlan,
    /// Limits.
    pub stops: Stops,
}

impl ServerSetup<'_> {
    /// Runs up to the limits and stops the workers. `initial` are the weights of version 0. Returns the
    /// outcome, and the last weights in host memory.
    pub fn run(mut self, layout: &Layout, settings: UpdateSettings, initial: Vec<f32>) -> Result<(Outcome, Buffer)> {
        let ring = losses::ring_length(self.rule.needs().loss, self.pool.workers());
        let stopwatch = self.stopwatch.clone();
        let state = stopwatch.paused(|| self.rehearsed_state(layout, settings, initial, ring))?;
        let state = state.live(self.device.live.take()).noted(self.device.timeline.clone());
        self.device.timeline.begin();
        let past = self.checkpoints.past.take();
        let mut server = Server {
            rule: self.rule,
            pool: self.pool,
            clock: self.clock,
            stopwatch: self.stopwatch,
            batches: self.batches,
            folder: self.folder,
            progress: self.progress,
            device: self.device,
            evaluation: self.evaluation,
            checkpoints: self.checkpoints,
            stops: self.stops,
            state,
            outcome: Outcome::default(),
            pending: Vec::with_capacity(ring),
            losses: Losses::new(ring),
        };
        if let Some(past) = &past {
            stopwatch.paused(|| server.replay_log(past))?;
        }
        let result = server.serve(past.is_none());
        server.finish(result)
    }

    /// The state at version 0. On a GPU the rule is rehearsed first on a state that is thrown away, so that
    /// its kernels are compiled.
    fn rehearsed_state(
        &mut self,
        layout: &Layout,
        settings: UpdateSettings,
        initial: Vec<f32>,
        ring: usize,
    ) -> Result<State> {
        let needs = self.rule.needs();
        let workers = self.pool.workers();
        let device = self.device.device.clone();
        let new = |workers, initial| State::new(&device, layout, needs, settings, workers, initial, ring);
        let some_wait = self.pool.runs_ahead();
        let rehearsal = self.device.rehearsal.take();
        let sent = rehearsal
            .map(|(rule, clipped)| new(workers.min(2), initial.clone()).rehearse(rule, workers, clipped, some_wait));
        // The rehearsal's models are dropped after the new state is allocated, so that the state does not
        // take their memory.
        let _sent = sent.transpose()?;
        Ok(new(workers, initial))
    }
}

impl DeviceContext {
    /// Runs work that uses the device. On a GPU the server takes a permit as every worker does: launches are
    /// issued one after another anyway, and a second producer would take the core that the issuing thread
    /// needs. On the CPU this thread computes the update.
    pub(super) fn submit<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.device {
            Device::Gpu(_) => self.gate.pass_first(work),
            Device::Cpu => work(),
        }
    }
}
