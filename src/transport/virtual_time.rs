//! The virtual clock: the smallest (finish time, worker) of an event queue is next.
//!
//! Workers compute at once and run ahead; the server waits for the one whose turn it is. As a job's duration is a function
//! of (seed, worker, job) and its gradient of (snapshot, seed, worker, job), the run does not depend on thread timing.

use super::Transport;
use crate::clock::DelayModel;
use crate::crew::Crew;
use crate::error::{Error, Result};
use crate::fault::Faults;
use crate::record::Event;
use crate::worker::Gradient;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Simulated time.
pub struct Virtual {
    delay: DelayModel,
    seed: u64,
    faults: Faults,
    events: BinaryHeap<Reverse<Finish>>,
}

/// Ordered by time, then by worker: equal finish times go to the lowest worker.
#[derive(PartialEq)]
struct Finish {
    time: f64,
    worker: usize,
    job: u64,
}

impl Eq for Finish {}

impl Ord for Finish {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.time.total_cmp(&other.time).then(self.worker.cmp(&other.worker)).then(self.job.cmp(&other.job))
    }
}

impl PartialOrd for Finish {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Virtual {
    /// A clock that draws job times from `delay`; with no delay model every job takes one second.
    pub fn new(delay: DelayModel, seed: u64) -> Self {
        let delay = if delay == DelayModel::None { DelayModel::Fixed(vec![1.0]) } else { delay };
        Virtual { delay, seed, faults: Faults::default(), events: BinaryHeap::new() }
    }

    /// The same, with jobs that take longer on purpose.
    pub fn with(self, faults: Faults) -> Self {
        Virtual { faults, ..self }
    }

    /// The next finish of a job that is still running.
    fn due(&mut self, crew: &Crew) -> Option<Finish> {
        // A job that was given up leaves its event behind.
        let running = |finish: &Finish| crew.running(finish.worker).is_some_and(|job| job.number == finish.job);
        std::iter::from_fn(|| self.events.pop()).map(|Reverse(finish)| finish).find(running)
    }
}

impl Transport for Virtual {
    fn begin(&mut self, worker: usize, job: u64, now: f64, share: f64) -> f64 {
        let time = now + self.delay.draw(self.seed, worker, job) * share + self.faults.delay(worker, job);
        self.events.push(Reverse(Finish { time, worker, job }));
        0.0
    }

    fn next(&mut self, crew: &mut Crew) -> Result<Option<(f64, Gradient)>> {
        let Some(Finish { time, worker, .. }) = self.due(crew) else { return Ok(None) };
        Ok(Some((time, crew.from(worker)?)))
    }

    fn passed(&mut self, crew: &Crew, event: &Event) -> Result<()> {
        match self.due(crew) {
            Some(finish) if (finish.time, finish.worker) == (event.time, event.worker) => Ok(()),
            other => {
                let here =
                    other.map_or("nobody is due".into(), |f| format!("worker {} is due at {}", f.worker, f.time));
                Err(Error::usage(format!(
                    "event {} of the log is worker {} at {}, but here {here}: the log is not of this run",
                    event.seq, event.worker, event.time
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_times_go_to_the_lowest_worker() {
        let mut clock = Virtual::new("fixed:2,1,2".parse().unwrap(), 0);
        for worker in [2, 1, 0] {
            clock.begin(worker, 0, 0.0, 1.0);
        }
        clock.begin(1, 1, 1.0, 1.0);
        let order: Vec<_> = std::iter::from_fn(|| clock.events.pop()).map(|Reverse(f)| (f.time, f.worker)).collect();
        assert_eq!(order, [(1.0, 1), (2.0, 0), (2.0, 1), (2.0, 2)]);
    }
}
