//! A worker: its own thread, its own stream, its own replica, its own part of the data.
//!
//! # Threads
//! One OS thread per worker, which is also its stream. It talks to the server through two channels and shares nothing
//! else but the gate. Invariants kept here:
//! * I1: a worker answers each job with one message and takes the next only after that, so neither channel ever holds
//!   more than it was made for and no send blocks.
//! * I5: a gradient is a function of (snapshot, seed, worker, job): the objective gets nothing else.
//! * I8: buffers leave sealed; see [`Seal`].
//!
//! Shutdown: the server drops the outboxes, `recv` fails, the thread ends, and with the last thread the inbox disconnects.

use crate::fault::{Fault, Kind};
use crate::problem::{Objective, Snapshot};
use crate::rule::Local;
use crate::stopwatch::Stopwatch;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use stagger_kernels::{Adam, Buffer, Device, Fold, Incoming, Layout, Live, Method, Seal, Step, Update, clip};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// AdamW's constants, of local steps.
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;

/// A gradient to be computed.
#[derive(Clone)]
pub struct Job {
    /// The worker's job number k, which with the seed decides the batch. Given when the job begins.
    pub number: u64,
    /// The model. Its seal is given when the job begins.
    pub snapshot: Snapshot,
    /// The model's version.
    pub version: u64,
    /// Learning rate of local steps (and of a worker that writes the weights itself).
    pub lr: f32,
    /// Local steps, at most [`Local::steps`].
    pub steps: u32,
    /// The job's time as a share of a full job's.
    pub share: f64,
    /// Injected job time that is waited for, in seconds of the wall clock; 0 under simulated time. Given when the job begins.
    pub delay: f64,
}

impl Job {
    /// A job that has not begun: one gradient at this model.
    pub fn at(snapshot: Snapshot, version: u64) -> Self {
        Job { number: 0, snapshot, version, lr: 0.0, steps: 1, share: 1.0, delay: 0.0 }
    }
}

/// From the server to a worker.
pub enum Order {
    /// Compute this.
    Job(Job),
    /// Give up the job of this number, if it is still running.
    Cancel(u64),
}

/// A computed gradient on its way to the server: handles, no bytes.
#[derive(Clone)]
pub struct Gradient {
    /// Who computed it.
    pub worker: usize,
    /// The job it answers.
    pub job: u64,
    /// One buffer per segment of the layout (one in all after local steps).
    pub buffers: Arc<[Buffer]>,
    /// One float with which the gradient is multiplied when it is read, if it was clipped.
    // Boxed, because few runs clip and every gradient is moved.
    pub factor: Option<Box<Buffer>>,
    /// The batch loss: one float on the device.
    pub loss: Buffer,
    /// Orders the server behind the backward pass.
    pub seal: Seal,
}

/// From a worker to the server: one per job, and one before the first.
// A boxed gradient would be an allocation per arrival.
#[allow(clippy::large_enum_variant)]
pub enum Message {
    /// The worker has made its stream and its memory, and waits for orders.
    Ready,
    /// The gradient.
    Gradient(Gradient),
    /// From the watch, not from the worker: it has not answered for too long.
    Hangs {
        /// Who.
        worker: usize,
    },
    /// The job was given up.
    Cancelled {
        /// Who gave it up.
        worker: usize,
    },
    /// The worker failed.
    Failed {
        /// Who failed.
        worker: usize,
        /// In which job.
        job: u64,
        /// Why.
        reason: String,
    },
}

/// Lets a few workers compute at a time. A permit that comes back goes to somebody who waits for one.
///
/// On a GPU one permit: a device's launches are issued by one thread of the runtime anyway, and more producers only
/// starve it; the kernels of different streams overlap all the same. On the CPU as many as there are cores to compute on,
/// so that workers do not push each other out of the caches.
#[derive(Clone)]
pub struct Gate {
    permits: Option<(Receiver<()>, Sender<()>)>,
    /// After so long nobody waits for a permit any more: who has it hangs.
    patience: Option<Duration>,
}

impl Gate {
    /// A gate with `permits` permits.
    pub fn new(permits: usize) -> Self {
        let (give, take) = bounded(permits);
        (0..permits).for_each(|_| give.send(()).expect("the channel has room for every permit"));
        Gate { permits: Some((take, give)), patience: None }
    }

    /// A gate that lets everybody through, where there is only one thread.
    pub fn open() -> Self {
        Gate { permits: None, patience: None }
    }

