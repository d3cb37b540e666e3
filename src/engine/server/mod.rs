//! The server: one loop over arrivals, and the only owner of weights, slots and rule (the device's side of them: `state`).
//!
//! Invariants kept here:
//! * I4: staleness is t - v, from the server's own books.
//! * I6: only this thread touches weights, slots and rule (but for a rule whose workers write the weights: Hogwild!).
//! * I7: every arrival is applied once, or logged as dropped: arrivals = applied + dropped.

use crate::engine::checkpoint::{Checkpoint, Draft, Manifest, Saver};
use crate::engine::clock::Transport;
use crate::engine::clock::stopwatch::Stopwatch;
use crate::engine::gate::Gate;
use crate::engine::state::{State, UpdateSettings};
use crate::engine::timeline::Timeline;
use crate::engine::worker::Job;
use crate::engine::worker_pool::Crew;
use crate::error::{Error, Handled, Result};
use crate::problem::Columns;
use crate::problem::{Evaluator, Snapshot};
use crate::record::{Effect, Event, Limits, Occupancy, Outcome, RunFolder, recorded};
use crate::rule::{Arrival, Decision, Fold, Rule, Start};
use crate::view::progress::Progress;
use stagger_kernels::{Buffer, Device, Fence, Layout, Live};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Losses stay on the device until this many have come together: one read per so many arrivals.
const RING: usize = 64;
/// A rule that follows the loss is told of it once per as many arrivals as there are workers, but not more often than this.
const LOSS_RING: usize = 8;

/// Arrivals without an update after which a run that lost a worker is taken to wait for it, besides a hundred of each worker.
const STARVED: u64 = 10_000;

/// Batch losses, as they are read from the device.
#[derive(Default)]
pub struct Losses {
    /// The latest, for the mean that people see.
    recent: VecDeque<f64>,
    /// Those of the block of arrivals that is being gathered, and the mean of the last whole block, which rules are told.
    /// Blocks are counted in arrivals, so that an evaluation in between changes nothing.
    block: Vec<f64>,
    told: Option<f64>,
    /// Arrivals of a block, which is also the length of the ring on the device.
    ring: usize,
}

impl Losses {
    fn push(&mut self, loss: f64) {
        if self.recent.len() == RING {
            self.recent.pop_front();
        }
        self.recent.push_back(loss);
        self.block.push(loss);
        if self.block.len() == self.ring {
            self.told = Some(self.block.drain(..).sum::<f64>() / self.ring as f64);
        }
    }

    /// Mean of the latest.
    fn mean(&self) -> Option<f64> {
        (!self.recent.is_empty()).then(|| self.recent.iter().sum::<f64>() / self.recent.len() as f64)
    }
}

/// What is due after an arrival.
#[derive(Clone, Copy, Default, PartialEq)]
struct Pause {
    /// The ring of losses is full.
    note: bool,
    /// An evaluation.
    evaluate: bool,
    /// A checkpoint.
    save: bool,
    /// Nothing more.
    end: bool,
}

/// What the model of a job is called in a checkpoint: by its version where all workers share one, else by its worker.
fn model_name(own: bool, worker: usize, place: usize, job: &Job) -> String {
    if own { format!("sent/{worker}/{place}") } else { format!("model/{}", job.version) }
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
    /// An update is issued before anything else is enqueued. Where a step is one launch, that is one crossing between threads for all of an
    /// update; where it is dozens, the thread that issues launches would run out of them while the server waits for it.
    pub at_once: bool,
    /// The workers' gate, closed while the server evaluates.
    pub gate: Gate,
    /// Batch losses that have been read.
    pub losses: Losses,
    /// On a GPU: the same rule once more, to be rehearsed before the clock starts, and whether gradients are clipped.
    pub rehearsal: Option<(Box<dyn Rule>, bool)>,
    /// The weights that the workers write themselves, for a rule that has such.
    pub live: Option<Live>,
    /// The order comes from a log, which ends where it ends.
    pub replays: bool,
    /// The run ends at a gradient that is not finite.
    pub stops_at_nan: bool,
    /// Writes checkpoints, if there are to be any.
    pub saver: Option<Saver>,
    /// Updates between checkpoints; 0 for the end alone.
    pub save_every: u64,
    /// What every checkpoint of the run says.
    pub manifest: Manifest,
    /// Where the run goes on.
    pub past: Option<Checkpoint>,
    /// Notes when the device computed the first gradients.
    pub timeline: Timeline,
}

