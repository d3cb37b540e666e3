//! stagger: asynchronous SGD with many workers on one machine's GPU.
//!
//! # The way of one gradient
//!
//! ```text
//!  worker i: own thread, own stream, own replica              server: own thread, own stream
//!  ┌──────────────────────────────────────────────┐
//!  │ snapshot v ─ replica's parameters view it    │◄──── Order::Job ──── snapshot handle, no bytes ─────┐
//!  │ batch k of part i, gathered on the device    │                                                     │
//!  │ forward, backward → gradient buffers         │   problem::Objective::gradient                      │
//!  └──────────────┬───────────────────────────────┘                                                     │
//!   Gradient { i, k, buffers, loss, fence }                                                              │
//!                 ▼  inbox: crew::Crew                                                                  │
//!   transport::Transport::next   whose gradient is next, and when (wall, virtual, replay)               │
//!                 ▼                                                                                     │
//!   rule::Rule::on_arrival       scalars in, a Decision out: fold, step, start, restart                 │
//!                 ▼                                                                                     │
//!   state::State::apply          one fused launch: (w, g, slots) → w', slots' ──── version t+1 ─────────┘
//!                 └→ record::RunFolder: events.jsonl (by a thread of its own), metrics.csv
//! ```
//!
//! On a GPU a worker's step can be recorded once and replayed with one launch ([`stagger_kernels::graph`], `--step captured`). Where
//! nobody has to wait, the server's thread then submits for all workers, each on its own stream ([`crew`]). Under the virtual clock
//! several workers' steps can be one pass ([`problem::Stacked`], `--step stacked`).
//!
//! On the CPU and on WGPU a replica's parameters are views of the snapshot itself. On CUDA the snapshot is first pulled into
//! a buffer of the worker's own stream by the launch that draws the batch ([`stagger_kernels::device::Replica`] says why).
//!
//! # The map
//!
//! | module | what it does | knows |
//! | --- | --- | --- |
//! | [`fault`] | failures: on purpose, and what is done about any | nothing |
//! | [`cli`], [`config`], [`error`] | words, files and flags into [`config::Settings`]; exit codes | nothing below `train` |
//! | [`train`] | puts a run together and reports it | everything |
//! | [`data`] | reads the data set that the settings name, and builds the problem | config, problem, datasets |
//! | [`mod@bench`] | `stagger bench`: measurements with the facts that go with them | train, problem, kernels |
//! | [`compare`], [`recipe`], [`report`], [`figure`] | many runs: their table, figures and page; the papers' experiments | config, record |
//! | [`backend`] | asks which device really works | devices |
//! | [`memory`] | what a run will take, before it begins | problem, rule |
//! | [`tuning`] | the file of `--tune-kernels`: measured kernels of matrix products | kernels |
//! | [`server`] | the loop over arrivals; the only owner of state and rule (I4, I6, I7) | crew, rule, transport, state |
//! | [`state`] | models, sums, tables and momentum on the device, and the one launch of an arrival (I2, I3, I8) | rule, kernels |
//! | [`crew`] | the workers as the server sees them: jobs, queues, cancellation (I1, I7), on threads or on the spot | worker |
//! | [`worker`] | a worker's thread, the messages (I1, I5, I8) | gate, problem, kernels |
//! | [`gate`] | lets a few workers compute at a time, in turn | nothing |
//! | [`cores`] | which two cores the host's part of a GPU run keeps to | nothing |
//! | [`transport`] | the three clocks | crew, clock |
//! | [`timeline`] | when the device computed what, if that is asked for | stopwatch, kernels |
//! | [`clock`], [`schedule`], [`stopwatch`] | delay models; learning rates over updates; the run's real time | nothing |
//! | [`rule`] | the rules: plain arithmetic on scalars | nothing |
//! | [`problem`] | objectives and their evaluation: images, LIBSVM, quadratics | model, params, kernels, datasets |
//! | [`model`], [`params`] | the networks; Burn's tensors as views of flat buffers | Burn |
//! | [`checkpoint`] | a run's state in a folder, whole or not at all | state |
//! | [`record`], [`progress`], [`dashboard`] | the run's folder; what people see | checkpoint, timeline |
//!
//! The crate `stagger-kernels` holds buffers and kernels, `stagger-datasets` readers and partitions. Here Burn is known
//! to [`model`], [`params`], [`problem`] and [`mod@bench`] alone; the layers of the networks are extensions of Burn's backends in
//! [`stagger_kernels::layers`].
//!
//! # Invariants
//!
//! I1 a worker has at most one message in flight, so no send blocks · I2 a published snapshot is never written again · I3 the
//! version grows by one per server update and by nothing else · I4 staleness is computed by the server, never reported · I5 a
//! gradient depends on (snapshot, seed, worker, job) alone · I6 only the server touches weights, slots and rule · I7 every
//! gradient is applied once, or logged as dropped: arrivals = applied + dropped · I8 no buffer crosses a stream unfenced.
//! Each is written at the head of the module that keeps it; `tests/invariants.rs` holds them to it. Shutdown: the server
//! drops the outboxes, the workers leave, the inbox disconnects.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[macro_use]
pub mod console;
pub mod bench;
pub mod cli;
pub mod compare;
pub mod config;
pub mod engine;
pub mod error;
pub mod fault;
pub mod host;
pub mod problem;
pub mod recipe;
pub mod record;
pub mod report;
pub mod rule;
pub mod run;
pub mod schedule;
pub mod view;
