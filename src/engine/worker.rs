//! A worker: its own thread, its own stream, its own replica, its own part of the data.
//!
//! # Threads
//! One OS thread per worker, which is also its stream. It talks to the server through two channels and shares nothing
//! else but the gate and the room. Invariants kept here:
//! * I1: a worker answers each job with one message and takes the next only after that, so neither channel ever holds
//!   more than it was made for and no send blocks.
//! * I5: a gradient is a function of (snapshot, seed, worker, job): the objective gets nothing else.
//! * I8: buffers leave fenced; see [`Fence`].
//!
//! Shutdown: the server drops the outboxes and leaves the room open, `recv` fails, the thread ends, and with the last thread the inbox
//! disconnects.

use crate::engine::clock::stopwatch::Stopwatch;
use crate::engine::gate::{Gate, Permit, Turn};
use crate::engine::timeline::Timeline;
use crate::error::panic_text;
use crate::fault::{Fault, Kind};
use crate::problem::{Objective, Snapshot};
use crate::record::Work;
use crate::rule::Local;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use stagger_kernels::{
    Adam, Buffer, Device, Fence, FoldOp, GradientInput, Layout, Live, OptimizerStep, StepOp, Stream, Update, clip,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// AdamW's constants, of local steps.
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;

/// A gradient to be computed.
#[derive(Clone)]
pub struct Job {
    /// The worker's job number k, which with the seed decides the batch. Given when the job begins.
    pub number: u64,
    /// The model. Its fence is given when the job begins.
    pub snapshot: Snapshot,
    /// The model's version.
    pub version: u64,
    /// Learning rate of local steps (and of a worker that writes the weights itself).
    pub lr: f32,
    /// Local steps, at most [`Local::steps`].
    pub steps: u32,
    /// The job's time as a share of a full job's.
    pub share: f64,
    /// When it began, on the run's axis, in seconds: whose began first computes first. Given when the job begins.
    pub began: f64,
    /// Injected job time that is waited for, in seconds of the wall clock; 0 under simulated time. Given when the job begins.
    pub delay: f64,
}

impl Job {
    /// A job that has not begun: one gradient at this model.
    pub fn at(snapshot: Snapshot, version: u64) -> Self {
        Job { number: 0, snapshot, version, lr: 0.0, steps: 1, share: 1.0, began: 0.0, delay: 0.0 }
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
    pub fence: Fence,
}

/// From a worker to the server: one per job, and one before the first.
// A boxed gradient would be an allocation per arrival.
#[allow(clippy::large_enum_variant)]
pub enum Message {
    /// The worker has made its stream and its memory, and waits for orders.
    Ready {
        /// Who.
        worker: usize,
        /// The stream.
        stream: Stream,
    },
    /// The gradient, with the room that it takes until the server has it.
    Gradient(Gradient, Option<Permit>),
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
    /// Who computes; shared with the other workers.
    pub gate: Gate,
    /// Whose gradient is computed or waits for the server, unless it waits for its time; shared too.
    pub room: Gate,
    /// The run's clock, for injected delays.
    pub stopwatch: Arc<Stopwatch>,
    /// Faults that are to happen; each is taken out when it does.
    pub faults: Vec<Fault>,
    /// Notes when the device computed the first gradients.
    pub timeline: Timeline,
    /// Weights to compute one gradient at before the clock starts. It is thrown away; what remains are compiled kernels and the memory
    /// of this thread and its stream.
    pub warm_up: Option<Snapshot>,
}

impl Worker {
    /// The thread's body: answers orders until the outbox is dropped.
    pub fn run(mut self) {
        let ready = match catch_unwind(AssertUnwindSafe(|| self.warm_up())) {
            Ok(Ok(())) => Message::Ready { worker: self.index, stream: Stream::here() },
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
        self.gate.clone().pass(Turn::First, || self.device.was_written(written).map_err(said))
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
        let turn = self.turn(job);
        let room = if job.delay <= 0.0 { self.room.enter(turn) } else { None };
        let Some(mut gradient) = self.compute(job)? else { return Ok(Message::Cancelled { worker: self.index }) };
        if fault == Some(Kind::Nan) {
            gradient = self.gate.clone().pass(turn, || self.spoiled(gradient));
        }
        if job.delay <= 0.0 {
            return Ok(Message::Gradient(gradient, room));
        }
        // Who waits pushes its own launches out, so that the device computes meanwhile and not afterwards.
        self.gate.pass(turn, || self.device.flush()).map_err(said)?;
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
        Ok(Message::Gradient(gradient, None))
    }

    fn turn(&self, job: &Job) -> Turn {
        Turn::at(job.began, self.index)
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
        Gradient { buffers, loss: nothing(1), fence: self.device.fence(), ..gradient }
    }

    /// Computes the job's gradient; `None` if it was given up before it, or between two local steps.
    fn compute(&mut self, job: &Job) -> Result<Option<Gradient>, String> {
        let turn = self.turn(job);
        let (timeline, done) = (self.timeline.clone(), (Work::Gradient, self.index, job.number));
        let fences = || std::iter::once(&job.snapshot.fence);
        if !self.local.walks() {
            return self.gate.clone().pass(turn, || {
                if self.given_up(job.number) {
                    return Ok(None);
                }
                if !self.objective.is_recorded() {
                    return timeline.note(done, fences(), || self.once(job)).map(Some);
                }
                let device = self.device.clone();
                device.issue(|| timeline.note(done, fences(), || self.once(job))).map_err(said)?.map(Some)
            });
        }
        let (total, stride) = (self.layout.total(), self.local.steps.max(1) as u64);
        // AdamW's moments begin at zero in every job: a gradient is a function of its snapshot alone (I5).
        let (mut sum, mut losses, mut moments) = self.gate.pass(turn, || {
            let zeros = || self.device.zeros(total);
            (zeros(), self.device.zeros(1), self.local.adamw.map(|_| (zeros(), zeros())))
        });
        let mut current = job.snapshot.clone();
        for u in 0..job.steps as u64 {
            if self.given_up(job.number) {
                return Ok(None);
            }
            let gate = self.gate.clone();
            let mut step = || -> Result<(), String> {
                let (buffers, loss) =
                    self.objective.gradient(&current, job.number * stride + u).map_err(|e| e.to_string())?;
                let factor = self.clip.map(|limit| clip::factor(&self.device, &self.layout, &buffers, limit));
                let mut fresh = self.device.uninitialised(total);
                let power = u as i32 + 1;
                let method = moments.as_mut().map_or(OptimizerStep::Plain, |(first, second)| OptimizerStep::Adam {
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
                    gradient: GradientInput {
                        layout: &self.layout,
                        buffers: &buffers,
                        factor: factor.as_ref(),
                        fence: &current.fence,
                        loss: &loss,
                        losses: &mut losses,
                        slot: 0,
                        guard: stagger_kernels::update::Guard::Off,
                    },
                    weights: &current.weights,
                    fold: FoldOp::Local { sum: &mut sum, proximal },
                    step: Some(StepOp {
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
                current = Snapshot { weights: fresh, fence: Fence::default() };
                self.device.flush().map_err(said)
            };
            gate.pass(turn, || timeline.note(done, fences(), &mut step))?;
        }
        let gate = self.gate.clone();
        Ok(Some(gate.pass(turn, || self.fenced(job.number, [sum].into(), None, losses))))
    }

    /// One plain gradient.
    fn once(&mut self, job: &Job) -> Result<Gradient, String> {
        let seen = self.live.as_ref().map(|(live, _)| live.read(&self.device));
        // The fence is the job's: the server must have noted the last loss before it is overwritten.
        let seen = seen.map(|weights| Snapshot { weights, fence: job.snapshot.fence.clone() });
        let snapshot = seen.as_ref().unwrap_or(&job.snapshot);
        let (buffers, loss) = self.objective.gradient(snapshot, job.number).map_err(|e| e.to_string())?;
        let factor = self.clip.map(|limit| clip::factor(&self.device, &self.layout, &buffers, limit));
        if let Some((live, decay)) = &self.live {
            live.step(&self.device, &self.layout, &buffers, factor.as_ref(), job.lr, *decay);
        }
        Ok(self.fenced(job.number, buffers, factor, loss))
    }

    /// Invariant I8: the fence is made after the last write is enqueued. Nobody waits: the queue in front of the thread that issues
    /// launches is one for all, so whoever submits next, a worker or the server, pushes out what is still in it, in order.
    fn fenced(&self, job: u64, buffers: Arc<[Buffer]>, factor: Option<Buffer>, loss: Buffer) -> Gradient {
        Gradient { worker: self.index, job, buffers, factor: factor.map(Box::new), loss, fence: self.device.fence() }
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