    /// The same, where a worker without an answer after so long counts as hanging.
    pub fn patient(self, patience: Option<Duration>) -> Self {
        Gate { patience, ..self }
    }

    /// A permit in the place of one that a hanging worker may hold.
    pub fn replace_a_permit(&self) {
        if let Some((_, give)) = &self.permits {
            let _ = give.try_send(());
        }
    }

    /// Waits for a permit; false if none came in time.
    fn take(&self, take: &Receiver<()>) -> bool {
        match self.patience {
            None => take.recv().is_ok(),
            Some(patience) => take.recv_timeout(patience).is_ok(),
        }
    }

    /// Runs `work` while nobody has a permit: waits for those who have one, and keeps the others out. For the server
    /// alone; two at a time would wait for each other.
    pub fn closed<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some((take, give)) = &self.permits else { return work() };
        let permits = give.capacity().expect("the channel is bounded");
        let taken = (0..permits).filter(|_| self.take(take)).count();
        let _back = Back { give, permits: taken };
        work()
    }

    /// Runs `work` with a permit.
    pub fn pass<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some((take, give)) = &self.permits else { return work() };
        if !self.take(take) {
            return work();
        }
        let _back = Back { give, permits: 1 };
        work()
    }
}

/// Permits that go back in the end, even if what was done with them panics, so that nobody is locked out for ever.
struct Back<'a> {
    give: &'a Sender<()>,
    permits: usize,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        // There is room, unless one was replaced meanwhile.
        (0..self.permits).for_each(|_| _ = self.give.try_send(()));
    }
}

#[cfg(test)]
#[test]
fn a_patient_gate_goes_on_without_a_permit_that_never_comes_back() {
    let gate = Gate::new(1).patient(Some(Duration::from_millis(300)));
    let (let_go, held) = bounded::<()>(1);
    let (hold, (begins, began)) = (gate.clone(), bounded::<()>(1));
    let hangs = std::thread::spawn(move || {
        hold.pass(|| {
            begins.send(()).unwrap();
            let _ = held.recv();
        })
    });
    began.recv().unwrap();
    // Nobody waits for ever: neither who computes, nor who closes the gate.
    assert_eq!((gate.pass(|| 1), gate.closed(|| 2)), (1, 2));
    gate.replace_a_permit();
    let again = std::time::Instant::now();
    assert_eq!(gate.pass(|| 3), 3);
    assert!(again.elapsed() < Duration::from_millis(250), "the permit in its place is there at once");
    drop(let_go);
    hangs.join().unwrap();
    // One too many is not kept.
    assert_eq!(gate.closed(|| gate.permits.as_ref().unwrap().0.len()), 0);
}

#[cfg(test)]
#[test]
fn permits_come_back_from_a_panic() {
    let gate = Gate::new(2);
    let fails = |work: &dyn Fn()| assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
    fails(&|| gate.pass(|| panic!("with one permit")));
    fails(&|| gate.closed(|| panic!("with all of them")));
    assert_eq!(gate.permits.as_ref().unwrap().0.len(), 2);
}

/// Everything that a worker's thread owns.
pub struct Worker {
    /// Its number.
    pub index: usize,
    /// Its objective: replica and data.
    pub objective: Box<dyn Objective>,
    /// The device.
    pub device: Device,
    /// The model's layout.
    pub layout: Arc<Layout>,
    /// Local steps per job.
    pub local: Local,
    /// Gradients are clipped to this norm.
    pub clip: Option<f32>,
    /// The weights that everybody writes, and their weight decay, for a rule that has such.
    pub live: Option<(Live, f32)>,
    /// Orders come from here.
    pub outbox: Receiver<Order>,
    /// Answers go there.
    pub inbox: Sender<Message>,
    /// Shared with the other workers.
    pub gate: Gate,
    /// The run's clock, for injected delays.
    pub stopwatch: Arc<Stopwatch>,
    /// Faults that are to happen; each is taken out when it does.
    pub faults: Vec<Fault>,
    /// Weights to compute one gradient at before the clock starts. It is thrown away; what remains are compiled kernels and the memory
    /// of this thread and its stream.
    pub warm_up: Option<Snapshot>,
}

