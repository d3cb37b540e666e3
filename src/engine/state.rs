//! The server's state on the device, and the one launch with which an arrival changes it.
//!
//! Invariants kept here:
//! * I2: new models go to fresh buffers; a published snapshot is never written again.
//! * I3: the version grows by one per server update and by nothing else.
//! * I8: a gradient's fence is bound by the update's launch; the server fences what it enqueued after each arrival, and no job is sent
//!   without the latest of these fences.

use crate::engine::checkpoint::{Checkpoint, Counts, Tensors};
use crate::engine::job::{Gradient, Job};
use crate::engine::timeline::Timeline;
use crate::error::{Error, Result};
use crate::problem::Snapshot;
use crate::record::Work;
use crate::rule::{self, Arrival, Decision, Fold, Needs, Rule, ServerOptimizer};
use crate::schedule::Schedule;
use stagger_kernels::device::BufferPool;
use stagger_kernels::mixing::{Exchange, Mixing};
use stagger_kernels::update::Guard;
use stagger_kernels::{
    Adam, Buffer, Device, Dtype, Fence, GradientInput, Layout, Live, OptimizerStep, Row, StepOp, Update, copy, row,
    update,
};
use std::collections::VecDeque;
use std::sync::Arc;

/// A sum that is kept by increments is derived from its table anew after so many arrivals, against drift.
pub const DERIVE_EVERY: u64 = 4096;

/// Arrivals of a rehearsal at most.
const REHEARSED: usize = 5000;

/// Settings of the update that are not the rule's.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpdateSettings {
    /// η.
    pub lr: f64,
    /// Its factor over the updates.
    pub schedule: Schedule,
    /// λ, of the current weights.
    pub weight_decay: f64,
    /// β of momentum; 0 for none.
    pub momentum: f64,
    /// Updates from one momentum part to the next: 1 is heavy-ball momentum, more is delayed Nesterov momentum.
    pub momentum_every: u64,
    /// How table rows are stored.
    pub table_dtype: Dtype,
    /// What is done with numbers that are none.
    pub guard: Guard,
}

impl UpdateSettings {
    /// η for the update that makes version t + 1.
    pub fn rate(&self, t: u64) -> f64 {
        self.lr * self.schedule.factor(t)
    }
}

/// What turns directions into steps, with its state.
enum OptimizerState {
    Plain,
    HeavyBall { velocity: Buffer, beta: f32 },
    Nesterov { velocity: Buffer, pending: Option<Buffer>, beta: f32, every: u64, since: u64 },
    AmsGrad { moments: [Buffer; 3], constants: Adam },
}

impl OptimizerState {
    fn new(needs: &Needs, settings: &UpdateSettings, zeros: impl Fn() -> Buffer) -> Self {
        let nesterov = |beta: f64, every: u64| OptimizerState::Nesterov {
            velocity: zeros(),
            pending: (every > 1).then(&zeros),
            beta: beta as f32,
            every,
            since: 0,
        };
        match needs.optimizer {
            ServerOptimizer::Plain if settings.momentum == 0.0 => OptimizerState::Plain,
            ServerOptimizer::Plain if settings.momentum_every <= 1 => {
                OptimizerState::HeavyBall { velocity: zeros(), beta: settings.momentum as f32 }
            }
            ServerOptimizer::Plain => nesterov(settings.momentum, settings.momentum_every),
            ServerOptimizer::Nesterov { beta, every } => nesterov(beta, every),
            ServerOptimizer::AmsGrad(beta1, beta2, epsilon) => OptimizerState::AmsGrad {
                moments: [zeros(), zeros(), zeros()],
                constants: Adam {
                    beta1: beta1 as f32,
                    beta2: beta2 as f32,
                    epsilon: epsilon as f32,
                    correction1: 1.0,
                    correction2: 1.0,
                },
            },
        }
    }

