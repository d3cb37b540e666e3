//! Keeps track of all workers: the current job and the queue of each, and the gradients that are ready before
//! the clock asks for them. An [`Executor`] computes the jobs; this module contains no thread, no stream and
//! no socket.
//!
//! Each worker has a slot; `slot.rs` describes its state machine.
//!
//! Invariants kept here:
//! * I1: a worker has at most one submitted job. The next one is submitted after the executor has replied, so
//!   no send blocks.
//! * I7 (one half of it): every gradient either belongs to the worker's current job and is delivered once, or
//!   belongs to a cancelled job and is thrown away here without becoming an arrival.
//! * A queued job keeps the snapshot of the version at which it was assigned. It starts when its
//!   predecessor's gradient arrives.

use super::executor::{Cancelled, Executor, Jobs, Submitted};
use super::job::{Gradient, Job, Reply};
use super::slot::{Phase, Slot, SlotState};
use crate::error::{Error, Failure, Handled, Result};
use crate::fault::{OnFailure, Policy};
use crate::host::signals::INTERRUPTED;
use stagger_kernels::Fence;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Number of times that a failing job is computed again.
const ATTEMPTS: u32 = 3;

/// Interval between two checks for an interruption and for hung workers.
const WATCH: Duration = Duration::from_millis(200);

/// Decides how long a job takes. Arguments: worker, job number, and the job's share of a full job's time.
/// Returns the seconds of real time that the worker must wait for.
pub type Begin<'a> = &'a mut dyn FnMut(usize, u64, f64) -> f64;

/// All workers of a run.
pub struct WorkerPool {
    slots: Vec<Slot>,
    executor: Box<dyn Executor>,
    /// A fence behind everything that the server has enqueued. A job waits for this fence instead of its
    /// snapshot's: the worker may write its gradient to the buffers of its last one, which the server must
    /// have read.
    fence: Fence,
    policy: Policy,
    failures: Vec<Failure>,
    cancelled: u64,
    /// When the pool last looked for hanging workers.
    watched: Instant,
    /// The log of a resumed run is being replayed: jobs are recorded, but not submitted.
    replaying: bool,
}

/// The slots as an executor sees them.
struct View<'a>(&'a [Slot]);

impl Jobs for View<'_> {
    fn workers(&self) -> usize {
        self.0.len()
    }

    fn submitted(&self, worker: usize) -> Option<&Job> {
        match &self.0[worker].state {
            SlotState::Working(job, Phase::Running) => Some(job),
            _ => None,
        }
    }

    fn has_job(&self, worker: usize) -> bool {
        matches!(self.0[worker].state, SlotState::Working(_, Phase::Running | Phase::Finished(_)))
    }
}

impl WorkerPool {
    /// A pool of `workers` workers whose jobs `executor` computes.
    pub fn new(workers: usize, executor: Box<dyn Executor>, policy: Policy) -> Self {
        WorkerPool {
            slots: (0..workers).map(|_| Slot::default()).collect(),
            executor,
            fence: Fence::default(),
            policy,
            failures: Vec::new(),
            cancelled: 0,
            watched: Instant::now(),
            replaying: false,
        }
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.slots.len()
    }

    /// Whether the server's thread computes the jobs, one at a time.
    pub fn is_inline(&self) -> bool {
        self.executor.is_inline()
    }

    /// Whether a gradient may be ready before the clock asks for it.
    pub fn runs_ahead(&self) -> bool {
        self.executor.runs_ahead()
    }

    /// Sets the server's fence, for which jobs wait that start from now on.
    pub fn start_after(&mut self, fence: Fence) {
        self.fence = fence;
    }

    /// Number of cancelled jobs.
    pub fn cancelled(&self) -> u64 {
        self.cancelled
    }

    /// All failures so far.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// Sets the failures from before the run was resumed.
    pub fn restore_failures(&mut self, failures: Vec<Failure>) {
        self.failures = failures;
    }

