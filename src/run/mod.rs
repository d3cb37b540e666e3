//! `stagger train`: puts the pieces together, runs them, and says what came of it.

pub mod data;
pub mod memory;

use self::data::Data;
use crate::config::{ClockChoice, OnNan, Options, Settings};
use crate::engine::checkpoint::{self, Checkpoint, Manifest, Saver};
use crate::engine::clock::delay::DelayModel;
use crate::engine::clock::stopwatch::Stopwatch;
use crate::engine::clock::{Replay, Transport, Virtual, Wall};
use crate::engine::gate::Gate;
use crate::engine::server::Server;
use crate::engine::state::UpdateSettings;
use crate::engine::timeline::{self, Timeline};
use crate::engine::worker::Worker;
use crate::engine::worker_pool::{Crew, Together};
use crate::error::{Error, Result};
use crate::fault::OnFailure;
use crate::host::backend::{self, Backend};
use crate::host::tuning::Tuning;
use crate::host::{cores, signals};
use crate::problem::{Columns, Evaluation};
use crate::problem::{Evaluator, Problem, Snapshot, StepKind};
use crate::record::{Event, Limits, Occupancy, Outcome, RunFolder, Summary};
use crate::rule::{Needs, ServerOptimizer, Setting};
use crate::run::memory::{ArrivalOrder, Need, gib};
use crate::view::progress::{Progress, span};
use stagger_datasets::default_folder;
use stagger_kernels::update::Guard;
use stagger_kernels::{Buffer, Device, Dtype, Live, row, update};
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Runs `stagger train`.
pub fn train(options: &Options, place: Place, profile: bool, tui: bool) -> Result<()> {
    let (summary, folder) = run(options, place, Audience::People { tui })?;
    report(&summary, &folder, profile);
    if summary.interrupted {
        let folder = folder.display();
        let way = match options.checkpoint_every {
            Some(0) => String::new(),
            _ => format!("; `stagger train --resume {folder}` goes on"),
        };
        return Err(Error::Interrupted(format!("interrupted; what was reached is in {folder}{way}")));
    }
    Ok(())
}

/// Where a run's folder is.
pub enum Place {
    /// A new one: there, or else `runs/<time>-<rule>`.
    New(Option<PathBuf>),
    /// That of a run that goes on, perhaps with another program or on another backend.
    Resumed {
        /// Its folder.
        folder: PathBuf,
        /// Though the same bits cannot be promised.
        anyway: bool,
    },
}

/// Settings that a run may go on with though it began with others: when it ends, what is looked at, how fast it is.
const CHANGEABLE: [&str; 13] = [
    "on_failure",
    "on_nan",
    "worker_timeout",
    "updates",
    "time",
    "epochs",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "data",
    "time_scale",
    "threads_per_worker",
    "device_timeline",
];

/// The settings with which the run in `folder` goes on: its own, under the flags.
pub fn resumed(folder: &Path, flags: &Options, anyway: bool) -> Result<Options> {
    let file = folder.join("config.toml");
    let then = Options::layered(&Options::default(), Some(&file), &[])?;
    // It is of where a run begins.
    let then = Options { device_timeline: None, ..then };
    let plain = |options: &Options| toml::Table::try_from(options).map_err(|e| Error::usage(e.to_string()));
    let (mut table, flags) = (plain(&then)?, plain(flags)?);
    // A limit that is given takes the place of those that the run had.
    if ["updates", "time", "epochs"].iter().any(|limit| flags.contains_key(*limit)) {
        ["updates", "time", "epochs"].iter().for_each(|limit| _ = table.remove(*limit));
    }
    for (key, value) in flags {
        let had = table.insert(key.clone(), value.clone());
        if had.as_ref() == Some(&value) || CHANGEABLE.contains(&key.as_str()) || (key == "backend" && anyway) {
            continue;
        }
        let had = had.map_or("not set".into(), |had| had.to_string());
        let way = match key.as_str() {
            "backend" => {
                "leave --backend out, or give --resume-anyway: the weights then agree only up to rounding".into()
            }
            _ => format!("leave --{} out, or begin a new run", key.replace('_', "-")),
        };
        return Err(Error::usage(format!(
            "--{} {value}: the run in {} has {had}, and a run goes on as what it was; {way}",
            key.replace('_', "-"),
            folder.display()
        )));
    }
    Options::of(table)
}