    /// The method of the step that comes now.
    fn method(&mut self) -> OptimizerStep<'_> {
        match self {
            OptimizerState::Plain => OptimizerStep::Plain,
            OptimizerState::HeavyBall { velocity, beta } => OptimizerStep::HeavyBall { velocity, beta: *beta },
            OptimizerState::Nesterov { velocity, pending, beta, every, since } => {
                *since = (*since + 1) % *every;
                OptimizerStep::Nesterov { velocity, beta: *beta, pending: pending.as_mut(), turn: *since == 0 }
            }
            OptimizerState::AmsGrad { moments: [first, second, largest], constants } => {
                OptimizerStep::Adam { first, second, largest: Some(largest), constants: *constants }
            }
        }
    }
}

/// A worker's gradient as an update takes it.
fn incoming<'a>(
    layout: &'a Layout,
    losses: &'a mut Buffer,
    gradient: &'a Gradient,
    slot: usize,
    guard: Guard,
) -> GradientInput<'a> {
    let Gradient { buffers, factor, fence, loss, .. } = gradient;
    GradientInput { layout, buffers, factor: factor.as_deref(), fence, loss, losses, slot, guard }
}

/// Model and slots on the device.
pub struct State {
    pub(crate) device: Device,
    /// Of the gradients: the model's, or one flat segment after local steps.
    layout: Layout,
    settings: UpdateSettings,
    needs: Needs,
    pub(crate) snapshot: Snapshot,
    pub(crate) version: u64,
    buffer_pool: BufferPool,
    /// One per table, at least one if the rule asks for a sum.
    sums: Vec<Buffer>,
    tables: Vec<Vec<Row>>,
    /// Which rows of the first table are in its sum.
    counted: Vec<bool>,
    base: Option<Buffer>,
    squares: Vec<Buffer>,
    own: Vec<Snapshot>,
    live: Option<Live>,
    optimizer: OptimizerState,
    arrivals: u64,
    pub(crate) losses: Buffer,
    /// Gradients that are to be folded with the next one, the factor of all, and the last one's place in the ring of losses.
    waiting: Vec<Gradient>,
    waiting_scale: f64,
    waiting_slot: usize,
    /// How many may wait.
    most_waiting: usize,
    timeline: Timeline,
}

impl State {
    /// The state for a rule with these needs, at version 0.
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
            waiting: Vec::new(),
            waiting_scale: 0.0,
            waiting_slot: 0,
            most_waiting: update::pending_foldable(device, &layout),
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

    /// The same, with weights that the workers write themselves.
    pub fn live(self, live: Option<Live>) -> Self {
        State { live, ..self }
    }

    /// The same, whose launches are noted there.
    pub fn noted(self, timeline: Timeline) -> Self {
        State { timeline, ..self }
    }

    /// The model that a worker is sent now.
    pub fn model_of(&self, worker: usize) -> Snapshot {
        self.own.get(worker).unwrap_or(&self.snapshot).clone()
    }

    /// η of the update that comes next.
    pub fn rate(&self) -> f64 {
        self.settings.rate(self.version)
    }

    /// Reads the ring of losses of the latest arrivals, and whether each of their gradients had numbers that are none.
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

    /// A worker's job is over, and with it the server's hold on the model that it was sent.
    pub fn done_with(&mut self, job: Job) {
        if self.live.is_none() {
            self.buffer_pool.give(job.snapshot.weights);
        }
    }

    /// Brings the snapshot up to date where workers write the weights themselves.
    pub fn catch_up(&mut self) {
        if let Some(live) = &self.live {
            self.snapshot = Snapshot { weights: live.read(&self.device), fence: Fence::default() };
        }
    }

