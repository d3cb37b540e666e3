//! Builds a planned run: its folder, workers, clock and server.

use super::plan::{Execution, ExecutorKind, Plan};
use super::{Audience, Place, fresh_folder};
use crate::config::{ClockChoice, OnNan, Options, Settings};
use crate::engine::checkpoint::{self, Checkpoint, Manifest, Saver};
use crate::engine::clock::stopwatch::Stopwatch;
use crate::engine::clock::{Clock, Replay, Virtual, Wall};
use crate::engine::executor::{Executor, Inline, Stacked, Streams, Threads};
use crate::engine::gate::Gate;
use crate::engine::job::Channels;
use crate::engine::server::{CheckpointPlan, DeviceContext, EvaluationPlan, ServerSetup, Stops};
use crate::engine::state::UpdateSettings;
use crate::engine::timeline::Timeline;
use crate::engine::worker::Worker;
use crate::engine::worker_pool::WorkerPool;
use crate::error::Result;
use crate::host::backend::{self, Backend};
use crate::host::tuning::Tuning;
use crate::host::{cores, signals};
use crate::problem::{Columns, Evaluation, Evaluator, Objective, Problem, Snapshot};
use crate::record::{Limits, RunFolder};
use crate::rule::Needs;
use crate::view::progress::Progress;
use indicatif::BinaryBytes;
use stagger_kernels::{Buffer, Device, Layout, Live};
use std::sync::Arc;

/// Facts about a run that its summary reports besides the outcome.
pub struct Facts {
    /// The complete options.
    pub resolved: Options,
    /// The device.
    pub backend: Backend,
    /// Layout of the model.
    pub layout: Layout,
    /// Largest number of samples per gradient of a worker.
    pub batch: usize,
    /// The metrics of the problem.
    pub columns: Columns,
    /// Estimated memory, in bytes.
    pub memory_estimate: u64,
    /// How the workers are executed.
    pub executor: Execution,
}

/// A run that is ready to start.
pub struct Built<'a> {
    /// The server.
    pub setup: ServerSetup<'a>,
    /// Settings of the update.
    pub update: UpdateSettings,
    /// The weights of version 0.
    pub initial: Vec<f32>,
    /// Facts for the summary.
    pub facts: Facts,
    /// The file of `--tune-kernels` with measured kernels.
    pub tuning: Option<Tuning>,
}

/// Creates the run's folder, or opens the folder of a resumed run. Signals are caught from now on.
pub fn create_folder(plan: &Plan, place: Place) -> Result<RunFolder> {
    let config = toml::to_string(&plan.resolved).expect("options are plain data");
    let columns = plan.problem.columns;
    let mut folder = match (&plan.past, place) {
        (Some(past), Place::Resumed { folder, .. }) => RunFolder::reopen(&folder, &config, &past.manifest.logs)?,
        (_, Place::New(Some(path))) => RunFolder::create(&path, &config, columns)?,
        _ => RunFolder::create(&fresh_folder(plan.settings.rule.name()), &config, columns)?,
    };
    signals::catch_signals();
    if let Some((classes, counts)) = &plan.problem.held {
        folder.partition(classes, counts)?;
    }
    Ok(folder)
}

/// Builds the server and starts the workers.
pub fn build<'a>(plan: Plan, folder: &'a mut RunFolder, audience: Audience) -> Result<Built<'a>> {
    let Plan { settings, resolved, past, workers, setting, rule, backend, tuning, problem, .. } = plan;
    let Plan { update, execution, threads, memory, replay, .. } = plan;
    let needs = rule.needs();
    let Problem { layout, initial, objectives, stacked, evaluator, columns, batches, samples, .. } = problem;
    let evaluator = if audience == (Audience::Program { target: None }) { Box::new(Unevaluated) } else { evaluator };
    let batch = batches.iter().copied().max().unwrap_or(1);
    let stopwatch = past.as_ref().map_or_else(Stopwatch::default, |past| Stopwatch::showing(past.manifest.seconds));
    let stopwatch = Arc::new(stopwatch);
    let limits = limits(&settings, samples, audience);
    say_model(
        &settings,
        &resolved,
        &layout,
        workers,
        batch,
        stacked.as_ref().map(|(_, most)| *most),
        threads,
        audience,
    );
    say_memory(memory.total, &backend, audience);

    let permits = permits(&settings, &execution, threads);
    let live = live_weights(&backend.device, &needs, &initial, past.as_ref())?;
    // A GPU always warms up. On the CPU only a measurement does, because the page faults of the first step
    // would distort it.
    let warms_up = threads.is_none() || !audience.is_people();
    let warm_up =
        warms_up.then(|| Snapshot { weights: backend.device.upload(initial.clone()), fence: backend.device.fence() });
    let timeline = stopwatch.paused(|| Timeline::of(&backend.device, &stopwatch, settings.device_timeline));
    let parts = WorkerParts {
        device: backend.device.clone(),
        layout: Arc::new(layout.clone()),
        needs,
        live: live.clone(),
        permits: permits.clone(),
        stopwatch: stopwatch.clone(),
        timeline: timeline.clone(),
        warm_up,
    };
    let executor =
        stopwatch.paused(|| start_executor(execution.kind, &settings, threads, &parts, objectives, stacked))?;
    let pool = WorkerPool::new(workers, executor, settings.policy);
    let rehearsal = threads.is_none().then(|| settings.rule.build(&setting)).transpose()?;
    let progress = progress(audience, limits, &settings, &resolved, workers)?;
    let checkpoints = checkpoint_plan(&settings, &backend, workers, folder, past, audience)?;
    // Pinned after all threads are started, because a new thread inherits the cores of this one.
    if threads.is_none() {
        pin_threads(&backend.device, &execution)?;
    }
    let setup = ServerSetup {
        rule,
        pool,
        clock: clock(&settings, replay, &stopwatch),
        stopwatch,
        batches,
        folder,
        progress,
        device: DeviceContext {
            device: backend.device.clone(),
            gate: permits.0,
            update_at_once: execution.recorded,
            rehearsal: rehearsal.map(|rule| (rule, settings.clip.is_some())),
            live,
            timeline,
        },
        evaluation: EvaluationPlan { evaluator, columns, every: resolved.eval_every.unwrap_or(0) },
        checkpoints,
        stops: Stops {
            limits,
            at_end_of_log: matches!(settings.clock, ClockChoice::Replay(_)),
            at_nan: settings.on_nan == OnNan::Stop,
        },
    };
    let memory_estimate = memory.total;
    let facts = Facts { resolved, backend, layout, batch, columns, memory_estimate, executor: execution };
    Ok(Built { setup, update, initial, facts, tuning })
}

