//! The server: one loop over arrivals, and the only owner of weights, slots and rule.
//!
//! Invariants kept here:
//! * I2: new weights go to a fresh buffer; a published snapshot is never written again.
//! * I3: the version grows by one per server update and by nothing else.
//! * I4: staleness is t - v, from the server's own books.
//! * I6: only this thread touches weights, slots and rule.
//! * I7: every arrival is applied once, or logged as dropped: arrivals = applied + dropped.
//! * I8: a gradient's seal is bound by the update's launch; a snapshot is sealed after the launch that made it.

use crate::crew::Crew;
use crate::error::Result;
use crate::problem::{Evaluator, Snapshot};
use crate::progress::Progress;
use crate::record::{Columns, Effect, Event, Limits, Outcome, RunFolder};
use crate::rule::{Arrival, Decision, Fold, Rule, Start};
use crate::stopwatch::Stopwatch;
use crate::transport::Transport;
use crate::worker::{Gate, Gradient};
use stagger_kernels::device::Recycler;
use stagger_kernels::{Buffer, Device, Layout, Step, Update, update};
use std::collections::VecDeque;
use std::sync::Arc;

/// Losses stay on the device until this many have come together: one read per so many arrivals.
const RING: usize = 64;

/// Settings of the update that are not the rule's.
#[derive(Clone, Copy, Debug)]
pub struct Descent {
    /// η.
    pub lr: f64,
    /// λ, of the current weights.
    pub weight_decay: f64,
    /// β of heavy-ball momentum; 0 for none.
    pub momentum: f64,
}

/// Model and slots on the device.
struct State {
    device: Device,
    /// Of the gradients: the model's, or one flat segment after local steps.
    layout: Layout,
    descent: Descent,
    snapshot: Snapshot,
    version: u64,
    recycler: Recycler,
    sum: Option<Buffer>,
    rows: Vec<Buffer>,
    velocity: Option<Buffer>,
    losses: Buffer,
}

impl State {
    /// Compiles the rule's update before the clock counts: a step of rate 0 on buffers that are thrown away.
    fn warm_up(&self) -> Result<()> {
        if matches!(self.device, Device::Cpu) {
            return Ok(());
        }
        let zeros = || self.device.zeros(self.snapshot.weights.len());
        let (mut sum, mut row, mut velocity, mut fresh) = (zeros(), zeros(), zeros(), zeros());
        let gradient: Vec<Buffer> = self.layout.segments().iter().map(|s| self.device.zeros(s.len)).collect();
        for steps in [false, true] {
            let fold = match (self.sum.is_some(), self.rows.is_empty()) {
                (false, _) => update::Fold::Direct { scale: 1.0 },
                (true, true) => update::Fold::Sum { sum: &mut sum, scale: 1.0 },
                (true, false) => update::Fold::Table { sum: &mut sum, row: &mut row, scale: 1.0 },
            };
            let step = Step {
                fresh: &mut fresh,
                lr: 0.0,
                keep: if self.rows.is_empty() { 0.0 } else { 1.0 },
                weight_decay: self.descent.weight_decay as f32,
                momentum: self.velocity.is_some().then_some((&mut velocity, 0.5)),
            };
            Update {
                layout: &self.layout,
                gradient: &gradient,
                seal: &self.snapshot.seal,
                weights: &self.snapshot.weights,
                fold,
                step: steps.then_some(step),
                loss: &self.device.zeros(1),
                losses: &mut self.device.zeros(1),
                slot: 0,
            }
            .run(&self.device);
        }
        update::forget_launches();
        Ok(self.device.sync()?)
    }

    /// One launch: fold, and perhaps step. The loss goes to `slot` of the ring.
    fn apply(&mut self, gradient: &Gradient, decision: &Decision, slot: usize) {
        let sum = self.sum.as_mut();
        let fold = match decision.fold {
            Fold::Drop => update::Fold::Nothing,
            Fold::Direct => update::Fold::Direct { scale: 1.0 },
            Fold::Sum { scale } => {
                update::Fold::Sum { sum: sum.expect("the rule asked for a sum"), scale: scale as f32 }
            }
            Fold::Table { scale } => update::Fold::Table {
                sum: sum.expect("the rule asked for a sum"),
                row: &mut self.rows[gradient.worker],
                scale: scale as f32,
            },
        };
        let mut fresh = decision.step.map(|_| self.recycler.take());
        let beta = self.descent.momentum as f32;
        let step = decision.step.zip(fresh.as_mut()).map(|(step, fresh)| Step {
            fresh,
            lr: (self.descent.lr * step.scale) as f32,
            keep: step.keep as f32,
            weight_decay: self.descent.weight_decay as f32,
            momentum: self.velocity.as_mut().map(|v| (v, beta)),
        });
        Update {
            layout: &self.layout,
            gradient: &gradient.buffers,
            seal: &gradient.seal,
            weights: &self.snapshot.weights,
            fold,
            step,
            loss: &gradient.loss,
            losses: &mut self.losses,
            slot,
        }
        .run(&self.device);
        if let Some(weights) = fresh {
            let snapshot = Snapshot { weights, seal: self.device.seal() };
            self.recycler.retire(std::mem::replace(&mut self.snapshot, snapshot).weights);
            self.version += 1;
        }
    }
}

