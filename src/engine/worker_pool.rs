//! The workers as the server sees them: who runs which job, what waits in whose queue, which answers came early.
//!
//! Invariants kept here:
//! * I1: a worker has at most one job in hand; the next is sent only after its answer, so no send blocks.
//! * I7 (its half): every answer is either the worker's running job, and delivered once, or a job that was given up, and
//!   thrown away here without becoming an arrival.
//! * A queued job keeps the snapshot of the version at which it was assigned, and begins the moment its predecessor's
//!   gradient arrives.
//!
//! A crew works on threads, or on the spot ([`Crew::on_the_spot`]): then a gradient is computed by the server's own thread. That is
//! the same run under the clocks that decide the order themselves, and for gradients that cost the host next to nothing it spares a
//! hand-over between threads per arrival: problems of theory on the CPU, whose gradients are computed when their turn comes, and
//! recorded steps on a GPU. There every worker keeps a stream of its own, and its step is launched the moment it is given the job:
//! then it waits for what the server had launched by then, and for nothing that came after, so steps overlap on the device as they
//! would from threads.
//!
//! Or its jobs are computed together ([`Crew::together`]): whoever is asked for is computed with others who have a job, in one pass,
//! and their gradients are kept until their turn. Who is computed with whom follows from the clock, so a run repeats itself.

use crate::engine::gate::Gate;
use crate::engine::worker::{Gradient, Job, Message, Order, Worker};
use crate::error::{Error, Failure, Handled, Result, panic_text};
use crate::fault::{OnFailure, Policy};
use crate::host::cores;
use crate::host::signals::INTERRUPTED;
use crate::problem::{Snapshot, Stacked, StackedJob};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never};
use stagger_kernels::{Device, Fence, Layout, Stream, clip};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Times that a job which fails is done again.
const ATTEMPTS: u32 = 3;

/// How often it is looked whether a run is interrupted or somebody hangs.
const WATCH: Duration = Duration::from_millis(200);

fn while_warming_up() -> Error {
    Error::Interrupted(
        "interrupted while workers warmed up: no job was begun, and what was saved before is as it was".into(),
    )
}

/// All workers of a run.
pub struct Crew {
    slots: Vec<Slot>,
    inbox: Receiver<Message>,
    threads: Vec<JoinHandle<()>>,
    restarted: u64,
    /// Behind everything that the server has enqueued. A job is sent with it, and not with the fence of its snapshot: the worker may
    /// write its gradient where the last one lay, which must have been read.
    order: Fence,
    /// Who was first so far, counted.
    firsts: u64,
    /// Its workers have streams of their own.
    on_streams: bool,
    together: Option<Together>,
    /// That of workers on threads.
    device: Option<Device>,
    policy: Policy,
    gate: Gate,
    room: Gate,
    failures: Vec<Failure>,
    /// When it was last looked whether somebody hangs.
    watched: Instant,
    /// The past is told again: jobs are noted, but nobody computes.
    recalling: bool,
}

/// What computes the jobs of a crew that computes them together.
pub struct Together {
    /// All objectives.
    pub stacked: Box<dyn Stacked>,
    /// Jobs in one pass at most.
    pub most: usize,
    /// Where.
    pub device: Device,
    /// The model's layout.
    pub layout: Layout,
    /// Gradients are clipped to this norm.
    pub clip: Option<f32>,
}

/// Decides how long a job takes; told its worker, its number and its share of a full job's time when it begins, it answers with
/// the seconds that the worker has to wait for in reality.
pub type Begin<'a> = &'a mut dyn FnMut(usize, u64, f64) -> f64;

/// Who computes.
enum Hand {
    /// A thread that is told through a channel.
    Thread(Sender<Order>),
    /// The server's own thread. Apart, so that giving up a job and beginning another touch little memory.
    Here(Box<Here>),
    /// The same, together with others.
    Together,
    /// Nobody any more.
    Gone,
}