/// What a measurement leaves.
pub struct Measured {
    /// The run's summary.
    pub summary: Summary,
    /// Its metrics.csv.
    pub metrics: String,
    /// Gradients per second of all workers while they were at it.
    pub rate: f64,
}

/// Gradients per second: of each worker from its first arrival to its last, in sum. So neither what is still being computed at the
/// end counts, nor the time that it took, however few gradients there are (but two of each worker).
fn rate(log: &Path) -> Result<f64> {
    let file = File::open(log).map_err(|e| Error::failed(format!("cannot read {}: {e}", log.display())))?;
    let mut workers: HashMap<usize, (f64, f64, u64)> = HashMap::new();
    for event in serde_json::Deserializer::from_reader(BufReader::new(file)).into_iter::<Event>() {
        let event = event.map_err(|e| Error::failed(format!("{}: {e}", log.display())))?;
        let (_, last, later) = workers.entry(event.worker).or_insert((event.time, event.time, 0));
        (*last, *later) = (event.time, *later + (event.time > *last) as u64);
    }
    Ok(workers.values().filter(|w| w.2 > 0).map(|(first, last, later)| *later as f64 / (last - first)).sum())
}

/// Trains for a measurement: prints nothing, leaves nothing behind. With a `target` it ends at the first evaluation of that test
/// accuracy, without one nothing is evaluated, not even at the end.
pub fn measure(options: &Options, target: Option<f64>) -> Result<Measured> {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let number = RUNS.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("stagger-measured-{}-{number}", std::process::id()));
    let result = run(options, Place::New(Some(folder.clone())), Audience::Program { target });
    let metrics = std::fs::read_to_string(folder.join("metrics.csv")).unwrap_or_default();
    let rate = rate(&folder.join("events.jsonl"));
    let _ = std::fs::remove_dir_all(&folder);
    let (summary, _) = result?;
    if summary.interrupted {
        return Err(Error::Interrupted("interrupted".into()));
    }
    Ok(Measured { summary, metrics, rate: rate? })
}

/// Who is told of a run while it goes on.
#[derive(Clone, Copy, PartialEq)]
enum Audience {
    People { tui: bool },
    Program { target: Option<f64> },
}

/// An evaluation that is not asked for.
struct Unevaluated;

impl Evaluator for Unevaluated {
    fn evaluate(&mut self, _: &Buffer) -> Result<Evaluation> {
        Ok(Evaluation::default())
    }
}

/// What a rule is told before the run.
fn setting(settings: &Settings, workers: usize) -> Setting {
    // Without a delay model only the virtual clock knows how long a job takes.
    let known = settings.delay != DelayModel::None || settings.clock == ClockChoice::Virtual;
    let seconds = known.then(|| (0..workers).map(|i| settings.delay.mean(settings.seed, i)).collect());
    Setting { workers, seed: settings.seed, lr: settings.lr, seconds }
}

/// Finds what is wrong with a run as far as that is possible without its data or device.
pub fn check(options: &Options) -> Result<()> {
    let settings = options.resolve()?;
    let workers = data::workers_unread(&settings);
    let rule = settings.rule.build(&setting(&settings, workers))?;
    combines(&settings, &rule.needs(), workers)
}

