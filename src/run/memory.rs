//! How much memory a run takes, worked out before it begins.
//!
//! The numbers of floats that a step keeps ([`Net::activations`](crate::problem::model::Net::activations)) were read off runs; what follows from
//! numbers of workers, tables and parameters is counted. `tests/memory.rs` holds the sum against what runs really took.

use crate::engine::state::UpdateSettings;
use crate::error::{Error, Result};
use crate::host::backend::{self, Backend};
use crate::problem::Problem;
use crate::rule::{Needs, ServerOptimizer};
use stagger_kernels::{Device, Dtype, Row, Segment, update};

/// Bytes of the program itself, and of a worker's thread, where they lie in the same memory. Drivers that were asked for a device take
/// memory there, too: the one of a software adapter twice as much as the program.
const PROGRAM: u64 = 20 << 20;
const THREAD: u64 = 300 << 10;

/// Bytes that the pools of a GPU's stream hold too many.
const STREAM: u64 = 10 << 20;

/// Bytes that a run needs.
pub struct Need {
    /// All of it.
    pub total: u64,
    /// Of these the rule's table.
    pub table: u64,
    /// Besides, what is taken while a checkpoint is written.
    saved: u64,
}

/// How the server comes by results.
#[derive(Clone, Copy, PartialEq)]
pub enum ArrivalOrder {
    /// As they are computed.
    AtOnce,
    /// In an order in which they are computed, too, up to whose thread the system wakes first: all jobs take the same simulated time.
    InOrder,
    /// In another order, or later: those that are computed wait.
    AtTheirTime,
}

