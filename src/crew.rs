//! The workers as the server sees them: who runs which job, what waits in whose queue, which answers came early.
//!
//! Invariants kept here:
//! * I1: a worker has at most one job in hand; the next is sent only after its answer, so no send blocks.
//! * I7 (its half): every answer is either the worker's running job, and delivered once, or a job that was given up, and
//!   thrown away here without becoming an arrival.
//! * A queued job keeps the snapshot of the version at which it was assigned, and begins the moment its predecessor's
//!   gradient arrives.

use crate::error::{Error, Result};
use crate::problem::Snapshot;
use crate::worker::{Gradient, Job, Message, Order, Worker};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Set by SIGINT and SIGTERM; a run ends at the next arrival.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Keeps this thread on the one core that all submitting threads of a GPU run share.
///
/// Only one of them works at a time (the gate has one permit), and what they touch is alike, so together they find a warm
/// cache; the thread of the runtime that issues the launches keeps another core to itself. On two cores, eight workers on
/// the null driver: 250 steps a second without, 380 with (`benches/RESULTS.md`). Best effort: nothing depends on it.
pub fn share_a_core() {
    if let Some(cores) = core_affinity::get_core_ids().filter(|cores| cores.len() > 1) {
        // Not the same core for every process.
        core_affinity::set_for_current(cores[std::process::id() as usize % cores.len()]);
    }
}

/// All workers of a run.
pub struct Crew {
    slots: Vec<Slot>,
    inbox: Receiver<Message>,
    threads: Vec<JoinHandle<()>>,
    restarted: u64,
}

struct Slot {
    outbox: Option<Sender<Order>>,
    /// The job that counts as running, and the version at which it computes.
    running: Option<(u64, u64)>,
    /// The thread has an order in hand (perhaps one that was given up meanwhile).
    busy: bool,
    /// To be sent when the thread comes back from a job that was given up.
    held: Option<Job>,
    queue: VecDeque<(Snapshot, u64)>,
    early: Option<Gradient>,
    next_job: u64,
}

