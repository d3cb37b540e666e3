//! stagger: asynchronous SGD with many workers on one machine's GPU.
//!
//! The public interface is small: [`rule`] for rules from outside the library, and [`cli`] to run the program with them. All other modules
//! are public for the tests and the fuzzers only; they change without notice.
//!
//! # The way of one gradient
//!
//! ```text
//!  worker i: replica, part i of the data                     server: one loop, the only owner of weights and rule
//!  ┌──────────────────────────────────────────────┐
//!  │ snapshot v ─ the replica's parameters        │◄──── job::Job ── handle, no bytes ──────────────────┐
//!  │ batch k of part i, gathered on the device    │                                                     │
//!  │ forward, backward → gradient buffers         │   problem::Objective::gradient                      │
//!  └──────────────┬───────────────────────────────┘                                                     │
//!   job::Gradient { worker, job, buffers, loss, fence }                                                 │
//!                 ▼                                                                                     │
//!   executor::Executor           how the job is computed: inline, threads, streams, stacked             │
//!                 ▼                                                                                     │
//!   worker_pool::WorkerPool      the books: whose job is running, finished, cancelled                   │
//!                 ▼                                                                                     │
//!   clock::Clock::next           whose gradient is next, and when (wall, virtual, replay)               │
//!                 ▼                                                                                     │
//!   rule::Rule::on_arrival       scalars in, a Decision out: fold, step, start, restart                 │
//!                 ▼                                                                                     │
//!   state::State::fold_in        one fused launch: (w, g, slots) → w', slots' ──── version t+1 ─────────┘
//!                 └→ record::RunFolder: events.jsonl (by a thread of its own), metrics.csv
//! ```
//!
//! On the CPU and on WGPU a replica's parameters are views of the snapshot itself. On CUDA the launch that draws the batch first copies the
//! snapshot into a buffer of the worker's own stream ([`stagger_kernels::device::Replica`] says why).
//!
//! # The map
//!
//! The highest layer comes first. Imports run downwards only, and no files import each other in a circle; `tests/arrows.rs` checks it.
//!
//! | layer | module | what it does |
//! | --- | --- | --- |
//! | commands | [`cli`] | flags and files in, calls out; exit codes |
//! | | [`recipe`], [`report`] | the papers' experiments; one page about many runs |
//! | | [`mod@bench`], [`compare`] | measurements; rules × seeds over one scenario |
//! | a run | [`run`] | plan → build → serve → summarise; the memory estimate; `choose_executor` |
//! | | [`config`] | options (flags = keys), checked settings, the section `[compare]`, the JSON schema |
//! | the engine | [`engine::server`] | the loop over arrivals; saving, and replaying a log (I4, I6, I7) |
//! | | [`engine::state`] | weights, sums, tables, momentum on the device; the one launch of an arrival (I2, I3, I8) |
//! | | [`engine::worker_pool`] | each worker's slot (`slot.rs` has its state machine), queue, cancellation, failures (I1, I7) |
//! | | [`engine::executor`] | how a job becomes a gradient, one file each |
//! | | [`engine::worker`] | one worker's replica and step (I1, I5, I8) |
//! | | [`engine::clock`] | whose gradient is next: wall, virtual time, replay; delay models; the stopwatch |
//! | | [`engine::gate`] | permits: how many workers compute at a time, and in which order |
//! | | [`engine::checkpoint`], [`engine::timeline`] | states on disk; when the device computed what |
//! | people | [`view`] | progress, dashboard, figures |
//! | files | [`record`] | a run's folder: event log, metrics, summary, TensorBoard |
//! | mathematics | [`problem`] | objectives and their evaluation; the networks; Burn's tensors as views of flat buffers |
//! | | [`rule`] | the rules: arithmetic on scalars |
//! | the machine | [`host`] | which device works, which cores, signals, tuned kernels |
//! | plain types | [`schedule`], [`fault`], [`mod@console`], [`error`] | learning rates; injected faults; lines on the terminal; errors |
//!
//! The crate `stagger-kernels` holds buffers, launches, update kernels and layers; `stagger-datasets` holds readers and partitions. Burn is
//! known to [`problem`] and [`mod@bench`] alone; the layers are extensions of Burn's backends in [`stagger_kernels::layers`].
//!
//! # Invariants
//!
//! * I1: a worker has at most one submitted job, so no send blocks.
//! * I2: a published snapshot is never written again.
//! * I3: the version grows by one per server update and by nothing else.
//! * I4: staleness is computed by the server, never reported.
//! * I5: a gradient depends on (snapshot, seed, worker, job number) alone.
//! * I6: only the server touches weights, slots and rule.
//! * I7: every gradient is applied once, or logged as dropped: arrivals = applied + dropped.
//! * I8: no buffer crosses a stream without a fence.
//!
//! Each is written at the head of the module that keeps it; `tests/invariants.rs` holds the code to them. Shutdown: the server drops the
//! outboxes, the workers leave, the inbox disconnects.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[macro_use]
#[doc(hidden)]
pub mod console;
#[doc(hidden)]
pub mod bench;
pub mod cli;
#[doc(hidden)]
pub mod compare;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod engine;
pub mod error;
#[doc(hidden)]
pub mod fault;
#[doc(hidden)]
pub mod host;
#[doc(hidden)]
pub mod problem;
#[doc(hidden)]
pub mod recipe;
#[doc(hidden)]
pub mod record;
#[doc(hidden)]
pub mod report;
pub mod rule;
#[doc(hidden)]
pub mod run;
#[doc(hidden)]
pub mod schedule;
#[doc(hidden)]
pub mod view;