impl Need {
    /// For `workers` of `threads` threads each (on the CPU; 0 if they are computed on the spot, `None` on a GPU).
    pub fn of(
        problem: &Problem,
        workers: usize,
        threads: Option<usize>,
        come: ArrivalOrder,
        needs: &Needs,
        descent: &UpdateSettings,
    ) -> Need {
        let (model, n) = (4 * problem.layout.total() as u64, workers as u64);
        let row = 4 * Row::floats(&problem.layout, descent.table_dtype) as u64;
        let table = needs.tables as u64 * n * row;
        // Of the server: newest weights and the next, sums, base, momentum.
        let drive = match needs.optimizer {
            ServerOptimizer::Plain => (descent.momentum != 0.0) as u64 * (1 + (descent.momentum_every > 1) as u64),
            ServerOptimizer::Nesterov { every, .. } => 1 + (every > 1) as u64,
            ServerOptimizer::AmsGrad(..) => 3,
        };
        let server = 2 + (needs.sum as u64).max(needs.tables as u64) + needs.base as u64 + drive + needs.live as u64;
        // On a GPU every stream keeps its own pool; on the CPU those with a permit compute, in memory that all share. Where every gradient is
        // a step and none is stale, only one has a job.
        let alone = needs.synchronous && !needs.sum && needs.tables == 0;
        let busy = if alone { 1 } else { workers };
        let computing = threads.map_or(workers, |t| busy.min((backend::cores() / t.max(1)).max(1)));
        // Stacked replicas compute at once, on models that were copied together.
        let stacked = problem.stacked.as_ref().map_or(0, |(_, most)| *most);
        let computing = if stacked > 0 { stacked } else { computing } as u64;
        // Of each worker: its own model, squares. Of those who compute: sum, point and moments of local steps, and the gradient;
        // whoever makes way between two steps lets one more begin.
        let (walks, moments) = (needs.local.walks() as u64, needs.local.adamw.is_some() as u64);
        let each = n * (needs.own as u64 + needs.squares as u64) + (3 + 2 * moments) * walks * n.min(2 * computing);
        // What a job was sent: one version each, but the same for all where they begin together, and for about as many as an update
        // takes gradients. A model of the worker's own has been counted, unless a peer changed it meanwhile: half of them.
        let sent = match needs {
            Needs { synchronous: true, .. } => 1,
            Needs { peers: true, .. } => n.div_ceil(2),
            Needs { own: true, .. } => 1,
            _ => n.min(n / needs.gradients.max(1) as u64 + 2),
        };
        // Stacked, models are let go of late where workers are out of step.
        let together = come != ArrivalOrder::AtTheirTime || needs.synchronous;
        let sent = if stacked > 0 && !together { n } else { sent };
        // Gradients: of those who compute, and of all whose result waits for its time. Without convolutions the server is slower than they
        // are: as many again wait (there is no room for more), and as many as all these were let go of, but not yet by the allocator; and in
        // simulated time those that are folded in one launch.
        let convolves = |segment: &Segment| segment.shape.len() == 4;
        let slow = !problem.layout.segments().iter().any(convolves);
        let folded = if needs.sum { update::pending_foldable(&Device::Cpu, &problem.layout) as u64 } else { 0 };
        let gradients = match (come, slow) {
            (ArrivalOrder::AtTheirTime, _) if !alone => n,
            (ArrivalOrder::InOrder, true) => n.min(4 * computing + folded),
            (_, true) => n.min(4 * computing),
            (_, false) => n.min(computing + 1),
        };
        // Passes are of several sizes where not all workers finish at once, and where too many do.
        let crowd = workers > stacked;
        let varied = !together || crowd;
        let models = match threads {
            // Of the largest pass: the models, and the gradients together and apart. Smaller ones leave buffers that lie idle.
            Some(_) if stacked > 0 => {
                let largest = (3 + !together as u64 + 2 * crowd as u64) * stacked as u64;
                server + each + sent + (n - stacked as u64) + largest
            }
            _ if stacked > 0 => server + each + sent + gradients + 2 * stacked as u64,
            Some(_) => server + each + sent + gradients,
            // Gradient, snapshot, and its copy on the worker's stream.
            None => server + each + 3 * n,
        };
        // Packed weights, the sums of their gradient and what is made of them; on the CPU those of a convolution at 16 points instead of 9
        // taps, while a linear layer multiplies by its weights as they are.
        let packs = problem.layout.segments().iter().filter(|s| threads.is_none() || convolves(s));
        let largest = 4 * packs.map(|s| s.len).max().unwrap_or(0) as u64;
        let packed = if threads.is_some() { 5 } else { 3 } * largest;
        let steps = match threads {
            // One replica after the other. Of several sizes a quarter more.
            Some(_) if stacked > 0 => {
                computing * (problem.step_bytes + varied as u64 * problem.step_bytes / 4) + packed
            }
            _ => computing * (problem.step_bytes + packed),
        };
        // The server's stream computes what is stacked, with the memory that it evaluates in.
        let evaluation = problem.evaluation_bytes;
        let steps = if stacked > 0 && threads.is_none() { steps.max(evaluation) } else { steps + evaluation };
        // Where the system gives huge pages to whoever asks for memory, a thread takes nearly one, and the program some.
        let (huge, page) = if backend::huge_pages_for_all() { (7, 7 << 18) } else { (0, 0) };
        let thread = THREAD + page;
        let program = threads.map_or(if stacked > 0 { 1 } else { n } * STREAM, |t| {
            PROGRAM + huge * page + backend::drivers() + if t > 0 { n * thread } else { 0 }
        });
        // Threads beyond a worker's first, or all that compute what is stacked.
        let more = match threads {
            Some(0) if stacked > 0 => backend::cores(),
            Some(t) => workers * t.saturating_sub(1),
            None => 0,
        };
        let program = program + more as u64 * (thread + largest);
        // A checkpoint in the middle of a run: a copy of what is written in place (where the last one's lay, for there is one at a time), and
        // the models that jobs leave behind while it is written, one per arrival: a step makes about half of the bytes that a disk takes in
        // its time.
        let copied = (server - 2 + n * needs.squares as u64) * model + table;
        let arrivals = 2 * computing * (copied + sent * model) / problem.step_bytes.max(1);
        let saved = copied + sent.min(arrivals) * model;
        Need { total: program + models * model + table + steps + problem.data_bytes, table, saved }
    }

    /// The same for a run that saves checkpoints before its end, in the memory that it computes in.
    pub fn with_checkpoints(self) -> Need {
        Need { total: self.total + self.saved, ..self }
    }

    /// Compares it with what the device has.
    pub fn check(&self, backend: &Backend, problem: &Problem, workers: usize, descent: &UpdateSettings) -> Result<()> {
        let Some(have) = backend.memory.filter(|have| self.total > *have) else { return Ok(()) };
        let narrower = if self.table > 0 && descent.table_dtype == Dtype::F32 { ", --table-dtype bf16" } else { "" };
        Err(Error::usage(format!(
            "this run needs about {:.1} GiB and {} has {:.1}: use fewer --workers (now {workers}){narrower} or a smaller --batch (now {}); the table takes {:.1} GiB",
            gib(self.total),
            backend.name,
            gib(have),
            problem.batches.iter().max().unwrap_or(&1),
            gib(self.table)
        )))
    }
}

/// Bytes as GiB.
pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}
