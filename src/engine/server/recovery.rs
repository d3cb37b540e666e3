//! Saves checkpoints of a run, and resumes a run from one.
//!
//! The state on the device comes from the checkpoint. The state on the host (rule, queues, clock) is rebuilt
//! by replaying the event log. The rule must make the decisions that the log records; otherwise the run is
//! refused.

use super::Server;
use crate::engine::checkpoint::{Checkpoint, Draft, Manifest, Saver};
use crate::engine::job::Job;
use crate::error::{Error, Result};
use crate::problem::Snapshot;
use crate::record::{Event, recorded};
use stagger_kernels::{Buffer, Fence};
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// Name of a job's model in a checkpoint. It contains the version if all workers share one model, or worker
/// and place in the queue if each worker has its own (`own`).
fn model_name(own: bool, worker: usize, place: usize, job: &Job) -> String {
    if own { format!("sent/{worker}/{place}") } else { format!("model/{}", job.version) }
}

/// The error of a run that cannot be resumed.
fn refused(why: String) -> Error {
    Error::usage(format!("the run cannot go on from its checkpoint: {why}"))
}

impl Server<'_> {
    /// Resumes from a checkpoint: replays the event log up to it, restores the state on the device, and
    /// submits the unfinished jobs.
    pub(super) fn replay_log(&mut self, past: &Checkpoint) -> Result<()> {
        let manifest = &past.manifest;
        self.pool.start_replay();
        self.begin()?;
        let log = self.folder.path().join("events.jsonl");
        for event in recorded(&log, manifest.logs.events, self.pool.workers())? {
            self.replay_event(&event?, manifest)?;
        }
        self.drop_workers_again(manifest);
        let reached = (self.state.version, self.outcome.gradients);
        if reached != (manifest.updates, manifest.gradients) {
            return Err(refused(format!(
                "the log ends at update {} and gradient {}, not at {} and {}",
                reached.0, reached.1, manifest.updates, manifest.gradients
            )));
        }
        self.outcome.recent_loss = self.losses.recent_mean();
        self.outcome.evaluated = manifest.evaluated;
        self.outcome.evaluation = manifest.evaluation;
        self.outcome.not_finite = manifest.not_finite;
        self.pool.restore_failures(manifest.failures.clone());
        self.state.restore(past)?;
        self.restore_models(past)?;
        self.folder.truncate_logs()?;
        self.pool.start_after(self.state.device.fence());
        self.pool.resume()
    }

    /// Replays one arrival, and checks that this run would have had the same one.
    fn replay_event(&mut self, event: &Event, manifest: &Manifest) -> Result<()> {
        self.drop_workers_again(manifest);
        self.clock.passed(&self.pool, event)?;
        let job = self.pool.accept_replayed(event.worker);
        let job = job.ok_or_else(|| refused(format!("worker {} has no job at event {}", event.worker, event.seq)))?;
        let (decision, here) = self.decide(&job, event.worker, event.time);
        self.state.version += here.effect.is_step() as u64;
        let here = Event { loss: event.loss, seq: self.outcome.gradients, t: self.state.version, ..here };
        if here != *event {
            return Err(refused(format!("event {} of the log is {event:?}, but here it is {here:?}", event.seq)));
        }
        self.count(&here, job.steps);
        self.losses.push(event.loss.map_or(f64::NAN, f64::from));
        self.start_jobs(event.worker, &decision, event.time)
    }

    /// Drops the workers that the earlier run dropped after the same number of arrivals.
    fn drop_workers_again(&mut self, manifest: &Manifest) {
        let now = self.outcome.gradients;
        let workers = self.pool.workers();
        let dropped = manifest.lost.iter().filter(|(worker, at)| *at == now && *worker < workers);
        for (worker, _) in dropped {
            self.drop_worker(*worker);
        }
    }

    /// Gives the unfinished jobs the models at which they were assigned.
    fn restore_models(&mut self, past: &Checkpoint) -> Result<()> {
        let mut models: HashMap<String, Snapshot> = HashMap::new();
        let device = self.state.device.clone();
        let own = self.state.has_own();
        for (worker, place, job) in self.pool.jobs() {
            // A job that was assigned since the last update has the newest model.
            if job.version == self.state.version {
                job.snapshot = self.state.model_of(worker);
                continue;
            }
            let name = model_name(own, worker, place, job);
            if !models.contains_key(&name) {
                let weights = device.upload(past.tensor(&name, self.state.snapshot.weights.len())?.to_vec());
                models.insert(name.clone(), Snapshot { weights, fence: Fence::default() });
            }
            job.snapshot = models[&name].clone();
        }
        Ok(())
    }

    /// Hands a checkpoint of the current state to the thread that writes it. Must be called between two
    /// arrivals. `last` means that the run ends here.
    pub(super) fn save(&mut self, last: bool) -> Result<()> {
        let began = Instant::now();
        if self.checkpoints.saver.is_none() {
            return Ok(());
        }
        let outcome = &self.outcome;
        let mut manifest = Manifest {
            updates: self.state.version,
            gradients: outcome.gradients,
            seconds: self.stopwatch.seconds(),
            evaluated: outcome.evaluated,
            evaluation: outcome.evaluation,
            lost: outcome.lost.clone(),
            failures: self.pool.failures().to_vec(),
            not_finite: outcome.not_finite,
            score: outcome.evaluation.score().filter(|_| outcome.evaluated == Some(self.state.version)),
            ..self.checkpoints.manifest.clone()
        };
        let (files, log) = self.folder.mark(&mut manifest.logs)?;
        let mut jobs: BTreeMap<String, Buffer> = BTreeMap::new();
        let own = self.state.has_own();
        for (worker, place, job) in self.pool.jobs().filter(|job| job.2.version != self.state.version) {
            jobs.insert(model_name(own, worker, place, job), job.snapshot.weights.clone());
        }
        let state = &mut self.state;
        let (counts, tensors) = self.device.gate.pass_first(|| state.save(jobs.into_iter().collect(), last))?;
        if let Some(saver) = &self.checkpoints.saver {
            saver.save(Draft { manifest: Manifest { counts, ..manifest }, tensors, log, files });
        }
        self.pool.extend_deadlines(began.elapsed());
        Ok(())
    }

    /// Waits until the last checkpoint is written.
    pub(super) fn wait_for_saver(&mut self) -> Result<()> {
        self.checkpoints.saver.as_mut().map_or(Ok(()), Saver::finish)
    }
}
