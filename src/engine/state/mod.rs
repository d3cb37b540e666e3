//! The server's state on the device, and the launch that applies an arrival.
//!
//! Invariants kept here:
//! * I2: new models are written to fresh buffers; a published snapshot is never written again.
//! * I3: the version grows by one per server update and by nothing else.
//! * I8: the launch of an update binds the gradient's fence. After each arrival the server makes a fence
//!   behind what it has enqueued, and every job is sent with the latest of these fences.

mod optimizer;
mod rehearsal;
mod saved;

use crate::engine::job::{Gradient, Job};
use crate::engine::timeline::Timeline;
use crate::error::Result;
use crate::problem::Snapshot;
use crate::record::Work;
use crate::rule::{self, Decision, Fold, Needs};
use crate::schedule::Schedule;
use optimizer::OptimizerState;
use stagger_kernels::device::BufferPool;
use stagger_kernels::mixing::{Exchange, Mixing};
use stagger_kernels::update::Guard;
use stagger_kernels::{Buffer, Device, Dtype, Fence, GradientInput, Layout, Live, Row, StepOp, Update, row, update};

/// Number of arrivals after which a sum that is kept by increments is recomputed from its table, against
/// rounding drift.
pub const DERIVE_EVERY: u64 = 4096;

/// Settings of the update that the rule does not choose.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpdateSettings {
    /// Learning rate η, without the factor of the schedule.
    pub lr: f64,
    /// Factor of η as a function of the version.
    pub schedule: Schedule,
    /// Weight decay λ, applied to the current weights.
    pub weight_decay: f64,
    /// Momentum β; 0 for none.
    pub momentum: f64,
    /// Number of updates from one momentum step to the next. 1 is heavy-ball momentum; more is delayed
    /// Nesterov momentum.
    pub momentum_every: u64,
    /// How table rows are stored.
    pub table_dtype: Dtype,
    /// What to do with non-finite values of a gradient.
    pub guard: Guard,
}

impl UpdateSettings {
    /// η for the update from version t to t + 1.
    pub fn rate(&self, t: u64) -> f64 {
        self.lr * self.schedule.factor(t)
    }
}

/// A worker's gradient as the input of an update. Its loss goes to position `slot` of the ring `losses`.
fn gradient_input<'a>(
    layout: &'a Layout,
    losses: &'a mut Buffer,
    gradient: &'a Gradient,
    slot: usize,
    guard: Guard,
) -> GradientInput<'a> {
    let Gradient { buffers, factor, fence, loss, .. } = gradient;
    GradientInput { layout, buffers, factor: factor.as_deref(), fence, loss, losses, slot, guard }
}

/// The server's model, and the state of rule and optimizer, on the device.
pub struct State {
    pub(crate) device: Device,
    /// Layout of the gradients: the model's layout, or one flat segment after local steps.
    layout: Layout,
    settings: UpdateSettings,
    needs: Needs,
    /// The newest model.
    pub(crate) snapshot: Snapshot,
    pub(crate) version: u64,
    /// Buffers for new models.
    buffer_pool: BufferPool,
    /// One sum per table; at least one if the rule needs a sum.
    sums: Vec<Buffer>,
    /// Tables with one row per worker.
    tables: Vec<Vec<Row>>,
    /// Whether the sum of the first table contains each worker's row. Empty if the sum is never recomputed.
    counted: Vec<bool>,
    base: Option<Buffer>,
    /// Running squares of the gradients, one per worker.
    squares: Vec<Buffer>,
    /// The workers' own models, one per worker.
    own: Vec<Snapshot>,
    /// Shared weights that the workers write themselves.
    live: Option<Live>,
    optimizer: OptimizerState,
    /// Number of arrivals since a sum or a mean was last recomputed.
    arrivals: u64,
    /// Ring of the latest losses, and the flags of non-finite gradients.
    pub(crate) losses: Buffer,
    /// Gradients that wait to be folded in the same launch as the next one.
    pending: Vec<Gradient>,
    /// Factor of the pending gradients.
    pending_scale: f64,
    /// Position of the last pending gradient in the ring of losses.
    pending_slot: usize,
    /// Largest number of pending gradients.
    most_pending: usize,
    timeline: Timeline,
}