impl Server<'_> {
    /// Runs to the limit and leaves the workers stopped. `initial` are the weights of version 0; the last ones are given, on the host.
    pub fn run(mut self, layout: &Layout, descent: UpdateSettings, initial: Vec<f32>) -> Result<(Outcome, Buffer)> {
        let (needs, device, workers) = (self.rule.needs(), self.device.clone(), self.crew.workers());
        let ring = if needs.loss { workers.clamp(LOSS_RING, RING) } else { RING };
        let stopwatch = self.stopwatch.clone();
        let some_wait = self.crew.runs_ahead();
        let rehearsal = self.rehearsal.take();
        let state = || -> Result<State> {
            let state = |workers, initial| State::new(&device, layout, needs, descent, workers, initial, ring);
            let sent = rehearsal.map(|(rule, clipped)| {
                state(workers.min(2), initial.clone()).rehearse(rule, workers, clipped, some_wait)
            });
            // The models that were sent are given up after it is made: their memory is theirs.
            let _sent = sent.transpose()?;
            Ok(state(workers, initial))
        };
        let state = stopwatch.paused(state)?;
        let mut state = state.live(self.live.take()).noted(self.timeline.clone());
        self.losses.ring = ring;
        self.timeline.begin();
        let mut outcome = Outcome::default();
        let mut pending: Vec<Event> = Vec::with_capacity(ring);
        let past = self.past.take();
        if let Some(past) = &past {
            stopwatch.paused(|| self.recall(&mut state, &mut outcome, past))?;
        }
        let result = self.serve(&mut state, &mut outcome, &mut pending, past.is_none());
        // The clock shows when the last update was made, not when it was asked for. A device that fails says so where it is read.
        let _ = device.sync();
        outcome.wall_seconds = self.stopwatch.seconds();
        outcome.restarted = self.crew.restarted();
        outcome.failures = self.crew.failures().to_vec();
        outcome.updates = state.version;
        self.crew.stop();
        let told = self.timeline.read().map_or(Ok(()), |(spans, untold)| {
            (outcome.occupancy, outcome.untold) = (Occupancy::of(&spans), untold);
            self.folder.device(&spans)
        });
        // What arrived is kept, whatever ended the run.
        let noted = self.note(&mut state, &mut outcome, &mut pending);
        outcome.interrupted = match noted.and(result).and(told) {
            Err(Error::Interrupted(_)) => true,
            Err(error) => {
                // A log that is of another run has been followed too far.
                if !matches!(error, Error::Usage(_))
                    && let Err(why) = self.save(&mut state, &outcome, true).and_then(|()| self.saved())
                {
                    note!("NOTE       what was reached last could not be saved: {why}");
                }
                let _ = self.folder.finish();
                return Err(error);
            }
            Ok(()) => false,
        };
        self.save(&mut state, &outcome, true)?;
        self.evaluate(&mut state, &mut outcome)?;
        let saved = self.saved();
        self.folder.finish()?;
        // A run that came to its end has its weights; one that was interrupted has nothing else.
        if outcome.interrupted {
            saved?;
        }
        let weights = device.on_host(&state.snapshot.weights)?;
        self.progress.done();
        Ok((outcome, weights))
    }

    /// Goes back to where a checkpoint was made. What arrived until then is told again, by the event log, to rule, crew and clock, which so
    /// become what they were; what the rule decides must be what the log says. What lies on the device comes from the checkpoint.
    fn recall(&mut self, state: &mut State, outcome: &mut Outcome, past: &Checkpoint) -> Result<()> {
        let other = |why: String| Error::usage(format!("the run cannot go on from its checkpoint: {why}"));
        self.crew.recall();
        self.begin(state)?;
        let log = self.folder.path().join("events.jsonl");
        for event in recorded(&log, past.manifest.logs.events, self.crew.workers())? {
            let event = event?;
            self.lose_again(&past.manifest, outcome);
            self.transport.passed(&self.crew, &event)?;
            let recalled = self.crew.recalled(event.worker);
            let job =
                recalled.ok_or_else(|| other(format!("worker {} has no job at event {}", event.worker, event.seq)))?;
            let (decision, told) = self.decide(state, &job, event.worker, event.time);
            state.version += told.effect.is_step() as u64;
            let told = Event { loss: event.loss, seq: outcome.gradients, t: state.version, ..told };
            if told != event {
                return Err(other(format!("event {} of the log is {event:?}, but here it is {told:?}", event.seq)));
            }
            self.count(outcome, &told, job.steps);
            self.losses.push(event.loss.map_or(f64::NAN, f64::from));
            self.start(state, event.worker, &decision, event.time)?;
        }
        let manifest = &past.manifest;
        self.lose_again(manifest, outcome);
        if (state.version, outcome.gradients) != (manifest.updates, manifest.gradients) {
            let (t, k) = (state.version, outcome.gradients);
            return Err(other(format!(
                "the log ends at update {t} and gradient {k}, not at {} and {}",
                manifest.updates, manifest.gradients
            )));
        }
        outcome.recent_loss = self.losses.mean();
        (outcome.evaluated, outcome.evaluation) = (manifest.evaluated, manifest.evaluation);
        outcome.not_finite = manifest.not_finite;
        self.crew.remember(manifest.failures.clone());
        state.restore(past)?;
        let mut models: HashMap<String, Snapshot> = HashMap::new();
        let (device, own) = (state.device.clone(), state.has_own());
        for (worker, place, job) in self.crew.jobs() {
            // What was sent since the last update is the newest model.
            if job.version == state.version {
                job.snapshot = state.model_of(worker);
                continue;
            }
            let name = model_name(own, worker, place, job);
            if !models.contains_key(&name) {
                let weights = device.upload(past.tensor(&name, state.snapshot.weights.len())?.to_vec());
                models.insert(name.clone(), Snapshot { weights, fence: Fence::default() });
            }
            job.snapshot = models[&name].clone();
        }
        self.folder.go_on()?;
        self.crew.behind(device.fence());
        self.crew.go_on()
    }

    /// The error that a rule gathers gradients for ever and waits for a worker that is gone.
    fn starves(&self, outcome: &Outcome) -> Option<Error> {
        let most = (STARVED + 100 * self.crew.workers() as u64).max(10 * outcome.longest);
        if outcome.lost.is_empty() || outcome.gradients - outcome.stepped < most {
            return None;
        }
        self.crew.waits_for_ever()
    }

    /// Loses whom the run lost at this point of its past.
    fn lose_again(&mut self, manifest: &Manifest, outcome: &mut Outcome) {
        let now: Vec<_> =
            manifest.lost.iter().filter(|(i, at)| *at == outcome.gradients && *i < self.crew.workers()).collect();
        now.into_iter().for_each(|(worker, _)| self.lose(*worker, outcome));
    }

    /// Goes on without a worker.
    fn lose(&mut self, worker: usize, outcome: &mut Outcome) {
        self.crew.lose(worker);
        outcome.lost.push((worker, outcome.gradients));
    }

    /// Hands a checkpoint of this moment, between two arrivals that are both noted or both to come, to the thread that writes it.
    fn save(&mut self, state: &mut State, outcome: &Outcome, last: bool) -> Result<()> {
        let began = Instant::now();
        let Some(saver) = &self.saver else { return Ok(()) };
        let mut manifest = Manifest {
            updates: state.version,
            gradients: outcome.gradients,
            seconds: self.stopwatch.seconds(),
            evaluated: outcome.evaluated,
            evaluation: outcome.evaluation,
            lost: outcome.lost.clone(),
            failures: self.crew.failures().to_vec(),
            not_finite: outcome.not_finite,
            score: outcome.evaluation.score().filter(|_| outcome.evaluated == Some(state.version)),
            ..self.manifest.clone()
        };
        let (files, log) = self.folder.mark(&mut manifest.logs)?;
        let mut jobs: BTreeMap<String, Buffer> = BTreeMap::new();
        let own = state.has_own();
        for (worker, place, job) in self.crew.jobs().filter(|job| job.2.version != state.version) {
            jobs.insert(model_name(own, worker, place, job), job.snapshot.weights.clone());
        }
        let (counts, tensors) = self.gate.pass_first(|| state.save(jobs.into_iter().collect(), last))?;
        saver.save(Draft { manifest: Manifest { counts, ..manifest }, tensors, log, files });
        self.crew.excuse(began.elapsed());
        Ok(())
    }

    /// Waits for the last checkpoint.
    fn saved(&mut self) -> Result<()> {
        self.saver.as_mut().map_or(Ok(()), Saver::finish)
    }

    fn begin(&mut self, state: &State) -> Result<()> {
        for worker in self.rule.begin(self.crew.workers()) {
            self.assign(state, worker, 0.0)?;
        }
        Ok(())
    }

    /// The loop, from its beginning or from where it was.
    fn serve(
        &mut self,
        state: &mut State,
        outcome: &mut Outcome,
        pending: &mut Vec<Event>,
        begins: bool,
    ) -> Result<()> {
        if begins {
            self.crew.behind(state.device.fence());
            self.begin(state)?;
        } else if self.over(state, outcome) {
            return Ok(());
        } else if self.eval_every > 0 && state.version > 0 && state.version.is_multiple_of(self.eval_every) {
            // Where a run ends, its end is evaluated; one that goes on there owes what was due.
            self.evaluate_in_peace(state, outcome)?;
        }
        let device = state.device.clone();
        loop {
            // Where this thread does the workers' part too, the runtime's thread does it all, a stretch at a time: nothing waits for
            // another thread.
            let pause = match (&device, self.crew.is_on_the_spot()) {
                (Device::Gpu(_), true) => device.issue(|| self.stretch(state, outcome, pending))??,
                _ => self.stretch(state, outcome, pending)?,
            };
            self.progress.show(|| self.stopwatch.seconds(), state.version, outcome);
            if pause.note || pause.save || (pause.evaluate && self.columns == Columns::Images) {
                self.note(state, outcome, pending)?;
            }
            if pause.end {
                return Ok(());
            }
            if pause.evaluate {
                self.evaluate_in_peace(state, outcome)?;
                if self.limits.accuracy.zip(outcome.evaluation.test_accuracy).is_some_and(|(limit, now)| now >= limit) {
                    return Ok(());
                }
            }
            // One that would wait for the last to be written is left out.
            if pause.save && self.saver.as_ref().is_some_and(Saver::is_free) {
                self.save(state, outcome, false)?;
            }
        }
    }

    /// Arrivals until something is due.
    fn stretch(&mut self, state: &mut State, outcome: &mut Outcome, pending: &mut Vec<Event>) -> Result<Pause> {
        loop {
            let pause = self.turn(state, outcome, pending)?;
            // Looked at after each arrival only where arrivals are few.
            if !self.crew.is_on_the_spot() {
                self.progress.show(|| self.stopwatch.seconds(), state.version, outcome);
            }
            if pause != Pause::default() {
                return Ok(pause);
            }
        }
    }

    /// One arrival.
    fn turn(&mut self, state: &mut State, outcome: &mut Outcome, pending: &mut Vec<Event>) -> Result<Pause> {
        let over = Pause { end: true, ..Pause::default() };
        if let Some(error) = self.starves(outcome) {
            return Err(error);
        }
        let (time, gradient) = match self.transport.next(&mut self.crew) {
            Ok(Some(next)) => next,
            Ok(None) => return self.crew.waits_for_ever().filter(|_| !self.replays).map_or(Ok(over), Err),
            Err(Error::Worker(failure)) if failure.handled == Handled::Dropped => {
                note!("NOTE       {failure}; the run goes on without it");
                self.lose(failure.worker, outcome);
                return Ok(Pause::default());
            }
            Err(error) => return Err(error),
        };
        if self.limits.time.is_some_and(|limit| time > limit) {
            return Ok(over);
        }
        let worker = gradient.worker;
        let job = self.crew.arrived(worker);
        let (decision, event) = self.decide(state, &job, worker, time);
        let (effect, steps, began) = (event.effect, job.steps, job.began);
        let device = state.device.clone();
        // Whoever has nothing to do writes nothing.
        let idle = decision.start == Start::Nobody && decision.restart.is_empty();
        let may_wait = idle && !self.crew.has_queue(worker) && self.transport.has_next(&mut self.crew)?;
        let update = || {
            state.take(gradient, &job, &decision, pending.len(), may_wait);
            state.device.fence()
        };
        let fence = self.submit(|| if self.at_once { device.issue(update) } else { Ok(update()) })?;
        self.crew.behind(fence);
        state.done_with(job);

        self.transport.decided(effect, state.version)?;
        pending.push(Event { seq: outcome.gradients, t: state.version, ..event });
        self.count(outcome, &event, steps);
        self.progress.arrived(worker, began, time, effect);
        let end = self.over(state, outcome);
        if !end {
            self.start(state, worker, &decision, time)?;
        }
        let evaluates = decision.step.is_some() && self.eval_every > 0;
        Ok(Pause {
            note: outcome.gradients.is_multiple_of(self.losses.ring as u64),
            evaluate: evaluates && state.version.is_multiple_of(self.eval_every),
            save: decision.step.is_some() && self.save_every > 0 && state.version.is_multiple_of(self.save_every),
            end,
        })
    }

    /// Asks the rule about an arrival. Of the event the number, the loss and the version after it are still to be told.
    fn decide(&mut self, state: &State, job: &Job, worker: usize, time: f64) -> (Decision, Event) {
        let (version, steps) = (job.version, job.steps);
        let staleness = state.version - version;
        let (seconds, loss) = (time - job.began, self.losses.told);
        let arrival = Arrival { worker, version, t: state.version, staleness, time, seconds, steps, loss };
        let decision = self.rule.on_arrival(&arrival);
        let effect = match (decision.step.is_some(), decision.fold) {
            (true, _) => Effect::Step,
            (false, Fold::Drop) => Effect::Drop,
            (false, _) => Effect::Fold,
        };
        (decision, Event { seq: 0, time, worker, version, staleness, loss: None, effect, t: 0 })
    }

    /// Counts an arrival.
    fn count(&self, outcome: &mut Outcome, event: &Event, steps: u32) {
        outcome.gradients += 1;
        outcome.dropped += (event.effect == Effect::Drop) as u64;
        if event.effect.is_step() {
            outcome.longest = outcome.longest.max(outcome.gradients - outcome.stepped);
            outcome.stepped = outcome.gradients;
        }
        outcome.samples += self.batches[event.worker] as u64 * steps.max(1) as u64;
        outcome.staleness += event.staleness;
        outcome.max_staleness = outcome.max_staleness.max(event.staleness);
        outcome.time = event.time;
    }

    /// Whether the run has come to a limit that is not a time.
    fn over(&self, state: &State, outcome: &Outcome) -> bool {
        self.limits.updates.is_some_and(|limit| state.version >= limit)
            || self.limits.samples.is_some_and(|limit| outcome.samples >= limit)
    }

    /// Runs what talks to the device.
    fn submit<T>(&self, work: impl FnOnce() -> T) -> T {
        // On a GPU the server submits with a permit like everybody: a device's launches are issued one by one anyway, and a
        // second producer only takes the core that the issuing thread needs. On the CPU an update is computed here.
        match self.device {
            Device::Gpu(_) => self.gate.pass_first(work),
            Device::Cpu => work(),
        }
    }

    /// Preemption and assignment: both take effect at the time of the arrival that caused them.
    fn start(&mut self, state: &mut State, sender: usize, decision: &Decision, now: f64) -> Result<()> {
        for &worker in &decision.restart {
            if let Some(running) = self.crew.cancel(worker) {
                state.done_with(running);
            }
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
        self.crew.next_job(sender, now, &mut |worker, job, share| transport.begin(worker, job, now, share))
    }

    fn assign(&mut self, state: &State, worker: usize, now: f64) -> Result<()> {
        let (steps, most) = (self.rule.steps(worker), self.rule.needs().local.steps);
        let job = Job {
            lr: state.rate() as f32,
            steps: steps.max(1),
            share: if most > 1 { steps as f64 / most as f64 } else { 1.0 },
            ..Job::at(state.model_of(worker), state.version)
        };
        let transport = &mut self.transport;
        let begin = &mut |worker, job, share| transport.begin(worker, job, now, share);
        self.crew.assign(worker, job, now, begin)
    }

    /// Reads the ring of losses and writes the arrivals that it belongs to.
    fn note(&mut self, state: &mut State, outcome: &mut Outcome, pending: &mut Vec<Event>) -> Result<()> {
        if pending.is_empty() {
            return Ok(());
        }
        let (losses, flags) = self.submit(|| state.read_losses())?;
        let mut first = None;
        for ((event, loss), flag) in pending.iter_mut().zip(losses).zip(flags) {
            event.loss = loss.is_finite().then_some(loss);
            self.losses.push(event.loss.map_or(f64::NAN, f64::from));
            if flag || !loss.is_finite() {
                outcome.not_finite += 1;
                first.get_or_insert((event.worker, event.seq));
            }
        }
        self.folder.events(pending)?;
        outcome.recent_loss = self.losses.mean();
        match first.filter(|_| self.stops_at_nan) {
            Some((worker, seq)) => Err(Error::failed(format!(
                "the gradient of worker {worker} (event {seq}) is not finite; what is not finite of it was left out: a smaller --lr or --clip may \
                 help, --on-nan skip goes on without such gradients"
            ))),
            None => Ok(()),
        }
    }

    /// Nobody computes meanwhile: no gradient comes for free while the clock stands still, and nobody is slowed. What is launched already
    /// is waited for before the clock stands.
    fn evaluate_in_peace(&mut self, state: &mut State, outcome: &mut Outcome) -> Result<()> {
        let (gate, stopwatch, began) = (self.gate.clone(), self.stopwatch.clone(), Instant::now());
        gate.closed(|| -> Result<()> {
            state.device.sync()?;
            self.crew.finish_steps()?;
            stopwatch.paused(|| self.evaluate(state, outcome))
        })?;
        self.crew.excuse(began.elapsed());
        Ok(())
    }

    fn evaluate(&mut self, state: &mut State, outcome: &mut Outcome) -> Result<()> {
        if outcome.evaluated == Some(state.version) {
            return Ok(());
        }
        state.catch_up();
        outcome.evaluation = self.evaluator.evaluate(&state.snapshot.weights)?;
        outcome.evaluated = Some(state.version);
        self.folder.evaluation(state.version, outcome.time, outcome.recent_loss, &outcome.evaluation, self.columns)?;
        self.progress.evaluated(state.version, outcome);
        Ok(())
    }
}
