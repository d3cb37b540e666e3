//! The plan of a run, made before anything is written: settings, data, rule, device, problem, and the
//! executor of its workers.

use super::checks::{combines, setting};
use super::data::{self, Data};
use super::memory::{ArrivalOrder, Need};
use super::resume::{compare_with_log, fitting_checkpoint};
use super::{Audience, Place};
use crate::config::{ClockChoice, OnNan, Options, Settings};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::clock::Replay;
use crate::engine::clock::delay::DelayModel;
use crate::engine::state::UpdateSettings;
use crate::engine::timeline;
use crate::error::{Error, Result};
use crate::host::backend::{self, Backend};
use crate::host::tuning::Tuning;
use crate::problem::{Columns, Problem};
use crate::rule::{Needs, Rule, Setting};
use stagger_datasets::default_folder;
use stagger_kernels::update::Guard;
use stagger_kernels::{Device, Dtype};

/// Where the gradients are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecutorKind {
    /// On the server's thread, when the clock asks for a gradient.
    Inline,
    /// On one stream per worker. The server's thread launches them.
    Streams,
    /// On the server's thread, several workers in one pass.
    Stacked,
    /// On one thread per worker.
    Threads,
}

/// How the workers of a run are executed, and why.
#[derive(Clone, Copy, Debug)]
pub struct Execution {
    /// Where the gradients are computed.
    pub kind: ExecutorKind,
    /// The reason, as text.
    pub why: &'static str,
    /// Whether workers record their step and replay it (CUDA graph).
    pub recorded: bool,
}

impl Execution {
    /// Whether the server's thread computes or launches all gradients.
    pub fn on_server_thread(&self) -> bool {
        self.kind != ExecutorKind::Threads
    }
}

/// A planned run.
pub struct Plan {
    /// The checked settings.
    pub settings: Settings,
    /// The complete options, as written to `config.toml`.
    pub resolved: Options,
    /// The checkpoint from which the run continues.
    pub past: Option<Checkpoint>,
    /// Number of workers.
    pub workers: usize,
    /// The facts about the run that the rule knows.
    pub setting: Setting,
    /// The rule.
    pub rule: Box<dyn Rule>,
    /// The device.
    pub backend: Backend,
    /// The file of `--tune-kernels` with measured kernels.
    pub tuning: Option<Tuning>,
    /// The problem.
    pub problem: Problem,
    /// Settings of the update.
    pub update: UpdateSettings,
    /// How the workers are executed.
    pub execution: Execution,
    /// CPU threads per worker; `None` on a GPU.
    pub threads: Option<usize>,
    /// Estimated memory.
    pub memory: Need,
    /// The log of `--clock replay:FILE`.
    pub replay: Option<Replay>,
}

impl Plan {
    /// Checks the settings, reads the data, opens the device, and estimates the memory. Prints the first
    /// lines of the header.
    pub fn of(options: &Options, place: &Place, audience: Audience) -> Result<Plan> {
        let settings = options.resolve()?;
        let past = match place {
            Place::Resumed { folder, anyway } => Some(fitting_checkpoint(folder, &settings, *anyway)?),
            Place::New(_) => None,
        };
        let data = data::read(&settings)?;
        let workers = data::workers(&settings, &data)?;
        let setting = setting(&settings, workers);
        let rule = settings.rule.build(&setting)?;
        let needs = rule.needs();
        combines(&settings, &needs, workers)?;
        let backend = backend::open(settings.backend)?;
        audience.say(&format!("backend    {}", backend.why));
        timeline::check(&backend.device, settings.device_timeline)?;
        let tuning = Tuning::open(settings.tune_kernels.as_deref(), &backend)?;
        check_dense_rows(&data, &backend)?;
        let mut resolved = options.clone();
        let problem = data::build(&settings, data, workers, &backend.device, &mut resolved)?;
        problem.description.iter().for_each(|line| audience.say(line));
        let update = update_settings(&settings, &needs, workers);
        let default_threads = (backend::cores() / workers).max(1);
        let is_cpu = matches!(backend.device, Device::Cpu);
        let threads = is_cpu.then(|| settings.threads_per_worker.unwrap_or(default_threads));
        let execution = choose_executor(&settings, &problem, &needs, is_cpu);
        let memory = estimate_memory(&settings, &problem, workers, threads, &execution, &needs, &update);
        memory.check(&backend, &problem, workers, &update)?;
        complete(&mut resolved, &settings, workers, &backend.device, threads, &problem, &update);
        // The log is read before the folder is created, because it may be in that folder.
        let replay = match &settings.clock {
            ClockChoice::Replay(log) => {
                compare_with_log(log, &resolved)?;
                Some(Replay::open(log, workers)?)
            }
            _ => None,
        };
        Ok(Plan {
            settings,
            resolved,
            past,
            workers,
            setting,
            rule,
            backend,
            tuning,
            problem,
            update,
            execution,
            threads,
            memory,
            replay,
        })
    }
}

