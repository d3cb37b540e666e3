//! The virtual clock: the smallest (finish time, worker) of an event queue is next.
//!
//! Workers compute at once and run ahead; the server waits for the one whose turn it is. As a job's duration is a function
//! of (seed, worker, job) and its gradient of (snapshot, seed, worker, job), the run does not depend on thread timing.

use super::Transport;
use crate::clock::DelayModel;
use crate::crew::Crew;
use crate::error::Result;
use crate::worker::Gradient;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Simulated time.
pub struct Virtual {
    delay: DelayModel,
    seed: u64,
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
        Virtual { delay, seed, events: BinaryHeap::new() }
    }
}

impl Transport for Virtual {
    fn begin(&mut self, worker: usize, job: u64, now: f64, share: f64) -> f64 {
        let time = now + self.delay.draw(self.seed, worker, job) * share;
        self.events.push(Reverse(Finish { time, worker, job }));
        0.0
    }

    fn next(&mut self, crew: &mut Crew) -> Result<Option<(f64, Gradient)>> {
        while let Some(Reverse(finish)) = self.events.pop() {
            // A job that was given up leaves its event behind.
            if crew.running(finish.worker).is_some_and(|job| job.number == finish.job) {
                return Ok(Some((finish.time, crew.from(finish.worker)?)));
            }
        }
        Ok(None)
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
