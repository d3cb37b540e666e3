//! The typed settings of a run: [`Options::resolve`] checks the options and returns [`Settings`].

use super::Options;
use crate::engine::clock::delay::DelayModel;
use crate::error::{Error, Result};
use crate::fault::{Faults, Kind, Policy};
use crate::host::backend::Choice;
use crate::problem::{Regularizer, StepKind};
use crate::rule::RuleSpec;
use crate::schedule::Schedule;
use stagger_datasets::partition::Partition;
use stagger_kernels::Dtype;
use stagger_kernels::layers::Precision;
use std::path::PathBuf;
use std::time::Duration;

/// Maximum of `--threads-per-worker`: more than any machine has cores.
const MAX_THREADS: usize = 1024;

/// Maximum of `--device-timeline`. Every recorded gradient or update keeps two driver events until the end of
/// the run.
const MAX_TIMELINE: u64 = 100_000;

/// What a run does with a gradient that contains non-finite values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnNan {
    /// End the run.
    Stop,
    /// Continue, and ignore a gradient whose loss is not finite.
    Skip,
    /// Continue, and apply the finite values of every gradient.
    Clip,
}

/// The data set.
#[derive(Clone, Debug, PartialEq)]
pub enum Dataset {
    /// CIFAR-10 if it is in the data folder, otherwise the synthetic images.
    Auto,
    /// CIFAR-10.
    Cifar10,
    /// MNIST, from its four IDX files.
    Mnist,
    /// Generated images of ten textures.
    Synthetic,
    /// Generated random vectors in ten classes.
    Clusters,
    /// Syn(α, β): generated rows; every worker has its own data and its own true model.
    Syn(f64, f64),
    /// A LIBSVM file.
    Libsvm(PathBuf),
    /// A file with the centres of quadratics.
    Quadratic(PathBuf),
}

/// The clock of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum ClockChoice {
    /// Real time.
    Wall,
    /// Simulated time.
    Virtual,
    /// The order of a recorded event log.
    Replay(PathBuf),
}

/// Checked and typed settings of a run; each field is named after its flag. A default that depends on the data
/// set is still `None`.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Settings {
    pub rule: RuleSpec,
    pub workers: Option<usize>,
    pub backend: Choice,
    pub dataset: Dataset,
    pub data: Option<PathBuf>,
    pub model: Option<String>,
    pub partition: Option<Partition>,
    pub clock: ClockChoice,
    pub delay: DelayModel,
    pub time_scale: f64,
    pub lr: f64,
    pub momentum: f64,
    pub momentum_every: Option<u64>,
    pub clip: Option<f64>,
    pub schedule: Schedule,
    pub table_dtype: Dtype,
    pub precision: Precision,
    pub weight_decay: f64,
    /// Samples per gradient; `None` for all samples of the worker.
    pub batch: Option<usize>,
    pub updates: Option<u64>,
    pub time: Option<f64>,
    pub epochs: Option<f64>,
    pub eval_every: Option<u64>,
    pub on_nan: OnNan,
    pub policy: Policy,
    pub faults: Faults,
    pub checkpoint_every: Option<u64>,
    pub keep_checkpoints: usize,
    pub test_samples: Option<usize>,
    pub validation: Option<usize>,
    pub seed: u64,
    /// Value of all initial weights; `None` for the model's own initialisation.
    pub init: Option<f32>,
    pub regularizer: Regularizer,
    pub augment: Option<String>,
    pub threads_per_worker: Option<usize>,
    /// How a step is launched; `None` for the default of the backend.
    pub step: Option<StepKind>,
    /// File with the measured choice of kernels.
    pub tune_kernels: Option<PathBuf>,
    /// Number of gradients for which the device's times are recorded.
    pub device_timeline: u64,
}