impl State {
    /// The state at version 0 for a rule with these needs. `initial` are the weights, and `ring` is the
    /// number of losses that stay on the device.
    pub fn new(
        device: &Device,
        layout: &Layout,
        needs: Needs,
        settings: UpdateSettings,
        workers: usize,
        initial: Vec<f32>,
        ring: usize,
    ) -> Self {
        let total = layout.total();
        let layout = if needs.local.walks() { layout.flat() } else { layout.clone() };
        let zeros = || device.zeros(total);
        let snapshot = Snapshot { weights: device.upload(initial), fence: Fence::default() };
        let rows = |_| (0..workers).map(|_| Row::zeros(device, &layout, settings.table_dtype)).collect();
        State {
            sums: (0..needs.tables.max(needs.sum as usize)).map(|_| zeros()).collect(),
            tables: (0..needs.tables).map(rows).collect(),
            counted: vec![false; if needs.derived.is_some() { workers } else { 0 }],
            base: needs.base.then(zeros),
            squares: (0..if needs.squares { workers } else { 0 }).map(|_| zeros()).collect(),
            own: vec![snapshot.clone(); if needs.own { workers } else { 0 }],
            optimizer: OptimizerState::new(&needs, &settings, zeros),
            buffer_pool: BufferPool::new(device.clone(), total),
            losses: update::ring(device, ring),
            pending: Vec::new(),
            pending_scale: 0.0,
            pending_slot: 0,
            most_pending: update::pending_foldable(device, &layout),
            version: 0,
            arrivals: 0,
            device: device.clone(),
            layout,
            settings,
            needs,
            snapshot,
            live: None,
            timeline: Timeline::default(),
        }
    }

    /// Sets the shared weights that the workers write themselves.
    pub fn live(self, live: Option<Live>) -> Self {
        State { live, ..self }
    }

    /// Sets the timeline in which launches are recorded.
    pub fn noted(self, timeline: Timeline) -> Self {
        State { timeline, ..self }
    }

    /// The model that a new job of this worker gets: the worker's own, or the newest one.
    pub fn model_of(&self, worker: usize) -> Snapshot {
        self.own.get(worker).unwrap_or(&self.snapshot).clone()
    }

    /// η of the next update.
    pub fn rate(&self) -> f64 {
        self.settings.rate(self.version)
    }

    /// Whether the workers have own models.
    pub fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    /// Reads the ring of losses. Returns the losses of the latest arrivals, and whether each gradient had
    /// non-finite values.
    pub fn read_losses(&mut self) -> Result<(Vec<f32>, Vec<bool>)> {
        self.settle();
        let mut losses = self.device.download(&self.losses)?;
        let ring = losses.len() / 2;
        let flags: Vec<bool> = losses.split_off(ring).iter().map(|flag| *flag != 0.0).collect();
        if flags.contains(&true) {
            self.losses = update::ring(&self.device, ring);
        }
        Ok((losses, flags))
    }

    /// Releases the model of a job that has ended.
    pub fn done_with(&mut self, job: Job) {
        if self.live.is_none() {
            self.buffer_pool.give(job.snapshot.weights);
        }
    }

    /// Copies the shared weights to the snapshot, if the workers write the weights themselves.
    pub fn catch_up(&mut self) {
        if let Some(live) = &self.live {
            self.snapshot = Snapshot { weights: live.read(&self.device), fence: Fence::default() };
        }
    }

    /// Publishes the server's next model: one server update.
    fn publish(&mut self, weights: Buffer) {
        let snapshot = Snapshot { weights, fence: Fence::default() };
        self.buffer_pool.give(std::mem::replace(&mut self.snapshot, snapshot).weights);
        self.version += 1;
    }

    /// Publishes a worker's next own model.
    fn publish_own(&mut self, worker: usize, weights: Buffer) {
        let snapshot = Snapshot { weights, fence: Fence::default() };
        self.buffer_pool.give(std::mem::replace(&mut self.own[worker], snapshot).weights);
    }

