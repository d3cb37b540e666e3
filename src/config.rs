//! The settings of a run. The command line, a TOML file and `--set` all fill the same [`Options`]; [`Options::resolve`]
//! turns them into typed [`Settings`], and back into the complete `config.toml` of the run's folder.

use crate::backend::Choice;
use crate::clock::DelayModel;
use crate::error::{Error, Result};
use crate::problem::{Regularizer, StepKind};
use crate::rule::RuleSpec;
use crate::schedule::Schedule;
use serde::{Deserialize, Serialize};
use stagger_datasets::partition::Partition;
use stagger_kernels::Dtype;
use stagger_kernels::nn::Precision;
use std::path::{Path, PathBuf};

/// The flags of `train`, which are also the keys of its configuration file (with `_` for `-`).
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The rule: NAME or NAME:key=value,key=value (`stagger rules` lists them) [default: dude]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Number of workers [default: 8, or the number of centres of a quadratic]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// auto, cuda, wgpu or cpu [default: auto]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// auto, cifar10, synthetic, libsvm:FILE or quadratic:FILE [default: auto]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// Folder of the data set [default: datasets]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// cnn, resnet18, mlp, logreg or quadratic [default: as the data set asks for, cnn for images]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// iid, dirichlet:ALPHA[,equal], shards:K, quantity:BETA or blocks [default: iid, blocks for libsvm]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// wall, virtual or replay:EVENTS.jsonl [default: wall]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock: Option<String>,
    /// Time of a job: none, fixed:1,2,3, poisson:.., normal:.., uniform:.., truncnormal:MEAN,STD, exp:.., shifted-exp:SHIFT,MEAN or pareto:SCALE,SHAPE [default: none]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<String>,
    /// Real seconds per second of --delay under the wall clock [default: 1]
    #[arg(long, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_scale: Option<f64>,
    /// Learning rate [default: 0.05]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Momentum at the server [default: 0]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Updates from one momentum part to the next: 1 is heavy-ball momentum, more is delayed Nesterov momentum [default: 1 for one worker and for rules without stale gradients, else the number of workers]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum_every: Option<u64>,
    /// Scale every gradient down to at most this norm
    #[arg(long, value_name = "NORM")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// Learning rate over the updates: constant, step:EVERY,FACTOR, linear:T, cosine:T, inverse-sqrt:T or warmup:T [default: constant]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Weight decay, of the current weights [default: 0]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Samples per gradient, or `full` for the worker's whole part [default: 32]
    #[arg(long, value_name = "N|full")]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text_or_number")]
    pub batch: Option<String>,
    /// Stop after N server updates [default: 1000, if neither --time nor --epochs is given]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updates: Option<u64>,
    /// Stop at the first arrival after S seconds on the clock's axis
    #[arg(long, value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<f64>,
    /// Stop when all workers together have drawn E times the training set
    #[arg(long, value_name = "E")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Updates between evaluations, 0 for one at the end [default: a fifth of --updates, at least 100]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<u64>,
    /// Test images to evaluate on, the first of the set [default: all]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_samples: Option<usize>,
    /// Keys every random draw [default: 0]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// First weights: default or const:X [default: default]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// none, l2:LAMBDA or nonconvex:LAMBDA, for libsvm [default: none]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regularizer: Option<String>,
    /// crop-flip, crop or none [default: crop-flip for cifar10, none otherwise]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub augment: Option<String>,
    /// CPU threads of each worker [default: cores / workers, at least 1]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads_per_worker: Option<usize>,
    /// How a worker's step is launched: eager (one launch after another), captured (recorded once, replayed with one launch; CUDA and WGPU), stacked or stacked:N (up to N workers' steps, 16 if not said, in one pass; for --clock virtual) or auto (captured on CUDA) [default: auto]
    #[arg(long, value_name = "KIND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// On a GPU: measure which kernel is fastest for each matrix product, and keep that in FILE; with the same file a run repeats itself
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tune_kernels: Option<PathBuf>,
    /// Precision of the table rows of dude and its family: f32 or bf16 [default: f32]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_dtype: Option<String>,
    /// What the factors of convolutions and of linear layers with more than 16,384 weights are rounded to: f32, bf16 or f16. Sums,
    /// gradients, weights and updates are f32
    /// [default: f32]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
}

/// A TOML value for a text key may be written as a number: `batch = 32`.
fn text_or_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    Ok(Some(match Either::deserialize(deserializer)? {
        Either::Number(n) => n.to_string(),
        Either::Text(t) => t,
    }))
}

/// Where the data come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Dataset {
    /// CIFAR-10 if it is found, else synthetic.
    Auto,
    /// CIFAR-10.
    Cifar10,
    /// The procedural set.
    Synthetic,
    /// A LIBSVM file.
    Libsvm(PathBuf),
    /// Centres of quadratics.
    Quadratic(PathBuf),
}