/// Puts a run together and runs it; gives its summary and folder.
fn run(options: &Options, place: Place, audience: Audience) -> Result<(Summary, PathBuf)> {
    let say = |line: &str| {
        if matches!(audience, Audience::People { .. }) {
            say!("{line}");
        }
    };
    let settings = options.resolve()?;
    let past = match &place {
        Place::Resumed { folder, anyway } => Some(fitting(folder, &settings, *anyway)?),
        Place::New(_) => None,
    };
    let data = data::read(&settings)?;
    let workers = data::workers(&settings, &data)?;
    let setting = setting(&settings, workers);
    let rule = settings.rule.build(&setting)?;
    let needs = rule.needs();
    combines(&settings, &needs, workers)?;
    let backend = backend::open(settings.backend)?;
    say(&format!("backend    {}", backend.why));
    timeline::check(&backend.device, settings.device_timeline)?;
    let tuning = Tuning::open(settings.tune_kernels.as_deref(), &backend)?;
    let threads = matches!(backend.device, Device::Cpu)
        .then(|| settings.threads_per_worker.unwrap_or((backend::cores() / workers).max(1)));

    if let (Data::Libsvm(rows), Some(have)) = (&data, backend.memory) {
        let need = 4 * rows.len() as u64 * (rows.dimension as u64 + 1);
        if need > have {
            return Err(Error::usage(format!(
                "the {} rows of dimension {} take {} GiB as a dense matrix, and {} has {}: use a smaller file",
                rows.len(),
                rows.dimension,
                need >> 30,
                backend.name,
                have >> 30
            )));
        }
    }
    let mut resolved = options.clone();
    let problem = data::build(&settings, data, workers, &backend.device, &mut resolved)?;
    problem.description.iter().for_each(|line| say(line));
    let descent = UpdateSettings {
        lr: settings.lr,
        schedule: settings.schedule,
        weight_decay: settings.weight_decay,
        momentum: settings.momentum,
        momentum_every: settings.momentum_every.unwrap_or(if needs.synchronous { 1 } else { workers as u64 }),
        table_dtype: settings.table_dtype,
        guard: if settings.on_nan == OnNan::Clip { Guard::Elements } else { Guard::Whole },
    };
    let waits = settings.clock == ClockChoice::Wall && settings.delay != DelayModel::None;
    // Gradients that cost the host next to nothing are not worth a thread each: where the clock asks for one at a time anyway, and
    // where all that a worker does is to launch what it has recorded.
    let recorded = problem.recorded && !needs.local.walks() && !needs.live;
    let on_the_spot =
        if threads.is_some() { problem.cheap && settings.clock != ClockChoice::Wall } else { recorded && !waits };
    // Only from a thread of its own can a worker be seen to hang.
    let on_the_spot = (on_the_spot && settings.policy.timeout.is_none()) || problem.stacked.is_some();
    let threads_taken = threads.map(|threads| if on_the_spot { 0 } else { threads });
    let come = match settings.clock {
        ClockChoice::Wall if !waits => ArrivalOrder::AtOnce,
        ClockChoice::Virtual if settings.delay.is_constant() => ArrivalOrder::InOrder,
        _ => ArrivalOrder::AtTheirTime,
    };
    let memory = Need::of(&problem, workers, threads_taken, come, &needs, &descent);
    let copies = threads.is_some() && settings.checkpoint_every.unwrap_or(0) > 0;
    let memory = if copies { memory.with_checkpoints() } else { memory };
    memory.check(&backend, &problem, workers, &descent)?;
    fill(&mut resolved, &settings, workers, &backend.device, threads, &problem, &descent);

    // A log is read before the folder is made: it may be the folder's own.
    let replay = match &settings.clock {
        ClockChoice::Replay(log) => {
            compare_with_log(log, &resolved)?;
            Some(Replay::open(log, workers)?)
        }
        _ => None,
    };
    let config = toml::to_string(&resolved).expect("options are plain data");
    let mut folder = match (&past, place) {
        (Some(past), Place::Resumed { folder, .. }) => RunFolder::reopen(&folder, &config, &past.manifest.logs)?,
        (_, Place::New(Some(path))) => RunFolder::create(&path, &config, problem.columns)?,
        _ => RunFolder::create(&fresh_folder(settings.rule.name()), &config, problem.columns)?,
    };
    signals::catch_signals();

    let mut problem = problem;
    if audience == (Audience::Program { target: None }) {
        problem.evaluator = Box::new(Unevaluated);
    }
    if let Some((classes, counts)) = &problem.held {
        folder.partition(classes, counts)?;
    }
    let Problem { layout, initial, objectives, stacked, evaluator, columns, batches, samples, .. } = problem;
    let batch = batches.iter().copied().max().unwrap_or(1);
    let stopwatch = past.as_ref().map_or_else(Stopwatch::default, |past| Stopwatch::showing(past.manifest.seconds));
    let stopwatch = Arc::new(stopwatch);
    let (delay, seed) = (settings.delay.clone(), settings.seed);
    let transport: Box<dyn Transport> = match (&settings.clock, replay) {
        (_, Some(replay)) => Box::new(replay),
        (ClockChoice::Virtual, None) => Box::new(Virtual::new(delay, seed).with(settings.faults.clone())),
        (_, None) => {
            let faults = settings.faults.clone();
            Box::new(Wall { stopwatch: stopwatch.clone(), delay, time_scale: settings.time_scale, seed, faults })
        }
    };
    let limits = Limits {
        updates: settings.updates,
        time: settings.time,
        samples: settings.epochs.map(|e| (e * samples as f64).ceil() as u64),
        accuracy: if let Audience::Program { target } = audience { target } else { None },
    };
    say(&format!(
        "model      {} parameters in {} tensors, {} samples per gradient; rule {}, {workers} workers{}, clock {}",
        layout.parameters(),
        layout.segments().len(),
        batch,
        settings.rule,
        match (&stacked, threads) {
            (Some((_, most)), _) => format!(", up to {most} in one pass"),
            (None, Some(t)) => format!(" of {t} thread{}", if t == 1 { "" } else { "s" }),
            (None, None) => String::new(),
        },
        resolved.clock.as_deref().unwrap_or("wall"),
    ));
    let have = backend.memory.map_or(String::new(), |have| format!(" of {:.2}", gib(have)));
    say(&format!("memory     about {:.2}{have} GiB", gib(memory.total)));
    let permits = threads.map_or(1, |t| (backend::cores() / t).max(1));
    let gate = if on_the_spot { Gate::open() } else { Gate::new(permits).patient(settings.policy.timeout) };
    // As many gradients may wait for the server as are computed: the server has always something to do, and where it is the slower one, its
    // queue takes no memory that grows with the workers. On a GPU every stream keeps memory for its worker's own.
    let room = match threads {
        Some(_) if !on_the_spot => Gate::new(2 * permits).patient(settings.policy.timeout),
        _ => Gate::open(),
    };
    let live = match &past {
        Some(past) if needs.live => Some(past.tensor("weights", initial.len())?.to_vec()),
        _ => needs.live.then(|| initial.clone()),
    };
    let live = live.map(|weights| Live::new(&backend.device, weights));
    let shared = Arc::new(layout.clone());
    let mut objectives = objectives.into_iter();
    // On a GPU always; on the CPU a first step costs its page faults, which a measurement is not about.
    let warm_up = (threads.is_none() || !matches!(audience, Audience::People { .. }))
        .then(|| Snapshot { weights: backend.device.upload(initial.clone()), fence: backend.device.fence() });
    let timeline = stopwatch.paused(|| Timeline::of(&backend.device, &stopwatch, settings.device_timeline));
    let make = |index, outbox, inbox| Worker {
        index,
        objective: objectives.next().expect("one objective per worker"),
        device: backend.device.clone(),
        layout: shared.clone(),
        local: needs.local,
        clip: settings.clip.map(|c| c as f32),
        live: live.clone().map(|live| (live, settings.weight_decay as f32)),
        outbox,
        inbox,
        gate: gate.clone(),
        room: room.clone(),
        stopwatch: stopwatch.clone(),
        faults: settings.faults.of(index),
        timeline: timeline.clone(),
        warm_up: warm_up.clone(),
    };
    let mut crew = match stacked {
        Some((stacked, most)) => {
            let (device, layout, clip) = (backend.device.clone(), layout.clone(), settings.clip.map(|c| c as f32));
            let together = Together { stacked, most, device, layout, clip };
            stopwatch.paused(|| Crew::together(workers, together, warm_up.as_ref()))?
        }
        None if on_the_spot => stopwatch.paused(|| Crew::on_the_spot(workers, threads.is_none(), make))?,
        None => stopwatch.paused(|| Crew::start(workers, threads, make))?,
    };
    crew.policy(settings.policy, gate.clone(), room.clone());
    let rehearsal = threads.is_none().then(|| settings.rule.build(&setting)).transpose()?;
    let rehearsal = rehearsal.map(|rule| (rule, settings.clip.is_some()));
    if let Some(past) = &past {
        let Manifest { updates, gradients, .. } = past.manifest;
        say(&format!("resumed    at update {updates}, after {gradients} gradients"));
    }
    let reached = past.as_ref().map_or(0, |past| past.manifest.gradients);
    let saves = matches!(audience, Audience::People { .. }) && settings.checkpoint_every != Some(0);
    let saver = saves.then(|| Saver::new(folder.path(), settings.keep_checkpoints, reached)).transpose()?;
    let manifest = Manifest {
        rule: settings.rule.to_string(),
        workers,
        backend: backend.device.name().into(),
        ..checkpoint::blank()
    };
    let progress = match audience {
        Audience::People { tui: true } => {
            let title =
                format!("{}, {workers} workers, {} clock", settings.rule, resolved.clock.as_deref().unwrap_or("wall"));
            Progress::on_the_whole_terminal(limits, title, workers)?
        }
        Audience::People { tui: false } => Progress::new(limits),
        Audience::Program { .. } => Progress::silent(limits),
    };
    let server = Server {
        rule,
        device: backend.device.clone(),
        crew,
        transport,
        stopwatch,
        evaluator,
        folder: &mut folder,
        columns,
        batches,
        eval_every: resolved.eval_every.unwrap_or(0),
        limits,
        progress,
        at_once: recorded,
        gate: gate.clone(),
        losses: Default::default(),
        rehearsal,
        live,
        replays: matches!(settings.clock, ClockChoice::Replay(_)),
        stops_at_nan: settings.on_nan == OnNan::Stop,
        saver,
        save_every: settings.checkpoint_every.unwrap_or(0),
        manifest,
        past,
        timeline: timeline.clone(),
    };
    if threads.is_none() {
        cores::submit_here();
        // Where several threads submit, the one that issues their launches keeps away from them: eight eager workers on the null driver
        // make 1,750 to 1,880 steps a second so, 1,470 to 1,780 where the system puts it as it likes.
        if !on_the_spot {
            backend.device.issue(cores::issue_here)?;
        }
    }
    let (began, computed) = (Instant::now(), backend::cpu_seconds());
    let (outcome, weights) = server.run(&layout, descent, initial)?;
    let seconds = began.elapsed().as_secs_f64().max(1e-9);
    let cores_busy = backend::cpu_seconds().zip(computed).map(|(now, before)| (now - before) / seconds);

    if outcome.untold > 0 {
        say(&format!(
            "NOTE       of {} gradients and updates the device did not tell when it computed them",
            outcome.untold
        ));
    }
    let weights_sha256 = folder.weights(&layout, weights.host())?;
    let summary = summarise(&resolved, &backend, &outcome, layout.parameters(), batch, columns, weights_sha256);
    let summary = Summary { memory_estimate: memory.total, memory: backend.memory_taken(), cores_busy, ..summary };
    folder.summary(&summary)?;
    if let Some((new, all)) = tuning.map(Tuning::finish).transpose()? {
        say(&format!("tuning     {new} of {all} matrix products were measured anew"));
    }
    Ok((summary, folder.path().to_path_buf()))
}