    /// Applies a decision about a gradient: one launch folds the gradient and makes the step, if there is
    /// one. The loss goes to position `slot` of the ring.
    ///
    /// With `may_wait`, a gradient that is only added to a sum waits for the launch of the next gradient. The
    /// sum is then read and written once for both, and the same values are added in the same order. The
    /// caller sets `may_wait` only if the next gradient is ready and nothing writes the buffers of this one
    /// before.
    pub fn fold_in(&mut self, gradient: Gradient, job: &Job, decision: &Decision, slot: usize, may_wait: bool) {
        let scale = match decision.fold {
            Fold::Sum { scale } if gradient.factor.is_none() => Some(scale),
            _ => None,
        };
        if !self.pending.is_empty() && scale != Some(self.pending_scale) {
            self.settle();
        }
        let is_only_added = !decision.swap && decision.step.is_none();
        let has_room = self.pending.len() < self.most_pending;
        match scale.filter(|_| may_wait && is_only_added && has_room) {
            Some(scale) => {
                (self.pending_scale, self.pending_slot) = (scale, slot);
                self.pending.push(gradient);
            }
            None => self.apply(&gradient, job, decision, slot),
        }
    }

    /// Folds the pending gradients.
    pub fn settle(&mut self) {
        let Some(last) = self.pending.pop() else { return };
        // A fold into a sum reads nothing of the job.
        let job = Job::at(self.snapshot.clone(), 0);
        self.apply(&last, &job, &Decision::fold(Fold::Sum { scale: self.pending_scale }), self.pending_slot);
    }

    /// Makes one launch: it folds the pending gradients and this one, and makes the step, if there is one.
    fn apply(&mut self, gradient: &Gradient, job: &Job, decision: &Decision, slot: usize) {
        self.arrivals += 1 + self.pending.len() as u64;
        let pending = std::mem::take(&mut self.pending);
        let fences = pending.iter().chain([gradient]).map(|gradient| &gradient.fence);
        let timeline = self.timeline.clone();
        timeline.note((Work::Update, gradient.worker, gradient.job), fences, || match (decision.fold, decision.step) {
            (Fold::Towards { .. } | Fold::Elastic { .. } | Fold::Pair { .. }, Some(step)) => {
                self.exchange(gradient, job, decision.fold, step, slot)
            }
            (Fold::Drop, Some(_)) => panic!("a dropped gradient makes no step"),
            _ => self.fold(gradient, &pending, job, decision, slot),
        })
    }

    /// Mixes models with one launch. `fold` is `Towards`, `Elastic` or `Pair`.
    fn exchange(&mut self, gradient: &Gradient, job: &Job, fold: Fold, step: rule::Step, slot: usize) {
        let (worker, mut fresh) = (gradient.worker, self.buffer_pool.take());
        let mut take = |wanted: bool| wanted.then(|| self.buffer_pool.take());
        let peer = if let Fold::Pair { peer } = fold { peer } else { None };
        let mut fresh_own = take(self.needs.own && !matches!(fold, Fold::Towards { .. }));
        let mut fresh_peer = take(peer.is_some());
        let mixing = match (fold, &mut fresh_own) {
            (Fold::Towards { alpha }, _) => Mixing::Towards { sent: &job.snapshot.weights, alpha: alpha as f32 },
            (Fold::Elastic { alpha }, Some(fresh_own)) => {
                Mixing::Elastic { own: &self.own[worker].weights, fresh_own, alpha: alpha as f32 }
            }
            (Fold::Pair { .. }, Some(fresh_own)) => Mixing::Pair {
                own: &self.own[worker].weights,
                fresh_own,
                peer: peer.zip(fresh_peer.as_mut()).map(|(j, fresh)| (&self.own[j].weights, fresh)),
                share: (1.0 / self.own.len() as f64) as f32,
            },
            _ => panic!("the rule mixes the workers' own models, but its needs do not include them"),
        };
        Exchange {
            gradient: gradient_input(&self.layout, &mut self.losses, gradient, slot, self.settings.guard),
            weights: &self.snapshot.weights,
            fresh: &mut fresh,
            // The learning rate of the worker's own steps: x - η g is then the model that the worker reached.
            lr: (job.lr as f64 * step.scale * step.rate) as f32,
            mixing,
        }
        .run(&self.device);
        if let Some(fresh_own) = fresh_own {
            self.publish_own(worker, fresh_own);
        }
        if let Some((peer, fresh_peer)) = peer.zip(fresh_peer) {
            self.publish_own(peer, fresh_peer);
            if self.arrivals >= DERIVE_EVERY {
                self.arrivals = 0;
                self.derive_mean(&mut fresh);
            }
        }
        self.publish(fresh);
    }