    /// Everything of it that lies on the device, by name, but the losses that are read already.
    fn buffers(&mut self) -> Vec<(String, &mut Buffer)> {
        let mut all: Vec<(String, &mut Buffer)> = vec![("weights".into(), &mut self.snapshot.weights)];
        let sums = self.sums.iter_mut().enumerate();
        all.extend(sums.map(|(k, sum)| (format!("sum/{k}"), sum)));
        for (k, table) in self.tables.iter_mut().enumerate() {
            all.extend(table.iter_mut().enumerate().map(|(i, row)| (format!("table/{k}/{i}"), row.words())));
        }
        all.extend(self.base.iter_mut().map(|base| ("base".into(), base)));
        let squares = self.squares.iter_mut().enumerate();
        all.extend(squares.map(|(i, square)| (format!("square/{i}"), square)));
        let own = self.own.iter_mut().enumerate();
        all.extend(own.map(|(i, own)| (format!("own/{i}"), &mut own.weights)));
        match &mut self.optimizer {
            OptimizerState::Plain => {}
            OptimizerState::HeavyBall { velocity, .. } => all.push(("velocity".into(), velocity)),
            OptimizerState::Nesterov { velocity, pending, .. } => {
                all.push(("velocity".into(), velocity));
                all.extend(pending.iter_mut().map(|pending| ("pending".into(), pending)));
            }
            OptimizerState::AmsGrad { moments, .. } => {
                let moments = moments.iter_mut().enumerate();
                all.extend(moments.map(|(k, moment)| (format!("moment/{k}"), moment)));
            }
        }
        all
    }

    /// Whether workers have models of their own.
    pub fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    /// The state for a checkpoint, with the models of `jobs`. Nothing may wait to be folded. What is written in place is copied, unless this
    /// is the `last` that happens to it; what is published never is, for nobody writes it again (I2).
    pub fn save(&mut self, jobs: Vec<(String, Buffer)>, last: bool) -> Result<(Counts, Tensors)> {
        debug_assert!(self.waiting.is_empty(), "what waits is folded before a checkpoint");
        self.catch_up();
        let since = if let OptimizerState::Nesterov { since, .. } = &self.optimizer { *since } else { 0 };
        let counts = Counts { arrivals: self.arrivals, since, counted: self.counted.clone() };
        let device = self.device.clone();
        let published = |name: &str| name == "weights" || name.starts_with("own/");
        let own = self.buffers().into_iter().map(|(name, buffer)| (last || published(&name), name, buffer.clone()));
        let all: Vec<_> = own.chain(jobs.into_iter().map(|(name, buffer)| (true, name, buffer))).collect();
        let on_host = |(shared, name, buffer): (bool, String, Buffer)| {
            if shared || matches!(device, Device::Gpu(_)) {
                return Ok((name, device.on_host(&buffer)?));
            }
            let mut own = device.uninitialised(buffer.len());
            copy(&device, &buffer, &mut own);
            Ok((name, own))
        };
        Ok((counts, all.into_iter().map(on_host).collect::<Result<_>>()?))
    }