/// Which clock.
#[derive(Clone, Debug, PartialEq)]
pub enum Clock {
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
    pub clock: Clock,
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
    pub test_samples: Option<usize>,
    pub seed: u64,
    pub init: Option<f32>,
    pub regularizer: Regularizer,
    pub augment: Option<String>,
    pub threads_per_worker: Option<usize>,
    /// How a step is launched; `None` for the backend's best.
    pub step: Option<StepKind>,
    /// Measured kernels.
    pub tune_kernels: Option<PathBuf>,
}

impl Options {
    /// Reads a TOML file, applies `--set key=value`, and lets what was given on the command line win over both.
    pub fn layered(flags: &Options, file: Option<&Path>, sets: &[String]) -> Result<Options> {
        let mut table = toml::Table::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|e| Error::usage(format!("cannot read the configuration {}: {e}", path.display())))?;
            // Checked as a file first, so that a message points at its line.
            let wrong = |e: toml::de::Error| {
                let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
                Error::usage(format!("{} line {line}: {}", path.display(), e.message()))
            };
            toml::from_str::<Options>(&text).map_err(wrong)?;
            table = text.parse().map_err(wrong)?;
        }
        for set in sets {
            let (key, value) =
                set.split_once('=').ok_or_else(|| Error::usage(format!("--set `{set}` is not key=value")))?;
            let parsed = format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
            table.insert(key.trim().into(), parsed.unwrap_or_else(|| toml::Value::String(value.into())));
        }
        let given = toml::Table::try_from(flags).map_err(|e| {
            Error::usage(format!(
                "a flag cannot be written to a configuration: {e} (whole numbers go up to {}, paths are UTF-8)",
                i64::MAX
            ))
        })?;
        table.extend(given);
        table.try_into().map_err(|e: toml::de::Error| Error::usage(format!("configuration: {}", e.message())))
    }

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
        if self.threads_per_worker == Some(0) {
            return Err(Error::usage("--threads-per-worker 0: at least one thread is needed"));
        }
        if self.test_samples == Some(0) {
            return Err(Error::usage("--test-samples 0: at least one image is needed; leave it out to use all"));
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
            _ => match text(&self.dataset, "auto").as_str() {
                "auto" => Dataset::Auto,
                "cifar10" => Dataset::Cifar10,
                "synthetic" => Dataset::Synthetic,
                other => {
                    return Err(Error::usage(format!(
                        "--dataset `{other}` is not one of auto, cifar10, synthetic, libsvm:FILE, quadratic:FILE"
                    )));
                }
            },
        };
        let clock = match text(&self.clock, "wall").as_str() {
            "wall" => Clock::Wall,
            "virtual" => Clock::Virtual,
            other => match other.strip_prefix("replay:") {
                Some(file) => Clock::Replay(file.into()),
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
        let unlimited = !matches!(clock, Clock::Replay(_))
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
            test_samples: self.test_samples,
            seed: self.seed.unwrap_or(0),
            init,
            regularizer: text(&self.regularizer, "none").parse()?,
            augment: self.augment.clone(),
            threads_per_worker: self.threads_per_worker,
            step: StepKind::parse(self.step.as_deref().unwrap_or("auto"))?,
            tune_kernels: self.tune_kernels.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(sets: &[&str]) -> Result<Options> {
        Options::layered(&Options::default(), None, &sets.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_win_over_set() {
        let flags = Options { lr: Some(0.5), ..Options::default() };
        let options =
            Options::layered(&flags, None, &["lr=0.1".into(), "batch=64".into(), "rule=sync".into()]).unwrap();
        assert_eq!(
            (options.lr, options.batch.as_deref(), options.rule.as_deref()),
            (Some(0.5), Some("64"), Some("sync"))
        );
    }

    #[test]
    fn mistakes_are_named() {
        assert!(set(&["lrr=1"]).unwrap_err().to_string().contains("lrr"));
        assert!(set(&["lr=fast"]).unwrap_err().to_string().contains("fast"));
        for (sets, part) in [
            ("workers=0", "--workers 0"),
            ("batch=0", "--batch 0"),
            ("clock=sundial", "sundial"),
            ("dataset=mnist", "mnist"),
            ("init=const:x", "const:x"),
            ("momentum=1.0", "--momentum 1"),
            ("lr=-1.0", "--lr -1"),
            ("table_dtype=f16", "--table-dtype f16"),
            ("precision=f64", "--precision `f64`"),
            ("schedule=polynomial", "polynomial"),
            ("clip=0.0", "--clip 0"),
            ("momentum_every=2", "--momentum-every"),
            ("augment=blur", "blur"),
            ("partition=zipf", "zipf"),
            ("rule=sgd", "sgd"),
        ] {
            let error = set(&[sets]).unwrap().resolve().unwrap_err().to_string();
            assert!(error.contains(part), "{sets}: {error}");
        }
    }
}
