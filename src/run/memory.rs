//! Estimates the memory of a run before it begins.
//!
//! The number of floats that a step keeps ([`Net::activations`](crate::problem::model::Net::activations)) was
//! measured on runs. The terms that depend on the numbers of workers, tables and parameters are counted.
//! `tests/memory.rs` compares the estimate with the memory that runs take.

use crate::engine::state::UpdateSettings;
use crate::error::{Error, Result};
use crate::host::backend::{self, Backend};
use crate::problem::Problem;
use crate::rule::{Needs, ServerOptimizer};
use indicatif::BinaryBytes;
use stagger_kernels::{Device, Dtype, Row, Segment, update};

/// Bytes of the program itself, if it computes in host memory. The drivers of devices that were probed take
/// memory there too: the driver of a software adapter takes twice as much as the program.
const PROGRAM: u64 = 20 << 20;

/// Bytes of a worker's thread, if it computes in host memory.
const THREAD: u64 = 300 << 10;

/// Bytes that the memory pools of a GPU stream hold in addition to the buffers in use.
const STREAM: u64 = 10 << 20;

/// The memory that a run needs, in bytes.
pub struct Need {
    /// All memory of the run, without checkpoints.
    pub total: u64,
    /// The part of `total` that the rule's tables take.
    pub table: u64,
    /// Additional memory while a checkpoint is written in the middle of the run.
    saved: u64,
}

/// When the gradients of a run arrive, compared with the time at which they are computed.
#[derive(Clone, Copy, PartialEq)]
pub enum ArrivalOrder {
    /// As soon as they are computed.
    AtOnce,
    /// In a fixed order that is almost the order in which they are computed, because all jobs take the same
    /// simulated time. Only the order in which the system wakes the threads differs.
    InOrder,
    /// In another order, or later. Gradients that are computed early wait.
    AtTheirTime,
}

impl Need {
    /// Estimates the memory of a run with `workers` workers of `threads` threads each. On the CPU `threads`
    /// is 0 if the server's thread computes all gradients; on a GPU it is `None`.
    pub fn of(
        problem: &Problem,
        workers: usize,
        threads: Option<usize>,
        order: ArrivalOrder,
        needs: &Needs,
        update: &UpdateSettings,
    ) -> Need {
        let estimate = Estimate::new(problem, workers, threads, order, needs, update);
        let table = estimate.table();
        let models = estimate.models() * estimate.model;
        let total = estimate.program() + models + table + estimate.steps() + problem.data_bytes;
        Need { total, table, saved: estimate.checkpoint() }
    }

    /// Adds the memory for checkpoints before the end of the run, which are copied to the memory in which the
    /// run computes.
    pub fn with_checkpoints(self) -> Need {
        Need { total: self.total + self.saved, ..self }
    }

    /// Compares the estimate with the memory of the device.
    ///
    /// # Errors
    ///
    /// If the device has less memory. The message names the flags that reduce the need.
    pub fn check(&self, backend: &Backend, problem: &Problem, workers: usize, update: &UpdateSettings) -> Result<()> {
        let Some(have) = backend.memory.filter(|have| self.total > *have) else { return Ok(()) };
        let narrower = if self.table > 0 && update.table_dtype == Dtype::F32 { ", --table-dtype bf16" } else { "" };
        Err(Error::usage(format!(
            "this run needs about {} and {} has {}: use fewer --workers (now {workers}){narrower} or a \
             smaller --batch (now {}); the table takes {}",
            BinaryBytes(self.total),
            backend.name,
            BinaryBytes(have),
            problem.batches.iter().max().unwrap_or(&1),
            BinaryBytes(self.table)
        )))
    }
}

/// The run whose memory is estimated. Methods that count models return a number of buffers of one model's
/// size; the others return bytes.
struct Estimate<'a> {
    problem: &'a Problem,
    needs: &'a Needs,
    update: &'a UpdateSettings,
    order: ArrivalOrder,
    threads: Option<usize>,
    workers: usize,
    /// Number of workers, as a factor of bytes.
    n: u64,
    /// Bytes of one model.
    model: u64,
    /// Largest number of jobs of a stacked pass; 0 without stacked passes.
    stacked: usize,
    /// Number of workers that compute at the same time.
    computing: u64,
}