impl Worker {
    /// The thread's body: answers orders until the outbox is dropped.
    pub fn run(mut self) {
        let ready = match catch_unwind(AssertUnwindSafe(|| self.warm_up())) {
            Ok(Ok(())) => Message::Ready,
            Ok(Err(reason)) => Message::Failed { worker: self.index, job: 0, reason },
            Err(panic) => Message::Failed { worker: self.index, job: 0, reason: panic_text(&*panic) },
        };
        if self.inbox.send(ready).is_err() {
            return;
        }
        while let Ok(order) = self.outbox.recv() {
            // A cancellation that comes after the answer finds nothing to give up.
            let Order::Job(job) = order else { continue };
            // A panic was caught: the thread lives, and may be asked again.
            let message = self.answer(&job);
            // Before the answer: who gets it may write the next model where this one lay.
            drop(job);
            if self.inbox.send(message).is_err() {
                return;
            }
        }
    }

    /// Computes one gradient that the server does not get: kernels are compiled, memory is taken, a step is recorded.
    pub fn warm_up(&mut self) -> Result<(), String> {
        let Some(snapshot) = self.warm_up.take() else { return Ok(()) };
        let job = Job { steps: self.local.steps.clamp(1, 2), ..Job::at(snapshot, 0) };
        let gradient = self.compute(&job)?;
        let written = gradient.iter().flat_map(|g| g.buffers.iter().chain(g.factor.as_deref()).chain([&g.loss]));
        self.gate.clone().pass(|| self.device.was_written(written).map_err(said))
    }

    /// Computes a job and waits for its time; a failure or a panic becomes a message.
    pub fn answer(&mut self, job: &Job) -> Message {
        let number = job.number;
        match catch_unwind(AssertUnwindSafe(|| self.compute_and_wait(job))) {
            Ok(Ok(message)) => message,
            Ok(Err(reason)) => Message::Failed { worker: self.index, job: number, reason },
            Err(panic) => Message::Failed { worker: self.index, job: number, reason: panic_text(&*panic) },
        }
    }