/// Whether the workers wait for simulated delays in real time.
fn waits_for_delays(settings: &Settings) -> bool {
    settings.clock == ClockChoice::Wall && settings.delay != DelayModel::None
}

/// Chooses the executor.
fn choose_executor(settings: &Settings, problem: &Problem, needs: &Needs, is_cpu: bool) -> Execution {
    let recorded = problem.recorded && !needs.local.walks() && !needs.live;
    let execution = |kind, why| Execution { kind, why, recorded };
    if problem.stacked.is_some() {
        return execution(ExecutorKind::Stacked, "--step stacked computes several workers in one pass");
    }
    if settings.policy.timeout.is_some() {
        return execution(ExecutorKind::Threads, "a hung worker can be detected only if it has its own thread");
    }
    if is_cpu && problem.cheap && settings.clock != ClockChoice::Wall {
        return execution(
            ExecutorKind::Inline,
            "a gradient takes less time than a hand-over between threads, and the clock asks for one at a time",
        );
    }
    if !is_cpu && recorded && !waits_for_delays(settings) {
        return execution(
            ExecutorKind::Streams,
            "a recorded step is one launch, so one thread can submit for all streams",
        );
    }
    execution(ExecutorKind::Threads, "all workers compute at the same time")
}

/// Refuses a LIBSVM file whose dense matrix does not fit the device.
fn check_dense_rows(data: &Data, backend: &Backend) -> Result<()> {
    let (Data::Libsvm(rows), Some(have)) = (data, backend.memory) else { return Ok(()) };
    let need = 4 * rows.len() as u64 * (rows.dimension as u64 + 1);
    if need <= have {
        return Ok(());
    }
    Err(Error::usage(format!(
        "the {} rows of dimension {} take {} GiB as a dense matrix, and {} has {}: use a smaller file",
        rows.len(),
        rows.dimension,
        need >> 30,
        backend.name,
        have >> 30
    )))
}

/// The settings of the update.
fn update_settings(settings: &Settings, needs: &Needs, workers: usize) -> UpdateSettings {
    // Without staleness the default is heavy-ball momentum at every update, otherwise delayed Nesterov
    // momentum.
    let momentum_every = if needs.synchronous { 1 } else { workers as u64 };
    UpdateSettings {
        lr: settings.lr,
        schedule: settings.schedule,
        weight_decay: settings.weight_decay,
        momentum: settings.momentum,
        momentum_every: settings.momentum_every.unwrap_or(momentum_every),
        table_dtype: settings.table_dtype,
        guard: if settings.on_nan == OnNan::Clip { Guard::Elements } else { Guard::Whole },
    }
}

/// Estimates the memory of the run.
fn estimate_memory(
    settings: &Settings,
    problem: &Problem,
    workers: usize,
    threads: Option<usize>,
    execution: &Execution,
    needs: &Needs,
    update: &UpdateSettings,
) -> Need {
    let threads_taken = threads.map(|threads| if execution.on_server_thread() { 0 } else { threads });
    let order = match settings.clock {
        ClockChoice::Wall if !waits_for_delays(settings) => ArrivalOrder::AtOnce,
        ClockChoice::Virtual if settings.delay.is_constant() => ArrivalOrder::InOrder,
        _ => ArrivalOrder::AtTheirTime,
    };
    let need = Need::of(problem, workers, threads_taken, order, needs, update);
    let saves = threads.is_some() && settings.checkpoint_every.unwrap_or(0) > 0;
    if saves { need.with_checkpoints() } else { need }
}

/// Completes the options, so that the written configuration reproduces the run.
fn complete(
    resolved: &mut Options,
    settings: &Settings,
    workers: usize,
    device: &Device,
    threads: Option<usize>,
    problem: &Problem,
    update: &UpdateSettings,
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
    resolved.momentum_every = (settings.momentum != 0.0).then_some(update.momentum_every);
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
    // An absolute path, so that the configuration can be used from any folder.
    if matches!(resolved.dataset.as_deref(), Some("cifar10" | "mnist")) {
        let folder = settings.data.clone().unwrap_or_else(default_folder);
        resolved.data = Some(std::path::absolute(&folder).unwrap_or(folder));
    }
}