impl Options {
    /// Checks everything that can be checked without the data and the device.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for the first value that is not allowed, with its flag.
    pub fn resolve(&self) -> Result<Settings> {
        let precision = parse_precision(text(&self.precision, "f32"))?;
        let table_dtype = parse_table_dtype(text(&self.table_dtype, "f32"))?;
        self.check_momentum_every()?;
        self.check_workers()?;
        let faults = self.parse_faults()?;
        self.check_counts()?;
        let batch = parse_batch(text(&self.batch, "32"))?;
        let dataset = parse_dataset(text(&self.dataset, "auto"))?;
        let clock = parse_clock(text(&self.clock, "wall"))?;
        let init = parse_init(text(&self.init, "default"))?;
        self.check_augment()?;
        // A replay without a limit ends with its log. Any other run gets a default limit.
        let unlimited = !matches!(clock, ClockChoice::Replay(_))
            && self.updates.is_none()
            && self.time.is_none()
            && self.epochs.is_none();
        Ok(Settings {
            rule: text(&self.rule, "dude").parse()?,
            workers: self.workers,
            backend: text(&self.backend, "auto").parse()?,
            dataset,
            data: self.data.clone(),
            model: self.model.clone(),
            partition: self.partition.as_ref().map(|p| p.parse()).transpose()?,
            clock,
            delay: text(&self.delay, "none").parse()?,
            time_scale: non_negative("time-scale", self.time_scale.unwrap_or(1.0))?,
            lr: non_negative("lr", self.lr.unwrap_or(0.05))?,
            momentum: parse_momentum(self.momentum.unwrap_or(0.0))?,
            momentum_every: self.momentum_every,
            clip: positive("clip", self.clip)?,
            schedule: text(&self.schedule, "constant").parse()?,
            table_dtype,
            precision,
            weight_decay: non_negative("weight-decay", self.weight_decay.unwrap_or(0.0))?,
            batch,
            updates: if unlimited { Some(1000) } else { self.updates },
            time: positive("time", self.time)?,
            epochs: positive("epochs", self.epochs)?,
            eval_every: self.eval_every,
            on_nan: parse_on_nan(text(&self.on_nan, "stop"))?,
            policy: self.parse_policy()?,
            faults,
            checkpoint_every: self.checkpoint_every,
            keep_checkpoints: self.keep_checkpoints.unwrap_or(2),
            test_samples: self.test_samples,
            validation: self.validation,
            seed: self.seed.unwrap_or(0),
            init,
            regularizer: text(&self.regularizer, "none").parse()?,
            augment: self.augment.clone(),
            threads_per_worker: self.threads_per_worker,
            step: StepKind::parse(text(&self.step, "auto"))?,
            tune_kernels: self.tune_kernels.clone(),
            device_timeline: self.device_timeline.unwrap_or(0),
        })
    }

    fn check_momentum_every(&self) -> Result<()> {
        if self.momentum_every == Some(0) {
            return Err(Error::usage("--momentum-every 0: at least one update is needed"));
        }
        if self.momentum_every.is_some() && self.momentum.unwrap_or(0.0) == 0.0 {
            return Err(Error::usage("--momentum-every needs --momentum"));
        }
        Ok(())
    }

    fn check_workers(&self) -> Result<()> {
        if self.workers == Some(0) {
            return Err(Error::usage("--workers 0: at least one worker is needed"));
        }
        if let Some(threads) = self.threads_per_worker.filter(|threads| !(1..=MAX_THREADS).contains(threads)) {
            return Err(Error::usage(format!("--threads-per-worker {threads}: give a number from 1 to {MAX_THREADS}")));
        }
        Ok(())
    }

    fn parse_faults(&self) -> Result<Faults> {
        let faults: Faults = text(&self.inject, "").parse()?;
        if faults.0.iter().any(|fault| fault.kind == Kind::Hang) && self.worker_timeout.is_none() {
            return Err(Error::usage("--inject with kind=hang needs --worker-timeout: otherwise the run hangs too"));
        }
        Ok(faults)
    }

    fn check_counts(&self) -> Result<()> {
        if self.keep_checkpoints == Some(0) {
            return Err(Error::usage(
                "--keep-checkpoints 0: at least one checkpoint is kept; use --checkpoint-every 0 to save none",
            ));
        }
        if let Some(gradients) = self.device_timeline.filter(|n| *n > MAX_TIMELINE) {
            return Err(Error::usage(format!("--device-timeline {gradients}: at most {MAX_TIMELINE}")));
        }
        if self.test_samples == Some(0) {
            return Err(Error::usage("--test-samples 0: at least one image is needed; leave it out to use all"));
        }
        if self.validation == Some(0) {
            return Err(Error::usage("--validation 0: at least one image is needed; leave it out to use the test set"));
        }
        if self.updates == Some(0) {
            return Err(Error::usage("--updates 0: at least one update is needed"));
        }
        Ok(())
    }

    fn check_augment(&self) -> Result<()> {
        if let Some(augment) = self.augment.as_deref().filter(|a| !["crop-flip", "crop", "none"].contains(a)) {
            return Err(Error::usage(format!("--augment `{augment}` is not one of crop-flip, crop, none")));
        }
        Ok(())
    }

    fn parse_policy(&self) -> Result<Policy> {
        Ok(Policy {
            on_failure: text(&self.on_failure, "stop").parse()?,
            timeout: positive("worker-timeout", self.worker_timeout)?.map(|s| Duration::from_secs_f64(s.min(1e9))),
        })
    }
}

