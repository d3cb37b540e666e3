//! Options, checked and typed: [`Options::resolve`] gives [`Settings`].

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

/// Threads that a worker may have: more than any machine has cores for.
const MOST_THREADS: usize = 1024;

/// Gradients whose time on the device is noted at most: each, and each update meanwhile, keeps two events of the driver until the end.
const MOST_NOTED: u64 = 100_000;

/// What a gradient with numbers that are none does to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnNan {
    /// It ends the run.
    Stop,
    /// It counts as zero.
    Skip,
    /// What is finite of it counts.
    Clip,
}

/// Where the data come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Dataset {
    /// CIFAR-10 if it is found, else synthetic.
    Auto,
    /// CIFAR-10.
    Cifar10,
    /// MNIST's own files.
    Mnist,
    /// The procedural set.
    Synthetic,
    /// Random vectors in ten classes.
    Clusters,
    /// Syn(α, β): every worker its own data and its own model.
    Syn(f64, f64),
    /// A LIBSVM file.
    Libsvm(PathBuf),
    /// Centres of quadratics.
    Quadratic(PathBuf),
}

/// Which clock.
#[derive(Clone, Debug, PartialEq)]
pub enum ClockChoice {
    /// Real time.
    Wall,
    /// Simulated time.
    Virtual,
    /// A recorded order.
    Replay(PathBuf),
}

/// Checked settings. What depends on the data is still open.
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
    pub init: Option<f32>,
    pub regularizer: Regularizer,
    pub augment: Option<String>,
    pub threads_per_worker: Option<usize>,
    /// How a step is launched; `None` for the backend's best.
    pub step: Option<StepKind>,
    /// Measured kernels.
    pub tune_kernels: Option<PathBuf>,
    /// Gradients of which is noted when the device computed them.
    pub device_timeline: u64,
}