/// The checkpoint from which the run in `folder` goes on, if it may.
fn fitting(folder: &Path, settings: &Settings, anyway: bool) -> Result<Checkpoint> {
    let past = checkpoint::newest(folder)?;
    let (then, now) = (&past.manifest, checkpoint::blank());
    let refuse = |what: &str, then: &str, now: &str, way: &str| {
        let folder = folder.display();
        Err(Error::usage(format!("the checkpoint in {folder} is of {what} {then}, and this is {now}; {way}")))
    };
    let rule = settings.rule.to_string();
    if then.rule != rule {
        return refuse("rule", &then.rule, &rule, "a rule's state is no other's: begin a new run");
    }
    if let Some(workers) = settings.workers.filter(|n| *n != then.workers) {
        let (then, now) = (then.workers.to_string(), workers.to_string());
        return refuse("a number of workers,", &then, &now, "parts and queues are each worker's: begin a new run");
    }
    if then.version != now.version && !anyway {
        return refuse("version", &then.version, &now.version, "use that version, or give --resume-anyway");
    }
    if then.commit != now.commit {
        say!(
            "NOTE       the checkpoint was made by commit {}, this program is of {}: the run may not be the same to the last bit",
            then.commit,
            now.commit
        );
    }
    Ok(past)
}

/// Completes the options, so that the written configuration repeats the run.
fn fill(
    resolved: &mut Options,
    settings: &Settings,
    workers: usize,
    device: &Device,
    threads: Option<usize>,
    problem: &Problem,
    descent: &UpdateSettings,
) {
    let evaluate = match (problem.columns, settings.updates) {
        (Columns::Theory, Some(updates)) => (updates / 10_000).max(1),
        (Columns::Theory, None) => 1,
        (Columns::Images, Some(updates)) => (updates / 5).max(100),
        (Columns::Images, None) => 500,
    };
    resolved.rule = Some(settings.rule.to_string());
    resolved.workers = Some(workers);
    resolved.backend = Some(device.name().into());
    resolved.delay = Some(settings.delay.to_string());
    resolved.time_scale = Some(settings.time_scale);
    resolved.clock.get_or_insert("wall".into());
    resolved.lr = Some(settings.lr);
    resolved.momentum = Some(settings.momentum);
    resolved.momentum_every = (settings.momentum != 0.0).then_some(descent.momentum_every);
    resolved.schedule = Some(settings.schedule.to_string());
    resolved.weight_decay = Some(settings.weight_decay);
    resolved.batch.get_or_insert("32".into());
    resolved.updates = settings.updates;
    resolved.seed = Some(settings.seed);
    resolved.init.get_or_insert("default".into());
    resolved.regularizer.get_or_insert("none".into());
    resolved.eval_every.get_or_insert(evaluate);
    resolved.threads_per_worker = threads.filter(|_| problem.stacked.is_none());
    resolved.step.get_or_insert("auto".into());
    resolved.table_dtype = Some(if settings.table_dtype == Dtype::F32 { "f32" } else { "bf16" }.into());
    resolved.precision.get_or_insert("f32".into());
    resolved.on_nan.get_or_insert("stop".into());
    resolved.on_failure.get_or_insert("stop".into());
    resolved.keep_checkpoints = Some(settings.keep_checkpoints);
    // Absolute, so that the file can be fed back from anywhere.
    if matches!(resolved.dataset.as_deref(), Some("cifar10" | "mnist")) {
        let folder = settings.data.clone().unwrap_or_else(default_folder);
        resolved.data = Some(std::path::absolute(&folder).unwrap_or(folder));
    }
}