    /// Becomes what a checkpoint holds.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let device = self.device.clone();
        for (name, buffer) in self.buffers() {
            *buffer = device.upload(checkpoint.tensor(&name, buffer.len())?.to_vec());
        }
        let Counts { arrivals, since: turned, counted } = checkpoint.manifest.counts.clone();
        if counted.len() != self.counted.len() {
            return Err(Error::usage("the checkpoint does not fit the run: its table has other rows"));
        }
        (self.arrivals, self.counted) = (arrivals, counted);
        if let OptimizerState::Nesterov { since, .. } = &mut self.optimizer {
            *since = turned;
        }
        Ok(())
    }

    /// Replaces the server's model: one server update.
    fn publish(&mut self, weights: Buffer) {
        let snapshot = Snapshot { weights, fence: Fence::default() };
        self.buffer_pool.give(std::mem::replace(&mut self.snapshot, snapshot).weights);
        self.version += 1;
    }

    fn publish_own(&mut self, worker: usize, weights: Buffer) {
        let snapshot = Snapshot { weights, fence: Fence::default() };
        self.buffer_pool.give(std::mem::replace(&mut self.own[worker], snapshot).weights);
    }

    /// Takes in a gradient: one launch folds it, and perhaps steps. The loss goes to `slot` of the ring. If it `may_wait` (somebody
    /// else has answered already, and nobody writes these buffers before), one that is only added to a sum is left to that one's launch:
    /// the sum is then read and written once for both, and the same numbers are added in the same order.
    pub fn fold_in(&mut self, gradient: Gradient, job: &Job, decision: &Decision, slot: usize, may_wait: bool) {
        let scale = match decision.fold {
            Fold::Sum { scale } if gradient.factor.is_none() => Some(scale),
            _ => None,
        };
        if !self.waiting.is_empty() && scale != Some(self.waiting_scale) {
            self.settle();
        }
        match scale
            .filter(|_| may_wait && !decision.swap && decision.step.is_none() && self.waiting.len() < self.most_waiting)
        {
            Some(scale) => {
                (self.waiting_scale, self.waiting_slot) = (scale, slot);
                self.waiting.push(gradient);
            }
            None => self.apply(&gradient, job, decision, slot),
        }
    }

    /// Folds what waits.
    pub fn settle(&mut self) {
        let Some(last) = self.waiting.pop() else { return };
        // Nothing of a job is read by a fold into a sum.
        let job = Job::at(self.snapshot.clone(), 0);
        self.apply(&last, &job, &Decision::fold(Fold::Sum { scale: self.waiting_scale }), self.waiting_slot);
    }

    /// One launch: fold, with what waits, and perhaps step.
    fn apply(&mut self, gradient: &Gradient, job: &Job, decision: &Decision, slot: usize) {
        self.arrivals += 1 + self.waiting.len() as u64;
        let waited = std::mem::take(&mut self.waiting);
        let fences = waited.iter().chain([gradient]).map(|gradient| &gradient.fence);
        let timeline = self.timeline.clone();
        timeline.note((Work::Update, gradient.worker, gradient.job), fences, || match (decision.fold, decision.step) {
            (Fold::Towards { .. } | Fold::Elastic { .. } | Fold::Pair { .. }, Some(step)) => {
                self.exchange(gradient, job, decision.fold, step, slot)
            }
            (Fold::Drop, Some(_)) => panic!("a dropped gradient makes no step"),
            _ => self.fold(gradient, &waited, job, decision, slot),
        })
    }

    /// Mixes models.
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
            _ => panic!("the rule exchanges models of the workers' own, but did not ask for them"),
        };
        Exchange {
            gradient: incoming(&self.layout, &mut self.losses, gradient, slot, self.settings.guard),
            weights: &self.snapshot.weights,
            fresh: &mut fresh,
            // The rate at which the worker itself walked, so that x - η g is where it arrived.
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
                // The mean of all models, which is followed by increments, is taken anew.
                self.arrivals = 0;
                let models: Vec<Row> = self.own.iter().map(|model| Row::of(model.weights.clone())).collect();
                let all: Vec<&Row> = models.iter().collect();
                row::resum(&self.device, &self.layout, &mut fresh, &all, 1.0 / all.len() as f32);
            }
        }
        self.publish(fresh);
    }

    /// Folds a gradient into the server's own state, with those that waited for it.
    fn fold(&mut self, gradient: &Gradient, waited: &[Gradient], job: &Job, decision: &Decision, slot: usize) {
        let asked = "the rule folds into state that it did not ask for";
        let earlier = waited
            .iter()
            .map(|g| update::PendingGradient { buffers: &g.buffers, fence: &g.fence, loss: &g.loss })
            .collect();
        let fold = match decision.fold {
            // Of a gradient that its worker has applied itself the loss is noted, behind its fence.
            Fold::Drop | Fold::Live => update::FoldOp::Nothing,
            Fold::Direct => update::FoldOp::Direct { scale: 1.0 },
            Fold::Sum { scale } => {
                update::FoldOp::Sum { sum: self.sums.first_mut().expect(asked), scale: scale as f32, earlier }
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
                square: decay.map(|m| (self.squares.get_mut(gradient.worker).expect(asked), m as f32)),
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
            base: step.follow.map(|follow| (self.base.as_mut().expect(asked), follow as f32)),
            method: self.optimizer.method(),
        });
        let gradient = incoming(&self.layout, &mut self.losses, gradient, slot, self.settings.guard);
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

    /// Every so many arrivals, after a step: the sum (or the base) from its table anew.
    fn derive(&mut self) {
        let Some(scale) = self.needs.derived.filter(|_| self.arrivals >= DERIVE_EVERY) else { return };
        self.arrivals = 0;
        let rows: Vec<&Row> = self.tables[0].iter().zip(&self.counted).filter(|(_, c)| **c).map(|(r, _)| r).collect();
        let into = self.base.as_mut().unwrap_or(&mut self.sums[0]);
        if !rows.is_empty() {
            row::resum(&self.device, &self.layout, into, &rows, scale as f32);
        }
    }

    /// Compiles the rule's updates before the clock counts: plays the rule on this (throwaway) state with gradients of zeros, all
    /// answering in turn, until it has stepped; then, where gradients wait, with every number of them. Models that a worker would still
    /// have are kept meanwhile, and given: as long as they are kept, nothing else takes the memory that is theirs.
    pub fn rehearse(
        &mut self,
        mut rule: Box<dyn Rule>,
        workers: usize,
        clipped: bool,
        some_wait: bool,
    ) -> Result<VecDeque<(u64, Buffer)>> {
        let rows = self.tables.first().map_or(self.own.len().max(self.squares.len()), Vec::len).max(1);
        let zeros = |len| self.device.zeros(len);
        let buffers: Arc<[Buffer]> = self.layout.segments().iter().map(|s| zeros(s.len)).collect();
        let loss = zeros(1);
        let job = Job::at(self.snapshot.clone(), 0);
        // The first that folds into a sum alone, and the first that steps too.
        let mut sums: [Option<(Gradient, Decision)>; 2] = [None, None];
        let mut queue: VecDeque<(usize, u64)> = rule.begin(workers).into_iter().map(|i| (i, 0)).collect();
        let mut sent: VecDeque<(u64, Buffer)> = VecDeque::new();
        for arrivals in 0..REHEARSED {
            if arrivals > 4 * workers + 16 && self.version > 2 {
                break;
            }
            let Some((worker, version)) = queue.pop_front() else { break };
            let (t, steps) = (self.version, rule.steps(worker));
            let staleness = t - version;
            let arrival = Arrival { worker, version, t, staleness, time: 0.0, seconds: 1.0, steps, loss: Some(1.0) };
            let mut decision = rule.on_arrival(&arrival);
            // Few rows stand for all.
            decision.retire.iter_mut().for_each(|j| *j %= rows);
            decision.retire.retain(|j| *j != worker % rows);
            if let Fold::Pair { peer: Some(peer) } = &mut decision.fold {
                *peer = (worker + 1) % rows;
            }
            let gradient = Gradient {
                worker: worker % rows,
                job: 0,
                buffers: buffers.clone(),
                factor: clipped.then(|| loss.clone().into()),
                loss: loss.clone(),
                fence: self.device.fence(),
            };
            if matches!(decision.fold, Fold::Sum { .. }) && some_wait && !clipped {
                sums[decision.step.is_some() as usize].get_or_insert_with(|| (gradient.clone(), decision.clone()));
            }
            self.apply(&gradient, &job, &decision, 0);
            let now = self.version;
            decision.follow(&mut queue, worker, now, workers);
            if sent.back().is_none_or(|(version, _)| *version < now) {
                sent.push_back((now, self.snapshot.weights.clone()));
            }
            // They answer in the order in which they were sent something.
            while sent.front().zip(queue.front()).is_some_and(|((version, _), (_, oldest))| version < oldest) {
                sent.pop_front();
            }
        }
        for (gradient, decision) in sums.iter().flatten() {
            for waiting in 1..=self.most_waiting {
                self.waiting = vec![gradient.clone(); waiting];
                self.apply(gradient, &job, decision, waiting);
            }
        }
        update::forget_launches();
        self.device.sync()?;
        Ok(sent)
    }
}