fn text<'a>(value: &'a Option<String>, default: &'a str) -> &'a str {
    value.as_deref().unwrap_or(default)
}

fn non_negative(flag: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(Error::usage(format!("--{flag} {value} must be a number of at least 0")))
    }
}

fn positive(flag: &str, value: Option<f64>) -> Result<Option<f64>> {
    match value {
        Some(x) if !x.is_finite() || x <= 0.0 => Err(Error::usage(format!("--{flag} {x} must be a number above 0"))),
        value => Ok(value),
    }
}

fn parse_precision(text: &str) -> Result<Precision> {
    match text {
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::Bf16),
        "f16" => Ok(Precision::F16),
        other => Err(Error::usage(format!("--precision `{other}` is not one of f32, bf16, f16"))),
    }
}

fn parse_table_dtype(text: &str) -> Result<Dtype> {
    match text {
        "f32" => Ok(Dtype::F32),
        "bf16" => Ok(Dtype::Bf16),
        other => Err(Error::usage(format!("--table-dtype {other} is neither f32 nor bf16"))),
    }
}

/// `None` for `full`.
fn parse_batch(text: &str) -> Result<Option<usize>> {
    if text == "full" {
        return Ok(None);
    }
    let batch: Option<usize> = text.parse().ok().filter(|n| (1..=1usize << 24).contains(n));
    batch
        .map(Some)
        .ok_or_else(|| Error::usage(format!("--batch {text} is neither a whole number from 1 to 16777216 nor `full`")))
}

fn parse_dataset(text: &str) -> Result<Dataset> {
    match text.split_once(':') {
        Some(("libsvm", file)) => return Ok(Dataset::Libsvm(file.into())),
        Some(("quadratic", file)) => return Ok(Dataset::Quadratic(file.into())),
        Some(("syn", pair)) => return parse_syn(pair),
        _ => {}
    }
    match text {
        "auto" => Ok(Dataset::Auto),
        "cifar10" => Ok(Dataset::Cifar10),
        "mnist" => Ok(Dataset::Mnist),
        "synthetic" => Ok(Dataset::Synthetic),
        "clusters" => Ok(Dataset::Clusters),
        other => Err(Error::usage(format!(
            "--dataset `{other}` is not one of auto, cifar10, mnist, synthetic, clusters, libsvm:FILE, syn:ALPHA,BETA, quadratic:FILE"
        ))),
    }
}

/// The parameters of `syn:ALPHA,BETA`, each from 0 to 10⁶.
fn parse_syn(pair: &str) -> Result<Dataset> {
    let numbers: Option<Vec<f64>> = pair.split(',').map(|x| x.trim().parse().ok()).collect();
    match numbers.as_deref().unwrap_or_default() {
        [alpha, beta] if [alpha, beta].iter().all(|x| (0.0..=1e6).contains(*x)) => Ok(Dataset::Syn(*alpha, *beta)),
        _ => Err(Error::usage(format!(
            "--dataset `syn:{pair}`: it needs two numbers of at least 0, such as syn:0.5,0.5"
        ))),
    }
}

fn parse_clock(text: &str) -> Result<ClockChoice> {
    match text {
        "wall" => Ok(ClockChoice::Wall),
        "virtual" => Ok(ClockChoice::Virtual),
        other => match other.strip_prefix("replay:") {
            Some("") => Err(Error::usage("--clock replay: names no log; give one, such as replay:runs/a/events.jsonl")),
            Some(file) => Ok(ClockChoice::Replay(file.into())),
            None => Err(Error::usage(format!("--clock `{other}` is not one of wall, virtual, replay:EVENTS.jsonl"))),
        },
    }
}

/// `None` for `default`.
fn parse_init(text: &str) -> Result<Option<f32>> {
    if text == "default" {
        return Ok(None);
    }
    let value = text.strip_prefix("const:").and_then(|x| x.parse().ok()).filter(|x: &f32| x.is_finite());
    value
        .map(Some)
        .ok_or_else(|| Error::usage(format!("--init `{text}` is neither default nor const:X with a number X")))
}

fn parse_momentum(value: f64) -> Result<f64> {
    match non_negative("momentum", value)? {
        x if x < 1.0 => Ok(x),
        x => Err(Error::usage(format!("--momentum {x} must lie below 1"))),
    }
}

fn parse_on_nan(text: &str) -> Result<OnNan> {
    match text {
        "stop" => Ok(OnNan::Stop),
        "skip" => Ok(OnNan::Skip),
        "clip" => Ok(OnNan::Clip),
        other => Err(Error::usage(format!("--on-nan `{other}` is not one of stop, skip, clip"))),
    }
}