/// What decides the arithmetic of a run; a log of a run that differs in one of these cannot be replayed.
const ARITHMETIC: [&str; 21] = [
    "rule",
    "workers",
    "dataset",
    "model",
    "partition",
    "lr",
    "momentum",
    "momentum_every",
    "clip",
    "schedule",
    "weight_decay",
    "batch",
    "seed",
    "init",
    "regularizer",
    "augment",
    "table_dtype",
    "precision",
    "validation",
    "on_nan",
    // Some rules take job times from it; and last, so that what was meant is named first.
    "delay",
];

/// Compares this run with the configuration beside the log, if it is there.
fn compare_with_log(log: &Path, resolved: &Options) -> Result<()> {
    let beside = log.with_file_name("config.toml");
    let Ok(text) = std::fs::read_to_string(&beside) else { return Ok(()) };
    let then: toml::Table = text.parse().map_err(|e| Error::usage(format!("{}: {e}", beside.display())))?;
    let now = toml::Table::try_from(resolved).expect("options are plain data");
    let show = |value: Option<&toml::Value>| value.map_or("not set".into(), |v| v.to_string());
    for key in ARITHMETIC {
        // Logs of older programs do not say it.
        let untold = key == "on_nan" && !then.contains_key(key);
        if then.get(key) != now.get(key) && !untold {
            return Err(Error::usage(format!(
                "{} is the log of another run: its {key} is {}, here it is {}; give the flags of that run (--config {})",
                log.display(),
                show(then.get(key)),
                show(now.get(key)),
                beside.display()
            )));
        }
    }
    let stacked =
        |value: Option<&toml::Value>| value.and_then(|v| v.as_str()).filter(|v| v.starts_with("stacked")).is_some();
    for (key, what) in [("backend", "backend"), ("step", "kind of step"), ("tune_kernels", "file of kernels")] {
        let (recorded, here) = (then.get(key), now.get(key));
        // Eager and recorded steps give the same bytes.
        if recorded != here && (key != "step" || stacked(recorded) || stacked(here)) {
            say!(
                "NOTE       the log was recorded with {key} {}: with another {what} the weights agree only up to rounding",
                show(recorded)
            );
        }
    }
    Ok(())
}

