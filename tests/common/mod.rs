//! What several tests share: running the program, and running a server around a rule of the test's own.
#![allow(dead_code)]

pub mod reference;
pub mod simulate;

use stagger::engine::clock::stopwatch::Stopwatch;
use stagger::engine::clock::{Clock, Virtual};
use stagger::engine::executor::Threads;
use stagger::engine::gate::Gate;
use stagger::engine::server::{CheckpointPlan, DeviceContext, EvaluationPlan, ServerSetup, Stops};
use stagger::engine::state::UpdateSettings;
use stagger::engine::worker::Worker;
use stagger::engine::worker_pool::WorkerPool;
use stagger::fault::Policy;
use stagger::problem::Problem;
use stagger::record::{Event, Limits, Outcome, RunFolder};
use stagger::rule::Rule;
use stagger::view::progress::Progress;
use stagger_kernels::Device;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A folder of one test alone, or a file in one. It goes with this value, for a run may leave hundreds of megabytes; where the test
/// fails it stays to be looked at, and goes an hour later, when tests run again.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    path: PathBuf,
}

impl Scratch {
    /// A file in the folder, which lives as long.
    pub fn file(mut self, name: &str) -> Self {
        self.path = self.folder.join(name);
        self
    }
}

impl std::ops::Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<std::ffi::OsStr> for Scratch {
    fn as_ref(&self) -> &std::ffi::OsStr {
        self.path.as_ref()
    }
}

