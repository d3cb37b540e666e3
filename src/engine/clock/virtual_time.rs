//! The virtual clock: the running job with the smallest (finish time, worker) is next.
//!
//! Workers compute their jobs at once and may run ahead of the simulated time; the server waits for the
//! worker that is next. The duration of a job is a function of (seed, worker, job), and its gradient is a
//! function of (snapshot, seed, worker, job). The run therefore does not depend on the timing of threads.

use super::Clock;
use crate::engine::clock::delay::DelayModel;
use crate::engine::job::Gradient;
use crate::engine::worker_pool::WorkerPool;
use crate::error::{Error, Result};
use crate::fault::Faults;
use crate::record::Event;
use std::hint::select_unpredictable;

/// The clock of simulated time.
pub struct Virtual {
    delay: DelayModel,
    seed: u64,
    faults: Faults,
    finishes: Finishes,
}

/// The finish times of all jobs, in a tournament tree over the workers: the winner is the job that finishes
/// first.
///
/// A worker has at most one job. Setting its finish time replays the matches from its leaf to the root, one
/// per level. A new job overwrites the time of a cancelled one, so cancelled jobs leave nothing in the tree.
#[derive(Default)]
struct Finishes {
    /// Finish time of each worker's job in seconds; [`NEVER`] without a job.
    times: Vec<f64>,
    /// Node 1 holds the winner. Node k holds the winner of nodes 2k and 2k + 1. The second half holds the
    /// workers themselves. Of equal times the lowest worker wins.
    nodes: Vec<u32>,
    /// The worker whose finish was taken last. Its time stays in the tree until the next query, because
    /// usually the worker's next job overwrites it before.
    taken: Option<usize>,
}

/// The finish time of a worker without a job.
const NEVER: f64 = f64::INFINITY;

impl Finishes {
    /// Sets the finish time of the worker's job, in seconds.
    fn set(&mut self, worker: usize, time: f64) {
        if worker >= self.times.len() {
            self.grow(worker + 1);
        }
        self.taken = self.taken.filter(|taken| *taken != worker);
        self.play(worker, time);
    }

    /// Sets a time and replays the worker's matches up to the root. A processor cannot predict the winner of
    /// a match, so the code does not branch on it; this takes half the time. Times are not negative, so their
    /// bits have the order of the times.
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

    /// Makes room for at least `workers` workers.
    fn grow(&mut self, workers: usize) {
        let (before, places) = (std::mem::take(&mut self.times), workers.next_power_of_two());
        self.times = vec![NEVER; places];
        // Without jobs, the lowest worker of each subtree wins.
        let lowest = |node: usize| (node << (places.ilog2() - node.ilog2())) - places;
        self.nodes = (0..2 * places).map(|node| if node == 0 { 0 } else { lowest(node) as u32 }).collect();
        before.into_iter().enumerate().for_each(|(worker, time)| self.play(worker, time));
    }

    /// Takes the earliest finish: its time and its worker. The worker has no job afterwards.
    fn take(&mut self) -> Option<(f64, usize)> {
        self.taken = self.next();
        self.taken.map(|worker| (self.times[worker], worker))
    }

    /// The worker with the earliest finish.
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

    /// Adds the injected delays of `faults`.
    pub fn with(self, faults: Faults) -> Self {
        Virtual { faults, ..self }
    }

    /// The next finish of a job that is still running.
    fn due(&mut self, pool: &WorkerPool) -> Option<(f64, usize)> {
        // A dropped worker leaves its last finish in the tree. The finish of any other worker belongs to its
        // current job.
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
                let here = other
                    .map_or("no job finishes".into(), |(time, worker)| format!("worker {worker} finishes at {time}"));
                Err(Error::usage(format!(
                    "event {} of the log is of worker {} at {}, but here {here}: it is the log of another run",
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
    fn replaced_job_leaves_nothing_in_the_tree() {
        // Compared with a list that is searched. The number of workers grows.
        let (mut clock, mut list) = (Finishes::default(), Vec::new());
        let draw = |k: u64| (k.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        for k in 0..3000 {
            if draw(k).is_multiple_of(4) {
                let first = list.iter().copied().min_by(|a: &(f64, usize), b| a.partial_cmp(b).unwrap());
                list.retain(|finish| Some(*finish) != first);
                // A query does not take the finish.
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