/// A worker without a thread.
struct Here {
    worker: Worker,
    /// When it was first to answer, the last time. Who was it longest ago is next, so that nobody whose jobs are given up starves.
    answered: u64,
    /// The worker's own stream, on a GPU.
    stream: Option<Stream>,
}

impl Here {
    fn answer(&mut self, job: &Job) -> Message {
        let worker = &mut self.worker;
        match self.stream {
            Some(stream) => stream.enter(|| worker.answer(job)),
            None => worker.answer(job),
        }
    }
}

struct Slot {
    hand: Hand,
    /// The stream of its thread.
    stream: Option<Stream>,
    running: Option<Job>,
    /// The worker has an order in hand: the running job or, if it has a thread, perhaps one that was given up meanwhile.
    busy: bool,
    /// The running job is to be sent when the thread comes back from one that was given up.
    held: bool,
    queue: VecDeque<Job>,
    /// The answer of the running job, before its turn.
    early: Option<std::result::Result<Gradient, Failure>>,
    next_job: u64,
    /// When the job in hand was sent, and what of its time is waited for on purpose.
    sent: Instant,
    patience: Duration,
    /// Times that the running job has failed.
    attempts: u32,
    /// It failed and the run went on without it.
    lost: bool,
}

impl Crew {
    fn new(slots: Vec<Slot>, inbox: Receiver<Message>) -> Self {
        Crew {
            slots,
            inbox,
            threads: Vec::new(),
            restarted: 0,
            order: Fence::default(),
            firsts: 0,
            on_streams: false,
            together: None,
            device: None,
            policy: Policy::default(),
            gate: Gate::open(),
            room: Gate::open(),
            failures: Vec::new(),
            watched: Instant::now(),
            recalling: false,
        }
    }

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
        let mut crew = Crew::new(Vec::new(), inbox);
        for i in 0..workers {
            let (outbox, orders) = bounded(3);
            let worker = make(i, orders, answer.clone());
            crew.device.get_or_insert_with(|| worker.device.clone());
            let body = move || match threads {
                None => {
                    cores::submit_here();
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
            crew.slots.push(Slot::new(Hand::Thread(outbox)));
        }
        for _ in 0..workers {
            let message = crew.message().map_err(|error| match error {
                Error::Interrupted(_) => while_warming_up(),
                error => error,
            });
            match message? {
                Message::Ready { worker, stream } => crew.slots[worker].stream = Some(stream),
                Message::Failed { worker, reason, .. } => {
                    return Err(Error::failed(format!("worker {worker} failed before its first job: {reason}")));
                }
                _ => unreachable!("nobody has a job yet"),
            }
        }
        Ok(crew)
    }

    /// A crew without threads. Where the first to answer is asked for, it is who answered longest ago. With `streams` each worker has
    /// one, is warmed up on it, and computes when it is given a job; else whoever is asked for computes.
    pub fn on_the_spot(
        workers: usize,
        streams: bool,
        mut make: impl FnMut(usize, Receiver<Order>, Sender<Message>) -> Worker,
    ) -> Result<Self> {
        let (answer, inbox) = bounded(1);
        let mut slots = Vec::with_capacity(workers);
        for i in 0..workers {
            // No order comes but from this thread, which is computing while the worker looks there.
            let mut worker = make(i, never(), answer.clone());
            let stream = streams.then(|| Stream::after_current(i as u64));
            if let Some(stream) = stream {
                if INTERRUPTED.load(Ordering::Relaxed) {
                    return Err(while_warming_up());
                }
                let failed = |reason| Error::failed(format!("worker {i} failed before its first job: {reason}"));
                let warm = catch_unwind(AssertUnwindSafe(|| stream.enter(|| worker.warm_up())));
                warm.unwrap_or_else(|panic| Err(panic_text(&*panic))).map_err(failed)?;
            }
            slots.push(Slot::new(Hand::Here(Box::new(Here { worker, answered: 0, stream }))));
        }
        let mut crew = Crew::new(slots, inbox);
        crew.on_streams = streams;
        Ok(crew)
    }

    /// A crew without threads whose jobs are computed together. With a `warm_up` passes of every size are computed at it first and
    /// thrown away; what remains are compiled kernels and memory.
    pub fn together(workers: usize, mut together: Together, warm_up: Option<&Snapshot>) -> Result<Self> {
        together.most = together.most.min(workers);
        for size in (0..=together.most.ilog2()).map(|k| 1 << k) {
            let Some(snapshot) = warm_up else { break };
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Err(while_warming_up());
            }
            let asked = |worker| StackedJob { worker, weights: &snapshot.weights, job: 0 };
            let asked: Vec<StackedJob> = (0..size).map(asked).collect();
            let gradients = together.stacked.gradients(&asked)?;
            together.device.was_written(gradients.iter().flat_map(|(buffers, loss)| buffers.iter().chain([loss])))?;
        }
        let slots = (0..workers).map(|_| Slot::new(Hand::Together)).collect();
        let mut crew = Crew::new(slots, never());
        crew.together = Some(together);
        Ok(crew)
    }