/// Everything that a run's server holds.
pub struct Server<'a> {
    /// Decides.
    pub rule: Box<dyn Rule>,
    /// Where it computes.
    pub device: Device,
    /// The workers.
    pub crew: Crew,
    /// The clock.
    pub transport: Box<dyn Transport>,
    /// Real time.
    pub stopwatch: Arc<Stopwatch>,
    /// The objective as a whole.
    pub evaluator: Box<dyn Evaluator>,
    /// Where everything is written.
    pub folder: &'a mut RunFolder,
    /// What the metrics are.
    pub columns: Columns,
    /// Samples per gradient of each worker.
    pub batches: Vec<usize>,
    /// Updates between evaluations; 0 for the end alone.
    pub eval_every: u64,
    /// When to stop.
    pub limits: Limits,
    /// For people.
    pub progress: Progress,
    /// The workers' gate, closed while the server evaluates.
    pub gate: Gate,
    /// The latest losses, for the running mean.
    pub recent: VecDeque<f64>,
}

impl Server<'_> {
    /// Runs to the limit and leaves the workers stopped. `initial` are the weights of version 0.
    pub fn run(mut self, layout: &Layout, descent: Descent, initial: Vec<f32>) -> Result<Outcome> {
        let (needs, device) = (self.rule.needs(), self.device.clone());
        let total = layout.total();
        let zeros = |wanted: bool| wanted.then(|| device.zeros(total));
        let weights = device.upload(initial);
        let mut state = State {
            layout: if needs.local_steps > 1 { layout.flat() } else { layout.clone() },
            descent,
            version: 0,
            recycler: Recycler::new(device.clone(), total),
            sum: zeros(needs.sum),
            rows: if needs.table {
                (0..self.crew.workers()).map(|_| device.zeros(total)).collect()
            } else {
                Vec::new()
            },
            velocity: zeros(descent.momentum != 0.0),
            losses: device.zeros(RING),
            snapshot: Snapshot { weights, seal: device.seal() },
            device: device.clone(),
        };
        let stopwatch = self.stopwatch.clone();
        stopwatch.paused(|| state.warm_up())?;
        let mut outcome = Outcome::default();
        let mut pending: Vec<Event> = Vec::with_capacity(RING);
        let result = self.serve(&mut state, &mut outcome, &mut pending);
        outcome.wall_seconds = self.stopwatch.seconds();
        outcome.restarted = self.crew.restarted();
        outcome.updates = state.version;
        self.crew.stop();
        outcome.interrupted = match result {
            Err(crate::error::Error::Interrupted(_)) => true,
            Err(error) => {
                // What arrived before the failure is kept.
                let _ = self.note(&state, &mut outcome, &mut pending);
                let _ = self.folder.flush();
                return Err(error);
            }
            Ok(()) => false,
        };
        self.note(&state, &mut outcome, &mut pending)?;
        self.evaluate(&state, &mut outcome)?;
        self.folder.flush()?;
        outcome.weights = device.download(&state.snapshot.weights)?;
        self.progress.done();
        Ok(outcome)
    }

    /// The loop.
    fn serve(&mut self, state: &mut State, outcome: &mut Outcome, pending: &mut Vec<Event>) -> Result<()> {
        for worker in self.rule.begin(self.crew.workers()) {
            self.assign(state, worker, 0.0)?;
        }
        while let Some((time, gradient)) = self.transport.next(&mut self.crew)? {
            if self.limits.time.is_some_and(|limit| time > limit) {
                break;
            }
            let worker = gradient.worker;
            let version = self.crew.arrived(worker);
            let staleness = state.version - version;
            let arrival = Arrival { worker, version, t: state.version, staleness, time };
            let decision = self.rule.on_arrival(&arrival);
            self.submit(|| {
                state.apply(&gradient, &decision, pending.len());
                state.device.flush()
            })?;

            let effect = match (decision.step.is_some(), decision.fold) {
                (true, _) => Effect::Step,
                (false, Fold::Drop) => Effect::Drop,
                (false, _) => Effect::Fold,
            };
            self.transport.decided(effect, state.version)?;
            pending.push(Event {
                seq: outcome.gradients,
                time,
                worker,
                version,
                staleness,
                loss: None,
                effect,
                t: state.version,
            });
            outcome.gradients += 1;
            outcome.dropped += (effect == Effect::Drop) as u64;
            outcome.samples += self.batches[worker] as u64;
            outcome.staleness += staleness;
            outcome.max_staleness = outcome.max_staleness.max(staleness);
            outcome.time = time;
            if pending.len() == RING {
                self.note(state, outcome, pending)?;
            }

            let ends = self.limits.updates.is_some_and(|limit| state.version >= limit)
                || self.limits.samples.is_some_and(|limit| outcome.samples >= limit);
            if ends {
                break;
            }
            self.start(state, worker, &decision, time)?;
            if decision.step.is_some() && self.eval_every > 0 && state.version.is_multiple_of(self.eval_every) {
                let stopwatch = self.stopwatch.clone();
                if self.columns == Columns::Images {
                    self.note(state, outcome, pending)?;
                }
                // Nobody computes meanwhile: no gradient comes for free while the clock stands still, and nobody is slowed.
                let gate = self.gate.clone();
                gate.closed(|| stopwatch.paused(|| self.evaluate(state, outcome)))?;
            }
            self.progress.show(&self.stopwatch, state.version, outcome);
        }
        Ok(())
    }

    /// Runs what talks to the device.
    fn submit<T>(&self, work: impl FnOnce() -> T) -> T {
        // On a GPU the server submits with a permit like everybody: a device's launches are issued one by one anyway, and a
        // second producer only takes the core that the issuing thread needs. On the CPU an update is computed here.
        match self.device {
            Device::Gpu(_) => self.gate.pass(work),
            Device::Cpu => work(),
        }
    }

    /// Preemption and assignment: both take effect at the time of the arrival that caused them.
    fn start(&mut self, state: &State, sender: usize, decision: &Decision, now: f64) -> Result<()> {
        for &worker in &decision.restart {
            self.crew.cancel(worker);
            self.assign(state, worker, now)?;
        }
        match &decision.start {
            Start::Nobody => {}
            Start::Sender => self.assign(state, sender, now)?,
            Start::Everybody => {
                for worker in 0..self.crew.workers() {
                    self.assign(state, worker, now)?;
                }
            }
            Start::These(workers) => {
                for &worker in workers {
                    self.assign(state, worker, now)?;
                }
            }
        }
        // The sender is free: what was queued for it begins now, if nothing was assigned that did so already.
        let transport = &mut self.transport;
        self.crew.next_job(sender, |worker, job| transport.begin(worker, job, now))
    }

    fn assign(&mut self, state: &State, worker: usize, now: f64) -> Result<()> {
        let transport = &mut self.transport;
        self.crew.assign(worker, state.snapshot.clone(), state.version, |worker, job| transport.begin(worker, job, now))
    }

    /// Reads the ring of losses and writes the arrivals that it belongs to.
    fn note(&mut self, state: &State, outcome: &mut Outcome, pending: &mut Vec<Event>) -> Result<()> {
        if pending.is_empty() {
            return Ok(());
        }
        let losses = self.submit(|| state.device.download(&state.losses))?;
        for (event, loss) in pending.iter_mut().zip(losses) {
            event.loss = loss.is_finite().then_some(loss);
            if self.recent.len() == RING {
                self.recent.pop_front();
            }
            self.recent.push_back(loss as f64);
            self.folder.event(event)?;
        }
        outcome.recent_loss = Some(self.recent.iter().sum::<f64>() / self.recent.len() as f64);
        pending.clear();
        Ok(())
    }

    fn evaluate(&mut self, state: &State, outcome: &mut Outcome) -> Result<()> {
        if outcome.evaluated == Some(state.version) {
            return Ok(());
        }
        outcome.evaluation = self.evaluator.evaluate(&state.snapshot.weights)?;
        outcome.evaluated = Some(state.version);
        self.folder.evaluation(state.version, outcome.time, outcome.recent_loss, &outcome.evaluation, self.columns)?;
        self.progress.evaluated(state.version, outcome);
        Ok(())
    }
}
