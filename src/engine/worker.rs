//! A worker: its replica, its part of the data, and how it computes a job. All executors except the stacked
//! one compute with [`Worker::answer`].
//!
//! Invariants kept here:
//! * I1: a worker's thread sends exactly one reply per job and takes the next job only afterwards, so no send
//!   blocks.
//! * I5: a gradient is a function of (snapshot, seed, worker, job number): the objective gets nothing else.
//! * I8: buffers leave the worker behind a fence; see [`Fence`].
//!
//! Shutdown: the server drops the outboxes and leaves the room open. Then `recv` fails and the thread ends.
//! After the last thread the inbox disconnects.

use super::clock::stopwatch::Stopwatch;
use super::gate::{Gate, Turn};
use super::job::{Channels, Gradient, Job, Reply, Request};
use super::timeline::Timeline;
use crate::error::{Error, panic_text};
use crate::fault::{Fault, Kind};
use crate::problem::{Objective, Snapshot};
use crate::record::Work;
use crate::rule::Local;
use crossbeam_channel::{RecvTimeoutError, TryRecvError};
use stagger_kernels::update::Guard;
use stagger_kernels::{
    Adam, Buffer, Device, Fence, FoldOp, GradientInput, Layout, Live, OptimizerStep, StepOp, Stream, Update, clip,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// β₁ of AdamW in local steps.
const BETA1: f32 = 0.9;
/// β₂ of AdamW in local steps.
const BETA2: f32 = 0.999;
/// ε of AdamW in local steps.
const EPSILON: f32 = 1e-8;

/// Everything that one worker owns.
pub struct Worker {
    /// Index, from 0.
    pub index: usize,
    /// Replica and data.
    pub objective: Box<dyn Objective>,
    /// The device.
    pub device: Device,
    /// Layout of the model.
    pub layout: Arc<Layout>,
    /// Local steps per job.
    pub local: Local,
    /// Gradients are clipped to this norm.
    pub clip: Option<f32>,
    /// Shared weights that all workers write, and their weight decay (Hogwild!).
    pub live: Option<(Live, f32)>,
    /// Channels to the server; unused without a thread.
    pub channels: Channels,
    /// Permits for computing, shared by all workers.
    pub gate: Gate,
    /// Permits for gradients that are being computed or wait for the server, shared by all workers.
    pub room: Gate,
    /// The run's real time, for simulated delays.
    pub stopwatch: Arc<Stopwatch>,
    /// Injected faults. Each one is removed when it happens.
    pub faults: Vec<Fault>,
    /// Records when the device computes the first gradients.
    pub timeline: Timeline,
    /// A model for one gradient before the clock starts. The gradient is thrown away; compiled kernels and
    /// allocated memory remain.
    pub warm_up: Option<Snapshot>,
}

impl Worker {
    /// Body of the worker's thread: warms up, reports its stream or an error to `ready`, and answers requests
    /// until the server drops the outbox. `ready` returns whether the server still receives.
    pub fn run(mut self, ready: impl FnOnce(Result<Stream, String>) -> bool) {
        let warm = catch_unwind(AssertUnwindSafe(|| self.warm_up()));
        let warm = warm.unwrap_or_else(|panic| Err(panic_text(&*panic)));
        if !ready(warm.map(|()| Stream::here())) {
            return;
        }
        while let Ok(request) = self.channels.requests.recv() {
            // A cancellation that arrives after the reply has no effect.
            let Request::Job(job) = request else { continue };
            // A panic is caught, so the thread can get another job.
            let reply = self.answer(&job);
            // Dropped before the reply is sent, so that the server can write the next model to the same buffer.
            drop(job);
            if self.channels.replies.send(reply).is_err() {
                return;
            }
        }
    }

    /// Computes one gradient and throws it away: kernels are compiled, memory is allocated, and the step is
    /// recorded.
    pub fn warm_up(&mut self) -> Result<(), String> {
        let Some(snapshot) = self.warm_up.take() else { return Ok(()) };
        let job = Job { steps: self.local.steps.clamp(1, 2), ..Job::at(snapshot, 0) };
        let gradient = self.compute(&job)?;
        let written = gradient.iter().flat_map(|g| g.buffers.iter().chain(g.factor.as_deref()).chain([&g.loss]));
        self.gate.clone().pass(Turn::First, || self.device.was_written(written).map_err(sentence))
    }

    /// Computes a job and waits for its simulated delay. An error or a panic becomes a [`Reply::Failed`].
    pub fn answer(&mut self, job: &Job) -> Reply {
        let (worker, number) = (self.index, job.number);
        let failed = |reason| Reply::Failed { worker, job: number, reason };
        match catch_unwind(AssertUnwindSafe(|| self.compute_and_wait(job))) {
            Ok(Ok(reply)) => reply,
            Ok(Err(reason)) => failed(reason),
            Err(panic) => failed(panic_text(&*panic)),
        }
    }

    fn compute_and_wait(&mut self, job: &Job) -> Result<Reply, String> {
        let began = if job.delay > 0.0 { self.stopwatch.seconds() } else { 0.0 };
        let fault = self.take_fault(job.number);
        match fault {
            Some(Kind::Panic) => panic!("injected by --inject"),
            Some(Kind::Hang) => return Ok(self.hang(job.number)),
            _ => {}
        }
        let turn = self.turn(job);
        let room = if job.delay <= 0.0 { self.room.enter(turn) } else { None };
        let Some(mut gradient) = self.compute(job)? else { return Ok(self.cancelled()) };
        if fault == Some(Kind::Nan) {
            gradient = self.gate.clone().pass(turn, || self.with_nan(gradient));
        }
        if job.delay <= 0.0 {
            return Ok(Reply::Gradient(gradient, room));
        }
        // Flushed before the wait, so that the device computes during the wait and not after it.
        self.gate.pass(turn, || self.device.flush()).map_err(sentence)?;
        if self.wait_until(began + job.delay, job.number) {
            return Ok(self.cancelled());
        }
        Ok(Reply::Gradient(gradient, None))
    }

    /// Waits without a permit until the stopwatch shows `time`, in seconds; returns whether the job was
    /// cancelled meanwhile.
    fn wait_until(&self, time: f64, job: u64) -> bool {
        // An evaluation stops the stopwatch, so it is read again after every wait.
        while let Some(left) = self.stopwatch.until(time) {
            match self.channels.requests.recv_timeout(left) {
                Ok(Request::Cancel(number)) if number == job => return true,
                Ok(Request::Cancel(_)) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Request::Job(_)) => unreachable!("a worker gets its next job after its reply (I1)"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        false
    }

    fn cancelled(&self) -> Reply {
        Reply::Cancelled { worker: self.index }
    }

    fn turn(&self, job: &Job) -> Turn {
        Turn::at(job.began, self.index)
    }

    /// The injected fault of this job, unless it has happened already.
    fn take_fault(&mut self, job: u64) -> Option<Kind> {
        let at = self.faults.iter().position(|fault| fault.job == job && !matches!(fault.kind, Kind::Slow(_)))?;
        Some(self.faults.swap_remove(at).kind)
    }

    /// Blocks until the job is cancelled or the run ends.
    fn hang(&self, job: u64) -> Reply {
        while let Ok(request) = self.channels.requests.recv() {
            if matches!(request, Request::Cancel(number) if number == job) {
                break;
            }
        }
        self.cancelled()
    }

    /// The same gradient with NaN in place of every value and of the loss.
    fn with_nan(&self, gradient: Gradient) -> Gradient {
        let nan = |len: usize| self.device.upload(vec![f32::NAN; len]);
        let buffers = gradient.buffers.iter().map(|buffer| nan(buffer.len())).collect();
        Gradient { buffers, loss: nan(1), fence: self.device.fence(), ..gradient }
    }

    /// Computes the job's gradient. `None` if the job was cancelled before it, or between two local steps.
    fn compute(&mut self, job: &Job) -> Result<Option<Gradient>, String> {
        if self.local.walks() {
            return self.local_steps(job);
        }
        let (timeline, work) = (self.timeline.clone(), (Work::Gradient, self.index, job.number));
        let fences = || std::iter::once(&job.snapshot.fence);
        self.gate.clone().pass(self.turn(job), || {
            if self.is_cancelled(job.number) {
                return Ok(None);
            }
            if !self.objective.is_recorded() {
                return timeline.note(work, fences(), || self.one_gradient(job)).map(Some);
            }
            let device = self.device.clone();
            device.issue(|| timeline.note(work, fences(), || self.one_gradient(job))).map_err(sentence)?.map(Some)
        })
    }

    /// Takes the job's local steps. The gradient is the sum of their directions. The permit is returned
    /// between two steps.
    fn local_steps(&mut self, job: &Job) -> Result<Option<Gradient>, String> {
        let turn = self.turn(job);
        let gate = self.gate.clone();
        let total = self.layout.total();
        // AdamW's moments start at zero in every job: a gradient is a function of its snapshot alone (I5).
        let mut walk = gate.pass(turn, || {
            let zeros = || self.device.zeros(total);
            Walk {
                sum: zeros(),
                losses: self.device.zeros(1),
                moments: self.local.adamw.map(|_| (zeros(), zeros())),
                current: job.snapshot.clone(),
            }
        });
        let (timeline, work) = (self.timeline.clone(), (Work::Gradient, self.index, job.number));
        for step in 0..job.steps {
            if self.is_cancelled(job.number) {
                return Ok(None);
            }
            let fences = std::iter::once(&job.snapshot.fence);
            gate.pass(turn, || timeline.note(work, fences, || self.local_step(job, step, &mut walk)))?;
        }
        Ok(Some(gate.pass(turn, || self.fenced(job.number, [walk.sum].into(), None, walk.losses))))
    }

    /// One local step, counted from 0: a gradient at the current weights, and one fused launch that makes the
    /// next weights.
    fn local_step(&mut self, job: &Job, step: u32, walk: &mut Walk) -> Result<(), String> {
        let steps_per_job = self.local.steps.max(1) as u64;
        let batch = job.number * steps_per_job + step as u64;
        let (buffers, loss) = self.objective.gradient(&walk.current, batch).map_err(|e| e.to_string())?;
        let factor = self.clip.map(|limit| clip::factor(&self.device, &self.layout, &buffers, limit));
        let mut fresh = self.device.uninitialised(self.layout.total());
        let power = step as i32 + 1;
        let method = walk.moments.as_mut().map_or(OptimizerStep::Plain, |(first, second)| OptimizerStep::Adam {
            first,
            second,
            largest: None,
            constants: Adam {
                beta1: BETA1,
                beta2: BETA2,
                epsilon: EPSILON,
                correction1: 1.0 - BETA1.powi(power),
                correction2: 1.0 - BETA2.powi(power),
            },
        });
        // In the first step w = x, so the proximal term is zero.
        let is_proximal = self.local.proximal > 0.0 && step > 0;
        let proximal = is_proximal.then_some((&job.snapshot.weights, self.local.proximal as f32));
        Update {
            gradient: GradientInput {
                layout: &self.layout,
                buffers: &buffers,
                factor: factor.as_ref(),
                fence: &walk.current.fence,
                loss: &loss,
                losses: &mut walk.losses,
                slot: 0,
                guard: Guard::Off,
            },
            weights: &walk.current.weights,
            fold: FoldOp::Local { sum: &mut walk.sum, proximal },
            step: Some(StepOp {
                fresh: &mut fresh,
                lr: self.local.lr.map_or(job.lr, |lr| lr as f32),
                scale: 1.0,
                keep: 1.0,
                weight_decay: self.local.adamw.unwrap_or(0.0) as f32,
                base: None,
                method,
            }),
        }
        .run(&self.device);
        walk.current = Snapshot { weights: fresh, fence: Fence::default() };
        self.device.flush().map_err(sentence)
    }

    /// One plain gradient.
    fn one_gradient(&mut self, job: &Job) -> Result<Gradient, String> {
        let shared = self.live.as_ref().map(|(live, _)| live.read(&self.device));
        // The fence is the job's, because the server must have read the last loss before it is overwritten.
        let shared = shared.map(|weights| Snapshot { weights, fence: job.snapshot.fence.clone() });
        let snapshot = shared.as_ref().unwrap_or(&job.snapshot);
        let (buffers, loss) = self.objective.gradient(snapshot, job.number).map_err(|e| e.to_string())?;
        let factor = self.clip.map(|limit| clip::factor(&self.device, &self.layout, &buffers, limit));
        if let Some((live, decay)) = &self.live {
            live.step(&self.device, &self.layout, &buffers, factor.as_ref(), job.lr, *decay);
        }
        Ok(self.fenced(job.number, buffers, factor, loss))
    }

    /// A gradient with its fence. Invariant I8: the fence is made after the last write is enqueued. No flush
    /// is needed: all threads submit to the queue of the one thread that issues launches, so the next
    /// submission by any thread also issues the earlier ones, in order.
    fn fenced(&self, job: u64, buffers: Arc<[Buffer]>, factor: Option<Buffer>, loss: Buffer) -> Gradient {
        Gradient { worker: self.index, job, buffers, factor: factor.map(Box::new), loss, fence: self.device.fence() }
    }

    /// Whether the job was cancelled or the run has ended.
    fn is_cancelled(&self, job: u64) -> bool {
        loop {
            match self.channels.requests.try_recv() {
                Ok(Request::Cancel(number)) if number == job => return true,
                Ok(_) => {}
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }
}

/// State of a job with local steps.
struct Walk {
    /// Sum of the directions so far.
    sum: Buffer,
    /// The last step's loss.
    losses: Buffer,
    /// First and second moment of AdamW.
    moments: Option<(Buffer, Buffer)>,
    /// The weights of the next step.
    current: Snapshot,
}

/// The error message of a device's failure.
fn sentence(error: stagger_kernels::DeviceError) -> String {
    Error::from(error).to_string()
}