/// Refuses what the rule's mathematics has no place for, with the reason.
fn combines(settings: &Settings, needs: &Needs, workers: usize) -> Result<()> {
    let rule = settings.rule.name();
    let refuse =
        |what: &str, why: &str| Err(Error::usage(format!("{what} does not combine with --rule {rule}: {why}")));
    if settings.momentum != 0.0 {
        if needs.mixes {
            return refuse("--momentum", "it mixes models, so the server has no direction that momentum could gather");
        }
        if needs.live {
            return refuse("--momentum", "its workers write the weights themselves, and there is no order to remember");
        }
        if needs.optimizer != ServerOptimizer::Plain {
            return refuse("--momentum", "its server has a momentum of its own (see `stagger rules`)");
        }
    }
    if settings.weight_decay != 0.0 && needs.mixes {
        return refuse(
            "--weight-decay",
            "it mixes models, so there is no step of the server's that weights could decay in",
        );
    }
    if settings.table_dtype != Dtype::F32 && needs.tables == 0 {
        return refuse("--table-dtype bf16", "it keeps no table of gradients");
    }
    if let Some(fault) = settings.faults.0.iter().find(|fault| fault.worker >= workers) {
        return Err(Error::usage(format!("--inject: there is no worker {}; they count from 0", fault.worker)));
    }
    if matches!(settings.step, Some(StepKind::Stacked(_))) {
        if !settings.faults.0.is_empty()
            || settings.policy.timeout.is_some()
            || settings.policy.on_failure != OnFailure::Stop
        {
            return Err(Error::usage(
                "--inject, --worker-timeout and --on-failure are for workers that compute by themselves; leave --step stacked out",
            ));
        }
        if settings.clock == ClockChoice::Wall {
            return Err(Error::usage(
                "--step stacked computes whole groups of workers at once, so they have no time of their own: use --clock virtual",
            ));
        }
        if settings.device_timeline > 0 {
            return Err(Error::usage(
                "--device-timeline tells workers' streams apart, and --step stacked computes many workers in one pass: leave one out",
            ));
        }
        if settings.threads_per_worker.is_some() {
            return Err(Error::usage(
                "--threads-per-worker is for workers that compute by themselves; --step stacked takes all cores: leave it out",
            ));
        }
        if needs.local.walks() {
            return refuse("--step stacked", "its workers take steps of their own between two models");
        }
    }
    if needs.live && settings.clock != ClockChoice::Wall {
        return refuse(
            "--clock virtual or replay",
            "its workers write the weights whenever they can, which no clock can order; use --clock wall",
        );
    }
    Ok(())
}