    /// Whether no worker has a job.
    pub fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.state.job().is_none())
    }

    /// The worker's current job.
    pub fn current_job(&self, worker: usize) -> Option<&Job> {
        self.slots[worker].state.job()
    }

    /// Whether a job waits in the worker's queue.
    pub fn has_queue(&self, worker: usize) -> bool {
        !self.slots[worker].queue.is_empty()
    }

    /// All current and queued jobs: worker, place in its queue (0 is the current job), job.
    pub fn jobs(&mut self) -> impl Iterator<Item = (usize, usize, &mut Job)> {
        self.slots.iter_mut().enumerate().flat_map(|(worker, slot)| {
            let jobs = slot.state.job_mut().into_iter().chain(&mut slot.queue);
            jobs.enumerate().map(move |(place, job)| (worker, place, job))
        })
    }

    /// The error of a run whose rule waits for a dropped worker. `None` if no worker was dropped.
    pub fn starvation(&self) -> Option<Error> {
        let gone = self.slots.iter().enumerate().filter(|(_, slot)| matches!(slot.state, SlotState::Gone));
        let gone: Vec<String> = gone.map(|(worker, _)| worker.to_string()).collect();
        (!gone.is_empty()).then(|| {
            Error::failed(format!(
                "the rule waits for ever for worker {}, which was dropped: `stagger rules NAME` says whether a rule \
                 goes on without a worker; --on-failure restart keeps the worker if that is possible",
                gone.join(", ")
            ))
        })
    }

    /// Drops a worker, with its current job, its queue and all jobs that are assigned to it later.
    pub fn drop_worker(&mut self, worker: usize) {
        self.executor.drop_worker(worker);
        let next_job = self.slots[worker].next_job;
        self.slots[worker] = Slot { state: SlotState::Gone, next_job, ..Slot::default() };
    }

    /// Extends all deadlines by a pause in which the server kept all workers waiting.
    pub fn extend_deadlines(&mut self, pause: Duration) {
        self.slots.iter_mut().for_each(|slot| slot.extension += pause);
    }

    /// Waits until the device has finished all launched steps.
    pub fn synchronize(&self) -> Result<()> {
        self.executor.synchronize()
    }

    // ---- jobs in

    /// Assigns a job at time `now`. It starts now if the worker is free, otherwise it is queued.
    pub fn assign(&mut self, worker: usize, job: Job, now: f64, begin: Begin) -> Result<()> {
        let slot = &mut self.slots[worker];
        if matches!(slot.state, SlotState::Gone) {
            return Ok(());
        }
        if slot.state.job().is_none() && slot.queue.is_empty() {
            return self.start(worker, job, now, begin);
        }
        slot.queue.push_back(job);
        self.start_next(worker, now, begin)
    }

    /// Starts the worker's next queued job if the worker is free.
    pub fn start_next(&mut self, worker: usize, now: f64, begin: Begin) -> Result<()> {
        let slot = &mut self.slots[worker];
        if slot.state.job().is_some() {
            return Ok(());
        }
        let Some(job) = slot.queue.pop_front() else { return Ok(()) };
        self.start(worker, job, now, begin)
    }

    fn start(&mut self, worker: usize, mut job: Job, now: f64, begin: Begin) -> Result<()> {
        let slot = &mut self.slots[worker];
        job.number = slot.next_job;
        job.began = now;
        job.delay = begin(worker, job.number, job.share);
        job.snapshot.fence = self.fence.clone();
        slot.next_job += 1;
        slot.attempts = 0;
        if self.replaying || matches!(slot.state, SlotState::Draining) {
            slot.state = SlotState::Working(job, Phase::Held);
            return Ok(());
        }
        slot.state = SlotState::Working(job, Phase::Running);
        self.submit(worker)
    }

    /// Submits the job of a running slot.
    fn submit(&mut self, worker: usize) -> Result<()> {
        let slot = &mut self.slots[worker];
        let SlotState::Working(job, _) = &slot.state else { unreachable!("only a current job is submitted") };
        if let Some(failure) = &slot.hung {
            let failure = Failure { job: job.number, ..failure.clone() };
            slot.state.set_phase(Phase::Finished(Err(failure)));
            return Ok(());
        }
        if self.policy.timeout.is_some() {
            slot.submitted = Some(Instant::now());
            slot.extension = Duration::from_secs_f64(job.delay.clamp(0.0, 1e9));
        }
        match self.executor.submit(worker, job) {
            Submitted::Accepted => Ok(()),
            Submitted::Replied(reply) => self.on_reply(reply).map(drop),
            // The worker's thread has ended. Its last reply contains the reason.
            Submitted::Gone => self.receive().and(Err(Error::failed(format!("worker {worker} is gone")))),
        }
    }

    /// Cancels the worker's current job, which is returned, and clears its queue (preemption).
    pub fn cancel(&mut self, worker: usize) -> Option<Job> {
        let slot = &mut self.slots[worker];
        slot.queue.clear();
        let SlotState::Working(job, phase) = &slot.state else { return None };
        let owes_reply = match phase {
            Phase::Running => self.executor.cancel(worker, job.number) == Cancelled::AfterReply,
            // During the replay of a log no job has been submitted.
            Phase::Held => !self.replaying,
            Phase::Finished(_) | Phase::Delivered => false,
        };
        let job = slot.state.take_job();
        if owes_reply {
            slot.state = SlotState::Draining;
        }
        self.cancelled += 1;
        job
    }

    // ---- gradients out

    /// The next gradient under the wall clock.
    pub fn next_completed(&mut self) -> Result<Gradient> {
        if self.is_idle() {
            let idle = || Error::failed("no worker has a job: the rule waits for ever");
            return Err(self.starvation().unwrap_or_else(idle));
        }
        if let Some(worker) = self.executor.next_worker(&View(&self.slots)) {
            return self.wait_for_worker(worker);
        }
        let worker = self.receive()?;
        self.take_completed(worker).expect("just received")
    }

    /// The gradient of the worker's current job. Waits for it. Gradients of other workers are kept until the
    /// clock asks for them.
    pub fn wait_for_worker(&mut self, worker: usize) -> Result<Gradient> {
        // Other executors check the flag while they wait for a reply.
        if self.executor.is_inline() && INTERRUPTED.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        loop {
            if let Some(result) = self.take_completed(worker) {
                return result;
            }
            if self.slots[worker].state.job().is_none() {
                return Err(Error::failed(format!(
                    "the clock waits for worker {worker}, which has no job: the schedule is wrong"
                )));
            }
            let Some(reply) = self.executor.complete(worker, &View(&self.slots))? else {
                self.receive()?;
                continue;
            };
            // Gradients of other workers that were computed in the same pass.
            self.receive_all()?;
            if let Reply::Gradient(gradient, _) = reply {
                self.slots[worker].state.set_phase(Phase::Delivered);
                return Ok(gradient);
            }
            self.on_reply(reply)?;
        }
    }

    /// Whether any gradient is ready that the clock has not asked for yet.
    pub fn has_completed(&self) -> bool {
        let finished = || self.slots.iter().any(|slot| slot.state.is_finished());
        self.executor.has_reply() || (self.executor.runs_ahead() && finished())
    }

    /// Whether the gradient of this worker is ready.
    pub fn has_completed_from(&mut self, worker: usize) -> Result<bool> {
        self.receive_all()?;
        Ok(self.slots[worker].state.is_finished())
    }

    /// Takes the finished gradient or failure of the worker's current job.
    fn take_completed(&mut self, worker: usize) -> Option<Result<Gradient>> {
        let slot = &mut self.slots[worker];
        let SlotState::Working(_, phase @ Phase::Finished(_)) = &mut slot.state else { return None };
        let Phase::Finished(result) = std::mem::replace(phase, Phase::Delivered) else { unreachable!("just matched") };
        slot.attempts = 0;
        Some(result.map_err(Error::Worker))
    }

    /// Accepts the arrival of a delivered gradient: ends the worker's current job, and returns it.
    pub fn accept(&mut self, worker: usize) -> Job {
        self.slots[worker].state.take_job().expect("an accepted gradient belongs to a current job")
    }

    // ---- replies

    /// Handles a reply. Returns the worker if its current job is finished now.
    fn on_reply(&mut self, reply: Reply) -> Result<Option<usize>> {
        let worker = reply.worker();
        let slot = &mut self.slots[worker];
        if slot.hung.is_some() {
            return Ok(None);
        }
        match (&slot.state, reply) {
            (SlotState::Working(job, Phase::Running), Reply::Gradient(gradient, _)) if job.number == gradient.job => {
                slot.state.set_phase(Phase::Finished(Ok(gradient)));
                Ok(Some(worker))
            }
            (SlotState::Working(job, Phase::Running), Reply::Failed { job: number, reason, .. })
                if job.number == number =>
            {
                self.fail(worker, reason, false)?;
                Ok(self.slots[worker].state.is_finished().then_some(worker))
            }
            // The reply belongs to a cancelled job: the worker is free.
            (SlotState::Draining, _) => {
                slot.state = SlotState::Idle;
                Ok(None)
            }
            (SlotState::Working(_, Phase::Held), _) => {
                slot.state.set_phase(Phase::Running);
                self.submit(worker)?;
                Ok(None)
            }
            // A reply of a dropped worker.
            _ => Ok(None),
        }
    }

    /// Handles the failure of the worker's current job: submits the job again, or keeps the failure until the
    /// clock asks for it.
    fn fail(&mut self, worker: usize, reason: String, hung: bool) -> Result<()> {
        let slot = &mut self.slots[worker];
        let Some(job) = slot.state.job_mut() else { return Ok(()) };
        slot.attempts += 1;
        let handled = match self.policy.on_failure {
            OnFailure::Restart if hung => Handled::Dropped,
            OnFailure::Restart if slot.attempts <= ATTEMPTS => Handled::Restarted,
            OnFailure::Restart => Handled::GivenUp,
            OnFailure::Drop => Handled::Dropped,
            OnFailure::Stop => Handled::Stopped,
        };
        let failure = Failure { worker, job: job.number, reason, hung, handled };
        if hung {
            slot.hung = Some(failure.clone());
        }
        self.failures.push(failure.clone());
        if handled != Handled::Restarted {
            slot.state.set_phase(Phase::Finished(Err(failure)));
            return Ok(());
        }
        note!("NOTE       {failure}; the worker computes the job again");
        job.snapshot.fence = self.fence.clone();
        job.delay = 0.0;
        self.submit(worker)
    }

    /// Handles all replies that are ready, without waiting.
    fn receive_all(&mut self) -> Result<()> {
        while let Some(reply) = self.executor.try_reply() {
            self.on_reply(reply)?;
        }
        Ok(())
    }

    /// Handles replies until the current job of a worker is finished; returns the worker.
    fn receive(&mut self) -> Result<usize> {
        loop {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Err(interrupted());
            }
            // Replies are handled first, because a worker that has replied does not hang.
            let reply = match self.executor.try_reply() {
                Some(reply) => Some(reply),
                None => match self.find_hung() {
                    Some(worker) => return self.hang(worker).map(|()| worker),
                    None => self.executor.wait_reply(WATCH)?,
                },
            };
            let Some(reply) = reply else { continue };
            if let Some(worker) = self.on_reply(reply)? {
                return Ok(worker);
            }
        }
    }

    /// A worker whose job takes longer than `--worker-timeout` and its extension.
    fn find_hung(&mut self) -> Option<usize> {
        let timeout = self.policy.timeout.filter(|_| self.watched.elapsed() > WATCH)?;
        self.watched = Instant::now();
        let is_late = |slot: &Slot| {
            matches!(slot.state, SlotState::Working(_, Phase::Running | Phase::Held))
                && slot.submitted.is_some_and(|submitted| submitted.elapsed() > timeout + slot.extension)
        };
        self.slots.iter().position(is_late)
    }

    /// Handles a worker that hangs.
    fn hang(&mut self, worker: usize) -> Result<()> {
        self.executor.abandon(worker);
        let seconds = self.slots[worker].submitted.map_or(0.0, |submitted| submitted.elapsed().as_secs_f64());
        self.fail(worker, format!("no answer for {seconds:.1} s (--worker-timeout)"), true)
    }

    // ---- resuming and stopping

    /// Starts the replay of a resumed run's log: jobs are recorded, but not submitted.
    pub fn start_replay(&mut self) {
        self.replaying = true;
    }

    /// Ends the worker's current job for an arrival of the replayed log. `None` if the worker has no job.
    pub fn accept_replayed(&mut self, worker: usize) -> Option<Job> {
        self.slots[worker].state.take_job()
    }

    /// Ends the replay: submits the current jobs, which have their models now.
    pub fn resume(&mut self) -> Result<()> {
        self.replaying = false;
        for worker in 0..self.slots.len() {
            let fence = self.fence.clone();
            let SlotState::Working(job, phase @ Phase::Held) = &mut self.slots[worker].state else { continue };
            job.snapshot.fence = fence;
            *phase = Phase::Running;
            self.submit(worker)?;
        }
        Ok(())
    }

    /// Ends the workers and waits for them. Current and queued jobs stay recorded, because a checkpoint saves
    /// them.
    pub fn stop(&mut self) {
        for slot in &mut self.slots {
            slot.state.set_phase(Phase::Delivered);
        }
        self.executor.stop();
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.stop();
    }
}

