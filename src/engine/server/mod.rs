//! The server: the loop over arrivals, and the only owner of weights, slots and rule.
//!
//! One arrival passes through four steps. [`Clock::next`](super::clock::Clock::next) returns the next
//! gradient, [`Rule::on_arrival`](crate::rule::Rule::on_arrival) decides, [`State::fold_in`] applies the
//! decision with at most one launch, and the workers that the decision names get their next jobs. After some
//! arrivals something is due: an evaluation, a checkpoint, or the end.
//!
//! Invariants kept here:
//! * I4: the server computes the staleness t - v from its own records.
//! * I6: only this thread touches weights, slots and rule, except for a rule whose workers write the weights
//!   (Hogwild!).
//! * I7: every arrival is applied once or logged as dropped: arrivals = applied + dropped.

mod losses;
mod recovery;
mod setup;

pub use setup::{CheckpointPlan, DeviceContext, EvaluationPlan, ServerSetup, Stops};

use super::checkpoint::Saver;
use super::clock::Clock;
use super::clock::stopwatch::Stopwatch;
use super::job::Job;
use super::state::State;
use super::worker_pool::WorkerPool;
use crate::error::{Error, Handled, Result};
use crate::problem::Columns;
use crate::record::{Effect, Event, Occupancy, Outcome, RunFolder};
use crate::rule::{Arrival, Decision, Fold, Rule, Start};
use crate::view::progress::Progress;
use losses::Losses;
use stagger_kernels::{Buffer, Device, Fence};
use std::sync::Arc;
use std::time::Instant;

/// Number of arrivals without an update, in addition to a hundred per worker, after which the rule of a run
/// with a dropped worker counts as waiting for that worker.
const STARVED: u64 = 10_000;

/// What is due after an arrival.
#[derive(Clone, Copy, Default, PartialEq)]
struct Due {
    /// The ring of losses on the device is full.
    flush_losses: bool,
    evaluate: bool,
    save: bool,
    end: bool,
}

/// A run in progress.
struct Server<'a> {
    rule: Box<dyn Rule>,
    pool: WorkerPool,
    clock: Box<dyn Clock>,
    stopwatch: Arc<Stopwatch>,
    batches: Vec<usize>,
    folder: &'a mut RunFolder,
    progress: Progress,
    device: DeviceContext,
    evaluation: EvaluationPlan,
    checkpoints: CheckpointPlan,
    stops: Stops,
    /// Weights and slots on the device.
    state: State,
    /// The outcome so far.
    outcome: Outcome,
    /// Arrivals whose losses are still on the device.
    pending: Vec<Event>,
    losses: Losses,
}