impl<'a> Estimate<'a> {
    fn new(
        problem: &'a Problem,
        workers: usize,
        threads: Option<usize>,
        order: ArrivalOrder,
        needs: &'a Needs,
        update: &'a UpdateSettings,
    ) -> Self {
        let stacked = problem.stacked.as_ref().map_or(0, |(_, most)| *most);
        // On a GPU every stream keeps its own memory pool. On the CPU the workers with a permit compute, in
        // memory that all workers share.
        let busy = if has_one_job(needs) { 1 } else { workers };
        let computing = threads.map_or(workers, |t| busy.min((backend::cores() / t.max(1)).max(1)));
        // The replicas of a stacked pass compute at the same time, on models that are copied together.
        let computing = if stacked > 0 { stacked } else { computing } as u64;
        let (n, model) = (workers as u64, 4 * problem.layout.total() as u64);
        Estimate { problem, needs, update, order, threads, workers, n, model, stacked, computing }
    }

    /// Bytes of the rule's tables: one row per worker each.
    fn table(&self) -> u64 {
        let row = 4 * Row::floats(&self.problem.layout, self.update.table_dtype) as u64;
        self.needs.tables as u64 * self.n * row
    }

    /// Models of the server: the newest weights and the next ones, sums, base, optimizer state, and the
    /// shared weights of Hogwild!.
    fn server_models(&self) -> u64 {
        let needs = self.needs;
        let optimizer = match needs.optimizer {
            ServerOptimizer::Plain => {
                (self.update.momentum != 0.0) as u64 * (1 + (self.update.momentum_every > 1) as u64)
            }
            ServerOptimizer::Nesterov { every, .. } => 1 + (every > 1) as u64,
            ServerOptimizer::AmsGrad(..) => 3,
        };
        let sums = (needs.sum as u64).max(needs.tables as u64);
        2 + sums + needs.base as u64 + optimizer + needs.live as u64
    }

    /// Models of the workers. Each worker may have an own model and a running square. A worker in the middle
    /// of its local steps has the sum of its directions, its current weights, the gradient, and two moments
    /// with AdamW. A worker that returns its permit between two steps lets another one begin, so up to twice
    /// as many workers are in the middle of a job as compute.
    fn worker_models(&self) -> u64 {
        let (walks, moments) = (self.needs.local.walks() as u64, self.needs.local.adamw.is_some() as u64);
        let of_all = self.n * (self.needs.own as u64 + self.needs.squares as u64);
        let of_local_steps = (3 + 2 * moments) * walks * self.n.min(2 * self.computing);
        of_all + of_local_steps
    }

    /// Models of unfinished jobs, one per version. Workers that begin together have the same version, and
    /// about as many workers share one as an update takes gradients. A worker's own model is already counted,
    /// unless a peer has changed it since: that concerns half of them. In stacked passes whose workers are
    /// out of step, models are released late.
    fn sent_models(&self) -> u64 {
        if self.stacked > 0 && !self.is_in_step() {
            return self.n;
        }
        match self.needs {
            Needs { synchronous: true, .. } => 1,
            Needs { peers: true, .. } => self.n.div_ceil(2),
            Needs { own: true, .. } => 1,
            _ => self.n.min(self.n / self.needs.gradients.max(1) as u64 + 2),
        }
    }

    /// Gradients that exist at the same time, as a number of models. The workers that compute have one each,
    /// and so has every gradient that waits for its time.
    ///
    /// Without convolutions the server is slower than the workers. Then as many gradients again wait for the
    /// server (the permits allow no more). The allocator has not yet freed the memory of dropped gradients,
    /// which are as many as all of these together. Under simulated time, gradients that are folded in one
    /// launch are added.
    fn gradients(&self) -> u64 {
        let server_is_slower = !self.problem.layout.segments().iter().any(is_convolution);
        let folded =
            if self.needs.sum { update::pending_foldable(&Device::Cpu, &self.problem.layout) as u64 } else { 0 };
        match (self.order, server_is_slower) {
            (ArrivalOrder::AtTheirTime, _) if !has_one_job(self.needs) => self.n,
            (ArrivalOrder::InOrder, true) => self.n.min(4 * self.computing + folded),
            (_, true) => self.n.min(4 * self.computing),
            (_, false) => self.n.min(self.computing + 1),
        }
    }