impl Crew {
    /// Starts `workers` threads and waits until they are ready; `make` builds worker i around its two channel ends.
    ///
    /// With `threads` each worker computes on a pool of that many threads of its own (the CPU backend).
    pub fn start(
        workers: usize,
        threads: Option<usize>,
        mut make: impl FnMut(usize, Receiver<Order>, Sender<Message>) -> Worker,
    ) -> Result<Self> {
        // Each worker has at most one message in flight, so the inbox never fills; an outbox holds at most
        // a cancellation that came too late, a job, and that job's cancellation.
        let (answer, inbox) = bounded(workers);
        let mut crew = Crew { slots: Vec::new(), inbox, threads: Vec::new(), restarted: 0 };
        for i in 0..workers {
            let (outbox, orders) = bounded(3);
            let worker = make(i, orders, answer.clone());
            let body = move || match threads {
                None => {
                    share_a_core();
                    worker.run()
                }
                Some(count) => {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).use_current_thread();
                    match pool.build() {
                        Ok(pool) => pool.install(|| worker.run()),
                        Err(e) => {
                            let reason = format!("cannot start its {count} threads: {e}");
                            let _ = worker.inbox.send(Message::Failed { worker: i, job: 0, reason });
                        }
                    }
                }
            };
            let thread = std::thread::Builder::new().name(format!("worker-{i}")).spawn(body).map_err(|e| {
                Error::failed(format!("cannot start the thread of worker {i}: {e}; use fewer --workers"))
            })?;
            crew.threads.push(thread);
            crew.slots.push(Slot {
                outbox: Some(outbox),
                running: None,
                busy: false,
                held: None,
                queue: VecDeque::new(),
                early: None,
                next_job: 0,
            });
        }
        for _ in 0..workers {
            match crew.message()? {
                Message::Ready => {}
                Message::Failed { worker, reason, .. } => {
                    return Err(Error::failed(format!("worker {worker} failed before its first job: {reason}")));
                }
                _ => unreachable!("nobody has a job yet"),
            }
        }
        Ok(crew)
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.slots.len()
    }

    /// Jobs given up so far.
    pub fn restarted(&self) -> u64 {
        self.restarted
    }

    /// Gives `worker` a job on `snapshot` of version `version`: it begins now if the worker is free, else it is queued.
    /// `begin(worker, job)` is told when a job begins and answers with the seconds that it is to wait for.
    pub fn assign(
        &mut self,
        worker: usize,
        snapshot: Snapshot,
        version: u64,
        begin: impl FnMut(usize, u64) -> f64,
    ) -> Result<()> {
        self.slots[worker].queue.push_back((snapshot, version));
        self.next_job(worker, begin)
    }

    /// Begins the worker's next queued job if it is free.
    pub fn next_job(&mut self, worker: usize, mut begin: impl FnMut(usize, u64) -> f64) -> Result<()> {
        let slot = &mut self.slots[worker];
        if slot.running.is_some() {
            return Ok(());
        }
        let Some((snapshot, version)) = slot.queue.pop_front() else { return Ok(()) };
        let number = slot.next_job;
        slot.next_job += 1;
        slot.running = Some((number, version));
        let job = Job { number, snapshot, delay: begin(worker, number) };
        if slot.busy {
            slot.held = Some(job);
            return Ok(());
        }
        self.send(worker, job)
    }

    /// Gives up the worker's running job and its queue (preemption).
    pub fn cancel(&mut self, worker: usize) {
        let slot = &mut self.slots[worker];
        slot.queue.clear();
        let Some((number, _)) = slot.running.take() else { return };
        self.restarted += 1;
        // Early: its gradient is here and is thrown away. Held: it never began. Else the thread is told, between two steps.
        if slot.early.take().is_none() && slot.held.take().is_none() && slot.busy {
            let told = slot.outbox.as_ref().is_some_and(|outbox| outbox.try_send(Order::Cancel(number)).is_ok());
            debug_assert!(told, "the outbox has room for a cancellation (I1)");
        }
    }

    /// The next gradient that comes through the channel, whoever sends it.
    pub fn first(&mut self) -> Result<Gradient> {
        let worker = self.receive()?;
        Ok(self.take(worker).expect("just received"))
    }

    /// The gradient of `worker`'s running job, waiting for it while others' are put by.
    pub fn from(&mut self, worker: usize) -> Result<Gradient> {
        loop {
            if let Some(gradient) = self.take(worker) {
                return Ok(gradient);
            }
            if self.slots[worker].running.is_none() {
                return Err(Error::failed(format!(
                    "worker {worker} is waited for but has no job: the schedule is wrong"
                )));
            }
            self.receive()?;
        }
    }

    /// The job that `worker` is running, with its version.
    pub fn running(&self, worker: usize) -> Option<(u64, u64)> {
        self.slots[worker].running
    }

    /// Ends the running job of a worker whose gradient has arrived; returns its version.
    pub fn arrived(&mut self, worker: usize) -> u64 {
        self.slots[worker].running.take().expect("an arrival answers a running job").1
    }

    /// Drops the outboxes and waits for the threads.
    pub fn stop(&mut self) {
        for slot in &mut self.slots {
            slot.outbox = None;
            slot.queue.clear();
            slot.held = None;
            slot.early = None;
        }
        for thread in self.threads.drain(..) {
            // A panic inside a worker was already reported through the inbox.
            let _ = thread.join();
        }
    }

    fn take(&mut self, worker: usize) -> Option<Gradient> {
        self.slots[worker].early.take()
    }

    /// The next message, whoever sends it.
    fn message(&self) -> Result<Message> {
        loop {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Err(Error::Interrupted("interrupted".into()));
            }
            match self.inbox.recv_timeout(Duration::from_millis(200)) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Error::failed("every worker is gone")),
            }
        }
    }

    /// Receives messages until one is the gradient of a running job; returns its worker.
    fn receive(&mut self) -> Result<usize> {
        loop {
            let message = self.message()?;
            let worker = match message {
                Message::Gradient(gradient) => {
                    let (worker, slot) = (gradient.worker, &mut self.slots[gradient.worker]);
                    slot.busy = false;
                    if slot.running.is_some_and(|(job, _)| job == gradient.job) {
                        slot.early = Some(gradient);
                        return Ok(worker);
                    }
                    worker
                }
                Message::Cancelled { worker } => {
                    self.slots[worker].busy = false;
                    worker
                }
                Message::Ready => unreachable!("every worker was ready before the first job"),
                Message::Failed { worker, job, reason } => {
                    return Err(Error::failed(format!("worker {worker} failed in its job {job}: {reason}")));
                }
            };
            if let Some(job) = self.slots[worker].held.take() {
                self.send(worker, job)?;
            }
        }
    }

    fn send(&mut self, worker: usize, job: Job) -> Result<()> {
        let slot = &mut self.slots[worker];
        slot.busy = true;
        if slot.outbox.as_ref().is_some_and(|outbox| outbox.try_send(Order::Job(job)).is_ok()) {
            return Ok(());
        }
        // The thread ended on its own: its last message says why.
        self.receive().and(Err(Error::failed(format!("worker {worker} is gone"))))
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop();
    }
}