impl AsRef<Path> for Scratch {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// An empty folder of this test alone.
pub fn scratch(name: &str) -> Scratch {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    if number == 0 {
        sweep(all);
    }
    let folder = all.join(format!("{name}-{}-{number}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    Scratch { path: folder.clone(), folder }
}

/// Removes the folders of processes that are gone. Other test programs may do the same at the same time.
fn sweep(all: &Path) {
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let lives = name.rsplit('-').nth(1).is_none_or(|process| Path::new("/proc").join(process).exists());
        let changed = entry.metadata().and_then(|data| data.modified());
        let is_old = changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() > 3600));
        if is_old && !lives {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Runs the program.
pub fn stagger(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_stagger")).args(args).output().unwrap()
}

/// Runs `stagger train` with these flags, separated by blanks, and returns the run's folder.
pub fn train(flags: &str) -> Scratch {
    let folder = scratch("run");
    let mut args = vec!["train", "--out", folder.to_str().unwrap()];
    args.extend(flags.split_whitespace());
    let output = stagger(&args);
    assert!(output.status.success(), "{flags}\n{}", String::from_utf8_lossy(&output.stderr));
    folder
}

/// The same for many small runs, of which nobody wants to go on with one: no checkpoint is brought to the disk.
pub fn train_unsaved(flags: &str) -> Scratch {
    train(&format!("{flags} --checkpoint-every 0"))
}

/// A run of the program on the CPU under the virtual clock, told step by step: `Run::quadratic("0\n3\n").rule("dude").updates(6).train()`.
pub struct Run {
    flags: Vec<String>,
    /// The file of centres; it must exist until the run has ended.
    _centres: Option<Scratch>,
}

impl Run {
    fn new(dataset: &str) -> Self {
        let run = Run { flags: Vec::new(), _centres: None };
        run.with("dataset", dataset).with("backend", "cpu").with("clock", "virtual").with("checkpoint-every", "0")
    }

    /// One worker per line, each with this centre.
    pub fn quadratic(lines: &str) -> Self {
        let centres = centres_at(lines);
        let run = Run::new(&format!("quadratic:{}", centres.display()));
        Run { _centres: Some(centres), ..run }
    }

    /// The random vectors in ten classes, with the mlp.
    pub fn clusters() -> Self {
        Run::new("clusters").with("model", "mlp")
    }

    /// Any flag with its value.
    pub fn with(mut self, flag: &str, value: impl ToString) -> Self {
        self.flags.extend([format!("--{flag}"), value.to_string()]);
        self
    }

    pub fn rule(self, rule: &str) -> Self {
        self.with("rule", rule)
    }

    pub fn workers(self, workers: usize) -> Self {
        self.with("workers", workers)
    }

    pub fn delay(self, delay: &str) -> Self {
        self.with("delay", delay)
    }

    pub fn lr(self, lr: f64) -> Self {
        self.with("lr", lr)
    }

    pub fn updates(self, updates: u64) -> Self {
        self.with("updates", updates)
    }

    /// Trains, and returns the run's folder.
    pub fn train(self) -> Scratch {
        let folder = scratch("run");
        let mut args = vec!["train", "--out", folder.to_str().unwrap()];
        args.extend(self.flags.iter().map(String::as_str));
        let output = stagger(&args);
        assert!(output.status.success(), "{}\n{}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        folder
    }
}

/// A run's arrivals.
pub fn events(folder: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(folder.join("events.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A run's metrics: (update, time, train_loss, grad_norm).
pub fn metrics(folder: &Path) -> Vec<[f64; 4]> {
    let text = std::fs::read_to_string(folder.join("metrics.csv")).unwrap();
    text.lines()
        .skip(1)
        .map(|line| {
            let cells: Vec<f64> = line.split(',').map(|c| c.parse().unwrap()).collect();
            cells.try_into().unwrap()
        })
        .collect()
}

/// A run's weights, all parameters one after another.
pub fn weights(folder: &Path) -> Vec<f32> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort();
    names.iter().flat_map(|n| bytemuck::pod_collect_to_vec::<u8, f32>(tensors.tensor(n).unwrap().data())).collect()
}

/// A run's summary.
pub fn summary(folder: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("summary.json")).unwrap()).unwrap()
}

/// The centres 0, 3, -6 of the golden traces.
pub fn centres() -> Scratch {
    centres_at("0\n3\n-6\n")
}

/// A file of these centres, a line for each worker.
pub fn centres_at(lines: &str) -> Scratch {
    let file = scratch("centres").file("centres.csv");
    std::fs::write(&file, lines).unwrap();
    file
}

/// What a run came to, and its last weights.
#[derive(Debug)]
pub struct Served {
    outcome: Outcome,
    pub weights: Vec<f32>,
}

impl std::ops::Deref for Served {
    type Target = Outcome;

    fn deref(&self) -> &Outcome {
        &self.outcome
    }
}

/// Runs a rule of the test's own on the CPU under the virtual clock.
pub fn serve(rule: Box<dyn Rule>, problem: Problem, delay: &str, limits: Limits, lr: f64) -> (Served, Vec<Event>) {
    let clock = Virtual::new(delay.parse().unwrap(), 0);
    serve_by(Box::new(clock), Arc::new(Stopwatch::default()), rule, problem, limits, lr)
}

/// Runs a rule of the test's own on the CPU, with a thread per worker, under any clock.
pub fn serve_by(
    clock: Box<dyn Clock>,
    stopwatch: Arc<Stopwatch>,
    rule: Box<dyn Rule>,
    mut problem: Problem,
    limits: Limits,
    lr: f64,
) -> (Served, Vec<Event>) {
    let mut objectives = std::mem::take(&mut problem.objectives).into_iter();
    let workers = objectives.len();
    let gate = Gate::new(2);
    let layout = Arc::new(problem.layout.clone());
    let local = rule.needs().local;
    let make = |index, channels| Worker {
        index,
        objective: objectives.next().unwrap(),
        device: Device::Cpu,
        layout: layout.clone(),
        local,
        clip: None,
        live: None,
        channels,
        gate: gate.clone(),
        room: Gate::open(),
        stopwatch: stopwatch.clone(),
        faults: Vec::new(),
        timeline: Default::default(),
        warm_up: None,
    };
    let threads = Threads::start(workers, Some(1), (gate.clone(), Gate::open()), None, make).unwrap();
    let pool = WorkerPool::new(workers, Box::new(threads), Policy::default());
    serve_pool(pool, gate, clock, stopwatch, rule, problem, limits, lr)
}

/// Runs a rule of the test's own on the CPU with these workers.
#[allow(clippy::too_many_arguments)]
pub fn serve_pool(
    pool: WorkerPool,
    gate: Gate,
    clock: Box<dyn Clock>,
    stopwatch: Arc<Stopwatch>,
    rule: Box<dyn Rule>,
    problem: Problem,
    limits: Limits,
    lr: f64,
) -> (Served, Vec<Event>) {
    let path = scratch("served");
    let mut folder = RunFolder::create(&path, "", problem.columns).unwrap();
    let Problem { layout, initial, evaluator, columns, batches, .. } = problem;
    let setup = ServerSetup {
        rule,
        pool,
        clock,
        stopwatch,
        batches,
        folder: &mut folder,
        progress: Progress::new(limits),
        device: DeviceContext {
            device: Device::Cpu,
            gate,
            update_at_once: false,
            rehearsal: None,
            live: None,
            timeline: Default::default(),
        },
        evaluation: EvaluationPlan { evaluator, columns, every: 0 },
        checkpoints: CheckpointPlan { saver: None, every: 0, manifest: Default::default(), past: None },
        stops: Stops { limits, at_end_of_log: false, at_nan: false },
    };
    let settings = UpdateSettings { lr, ..UpdateSettings::default() };
    let (outcome, weights) = setup.run(&layout, settings, initial).unwrap();
    let events = events(&path);
    (Served { outcome, weights: weights.host().to_vec() }, events)
}

/// The WGPU device of this machine, opened once; `None` without an adapter.
pub fn wgpu() -> Option<Device> {
    static OPENED: std::sync::OnceLock<Option<Device>> = std::sync::OnceLock::new();
    OPENED
        .get_or_init(|| stagger::host::backend::open(stagger::host::backend::Choice::Wgpu).ok().map(|b| b.device))
        .clone()
}

/// Whether the program can use WGPU here.
pub fn has_wgpu() -> bool {
    wgpu().is_some()
}