/// `runs/<time>-<rule>`, with a number behind it if it is taken.
pub fn fresh_folder(rule: &str) -> PathBuf {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Civil date from days since 1970 (Howard Hinnant's algorithm).
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + (month <= 2) as i64;
    let time = format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", second / 3600, second / 60 % 60, second % 60);
    let name =
        |k: usize| Path::new("runs").join(if k == 0 { format!("{time}-{rule}") } else { format!("{time}-{rule}-{k}") });
    (0..).map(name).find(|path| !path.exists()).expect("some number is free")
}

fn summarise(
    resolved: &Options,
    backend: &Backend,
    outcome: &Outcome,
    parameters: usize,
    batch: usize,
    columns: Columns,
    weights_sha256: String,
) -> Summary {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let seconds = outcome.wall_seconds.max(1e-9);
    let finite = |x: Option<f64>| x.filter(|x| x.is_finite());
    Summary {
        rule: text(&resolved.rule),
        workers: resolved.workers.unwrap_or(0),
        backend: backend.device.name().into(),
        device: backend.name.clone(),
        clock: text(&resolved.clock),
        dataset: text(&resolved.dataset),
        partition: text(&resolved.partition),
        model: text(&resolved.model),
        parameters,
        batch,
        lr: resolved.lr.unwrap_or(0.0),
        seed: resolved.seed.unwrap_or(0),
        threads_per_worker: resolved.threads_per_worker,
        updates: outcome.updates,
        gradients: outcome.gradients,
        dropped: outcome.dropped,
        restarted: outcome.restarted,
        not_finite: outcome.not_finite,
        time: outcome.time,
        wall_seconds: outcome.wall_seconds,
        gradients_per_second: outcome.gradients as f64 / seconds,
        samples_per_second: outcome.samples as f64 / seconds,
        mean_staleness: outcome.staleness as f64 / outcome.gradients.max(1) as f64,
        max_staleness: outcome.max_staleness,
        final_train_loss: finite(match columns {
            Columns::Theory => outcome.evaluation.train_loss,
            Columns::Images => outcome.recent_loss,
        }),
        final_grad_norm: finite(outcome.evaluation.grad_norm),
        final_test_loss: finite(outcome.evaluation.test_loss),
        final_test_accuracy: finite(outcome.evaluation.test_accuracy),
        update_launches: update::launches(),
        cores_busy: None,
        memory_estimate: 0,
        memory: None,
        failures: outcome.failures.clone(),
        occupancy: outcome.occupancy,
        weights_sha256,
        version: env!("CARGO_PKG_VERSION").into(),
        interrupted: outcome.interrupted,
    }
}

fn report(s: &Summary, folder: &Path, profile: bool) {
    say!();
    say!(
        "done       {} updates from {} gradients ({} dropped, {} restarted) in {}",
        s.updates,
        s.gradients,
        s.dropped,
        s.restarted,
        span(s.wall_seconds)
    );
    say!("time       {:.3} s on the {} clock", s.time, s.clock.split(':').next().unwrap_or(""));
    say!("speed      {:.1} gradients/s, {:.0} samples/s on {}", s.gradients_per_second, s.samples_per_second, s.device);
    say!("staleness  {:.2} on average, {} at most", s.mean_staleness, s.max_staleness);
    let number = |x: Option<f64>| x.map_or("not finite".into(), |x| format!("{x:.6}"));
    for failure in &s.failures {
        say!("FAILED     {failure}; {}", failure.handled);
    }
    if s.not_finite > 0 {
        say!("NOT FINITE numbers in {} gradients: they were left out", s.not_finite);
    }
    say!("train loss {}", number(s.final_train_loss));
    if let Some(norm) = s.final_grad_norm {
        say!("grad norm  {norm:.6e}");
    }
    if let Some(accuracy) = s.final_test_accuracy {
        say!("test       accuracy {:.2} %, loss {}", 100.0 * accuracy, number(s.final_test_loss));
    }
    if let Some(memory) = s.memory {
        say!("memory     {:.2} GiB at most", gib(memory));
    }
    if let Some(Occupancy { at_once, idle }) = s.occupancy {
        say!("device     {at_once:.2} streams at once, idle for {:.1} % of the time (device.csv)", 100.0 * idle);
    }
    say!("weights    SHA-256 {}", s.weights_sha256);
    if profile {
        say!("launches   {} update launches for {} arrivals", s.update_launches, s.gradients);
        if row::resums() > 0 {
            say!("           {} more that derived the sum from its table anew", row::resums());
        }
        if update::worker_launches() > 0 {
            say!("           {} steps that workers launched themselves", update::worker_launches());
        }
    }
    say!("folder     {}", folder.display());
}
