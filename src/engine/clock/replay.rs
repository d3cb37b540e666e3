//! The replay clock: arrivals come in the order and at the times of a recorded event log.

use super::Clock;
use crate::engine::job::Gradient;
use crate::engine::worker_pool::WorkerPool;
use crate::error::{Error, Result};
use crate::record::{Effect, Event, recorded};
use std::path::{Path, PathBuf};

/// The clock of a replay.
pub struct Replay {
    path: PathBuf,
    /// The events that are still to come.
    events: std::vec::IntoIter<Event>,
    /// The event of the last arrival, until its effect is compared.
    current: Option<Event>,
}

impl Replay {
    /// Reads the log of a run with `workers` workers.
    ///
    /// # Errors
    ///
    /// If the log cannot be read, is not valid or holds no event.
    pub fn open(path: &Path, workers: usize) -> Result<Self> {
        let events = recorded(path, u64::MAX, workers)?.collect::<Result<Vec<Event>>>()?;
        if events.is_empty() {
            return Err(Error::usage(format!("{} holds no event", path.display())));
        }
        Ok(Replay { path: path.into(), events: events.into_iter(), current: None })
    }

    /// The error of a log that does not belong to this run.
    fn other_run(&self, why: String) -> Error {
        Error::usage(format!(
            "{} is the log of another run: {why}; give the flags of that run (its config.toml holds them)",
            self.path.display()
        ))
    }
}

impl Clock for Replay {
    fn begin(&mut self, _worker: usize, _job: u64, _now: f64, _share: f64) -> f64 {
        0.0
    }

    fn next(&mut self, pool: &mut WorkerPool) -> Result<Option<(f64, Gradient)>> {
        let Some(event) = self.events.next() else { return Ok(None) };
        let version = pool.current_job(event.worker).map(|running| running.version);
        if version != Some(event.version) {
            let here = version.map_or("has no job".into(), |v| format!("computes version {v}"));
            return Err(self.other_run(format!(
                "in event {} worker {} has a gradient of version {}, but here it {here}",
                event.seq, event.worker, event.version
            )));
        }
        let gradient = pool.wait_for_worker(event.worker)?;
        let time = event.time;
        self.current = Some(event);
        Ok(Some((time, gradient)))
    }

    fn has_next(&mut self, pool: &mut WorkerPool) -> Result<bool> {
        let next = self.events.as_slice().first();
        next.map_or(Ok(false), |event| pool.has_completed_from(event.worker))
    }

    fn passed(&mut self, _pool: &WorkerPool, event: &Event) -> Result<()> {
        match self.events.next() {
            Some(then) if (then.worker, then.version) == (event.worker, event.version) => Ok(()),
            _ => Err(self.other_run(format!("event {} is not an event of the resumed run", event.seq))),
        }
    }

    fn decided(&mut self, effect: Effect, t: u64) -> Result<()> {
        match self.current.take() {
            Some(event) if event.effect != effect || event.t != t => {
                let (seq, then) = (event.seq, event.effect);
                Err(self.other_run(format!(
                    "event {seq} is a {then} at version {}, but here it is a {effect} at version {t}",
                    event.t
                )))
            }
            _ => Ok(()),
        }
    }
}