fn interrupted() -> Error {
    Error::Interrupted("interrupted".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Snapshot;
    use stagger_kernels::Device;
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    /// What the test's executor was asked, and what it replies.
    #[derive(Default)]
    struct Script {
        submitted: Vec<(usize, u64)>,
        replies: VecDeque<Reply>,
    }

    struct Scripted(Arc<Mutex<Script>>, Cancelled);

    impl Executor for Scripted {
        fn submit(&mut self, worker: usize, job: &Job) -> Submitted {
            self.0.lock().unwrap().submitted.push((worker, job.number));
            Submitted::Accepted
        }

        fn cancel(&mut self, _: usize, _: u64) -> Cancelled {
            self.1
        }

        fn complete(&mut self, _: usize, _: &dyn Jobs) -> Result<Option<Reply>> {
            Ok(None)
        }

        fn try_reply(&mut self) -> Option<Reply> {
            self.0.lock().unwrap().replies.pop_front()
        }

        fn has_reply(&self) -> bool {
            !self.0.lock().unwrap().replies.is_empty()
        }
    }

    /// A pool of two workers and its executor's script.
    fn pool(cancelled: Cancelled, policy: Policy) -> (WorkerPool, Arc<Mutex<Script>>) {
        let script = Arc::new(Mutex::new(Script::default()));
        (WorkerPool::new(2, Box::new(Scripted(script.clone(), cancelled)), policy), script)
    }

    fn job() -> Job {
        Job::at(Snapshot { weights: Device::Cpu.upload(vec![0.0]), fence: Fence::default() }, 0)
    }

    fn gradient(worker: usize, job: u64) -> Reply {
        let loss = Device::Cpu.upload(vec![0.0]);
        let buffers = [loss.clone()].into();
        Reply::Gradient(Gradient { worker, job, buffers, factor: None, loss, fence: Fence::default() }, None)
    }

    fn failed(worker: usize, job: u64) -> Reply {
        Reply::Failed { worker, job, reason: "planted".into() }
    }

    fn assign(pool: &mut WorkerPool, worker: usize) {
        pool.assign(worker, job(), 0.0, &mut |_, _, _| 0.0).unwrap();
    }

    fn state(pool: &WorkerPool, worker: usize) -> &'static str {
        match pool.slots[worker].state {
            SlotState::Idle => "idle",
            SlotState::Draining => "draining",
            SlotState::Gone => "gone",
            SlotState::Working(_, Phase::Held) => "held",
            SlotState::Working(_, Phase::Running) => "running",
            SlotState::Working(_, Phase::Finished(_)) => "finished",
            SlotState::Working(_, Phase::Delivered) => "delivered",
        }
    }

    #[test]
    fn job_that_is_not_cancelled_is_delivered_once() {
        let (mut pool, script) = pool(Cancelled::AfterReply, Policy::default());
        assign(&mut pool, 0);
        assert_eq!(state(&pool, 0), "running");
        // A second job is queued, and the first stays the current one.
        assign(&mut pool, 0);
        assert!(pool.has_queue(0) && pool.current_job(0).unwrap().number == 0);
        pool.on_reply(gradient(0, 0)).unwrap();
        assert_eq!(state(&pool, 0), "finished");
        assert!(pool.has_completed() && pool.has_completed_from(0).unwrap());
        assert_eq!(pool.wait_for_worker(0).unwrap().job, 0);
        assert_eq!(state(&pool, 0), "delivered");
        assert_eq!(pool.accept(0).number, 0);
        assert_eq!(state(&pool, 0), "idle");
        pool.start_next(0, 1.0, &mut |_, _, _| 0.0).unwrap();
        assert_eq!((state(&pool, 0), script.lock().unwrap().submitted.as_slice()), ("running", &[(0, 0), (0, 1)][..]));
    }

    /// Computes a job when it is asked for, as `Inline` does.
    struct OnDemand;

    impl Executor for OnDemand {
        fn submit(&mut self, _: usize, _: &Job) -> Submitted {
            Submitted::Accepted
        }

        fn cancel(&mut self, _: usize, _: u64) -> Cancelled {
            Cancelled::Now
        }

        fn complete(&mut self, worker: usize, jobs: &dyn Jobs) -> Result<Option<Reply>> {
            Ok(jobs.submitted(worker).map(|job| gradient(worker, job.number)))
        }
    }

    #[test]
    fn job_that_is_computed_on_demand_is_delivered_at_once() {
        let mut pool = WorkerPool::new(2, Box::new(OnDemand), Policy::default());
        assign(&mut pool, 1);
        assert_eq!((pool.wait_for_worker(1).unwrap().job, state(&pool, 1)), (0, "delivered"));
        // A gradient that the server does not accept stays in the books.
        assert_eq!((pool.jobs().count(), pool.accept(1).number), (1, 0));
        assert!(pool.is_idle() && pool.wait_for_worker(1).is_err(), "there is no job to wait for");
    }

    #[test]
    fn cancelled_job_drains_before_the_next_is_submitted() {
        let (mut pool, script) = pool(Cancelled::AfterReply, Policy::default());
        assign(&mut pool, 0);
        assert_eq!(pool.cancel(0).unwrap().number, 0);
        assert_eq!(state(&pool, 0), "draining");
        assert!(pool.cancel(0).is_none(), "there is nothing to cancel");
        assign(&mut pool, 0);
        assert_eq!(state(&pool, 0), "held");
        // A held job is cancelled without a call to the executor.
        assert_eq!(pool.cancel(0).unwrap().number, 1);
        assert_eq!(state(&pool, 0), "draining");
        assign(&mut pool, 0);
        // The late gradient of the cancelled job is thrown away.
        assert_eq!(pool.on_reply(gradient(0, 0)).unwrap(), None);
        assert_eq!((state(&pool, 0), script.lock().unwrap().submitted.as_slice()), ("running", &[(0, 0), (0, 2)][..]));
        pool.cancel(0);
        assert_eq!(pool.on_reply(Reply::Cancelled { worker: 0 }).unwrap(), None);
        assert_eq!((state(&pool, 0), pool.cancelled()), ("idle", 3));
    }

    #[test]
    fn cancelled_job_without_a_reply_leaves_the_worker_idle() {
        let (mut pool, _) = pool(Cancelled::Now, Policy::default());
        assign(&mut pool, 1);
        pool.cancel(1);
        assert_eq!(state(&pool, 1), "idle");
        // Finished and delivered gradients are thrown away too.
        for deliver in [false, true] {
            assign(&mut pool, 1);
            let number = pool.current_job(1).unwrap().number;
            pool.on_reply(gradient(1, number)).unwrap();
            if deliver {
                pool.wait_for_worker(1).unwrap();
            }
            assert_eq!(pool.cancel(1).unwrap().number, number);
            assert_eq!(state(&pool, 1), "idle");
        }
    }

    #[test]
    fn failing_job_is_restarted_three_times() {
        let policy = Policy { on_failure: OnFailure::Restart, timeout: None };
        let (mut pool, script) = pool(Cancelled::AfterReply, policy);
        assign(&mut pool, 0);
        for attempt in 1..=ATTEMPTS {
            pool.on_reply(failed(0, 0)).unwrap();
            assert_eq!((state(&pool, 0), script.lock().unwrap().submitted.len()), ("running", 1 + attempt as usize));
        }
        assert_eq!(pool.on_reply(failed(0, 0)).unwrap(), Some(0));
        assert_eq!(state(&pool, 0), "finished");
        let Err(Error::Worker(failure)) = pool.wait_for_worker(0) else { panic!("the failure is delivered") };
        assert_eq!((failure.handled, pool.failures().len()), (Handled::GivenUp, 4));
        pool.drop_worker(0);
        assert_eq!(state(&pool, 0), "gone");
        assign(&mut pool, 0);
        assert_eq!(pool.on_reply(gradient(0, 0)).unwrap(), None);
        assert_eq!(state(&pool, 0), "gone");
        assert!(pool.starvation().is_some());
    }

    #[test]
    fn hung_worker_fails_its_next_job_at_once() {
        let policy = Policy { on_failure: OnFailure::Drop, timeout: Some(Duration::ZERO) };
        let (mut pool, script) = pool(Cancelled::AfterReply, policy);
        assign(&mut pool, 0);
        pool.watched = Instant::now() - 2 * WATCH;
        assert_eq!(pool.find_hung(), Some(0));
        pool.hang(0).unwrap();
        assert_eq!((state(&pool, 0), pool.failures()[0].handled), ("finished", Handled::Dropped));
        // The rule cancels the job before the clock asks for the failure.
        pool.cancel(0);
        assign(&mut pool, 0);
        assert_eq!((state(&pool, 0), script.lock().unwrap().submitted.len()), ("finished", 1));
        let Err(Error::Worker(failure)) = pool.wait_for_worker(0) else { panic!("the failure is delivered") };
        assert_eq!((failure.job, failure.hung), (1, true));
    }

    #[test]
    fn replayed_jobs_are_submitted_when_the_replay_ends() {
        let (mut pool, script) = pool(Cancelled::AfterReply, Policy::default());
        pool.start_replay();
        assign(&mut pool, 0);
        assign(&mut pool, 1);
        assert_eq!((state(&pool, 0), state(&pool, 1)), ("held", "held"));
        assert_eq!(pool.accept_replayed(0).unwrap().number, 0);
        assert!(pool.accept_replayed(0).is_none() && state(&pool, 0) == "idle");
        assign(&mut pool, 0);
        pool.cancel(1);
        assert_eq!(state(&pool, 1), "idle", "nothing was submitted, so nothing drains");
        pool.resume().unwrap();
        assert_eq!((state(&pool, 0), script.lock().unwrap().submitted.as_slice()), ("running", &[(0, 1)][..]));
        pool.stop();
        assert_eq!((state(&pool, 0), pool.jobs().count()), ("delivered", 1));
    }
}