    /// From now on jobs are ordered behind this fence of the server's.
    pub fn behind(&mut self, fence: Fence) {
        self.order = fence;
    }

    /// What is done about workers that fail, and the gates in which one may hang.
    pub fn policy(&mut self, policy: Policy, gate: Gate, room: Gate) {
        (self.policy, self.gate, self.room) = (policy, gate, room);
    }

    /// Failures of the run before it went on.
    pub fn remember(&mut self, failures: Vec<Failure>) {
        self.failures = failures;
    }

    /// The failures so far.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// Goes on without a worker: its job, its queue and everything that it is given from now on are dropped.
    pub fn lose(&mut self, worker: usize) {
        let slot = &mut self.slots[worker];
        *slot = Slot { next_job: slot.next_job, lost: true, ..Slot::new(Hand::Gone) };
    }

    /// Whether no worker has a job.
    pub fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.running.is_none())
    }

    /// That a rule waits for workers which were lost, if some were.
    pub fn waits_for_ever(&self) -> Option<Error> {
        let lost: Vec<String> =
            self.slots.iter().enumerate().filter(|(_, slot)| slot.lost).map(|(i, _)| i.to_string()).collect();
        (!lost.is_empty()).then(|| {
            Error::failed(format!(
                "the rule waits for ever for worker {}, which is gone: `stagger rules NAME` says which rules go on without a worker; \
                 --on-failure restart keeps it where it can",
                lost.join(", ")
            ))
        })
    }

    /// Whether gradients are computed by the server's own thread, one by one.
    pub fn is_on_the_spot(&self) -> bool {
        self.threads.is_empty() && self.together.is_none()
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.slots.len()
    }

    /// Whether somebody may answer before its turn: everywhere but where a gradient is computed when it is asked for.
    pub fn runs_ahead(&self) -> bool {
        !self.is_on_the_spot() || self.on_streams
    }

    /// Whether somebody has answered who was not asked for yet.
    pub fn has_answer(&self) -> bool {
        !self.inbox.is_empty() || (self.runs_ahead() && self.slots.iter().any(|slot| slot.early.is_some()))
    }

    /// Whether this worker has answered: all messages that are there are looked at.
    pub fn has_answered(&mut self, worker: usize) -> Result<bool> {
        while let Ok(message) = self.inbox.try_recv() {
            self.heed(message)?;
        }
        Ok(self.slots[worker].early.is_some())
    }

    /// Whether a worker has something to do after its job.
    pub fn has_queue(&self, worker: usize) -> bool {
        !self.slots[worker].queue.is_empty()
    }

    /// Jobs given up so far.
    pub fn restarted(&self) -> u64 {
        self.restarted
    }

    /// Gives `worker` something to do at time `now`: it begins now if the worker is free, else it is queued.
    pub fn assign(&mut self, worker: usize, job: Job, now: f64, begin: Begin) -> Result<()> {
        let slot = &mut self.slots[worker];
        if slot.lost {
            return Ok(());
        }
        if slot.running.is_none() && slot.queue.is_empty() {
            return self.begin(worker, job, now, begin);
        }
        slot.queue.push_back(job);
        self.next_job(worker, now, begin)
    }

    /// Begins the worker's next queued job if it is free.
    pub fn next_job(&mut self, worker: usize, now: f64, begin: Begin) -> Result<()> {
        let slot = &mut self.slots[worker];
        if slot.running.is_some() {
            return Ok(());
        }
        let Some(job) = slot.queue.pop_front() else { return Ok(()) };
        self.begin(worker, job, now, begin)
    }

    fn begin(&mut self, worker: usize, mut job: Job, now: f64, begin: Begin) -> Result<()> {
        let slot = &mut self.slots[worker];
        (job.number, slot.attempts) = (slot.next_job, 0);
        slot.next_job += 1;
        (job.began, job.delay) = (now, begin(worker, job.number, job.share));
        job.snapshot.fence = self.order.clone();
        slot.running = Some(job);
        if slot.busy {
            slot.held = true;
            return Ok(());
        }
        self.send(worker)
    }

    /// Gives up the worker's running job, which is returned, and its queue (preemption).
    pub fn cancel(&mut self, worker: usize) -> Option<Job> {
        let slot = &mut self.slots[worker];
        slot.queue.clear();
        let running = slot.running.take()?;
        self.restarted += 1;
        // Early: its gradient is here and is thrown away. Held: it never began. Else the thread is told, between two steps.
        if slot.early.take().is_none() && !std::mem::take(&mut slot.held) && slot.busy {
            match &mut slot.hand {
                Hand::Thread(outbox) => {
                    let told = outbox.try_send(Order::Cancel(running.number)).is_ok();
                    debug_assert!(told, "the outbox has room for a cancellation (I1)");
                }
                Hand::Here(_) | Hand::Together => slot.busy = false,
                Hand::Gone => {}
            }
        }
        Some(running)
    }

    /// The next gradient that comes through the channel, whoever sends it.
    pub fn first(&mut self) -> Result<Gradient> {
        if self.is_idle() {
            let nobody = || Error::failed("nobody has a job: the rule waits for ever");
            return Err(self.waits_for_ever().unwrap_or_else(nobody));
        }
        if self.is_on_the_spot() {
            let waiting = |(i, slot): (usize, &Slot)| match &slot.hand {
                Hand::Here(here) if slot.busy || slot.early.is_some() => Some((here.answered, i)),
                _ => None,
            };
            let next = self.slots.iter().enumerate().filter_map(waiting).min();
            let (_, next) = next.expect("a job that runs is in hand");
            self.firsts += 1;
            if let Hand::Here(here) = &mut self.slots[next].hand {
                here.answered = self.firsts;
            }
            return self.from(next);
        }
        let worker = self.receive()?;
        self.take(worker).expect("just received")
    }

    /// The gradient of `worker`'s running job, waiting for it while others' are put by.
    pub fn from(&mut self, worker: usize) -> Result<Gradient> {
        // Looked at here where no channel is waited on, and nowhere between an arrival and the jobs that it gives out.
        if self.is_on_the_spot() && INTERRUPTED.load(Ordering::Relaxed) {
            return Err(Error::Interrupted("interrupted".into()));
        }
        loop {
            if let Some(answer) = self.take(worker) {
                return answer;
            }
            if self.slots[worker].running.is_none() {
                return Err(Error::failed(format!(
                    "worker {worker} is waited for but has no job: the schedule is wrong"
                )));
            }
            match self.slots[worker].hand {
                Hand::Here(_) => return self.compute(worker),
                Hand::Together => self.compute_together(worker)?,
                _ => _ = self.receive()?,
            }
        }
    }

    /// The job that `worker` is running.
    pub fn running(&self, worker: usize) -> Option<&Job> {
        self.slots[worker].running.as_ref()
    }

    /// Ends the running job of a worker whose gradient has arrived, and returns it.
    pub fn arrived(&mut self, worker: usize) -> Job {
        self.slots[worker].running.take().expect("an arrival answers a running job")
    }

    /// From now on jobs are noted and nobody computes: a run that goes on is told what arrived before.
    pub fn recall(&mut self) {
        self.recalling = true;
    }

    /// The same as [`Crew::arrived`] for an arrival of the past; nothing if the worker has no job.
    pub fn recalled(&mut self, worker: usize) -> Option<Job> {
        let slot = &mut self.slots[worker];
        slot.held = false;
        slot.running.take()
    }

    /// All jobs that are running or queued: worker, place in its queue (0 is the running one), job.
    pub fn jobs(&mut self) -> impl Iterator<Item = (usize, usize, &mut Job)> {
        self.slots.iter_mut().enumerate().flat_map(|(i, slot)| {
            slot.running.iter_mut().chain(&mut slot.queue).enumerate().map(move |(k, job)| (i, k, job))
        })
    }

    /// The past has been told and the jobs have their models: those that run are computed.
    pub fn go_on(&mut self) -> Result<()> {
        self.recalling = false;
        for worker in 0..self.slots.len() {
            let slot = &mut self.slots[worker];
            if let (true, Some(running)) = (std::mem::take(&mut slot.held), &mut slot.running) {
                running.snapshot.fence = self.order.clone();
                self.send(worker)?;
            }
        }
        Ok(())
    }

    /// Computes a worker's job here and now.
    fn compute(&mut self, worker: usize) -> Result<Gradient> {
        match self.answer(worker)? {
            Some(gradient) => Ok(gradient),
            None => match self.take(worker) {
                Some(answer) => answer,
                None => self.compute(worker),
            },
        }
    }

    /// The same; nothing if the job failed, which has been seen to then.
    fn answer(&mut self, worker: usize) -> Result<Option<Gradient>> {
        let slot = &mut self.slots[worker];
        let Hand::Here(here) = &mut slot.hand else { unreachable!("asked for by who computes here") };
        let Some(job) = &slot.running else { unreachable!("a job in hand runs") };
        slot.busy = false;
        match here.answer(job) {
            Message::Gradient(gradient, _) => Ok(Some(gradient)),
            Message::Failed { worker, reason, .. } => self.failed(worker, reason, false).map(|()| None),
            _ => unreachable!("nobody cancels a job that is computed on the spot"),
        }
    }

    /// Waits until the device is through with all steps that were launched ahead.
    pub fn finish_steps(&self) -> Result<()> {
        for slot in &self.slots {
            let Hand::Here(here) = &slot.hand else { continue };
            here.stream.map_or(Ok(()), |stream| stream.enter(|| here.worker.device.sync()))?;
        }
        Ok(())
    }

    /// The running job of `worker` failed: it is sent again, or its failure waits for its turn.
    fn failed(&mut self, worker: usize, reason: String, hung: bool) -> Result<()> {
        let slot = &mut self.slots[worker];
        let Some(running) = &mut slot.running else { return Ok(()) };
        slot.attempts += 1;
        let handled = match self.policy.on_failure {
            OnFailure::Restart if hung => Handled::Dropped,
            OnFailure::Restart if slot.attempts <= ATTEMPTS => Handled::Restarted,
            OnFailure::Drop => Handled::Dropped,
            OnFailure::Restart => Handled::GivenUp,
            OnFailure::Stop => Handled::Stopped,
        };
        let failure = Failure { worker, job: running.number, reason, hung, handled };
        self.failures.push(failure.clone());
        if handled != Handled::Restarted {
            slot.early = Some(Err(failure));
            return Ok(());
        }
        note!("NOTE       {failure}; it does the job again");
        (running.snapshot.fence, running.delay) = (self.order.clone(), 0.0);
        self.send(worker)
    }

    /// Computes a worker's job with as many others as are there, rounded to a power of two so that few shapes occur; all come early.
    fn compute_together(&mut self, worker: usize) -> Result<()> {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err(Error::Interrupted("interrupted".into()));
        }
        let Some(together) = &mut self.together else { unreachable!("asked for by who computes together") };
        let others = (0..self.slots.len()).filter(|i| *i != worker && self.slots[*i].busy);
        let mut who: Vec<usize> = std::iter::once(worker).chain(others).take(together.most).collect();
        who.truncate(1 << who.len().ilog2());
        let job = |i: &usize| self.slots[*i].running.as_ref().expect("a job in hand runs").clone();
        let jobs: Vec<Job> = who.iter().map(job).collect();
        let asked: Vec<StackedJob> = who
            .iter()
            .zip(&jobs)
            .map(|(i, job)| StackedJob { worker: *i, weights: &job.snapshot.weights, job: job.number })
            .collect();
        let computed = catch_unwind(AssertUnwindSafe(|| together.stacked.gradients(&asked)));
        let computed = computed.unwrap_or_else(|panic| Err(Error::failed(panic_text(&*panic))));
        let gradients = match computed {
            Ok(gradients) => gradients,
            Err(e) => {
                let (job, reason, hung) = (asked[0].job, e.to_string(), false);
                let handled = Handled::GivenUpStacked;
                return Err(Error::Worker(Failure { worker, job, reason, hung, handled }));
            }
        };
        for ((i, job), (buffers, loss)) in who.iter().zip(&jobs).zip(gradients) {
            let Together { device, layout, clip, .. } = together;
            let factor = clip.map(|limit| Box::new(clip::factor(device, layout, &buffers, limit)));
            let slot = &mut self.slots[*i];
            slot.busy = false;
            let (worker, job) = (*i, job.number);
            // On the server's own stream: nothing is to be ordered behind anything.
            slot.early = Some(Ok(Gradient { worker, job, buffers, factor, loss, fence: Fence::default() }));
        }
        Ok(())
    }

    /// Drops the outboxes and waits for the threads.
    pub fn stop(&mut self) {
        for slot in &mut self.slots {
            slot.hand = Hand::Gone;
            // What is running and queued is still to be saved.
            (slot.busy, slot.held, slot.early) = (false, false, None);
        }
        // Whose gradients nobody takes any more keep no room.
        self.room.leave_open();
        for (worker, thread) in self.threads.drain(..).enumerate() {
            // Who hangs is not waited for. A panic inside a worker was already reported through the inbox.
            let hung = self.failures.iter().any(|failure| failure.worker == worker && failure.hung);
            let patience = if hung { Some(Duration::ZERO) } else { self.policy.timeout };
            let began = Instant::now();
            while !thread.is_finished() && patience.is_some_and(|patience| began.elapsed() < patience) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() || patience.is_none() {
                let _ = thread.join();
            }
        }
    }

    /// The answer of the running job, if it is there.
    fn take(&mut self, worker: usize) -> Option<Result<Gradient>> {
        let slot = &mut self.slots[worker];
        let answer = slot.early.take()?;
        slot.attempts = 0;
        Some(answer.map_err(Error::Worker))
    }

    /// The server kept everybody waiting for so long: nobody is to blame for it.
    pub fn excuse(&mut self, pause: Duration) {
        self.slots.iter_mut().for_each(|slot| slot.patience += pause);
    }

    /// Somebody who has had a job for too long.
    fn hangs(&mut self) -> Option<usize> {
        let timeout = self.policy.timeout.filter(|_| self.watched.elapsed() > WATCH)?;
        self.watched = Instant::now();
        let late = |slot: &Slot| slot.busy && slot.running.is_some() && slot.sent.elapsed() > timeout + slot.patience;
        self.slots.iter().position(late)
    }

    /// The next message, whoever sends it.
    fn message(&mut self) -> Result<Message> {
        loop {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Err(Error::Interrupted("interrupted".into()));
            }
            // Who has answered does not hang.
            if let Ok(message) = self.inbox.try_recv() {
                return Ok(message);
            }
            if let Some(worker) = self.hangs() {
                return Ok(Message::Hangs { worker });
            }
            match self.inbox.recv_timeout(WATCH) {
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
            if let Some(worker) = self.heed(message)? {
                return Ok(worker);
            }
        }
    }

    /// Sees to a message; if it is the gradient of a running job, or its failure, that is put by and its worker told.
    fn heed(&mut self, message: Message) -> Result<Option<usize>> {
        // Whoever was given up may say what it likes, and nobody listens.
        let sender = match &message {
            Message::Gradient(gradient, _) => Some(gradient.worker),
            Message::Cancelled { worker } | Message::Failed { worker, .. } => Some(*worker),
            Message::Ready { .. } | Message::Hangs { .. } => None,
        };
        if sender.is_some_and(|worker| matches!(self.slots[worker].hand, Hand::Gone)) {
            return Ok(None);
        }
        let worker = match message {
            Message::Gradient(gradient, _) => {
                let (worker, slot) = (gradient.worker, &mut self.slots[gradient.worker]);
                slot.busy = false;
                if slot.running.as_ref().is_some_and(|running| running.number == gradient.job) {
                    slot.early = Some(Ok(gradient));
                    return Ok(Some(worker));
                }
                worker
            }
            Message::Cancelled { worker } => {
                self.slots[worker].busy = false;
                worker
            }
            Message::Ready { .. } => unreachable!("every worker was ready before the first job"),
            Message::Failed { worker, job, reason } => {
                self.slots[worker].busy = false;
                // A job that was given up meanwhile may fail as it likes.
                if self.slots[worker].running.as_ref().is_some_and(|running| running.number == job) {
                    self.failed(worker, reason, false)?;
                }
                if self.slots[worker].early.is_some() {
                    return Ok(Some(worker));
                }
                worker
            }
            Message::Hangs { worker } => {
                self.gate.replace_a_permit();
                self.room.replace_a_permit();
                let seconds = self.slots[worker].sent.elapsed().as_secs_f64();
                (self.slots[worker].hand, self.slots[worker].busy) = (Hand::Gone, false);
                self.failed(worker, format!("no answer for {seconds:.1} s (--worker-timeout)"), true)?;
                return Ok(Some(worker));
            }
        };
        if std::mem::take(&mut self.slots[worker].held) {
            self.send(worker)?;
        }
        Ok(None)
    }

    /// Gives the worker its running job.
    fn send(&mut self, worker: usize) -> Result<()> {
        let slot = &mut self.slots[worker];
        let Some(job) = &slot.running else { unreachable!("what is sent runs") };
        if self.recalling {
            slot.held = true;
            return Ok(());
        }
        slot.busy = true;
        if self.policy.timeout.is_some() {
            (slot.sent, slot.patience) = (Instant::now(), Duration::from_secs_f64(job.delay.clamp(0.0, 1e9)));
        }
        let told = match &mut slot.hand {
            Hand::Thread(outbox) => {
                // Before the server launches more: the worker may come to it much later. Without a permit, for whoever has it may keep it
                // for a whole step, and this is one launch.
                if let (Some(device), Some(stream)) = (&self.device, slot.stream) {
                    device.wait_fence(stream, &job.snapshot.fence);
                }
                outbox.try_send(Order::Job(job.clone())).is_ok()
            }
            Hand::Here(_) if self.on_streams => {
                if let Some(gradient) = self.answer(worker)? {
                    self.slots[worker].early = Some(Ok(gradient));
                }
                true
            }
            Hand::Here(_) | Hand::Together => true,
            Hand::Gone => {
                // It hangs, and its turn to be given up has not come: this job fails like the last.
                slot.busy = false;
                let hung = self.failures.iter().rev().find(|failure| failure.worker == worker && failure.hung);
                slot.early = hung.map(|failure| Err(Failure { job: job.number, ..failure.clone() }));
                slot.early.is_some()
            }
        };
        if told {
            return Ok(());
        }
        // The thread ended on its own: its last message says why.
        self.receive().and(Err(Error::failed(format!("worker {worker} is gone"))))
    }
}

impl Slot {
    fn new(hand: Hand) -> Self {
        Slot {
            hand,
            stream: None,
            running: None,
            busy: false,
            held: false,
            queue: VecDeque::new(),
            early: None,
            next_job: 0,
            sent: Instant::now(),
            patience: Duration::ZERO,
            attempts: 0,
            lost: false,
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop();
    }
}