impl Options {
    /// Checks everything that can be checked without data or device.
    pub fn resolve(&self) -> Result<Settings> {
        let text = |value: &Option<String>, default: &str| value.clone().unwrap_or_else(|| default.into());
        let number = |flag: &str, value: Option<f64>, default: f64, low: f64| match value.unwrap_or(default) {
            x if x.is_finite() && x >= low => Ok(x),
            x => Err(Error::usage(format!("--{flag} {x} must be a number of at least {low}"))),
        };
        let positive = |flag: &str, value: Option<f64>| match value {
            Some(x) if !x.is_finite() || x <= 0.0 => {
                Err(Error::usage(format!("--{flag} {x} must be a number above 0")))
            }
            value => Ok(value),
        };
        let precision = match text(&self.precision, "f32").as_str() {
            "f32" => Precision::F32,
            "bf16" => Precision::Bf16,
            "f16" => Precision::F16,
            other => return Err(Error::usage(format!("--precision `{other}` is not one of f32, bf16, f16"))),
        };
        let table_dtype = match text(&self.table_dtype, "f32").as_str() {
            "f32" => Dtype::F32,
            "bf16" => Dtype::Bf16,
            other => return Err(Error::usage(format!("--table-dtype {other} is neither f32 nor bf16"))),
        };
        if self.momentum_every == Some(0) {
            return Err(Error::usage("--momentum-every 0: at least one update is needed"));
        }
        if self.momentum_every.is_some() && self.momentum.unwrap_or(0.0) == 0.0 {
            return Err(Error::usage("--momentum-every needs --momentum"));
        }
        if self.workers == Some(0) {
            return Err(Error::usage("--workers 0: at least one worker is needed"));
        }
        if let Some(threads) = self.threads_per_worker.filter(|threads| !(1..=MOST_THREADS).contains(threads)) {
            return Err(Error::usage(format!(
                "--threads-per-worker {threads}: give a number from 1 to {MOST_THREADS}"
            )));
        }
        let faults: Faults = text(&self.inject, "").parse()?;
        if faults.0.iter().any(|fault| fault.kind == Kind::Hang) && self.worker_timeout.is_none() {
            return Err(Error::usage("--inject with kind=hang needs --worker-timeout: else the run hangs as well"));
        }
        if self.keep_checkpoints == Some(0) {
            return Err(Error::usage("--keep-checkpoints 0: one at least; --checkpoint-every 0 saves none"));
        }
        if let Some(gradients) = self.device_timeline.filter(|n| *n > MOST_NOTED) {
            return Err(Error::usage(format!("--device-timeline {gradients}: at most {MOST_NOTED}")));
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
        let batch = match text(&self.batch, "32").as_str() {
            "full" => None,
            n => Some(n.parse().ok().filter(|n| (1..=1usize << 24).contains(n)).ok_or_else(|| {
                Error::usage(format!("--batch {n} is neither a whole number from 1 to 16777216 nor `full`"))
            })?),
        };
        let dataset = match text(&self.dataset, "auto").split_once(':') {
            Some(("libsvm", file)) => Dataset::Libsvm(file.into()),
            Some(("quadratic", file)) => Dataset::Quadratic(file.into()),
            Some(("syn", pair)) => {
                let numbers: Option<Vec<f64>> = pair.split(',').map(|x| x.trim().parse().ok()).collect();
                match numbers.as_deref().unwrap_or_default() {
                    [alpha, beta] if [alpha, beta].iter().all(|x| (0.0..=1e6).contains(*x)) => {
                        Dataset::Syn(*alpha, *beta)
                    }
                    _ => {
                        return Err(Error::usage(format!(
                            "--dataset `syn:{pair}`: it needs two numbers of at least 0, such as syn:0.5,0.5"
                        )));
                    }
                }
            }
            _ => match text(&self.dataset, "auto").as_str() {
                "auto" => Dataset::Auto,
                "cifar10" => Dataset::Cifar10,
                "mnist" => Dataset::Mnist,
                "synthetic" => Dataset::Synthetic,
                "clusters" => Dataset::Clusters,
                other => {
                    return Err(Error::usage(format!(
                        "--dataset `{other}` is not one of auto, cifar10, mnist, synthetic, clusters, libsvm:FILE, syn:ALPHA,BETA, quadratic:FILE"
                    )));
                }
            },
        };
        let clock = match text(&self.clock, "wall").as_str() {
            "wall" => ClockChoice::Wall,
            "virtual" => ClockChoice::Virtual,
            other => match other.strip_prefix("replay:") {
                Some("") => {
                    return Err(Error::usage(
                        "--clock replay: names no log; give one, such as replay:runs/a/events.jsonl",
                    ));
                }
                Some(file) => ClockChoice::Replay(file.into()),
                None => {
                    return Err(Error::usage(format!(
                        "--clock `{other}` is not one of wall, virtual, replay:EVENTS.jsonl"
                    )));
                }
            },
        };
        let init = match text(&self.init, "default").as_str() {
            "default" => None,
            other => Some(
                other.strip_prefix("const:").and_then(|x| x.parse().ok()).filter(|x: &f32| x.is_finite()).ok_or_else(
                    || Error::usage(format!("--init `{other}` is neither default nor const:X with a number X")),
                )?,
            ),
        };
        if let Some(augment) = self.augment.as_deref().filter(|a| !["crop-flip", "crop", "none"].contains(a)) {
            return Err(Error::usage(format!("--augment `{augment}` is not one of crop-flip, crop, none")));
        }
        // The end of its log ends a replay.
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
            time_scale: number("time-scale", self.time_scale, 1.0, 0.0)?,
            lr: number("lr", self.lr, 0.05, 0.0)?,
            momentum: match number("momentum", self.momentum, 0.0, 0.0)? {
                x if x < 1.0 => x,
                x => return Err(Error::usage(format!("--momentum {x} must lie below 1"))),
            },
            momentum_every: self.momentum_every,
            clip: positive("clip", self.clip)?,
            schedule: text(&self.schedule, "constant").parse()?,
            table_dtype,
            precision,
            weight_decay: number("weight-decay", self.weight_decay, 0.0, 0.0)?,
            batch,
            updates: if unlimited { Some(1000) } else { self.updates },
            time: positive("time", self.time)?,
            epochs: positive("epochs", self.epochs)?,
            eval_every: self.eval_every,
            on_nan: match text(&self.on_nan, "stop").as_str() {
                "stop" => OnNan::Stop,
                "skip" => OnNan::Skip,
                "clip" => OnNan::Clip,
                other => return Err(Error::usage(format!("--on-nan `{other}` is not one of stop, skip, clip"))),
            },
            policy: Policy {
                on_failure: text(&self.on_failure, "stop").parse()?,
                timeout: positive("worker-timeout", self.worker_timeout)?.map(|s| Duration::from_secs_f64(s.min(1e9))),
            },
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
            step: StepKind::parse(self.step.as_deref().unwrap_or("auto"))?,
            tune_kernels: self.tune_kernels.clone(),
            device_timeline: self.device_timeline.unwrap_or(0),
        })
    }
}