    /// Recomputes the mean of the workers' own models, which the server's model follows by increments.
    fn derive_mean(&self, into: &mut Buffer) {
        let models: Vec<Row> = self.own.iter().map(|model| Row::of(model.weights.clone())).collect();
        let all: Vec<&Row> = models.iter().collect();
        row::resum(&self.device, &self.layout, into, &all, 1.0 / all.len() as f32);
    }

    /// Folds the pending gradients and this one into the server's state, and makes the step, if there is one.
    fn fold(&mut self, gradient: &Gradient, pending: &[Gradient], job: &Job, decision: &Decision, slot: usize) {
        let missing = "the rule folds into state that its needs do not include";
        let pending = pending
            .iter()
            .map(|g| update::PendingGradient { buffers: &g.buffers, fence: &g.fence, loss: &g.loss })
            .collect();
        let fold = match decision.fold {
            // A live gradient has been applied by its worker: only its loss is stored, behind its fence.
            Fold::Drop | Fold::Live => update::FoldOp::Nothing,
            Fold::Direct => update::FoldOp::Direct { scale: 1.0 },
            Fold::Sum { scale } => {
                update::FoldOp::Sum { sum: self.sums.first_mut().expect(missing), scale: scale as f32, pending }
            }
            Fold::Row { table, mix, scale, forget } => {
                if table == 0 && !self.counted.is_empty() {
                    self.counted[gradient.worker] = true;
                    decision.retire.iter().for_each(|j| self.counted[*j] = false);
                }
                let (before, rest) = self.tables[table].split_at_mut(gradient.worker);
                let (row, after) = rest.split_first_mut().expect("a row per worker");
                let retired = decision.retire.iter().map(|&j| match j.checked_sub(gradient.worker + 1) {
                    None => &before[j],
                    Some(k) => &after[k],
                });
                update::FoldOp::Row {
                    sum: &mut self.sums[table],
                    row,
                    mix: mix as f32,
                    scale: scale as f32,
                    forget,
                    retired: retired.collect(),
                }
            }
            Fold::Compensated { lambda, decay } => update::FoldOp::Compensated {
                sent: &job.snapshot.weights,
                lambda: lambda as f32,
                square: decay.map(|m| (self.squares.get_mut(gradient.worker).expect(missing), m as f32)),
            },
            Fold::Towards { .. } | Fold::Elastic { .. } | Fold::Pair { .. } => panic!("models are mixed by a step"),
        };
        let rate = self.settings.rate(self.version);
        let steps = decision.step.filter(|_| decision.fold != Fold::Live);
        let mut fresh = steps.map(|_| self.buffer_pool.take());
        let step = steps.zip(fresh.as_mut()).map(|(step, fresh)| StepOp {
            fresh,
            lr: (rate * step.rate) as f32,
            scale: step.scale as f32,
            keep: step.keep as f32,
            weight_decay: self.settings.weight_decay as f32,
            base: step.follow.map(|follow| (self.base.as_mut().expect(missing), follow as f32)),
            method: self.optimizer.next_step(),
        });
        let gradient = gradient_input(&self.layout, &mut self.losses, gradient, slot, self.settings.guard);
        Update { gradient, weights: &self.snapshot.weights, fold, step }.run(&self.device);
        if decision.swap {
            self.sums.swap(0, 1);
            self.tables.swap(0, 1);
        }
        if let Some(weights) = fresh {
            self.publish(weights);
            self.derive();
        } else if decision.fold == Fold::Live {
            self.version += 1;
        }
    }

    /// Recomputes the sum (or the base) from the rows of the first table, if [`DERIVE_EVERY`] arrivals have
    /// passed since the last time. Called after a step.
    fn derive(&mut self) {
        let Some(scale) = self.needs.derived.filter(|_| self.arrivals >= DERIVE_EVERY) else { return };
        self.arrivals = 0;
        let rows: Vec<&Row> = self.tables[0].iter().zip(&self.counted).filter(|(_, c)| **c).map(|(r, _)| r).collect();
        let into = self.base.as_mut().unwrap_or(&mut self.sums[0]);
        if !rows.is_empty() {
            row::resum(&self.device, &self.layout, into, &rows, scale as f32);
        }
    }
}