/// An evaluator that evaluates nothing, for measurements without a target.
struct Unevaluated;

impl Evaluator for Unevaluated {
    fn evaluate(&mut self, _: &Buffer) -> Result<Evaluation> {
        Ok(Evaluation::default())
    }
}

fn limits(settings: &Settings, samples: usize, audience: Audience) -> Limits {
    Limits {
        updates: settings.updates,
        time: settings.time,
        samples: settings.epochs.map(|epochs| (epochs * samples as f64).ceil() as u64),
        accuracy: if let Audience::Program { target } = audience { target } else { None },
    }
}

fn clock(settings: &Settings, replay: Option<Replay>, stopwatch: &Arc<Stopwatch>) -> Box<dyn Clock> {
    let (delay, seed, faults) = (settings.delay.clone(), settings.seed, settings.faults.clone());
    match (&settings.clock, replay) {
        (_, Some(replay)) => Box::new(replay),
        (ClockChoice::Virtual, None) => Box::new(Virtual::new(delay, seed).with(faults)),
        (_, None) => {
            Box::new(Wall { stopwatch: stopwatch.clone(), delay, time_scale: settings.time_scale, seed, faults })
        }
    }
}

/// The permits for computing, and the permits for gradients that are being computed or wait for the server.
///
/// On the CPU as many workers compute at the same time as the cores allow. Twice as many gradients may exist:
/// the server then always has work, and the queue of a slow server does not grow with the number of workers.
/// On a GPU one thread submits at a time, and the number of gradients is not limited, because every stream
/// keeps its own memory.
fn permits(settings: &Settings, execution: &Execution, threads: Option<usize>) -> (Gate, Gate) {
    if execution.on_server_thread() {
        return (Gate::open(), Gate::open());
    }
    let permits = threads.map_or(1, |threads| (backend::cores() / threads).max(1));
    let gate = |permits| Gate::new(permits).patient(settings.policy.timeout);
    let room = if threads.is_some() { gate(2 * permits) } else { Gate::open() };
    (gate(permits), room)
}

/// The shared weights, if the rule's workers write them.
fn live_weights(device: &Device, needs: &Needs, initial: &[f32], past: Option<&Checkpoint>) -> Result<Option<Live>> {
    if !needs.live {
        return Ok(None);
    }
    let weights = match past {
        Some(past) => past.tensor("weights", initial.len())?.to_vec(),
        None => initial.to_vec(),
    };
    Ok(Some(Live::new(device, weights)))
}

/// The parts of a worker that are the same for all workers.
struct WorkerParts {
    device: Device,
    layout: Arc<Layout>,
    needs: Needs,
    live: Option<Live>,
    /// The permits for computing, and for gradients.
    permits: (Gate, Gate),
    stopwatch: Arc<Stopwatch>,
    timeline: Timeline,
    warm_up: Option<Snapshot>,
}

impl WorkerParts {
    fn worker(&self, settings: &Settings, index: usize, objective: Box<dyn Objective>, channels: Channels) -> Worker {
        Worker {
            index,
            objective,
            device: self.device.clone(),
            layout: self.layout.clone(),
            local: self.needs.local,
            clip: settings.clip.map(|clip| clip as f32),
            live: self.live.clone().map(|live| (live, settings.weight_decay as f32)),
            channels,
            gate: self.permits.0.clone(),
            room: self.permits.1.clone(),
            stopwatch: self.stopwatch.clone(),
            faults: settings.faults.of(index),
            timeline: self.timeline.clone(),
            warm_up: self.warm_up.clone(),
        }
    }
}

