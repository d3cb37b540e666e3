//! The flags of `train`, which are also the keys of a run's configuration file.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The flags of `train`, which are also the keys of its configuration file (with `_` for `-`).
// These comments are what `--help` prints.
#[allow(rustdoc::broken_intra_doc_links)]
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
    /// auto, cifar10, mnist, synthetic, clusters (random vectors), libsvm:FILE, syn:ALPHA,BETA or quadratic:FILE [default: auto]
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
    /// wall, virtual or replay:EVENTS.jsonl [default: wall; of a comparison virtual]
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
    /// Updates between evaluations, 0 for one at the end [default: a fifth of --updates, at least 100; 500 without --updates; of libsvm and quadratic a 10,000th, at least 1; of a short comparison half]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<u64>,
    /// Numbers of a gradient that are none (NaN, infinite): they are found before the weights change, and left out. Then: stop, skip (go on; a
    /// gradient whose loss is none is left out as a whole), or clip (go on; what is finite of any gradient counts) [default: stop]
    #[arg(long, value_name = "POLICY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_nan: Option<String>,
    /// A worker that panics or hangs: stop, drop (go on without it), or restart (it does the job again, up to three times) [default: stop]
    #[arg(long, value_name = "POLICY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<String>,
    /// A worker that has not answered after S real seconds, beside its injected delay, hangs [default: it may take as long as it likes]
    #[arg(long, value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_timeout: Option<f64>,
    /// Faults on purpose: worker=I,job=K,kind=panic|hang|nan|slow (slow also takes seconds=S), several with ; between them
    #[arg(long, value_name = "FAULTS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inject: Option<String>,
    /// Save a checkpoint every N updates, besides the one at the end or at an interruption; 0 for none at all [default: at the end]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// Checkpoints that stay, the newest; the best one by its evaluation stays too [default: 2]
    #[arg(long, value_name = "K")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_checkpoints: Option<usize>,
    /// Test images to evaluate on, the first of the set [default: all]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_samples: Option<usize>,
    /// Hold the last N training images out, and evaluate on them instead of the test set: to choose settings
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<usize>,
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
    /// On CUDA: note when the device computed the first N gradients, and the updates meanwhile, by its own events, for device.csv and the report.
    /// That costs each of them two events and an empty launch (an update one for each gradient that it folds), and eager steps more: who
    /// asks for the events waits until they are there [default: 0]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_timeline: Option<u64>,
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