    /// All models, gradients and other buffers of one model's size, without the tables.
    fn models(&self) -> u64 {
        let stacked = self.stacked as u64;
        let server_and_workers = self.server_models() + self.worker_models();
        match self.threads {
            // The largest pass has the models, and its gradients both together and apart. The buffers of
            // smaller passes stay allocated. Each worker that is not in the pass has one more buffer.
            Some(_) if stacked > 0 => {
                let largest = (3 + !self.is_in_step() as u64 + 2 * self.has_too_many_workers() as u64) * stacked;
                server_and_workers + self.sent_models() + (self.n - stacked) + largest
            }
            _ if stacked > 0 => server_and_workers + self.sent_models() + self.gradients() + 2 * stacked,
            Some(_) => server_and_workers + self.sent_models() + self.gradients(),
            // Per worker on a GPU: the gradient, the snapshot, and a copy of the snapshot on the worker's
            // stream.
            None => server_and_workers + 3 * self.n,
        }
    }

    /// Bytes of the largest packed weights of a layer. On a GPU all layers pack their weights. On the CPU
    /// only convolutions do; a linear layer multiplies by its weights as they are.
    fn largest_packed(&self) -> u64 {
        let packs = self.problem.layout.segments().iter().filter(|s| self.threads.is_none() || is_convolution(s));
        4 * packs.map(|s| s.len).max().unwrap_or(0) as u64
    }

    /// Bytes of the batches and activations of all steps, of packed weights, and of an evaluation.
    fn steps(&self) -> u64 {
        let step = self.problem.step_bytes;
        // Packed weights, the sums of their gradient, and the gradient made of these sums. On the CPU a
        // convolution is packed at 16 points instead of 9 taps.
        let packed = if self.threads.is_some() { 5 } else { 3 } * self.largest_packed();
        let steps = match self.threads {
            // The replicas of a stacked pass share the packed weights, because they compute one after
            // another. Passes of several sizes take a quarter more. They occur if not all workers finish at
            // the same time, or if there are more workers than a pass takes.
            Some(_) if self.stacked > 0 => {
                let has_several_sizes = !self.is_in_step() || self.has_too_many_workers();
                self.computing * (step + has_several_sizes as u64 * step / 4) + packed
            }
            _ => self.computing * (step + packed),
        };
        // On a GPU the server's stream computes stacked passes, in the memory in which it evaluates.
        let evaluation = self.problem.evaluation_bytes;
        if self.stacked > 0 && self.threads.is_none() { steps.max(evaluation) } else { steps + evaluation }
    }

    /// Bytes of the program and its threads; on a GPU, of the streams.
    fn program(&self) -> u64 {
        // If the system uses huge pages for all allocations, a thread takes most of a huge page of 2 MiB, and
        // the program takes several.
        let (huge, page) = if backend::huge_pages_for_all() { (7, 7 << 18) } else { (0, 0) };
        let thread = THREAD + page;
        let streams = if self.stacked > 0 { 1 } else { self.n };
        let program = match self.threads {
            None => streams * STREAM,
            Some(0) => PROGRAM + huge * page + backend::drivers(),
            Some(_) => PROGRAM + huge * page + backend::drivers() + self.n * thread,
        };
        // Threads in addition to a worker's first one, or all threads that compute stacked passes. Each has
        // its own packed weights.
        let more = match self.threads {
            Some(0) if self.stacked > 0 => backend::cores(),
            Some(threads) => self.workers * threads.saturating_sub(1),
            None => 0,
        };
        program + more as u64 * (thread + self.largest_packed())
    }

    /// Additional bytes while a checkpoint is written in the middle of a run: a copy of the buffers that are
    /// written in place, and the models that jobs release meanwhile, one per arrival.
    ///
    /// The copy takes the memory of the last checkpoint's, because only one is written at a time. In the time
    /// of a step, a disk writes about half of `step_bytes`.
    fn checkpoint(&self) -> u64 {
        let copied = (self.server_models() - 2 + self.n * self.needs.squares as u64) * self.model + self.table();
        let sent = self.sent_models();
        let arrivals = 2 * self.computing * (copied + sent * self.model) / self.problem.step_bytes.max(1);
        copied + sent.min(arrivals) * self.model
    }

    /// Whether the workers of a stacked pass finish together.
    fn is_in_step(&self) -> bool {
        self.order != ArrivalOrder::AtTheirTime || self.needs.synchronous
    }

    /// Whether there are more workers than a stacked pass takes.
    fn has_too_many_workers(&self) -> bool {
        self.workers > self.stacked
    }
}

/// Whether only one worker has a job at a time: every gradient is an update, and none is stale.
fn has_one_job(needs: &Needs) -> bool {
    needs.synchronous && !needs.sum && needs.tables == 0
}

/// Whether a segment holds the weights of a convolution.
fn is_convolution(segment: &Segment) -> bool {
    segment.shape.len() == 4
}