    fn compute_and_wait(&mut self, job: &Job) -> Result<Message, String> {
        let began = if job.delay > 0.0 { self.stopwatch.seconds() } else { 0.0 };
        let fault = self.fault(job.number);
        match fault {
            Some(Kind::Panic) => panic!("injected by --inject"),
            Some(Kind::Hang) => return Ok(self.hang(job.number)),
            _ => {}
        }
        let Some(mut gradient) = self.compute(job)? else { return Ok(Message::Cancelled { worker: self.index }) };
        if fault == Some(Kind::Nan) {
            gradient = self.gate.clone().pass(|| self.spoiled(gradient));
        }
        if job.delay <= 0.0 {
            return Ok(Message::Gradient(gradient));
        }
        // Who waits pushes its own launches out, so that the device computes meanwhile and not afterwards.
        self.gate.pass(|| self.device.flush()).map_err(said)?;
        let until = began + job.delay;
        // The injected time is waited for without a permit. Evaluation stops the clock, so ask it again after waking.
        while let Some(left) = self.stopwatch.until(until) {
            match self.outbox.recv_timeout(left) {
                Ok(Order::Cancel(number)) if number == job.number => {
                    return Ok(Message::Cancelled { worker: self.index });
                }
                Ok(Order::Cancel(_)) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Order::Job(_)) => unreachable!("a worker gets its next job after its answer (I1)"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(Message::Gradient(gradient))
    }

    /// The fault of this job, if there is one that has not happened yet.
    fn fault(&mut self, job: u64) -> Option<Kind> {
        let at = self.faults.iter().position(|fault| fault.job == job && !matches!(fault.kind, Kind::Slow(_)))?;
        Some(self.faults.swap_remove(at).kind)
    }

    /// Does nothing until the job is given up or the run is over.
    fn hang(&self, job: u64) -> Message {
        while let Ok(order) = self.outbox.recv() {
            if matches!(order, Order::Cancel(number) if number == job) {
                break;
            }
        }
        Message::Cancelled { worker: self.index }
    }

    /// The gradient without a number in it.
    fn spoiled(&self, gradient: Gradient) -> Gradient {
        let nothing = |len: usize| self.device.upload(vec![f32::NAN; len]);
        let buffers = gradient.buffers.iter().map(|buffer| nothing(buffer.len())).collect();
        Gradient { buffers, loss: nothing(1), seal: self.device.seal(), ..gradient }
    }

    /// Computes the job's gradient; `None` if it was given up before it, or between two local steps.
    fn compute(&mut self, job: &Job) -> Result<Option<Gradient>, String> {
        if !self.local.walks() {
            return self.gate.clone().pass(|| {
                if self.given_up(job.number) {
                    return Ok(None);
                }
                if !self.objective.is_recorded() {
                    return self.once(job).map(Some);
                }
                let device = self.device.clone();
                device.issue(|| self.once(job)).map_err(said)?.map(Some)
            });
        }
        let (total, stride) = (self.layout.total(), self.local.steps.max(1) as u64);
        // AdamW's moments begin at zero in every job: a gradient is a function of its snapshot alone (I5).
        let (mut sum, mut losses, mut moments) = self.gate.pass(|| {
            let zeros = || self.device.zeros(total);
            (zeros(), self.device.zeros(1), self.local.adamw.map(|_| (zeros(), zeros())))
        });
        let mut current = job.snapshot.clone();
        for u in 0..job.steps as u64 {
            if self.given_up(job.number) {
                return Ok(None);
            }
            let gate = self.gate.clone();
            gate.pass(|| -> Result<(), String> {
                let (buffers, loss) =
                    self.objective.gradient(&current, job.number * stride + u).map_err(|e| e.to_string())?;
                let factor = self.clip.map(|limit| clip::factor(&self.device, &self.layout, &buffers, limit));
                let mut fresh = self.device.uninitialised(total);
                let power = u as i32 + 1;
                let method = moments.as_mut().map_or(Method::Plain, |(first, second)| Method::Adam {
                    first,
                    second,
                    largest: None,
                    constants: Adam {
                        beta1: BETA1,
                        beta2: BETA2,
                        epsilon: 1e-8,
                        correction1: 1.0 - BETA1.powi(power),
                        correction2: 1.0 - BETA2.powi(power),
                    },
                });
                let proximal =
                    (self.local.proximal > 0.0 && u > 0).then_some((&job.snapshot.weights, self.local.proximal as f32));
                Update {
                    gradient: Incoming {
                        layout: &self.layout,
                        buffers: &buffers,
                        factor: factor.as_ref(),
                        seal: &current.seal,
                        loss: &loss,
                        losses: &mut losses,
                        slot: 0,
                        guard: stagger_kernels::update::Guard::Off,
                    },
                    weights: &current.weights,
                    fold: Fold::Local { sum: &mut sum, proximal },
                    step: Some(Step {
                        fresh: &mut fresh,
                        lr: self.local.lr.map_or(job.lr, |lr| lr as f32),
                        factor: 1.0,
                        keep: 1.0,
                        weight_decay: self.local.adamw.unwrap_or(0.0) as f32,
                        base: None,
                        method,
                    }),
                }
                .run(&self.device);
                current = Snapshot { weights: fresh, seal: Seal::default() };
                self.device.flush().map_err(said)
            })?;
        }
        let gate = self.gate.clone();
        Ok(Some(gate.pass(|| self.sealed(job.number, [sum].into(), None, losses))))
    }

    /// One plain gradient.
    fn once(&mut self, job: &Job) -> Result<Gradient, String> {
        let seen = self.live.as_ref().map(|(live, _)| live.read(&self.device));
        // The seal is the job's: the server must have noted the last loss before it is overwritten.
        let seen = seen.map(|weights| Snapshot { weights, seal: job.snapshot.seal.clone() });
        let snapshot = seen.as_ref().unwrap_or(&job.snapshot);
        let (buffers, loss) = self.objective.gradient(snapshot, job.number).map_err(|e| e.to_string())?;
        let factor = self.clip.map(|limit| clip::factor(&self.device, &self.layout, &buffers, limit));
        if let Some((live, decay)) = &self.live {
            live.step(&self.device, &self.layout, &buffers, factor.as_ref(), job.lr, *decay);
        }
        Ok(self.sealed(job.number, buffers, factor, loss))
    }

    /// Invariant I8: the seal is made after the last write is enqueued. Nobody waits: the queue in front of the thread that issues
    /// launches is one for all, so the server's next update pushes out what is still in it, in order.
    fn sealed(&self, job: u64, buffers: Arc<[Buffer]>, factor: Option<Buffer>, loss: Buffer) -> Gradient {
        Gradient { worker: self.index, job, buffers, factor: factor.map(Box::new), loss, seal: self.device.seal() }
    }

    /// Whether the job was cancelled, or the run is over.
    fn given_up(&self, job: u64) -> bool {
        loop {
            match self.outbox.try_recv() {
                Ok(Order::Cancel(number)) if number == job => return true,
                Ok(_) => {}
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }
}

/// What a device's failure means, as a sentence.
fn said(error: stagger_kernels::DeviceError) -> String {
    crate::error::Error::from(error).to_string()
}

/// The sentence inside a panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
        .unwrap_or_else(|| "panic without a message".into())
}
