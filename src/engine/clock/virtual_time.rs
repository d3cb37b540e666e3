//! The virtual clock: the smallest (finish time, worker) of all running jobs is next.
//!
//! Workers compute at once and run ahead; the server waits for the one whose turn it is. As a job's duration is a function
//! of (seed, worker, job) and its gradient of (snapshot, seed, worker, job), the run does not depend on thread timing.

use super::Clock;
use crate::engine::clock::delay::DelayModel;
use crate::engine::job::Gradient;
use crate::engine::worker_pool::WorkerPool;
use crate::error::{Error, Result};
use crate::fault::Faults;
use crate::record::Event;
use std::hint::select_unpredictable;

/// Simulated time.
pub struct Virtual {
    delay: DelayModel,
    seed: u64,
    faults: Faults,
    finishes: Finishes,
}

/// When each worker's job finishes. A worker has one job at most, so a knockout among the workers names the next: a job that begins, and one
/// that begins in the place of another, is as many matches as there are rounds, and nothing is left behind of those that were given up.
#[derive(Default)]
struct Finishes {
    /// When each worker's job finishes; NEVER if it has none.
    times: Vec<f64>,
    /// Node 1 is the winner, node k the earlier of nodes 2k and 2k + 1, the second half the workers. Equal times go to the lowest worker.
    nodes: Vec<u32>,
    /// Whose finish was taken last: it stays in its place until somebody asks again, for mostly the next job comes first.
    taken: Option<usize>,
}

/// No job.
const NEVER: f64 = f64::INFINITY;

impl Finishes {
    /// The worker's job finishes then.
    fn set(&mut self, worker: usize, time: f64) {
        if worker >= self.times.len() {
            self.grow(worker + 1);
        }
        self.taken = self.taken.filter(|taken| *taken != worker);
        self.play(worker, time);
    }

    /// The worker's matches, from the first round to the last. Who wins one is nothing that a processor could guess, so nothing branches on
    /// it: that takes half the time. Times are not negative, so their bits are ordered as they are.
    fn play(&mut self, worker: usize, time: f64) {
        self.times[worker] = time;
        let (mut node, mut winner, mut earliest) = (self.nodes.len() / 2 + worker, worker as u32, time.to_bits());
        while node > 1 {
            let other = self.nodes[node ^ 1];
            let others = self.times[other as usize].to_bits();
            let loses = (others < earliest) | ((others == earliest) & (other < winner));
            winner = select_unpredictable(loses, other, winner);
            earliest = select_unpredictable(loses, others, earliest);
            node /= 2;
            self.nodes[node] = winner;
        }
    }

    fn grow(&mut self, workers: usize) {
        let (before, places) = (std::mem::take(&mut self.times), workers.next_power_of_two());
        self.times = vec![NEVER; places];
        // Where nobody has a job, the lowest wins.
        let lowest = |node: usize| (node << (places.ilog2() - node.ilog2())) - places;
        self.nodes = (0..2 * places).map(|node| if node == 0 { 0 } else { lowest(node) as u32 }).collect();
        before.into_iter().enumerate().for_each(|(worker, time)| self.play(worker, time));
    }

    /// The earliest finish and its worker, who then has no job.
    fn take(&mut self) -> Option<(f64, usize)> {
        self.taken = self.next();
        self.taken.map(|worker| (self.times[worker], worker))
    }

    /// Whose finish is the earliest.
    fn next(&mut self) -> Option<usize> {
        if let Some(worker) = self.taken.take() {
            self.play(worker, NEVER);
        }
        let worker = *self.nodes.get(1)? as usize;
        Some(worker).filter(|worker| self.times[*worker] != NEVER)
    }
}

impl Virtual {
    /// A clock that draws job times from `delay`; with no delay model every job takes one second.
    pub fn new(delay: DelayModel, seed: u64) -> Self {
        let delay = if delay == DelayModel::None { DelayModel::Fixed(vec![1.0]) } else { delay };
        Virtual { delay, seed, faults: Faults::default(), finishes: Finishes::default() }
    }

    /// The same, with jobs that take longer on purpose.
    pub fn with(self, faults: Faults) -> Self {
        Virtual { faults, ..self }
    }

    /// The next finish of a job that is still running.
    fn due(&mut self, pool: &WorkerPool) -> Option<(f64, usize)> {
        // A worker that was lost leaves its last job behind; whoever runs one is here with it.
        std::iter::from_fn(|| self.finishes.take()).find(|(_, worker)| pool.current_job(*worker).is_some())
    }
}

impl Clock for Virtual {
    fn begin(&mut self, worker: usize, job: u64, now: f64, share: f64) -> f64 {
        let time = now + self.delay.draw(self.seed, worker, job) * share + self.faults.delay(worker, job);
        self.finishes.set(worker, time);
        0.0
    }

    fn next(&mut self, pool: &mut WorkerPool) -> Result<Option<(f64, Gradient)>> {
        let Some((time, worker)) = self.due(pool) else { return Ok(None) };
        Ok(Some((time, pool.wait_for_worker(worker)?)))
    }

    fn has_next(&mut self, pool: &mut WorkerPool) -> Result<bool> {
        let next = if pool.runs_ahead() { self.finishes.next() } else { None };
        next.map_or(Ok(false), |worker| pool.has_completed_from(worker))
    }

    fn passed(&mut self, pool: &WorkerPool, event: &Event) -> Result<()> {
        match self.due(pool) {
            Some(finish) if finish == (event.time, event.worker) => Ok(()),
            other => {
                let here =
                    other.map_or("nobody is due".into(), |(time, worker)| format!("worker {worker} is due at {time}"));
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
        let mut order = Vec::new();
        while let Some((time, worker)) = clock.finishes.take() {
            order.push((time, worker));
            if order.len() == 1 {
                clock.begin(1, 1, time, 1.0);
            }
        }
        assert_eq!(order, [(1.0, 1), (2.0, 0), (2.0, 1), (2.0, 2)]);
    }

    #[test]
    fn a_job_in_the_place_of_another_leaves_nothing_behind() {
        // Against a list that is searched, with as many workers as come.
        let (mut clock, mut list) = (Finishes::default(), Vec::new());
        let draw = |k: u64| (k.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        for k in 0..3000 {
            if draw(k).is_multiple_of(4) {
                let first = list.iter().copied().min_by(|a: &(f64, usize), b| a.partial_cmp(b).unwrap());
                list.retain(|finish| Some(*finish) != first);
                // Who only looks takes nothing.
                assert_eq!(clock.next(), first.map(|(_, worker)| worker));
                assert_eq!(clock.take(), first);
                continue;
            }
            let finish = ((draw(k + 10_000) % 50) as f64, draw(k + 20_000) % (5 + k as usize / 30));
            list.retain(|(_, worker)| *worker != finish.1);
            list.push(finish);
            clock.set(finish.1, finish.0);
        }
    }
}