/// Starts the chosen executor and warms it up.
fn start_executor(
    kind: ExecutorKind,
    settings: &Settings,
    threads: Option<usize>,
    parts: &WorkerParts,
    objectives: Vec<Box<dyn Objective>>,
    stacked: Option<(Box<dyn crate::problem::Stacked>, usize)>,
) -> Result<Box<dyn Executor>> {
    let workers = objectives.len();
    let mut objectives = objectives.into_iter().enumerate();
    let mut worker = |channels| {
        let (index, objective) = objectives.next().expect("one objective per worker");
        parts.worker(settings, index, objective, channels)
    };
    match (kind, stacked) {
        (ExecutorKind::Stacked, Some((objectives, most))) => {
            let stacked = Stacked {
                objectives,
                most,
                device: parts.device.clone(),
                layout: (*parts.layout).clone(),
                clip: settings.clip.map(|clip| clip as f32),
                replies: Default::default(),
            };
            Ok(Box::new(stacked.start(parts.warm_up.as_ref())?))
        }
        (ExecutorKind::Inline, _) => {
            Ok(Box::new(Inline::new((0..workers).map(|_| worker(Channels::none())).collect())))
        }
        (ExecutorKind::Streams, _) => {
            Ok(Box::new(Streams::start((0..workers).map(|_| worker(Channels::none())).collect())?))
        }
        _ => {
            let timeout = settings.policy.timeout;
            let threads =
                Threads::start(workers, threads, parts.permits.clone(), timeout, |_, channels| worker(channels));
            Ok(Box::new(threads?))
        }
    }
}

/// Pins the threads of a GPU run to two cores. If several threads submit, the thread that issues their
/// launches gets its own core: eight eager workers on the null driver then make 1,750 to 1,880 steps per
/// second, and 1,470 to 1,780 if the system places the thread.
fn pin_threads(device: &Device, execution: &Execution) -> Result<()> {
    cores::submit_here();
    if execution.kind == ExecutorKind::Threads {
        device.issue(cores::issue_here)?;
    }
    Ok(())
}

fn progress(
    audience: Audience,
    limits: Limits,
    settings: &Settings,
    resolved: &Options,
    workers: usize,
) -> Result<Progress> {
    match audience {
        Audience::People { tui: true } => {
            let clock = resolved.clock.as_deref().unwrap_or("wall");
            let title = format!("{}, {workers} workers, {clock} clock", settings.rule);
            Progress::on_the_whole_terminal(limits, title, workers)
        }
        Audience::People { tui: false } => Ok(Progress::new(limits)),
        Audience::Program { .. } => Ok(Progress::silent(limits)),
    }
}

fn checkpoint_plan(
    settings: &Settings,
    backend: &Backend,
    workers: usize,
    folder: &RunFolder,
    past: Option<Checkpoint>,
    audience: Audience,
) -> Result<CheckpointPlan> {
    let reached = past.as_ref().map_or(0, |past| past.manifest.gradients);
    if let Some(past) = &past {
        audience.say(&format!("resumed    at update {}, after {reached} gradients", past.manifest.updates));
    }
    let saves = audience.is_people() && settings.checkpoint_every != Some(0);
    let saver = saves.then(|| Saver::new(folder.path(), settings.keep_checkpoints, reached)).transpose()?;
    let manifest = Manifest {
        rule: settings.rule.to_string(),
        workers,
        backend: backend.device.name().into(),
        ..checkpoint::blank()
    };
    Ok(CheckpointPlan { saver, every: settings.checkpoint_every.unwrap_or(0), manifest, past })
}

/// Prints the line of the header about model, rule, workers and clock.
#[allow(clippy::too_many_arguments)]
fn say_model(
    settings: &Settings,
    resolved: &Options,
    layout: &Layout,
    workers: usize,
    batch: usize,
    stacked: Option<usize>,
    threads: Option<usize>,
    audience: Audience,
) {
    let executed = match (stacked, threads) {
        (Some(most), _) => format!(", up to {most} in one pass"),
        (None, Some(1)) => " of 1 thread".into(),
        (None, Some(threads)) => format!(" of {threads} threads"),
        (None, None) => String::new(),
    };
    audience.say(&format!(
        "model      {} parameters in {} tensors, {batch} samples per gradient; rule {}, {workers} workers{executed}, \
         clock {}",
        layout.parameters(),
        layout.segments().len(),
        settings.rule,
        resolved.clock.as_deref().unwrap_or("wall"),
    ));
}

/// Prints the line of the header about memory.
fn say_memory(estimate: u64, backend: &Backend, audience: Audience) {
    let have = backend.memory.map_or(String::new(), |have| format!(" of {}", BinaryBytes(have)));
    audience.say(&format!("memory     about {}{have}", BinaryBytes(estimate)));
}