impl Server<'_> {
    /// Ends the run: stops the workers, records the last arrivals, saves and evaluates.
    fn finish(mut self, result: Result<()>) -> Result<(Outcome, Buffer)> {
        // The stopwatch is read after the last update was computed, not after it was launched. The error of a
        // failing device is reported by a later read.
        let _ = self.state.device.sync();
        self.outcome.wall_seconds = self.stopwatch.seconds();
        self.outcome.restarted = self.pool.cancelled();
        self.outcome.failures = self.pool.failures().to_vec();
        self.outcome.updates = self.state.version;
        self.pool.stop();
        let timeline = self.device.timeline.read().map_or(Ok(()), |(spans, unknown)| {
            self.outcome.occupancy = Occupancy::of(&spans);
            self.outcome.untold = unknown;
            self.folder.device(&spans)
        });
        // The arrivals are recorded even if the run failed.
        let flushed = self.flush_losses();
        match flushed.and(result).and(timeline) {
            Ok(()) => {}
            Err(Error::Interrupted(_)) => self.outcome.interrupted = true,
            Err(error) => return Err(self.fail(error)),
        }
        self.save(true)?;
        self.evaluate()?;
        let saved = self.wait_for_saver();
        self.folder.finish()?;
        // A checkpoint that cannot be written is an error only for an interrupted run, because a complete run
        // has its weights.
        if self.outcome.interrupted {
            saved?;
        }
        let weights = self.state.device.on_host(&self.state.snapshot.weights)?;
        self.progress.done();
        Ok((self.outcome, weights))
    }

    /// Saves what a failing run has reached.
    fn fail(&mut self, error: Error) -> Error {
        // A usage error means that the log belongs to another run, so there is nothing to save.
        let is_usage = matches!(error, Error::Usage(_));
        if !is_usage && let Err(why) = self.save(true).and_then(|()| self.wait_for_saver()) {
            note!("NOTE       the last state could not be saved: {why}");
        }
        let _ = self.folder.finish();
        error
    }

    /// Assigns the jobs at version 0.
    fn begin(&mut self) -> Result<()> {
        for worker in self.rule.begin(self.pool.workers()) {
            self.assign(worker, 0.0)?;
        }
        Ok(())
    }

    /// The loop over arrivals. `begins` is false for a resumed run.
    fn serve(&mut self, begins: bool) -> Result<()> {
        if begins {
            self.pool.start_after(self.state.device.fence());
            self.begin()?;
        } else if self.is_over() {
            return Ok(());
        } else if self.evaluates_at(self.state.version) {
            // A run saves its last checkpoint before its last evaluation. If this version has a regular
            // evaluation, it is still missing.
            self.evaluate_exclusively()?;
        }
        let device = self.state.device.clone();
        loop {
            // An inline executor on a GPU: the runtime's thread does all the work until something is due, so
            // that no arrival waits for a hand-over between threads.
            let due = match (&device, self.pool.is_inline()) {
                (Device::Gpu(_), true) => device.issue(|| self.run_until_due())??,
                _ => self.run_until_due()?,
            };
            self.show_progress();
            if due.flush_losses || due.save || (due.evaluate && self.evaluation.columns == Columns::Images) {
                self.flush_losses()?;
            }
            if due.end {
                return Ok(());
            }
            if due.evaluate {
                self.evaluate_exclusively()?;
                if self.reached_target() {
                    return Ok(());
                }
            }
            // The checkpoint is skipped if the last one is still being written.
            if due.save && self.checkpoints.saver.as_ref().is_some_and(Saver::is_free) {
                self.save(false)?;
            }
        }
    }

    /// Handles arrivals until something is due.
    fn run_until_due(&mut self) -> Result<Due> {
        loop {
            let due = self.handle_arrival()?;
            // Inline arrivals are too frequent to update the display after each.
            if !self.pool.is_inline() {
                self.show_progress();
            }
            if due != Due::default() {
                return Ok(due);
            }
        }
    }

    /// Handles one arrival.
    fn handle_arrival(&mut self) -> Result<Due> {
        let end = Due { end: true, ..Due::default() };
        if let Some(error) = self.starvation() {
            return Err(error);
        }
        let (time, gradient) = match self.clock.next(&mut self.pool) {
            Ok(Some(next)) => next,
            Ok(None) if self.stops.at_end_of_log => return Ok(end),
            Ok(None) => return self.pool.starvation().map_or(Ok(end), Err),
            Err(Error::Worker(failure)) if failure.handled == Handled::Dropped => {
                note!("NOTE       {failure}; the run continues without it");
                self.drop_worker(failure.worker);
                return Ok(Due::default());
            }
            Err(error) => return Err(error),
        };
        if self.stops.limits.time.is_some_and(|limit| time > limit) {
            return Ok(end);
        }
        let worker = gradient.worker;
        let job = self.pool.accept(worker);
        let (decision, event) = self.decide(&job, worker, time);
        let (steps, began) = (job.steps, job.began);
        let fence = self.apply(gradient, job, &decision)?;
        self.pool.start_after(fence);

        self.clock.decided(event.effect, self.state.version)?;
        self.pending.push(Event { seq: self.outcome.gradients, t: self.state.version, ..event });
        self.count(&event, steps);
        self.progress.arrived(worker, began, time, event.effect);
        let is_over = self.is_over();
        if !is_over {
            self.start_jobs(worker, &decision, time)?;
        }
        Ok(self.due(decision.step.is_some(), is_over))
    }

    /// Asks the rule about an arrival. Returns its decision and the event, whose number, loss and final
    /// version are set later.
    fn decide(&mut self, job: &Job, worker: usize, time: f64) -> (Decision, Event) {
        let t = self.state.version;
        let staleness = t - job.version;
        let arrival = Arrival {
            worker,
            version: job.version,
            t,
            staleness,
            time,
            seconds: time - job.began,
            steps: job.steps,
            loss: self.losses.block_mean(),
        };
        let decision = self.rule.on_arrival(&arrival);
        let effect = match (decision.step.is_some(), decision.fold) {
            (true, _) => Effect::Step,
            (false, Fold::Drop) => Effect::Drop,
            (false, _) => Effect::Fold,
        };
        (decision, Event { seq: 0, time, worker, version: job.version, staleness, loss: None, effect, t: 0 })
    }

    /// Applies a decision with at most one launch. Returns a fence behind the launch.
    fn apply(&mut self, gradient: super::job::Gradient, job: Job, decision: &Decision) -> Result<Fence> {
        // Without a next job, nothing overwrites the gradient, so it may wait to be folded together with the
        // next one.
        let idle = decision.start == Start::Nobody && decision.restart.is_empty();
        let may_wait = idle && !self.pool.has_queue(gradient.worker) && self.clock.has_next(&mut self.pool)?;
        let slot = self.pending.len();
        let device = self.state.device.clone();
        let state = &mut self.state;
        let update = || {
            state.fold_in(gradient, &job, decision, slot, may_wait);
            state.device.fence()
        };
        let at_once = self.device.update_at_once;
        let fence = self.device.submit(|| if at_once { device.issue(update) } else { Ok(update()) })?;
        self.state.done_with(job);
        Ok(fence)
    }

    /// What is due after an arrival.
    fn due(&self, stepped: bool, end: bool) -> Due {
        let version = self.state.version;
        let save_every = self.checkpoints.every;
        Due {
            flush_losses: self.outcome.gradients.is_multiple_of(self.losses.ring() as u64),
            evaluate: stepped && self.evaluates_at(version),
            save: stepped && save_every > 0 && version.is_multiple_of(save_every),
            end,
        }
    }

    fn evaluates_at(&self, version: u64) -> bool {
        let every = self.evaluation.every;
        every > 0 && version > 0 && version.is_multiple_of(every)
    }

    /// Counts an arrival.
    fn count(&mut self, event: &Event, steps: u32) {
        let outcome = &mut self.outcome;
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

    /// Whether the run has reached its limit of updates or samples.
    fn is_over(&self) -> bool {
        let limits = &self.stops.limits;
        limits.updates.is_some_and(|limit| self.state.version >= limit)
            || limits.samples.is_some_and(|limit| self.outcome.samples >= limit)
    }

    /// Whether the last evaluation has reached the target accuracy.
    fn reached_target(&self) -> bool {
        let target = self.stops.limits.accuracy.zip(self.outcome.evaluation.test_accuracy);
        target.is_some_and(|(target, accuracy)| accuracy >= target)
    }

    /// The error of a rule that makes no more updates, because it waits for a dropped worker.
    fn starvation(&self) -> Option<Error> {
        let outcome = &self.outcome;
        let most = (STARVED + 100 * self.pool.workers() as u64).max(10 * outcome.longest);
        if outcome.lost.is_empty() || outcome.gradients - outcome.stepped < most {
            return None;
        }
        self.pool.starvation()
    }

    /// Continues without a worker.
    fn drop_worker(&mut self, worker: usize) {
        self.pool.drop_worker(worker);
        self.outcome.lost.push((worker, self.outcome.gradients));
    }

    /// Cancels and assigns jobs as the decision says. Both take effect at the time of the arrival, `now`.
    fn start_jobs(&mut self, sender: usize, decision: &Decision, now: f64) -> Result<()> {
        for &worker in &decision.restart {
            if let Some(job) = self.pool.cancel(worker) {
                self.state.done_with(job);
            }
            self.assign(worker, now)?;
        }
        match &decision.start {
            Start::Nobody => {}
            Start::Sender => self.assign(sender, now)?,
            Start::Everybody => {
                for worker in 0..self.pool.workers() {
                    self.assign(worker, now)?;
                }
            }
            Start::These(workers) => {
                for &worker in workers {
                    self.assign(worker, now)?;
                }
            }
        }
        // The sender is free: its next queued job starts now, unless an assignment above has started it.
        let clock = &mut self.clock;
        self.pool.start_next(sender, now, &mut |worker, job, share| clock.begin(worker, job, now, share))
    }

    /// Assigns a job on the newest model to a worker.
    fn assign(&mut self, worker: usize, now: f64) -> Result<()> {
        let steps = self.rule.steps(worker);
        let most = self.rule.needs().local.steps;
        let job = Job {
            lr: self.state.rate() as f32,
            steps: steps.max(1),
            share: if most > 1 { steps as f64 / most as f64 } else { 1.0 },
            ..Job::at(self.state.model_of(worker), self.state.version)
        };
        let clock = &mut self.clock;
        let begin = &mut |worker, job, share| clock.begin(worker, job, now, share);
        self.pool.assign(worker, job, now, begin)
    }

    /// Reads the ring of losses, and records the arrivals to which the losses belong.
    fn flush_losses(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let state = &mut self.state;
        let (losses, flags) = self.device.submit(|| state.read_losses())?;
        let mut first = None;
        for ((event, loss), flag) in self.pending.iter_mut().zip(losses).zip(flags) {
            event.loss = loss.is_finite().then_some(loss);
            self.losses.push(event.loss.map_or(f64::NAN, f64::from));
            if flag || !loss.is_finite() {
                self.outcome.not_finite += 1;
                first.get_or_insert((event.worker, event.seq));
            }
        }
        self.folder.events(&mut self.pending)?;
        self.outcome.recent_loss = self.losses.recent_mean();
        match first.filter(|_| self.stops.at_nan) {
            Some((worker, seq)) => Err(Error::failed(format!(
                "the gradient of worker {worker} (event {seq}) is not finite; its non-finite values were left out: a \
                 smaller --lr or --clip may help, and --on-nan skip continues without such gradients"
            ))),
            None => Ok(()),
        }
    }

    /// Evaluates while no worker computes and the stopwatch is paused. Steps that were launched finish before
    /// the pause, so no gradient is computed during it, and the evaluation slows no worker down.
    fn evaluate_exclusively(&mut self) -> Result<()> {
        let gate = self.device.gate.clone();
        let stopwatch = self.stopwatch.clone();
        let began = Instant::now();
        gate.closed(|| -> Result<()> {
            self.state.device.sync()?;
            self.pool.synchronize()?;
            stopwatch.paused(|| self.evaluate())
        })?;
        self.pool.extend_deadlines(began.elapsed());
        Ok(())
    }

    /// Evaluates the newest model and records the result, unless this version has been evaluated.
    fn evaluate(&mut self) -> Result<()> {
        let version = self.state.version;
        if self.outcome.evaluated == Some(version) {
            return Ok(());
        }
        self.state.catch_up();
        let found = self.evaluation.evaluator.evaluate(&self.state.snapshot.weights)?;
        self.outcome.evaluation = found;
        self.outcome.evaluated = Some(version);
        let (time, loss) = (self.outcome.time, self.outcome.recent_loss);
        self.folder.evaluation(version, time, loss, &found, self.evaluation.columns)?;
        self.progress.evaluated(version, &self.outcome);
        Ok(())
    }

    fn show_progress(&mut self) {
        self.progress.show(|| self.stopwatch.seconds(), self.state.version, &self.outcome);
    }
}
