//! The flags of `train`, which are also the keys of a run's configuration file.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The flags of `train`, which are also the keys of its configuration file (with `_` for `-`).
// These comments are what `--help` prints.
#[allow(rustdoc::broken_intra_doc_links)]
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Rule that decides how the server uses each gradient: NAME or NAME:key=value,.. [default: dude]
    ///
    /// `stagger rules` lists the rules; `stagger rules NAME` describes one rule and its parameters.
    #[arg(long, help_heading = "Training", verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Number of workers [default: 8, or the number of centres of a quadratic]
    #[arg(long, value_name = "N", help_heading = "Workers and time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// Device backend: auto, cuda, wgpu or cpu [default: auto]
    ///
    /// auto takes the first of cuda, wgpu and cpu that works on this machine.
    #[arg(long, help_heading = "Device and speed", verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Data set: auto, cifar10, mnist, synthetic, clusters, libsvm:FILE, .. [default: auto]
    ///
    /// - auto: CIFAR-10 if it is in the data folder, otherwise synthetic
    /// - cifar10: CIFAR-10 in its binary form; `stagger data fetch` downloads it
    /// - mnist: the four files of MNIST, plain or as .gz
    /// - synthetic: generated images, ten classes of textures
    /// - clusters: generated random vectors in ten classes
    /// - libsvm:FILE: rows with two classes from a LIBSVM file
    /// - syn:ALPHA,BETA: generated rows with two classes; every worker has its own data and its own true model
    /// - quadratic:FILE: one centre c per line and worker, whose loss is 1/2 |x - c|^2
    #[arg(long, help_heading = "Data and model", verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// Folder of the data set [default: datasets]
    #[arg(long, value_name = "DIR", help_heading = "Data and model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Model: cnn, resnet18, mlp, logreg or quadratic [default: depends on the data set, cnn for images]
    #[arg(long, help_heading = "Data and model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How the training samples are divided among the workers [default: iid, blocks for libsvm]
    ///
    /// - iid: shuffled, parts of equal size
    /// - dirichlet:ALPHA: each class is split in proportions drawn from Dirichlet(ALPHA); a small ALPHA makes the
    ///   parts more different
    /// - dirichlet:ALPHA,equal: parts of equal size whose class proportions are drawn from Dirichlet(ALPHA)
    /// - shards:K: sorted by label and cut into shards; each worker gets K random shards
    /// - quantity:BETA: shuffled, sizes drawn from Dirichlet(BETA)
    /// - blocks: consecutive blocks in the order of the file
    #[arg(long, help_heading = "Data and model", verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Clock that orders the gradients: wall, virtual or replay:FILE [default: wall, virtual in a comparison]
    ///
    /// - wall: real time; gradients are applied in the order in which they arrive
    /// - virtual: simulated time; the same seed gives the same order and the same weights
    /// - replay:EVENTS.jsonl: the order recorded in the event log of another run
    #[arg(long, help_heading = "Workers and time", verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock: Option<String>,
    /// Distribution of the simulated job times, such as fixed:1,1,4 or exp:1,2 [default: none]
    ///
    /// Times are in seconds. S1,S2,.. are one parameter per worker; the list is repeated if there are more workers.
    ///
    /// - none: no simulated delay; under the virtual clock every job takes 1 second
    /// - fixed:S1,S2,..: exactly S seconds
    /// - poisson:S1,..: Poisson with mean S
    /// - normal:S1,..: |N(S, S)| + 1, where the standard deviation is S too
    /// - uniform:S1,..: uniform between 0 and S
    /// - truncnormal:MEAN,STD: normal, truncated below 0.1 seconds, drawn once per worker
    /// - exp:S1,..: exponential with mean S
    /// - shifted-exp:SHIFT,MEAN: SHIFT plus an exponential time, with mean MEAN in total
    /// - pareto:SCALE,SHAPE: Pareto with minimum SCALE; a smaller SHAPE gives a heavier tail
    #[arg(long, help_heading = "Workers and time", verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<String>,
    /// Real seconds per second of --delay under the wall clock [default: 1]
    #[arg(long, value_name = "X", help_heading = "Workers and time", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_scale: Option<f64>,
    /// Learning rate [default: 0.05]
    #[arg(long, help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Momentum coefficient of the server optimizer, at least 0 and below 1 [default: 0]
    #[arg(long, help_heading = "Training", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Apply the momentum term every N updates [default: 1 or the number of workers]
    ///
    /// 1 is heavy-ball momentum. A larger N is delayed Nesterov momentum. The default is 1 for one worker and for
    /// rules without stale gradients, and the number of workers otherwise. Requires --momentum.
    #[arg(long, value_name = "N", help_heading = "Training", hide_short_help = true, verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum_every: Option<u64>,
    /// Scale each gradient down to at most this norm
    #[arg(long, value_name = "NORM", help_heading = "Training", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// Schedule of the learning rate, such as cosine:2000 [default: constant]
    ///
    /// The learning rate is multiplied by a factor that depends on the number of updates t:
    ///
    /// - constant: 1
    /// - step:EVERY,FACTOR: multiplied by FACTOR after every EVERY updates
    /// - linear:T: from 1 to 0 in a straight line over T updates
    /// - cosine:T: from 1 to 0 along a cosine over T updates
    /// - inverse-sqrt:T: 1 / sqrt(1 + t/T)
    /// - warmup:T: from 1/T to 1 in a straight line over T updates
    #[arg(long, help_heading = "Training", hide_short_help = true, verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Weight decay coefficient, applied to the current weights [default: 0]
    #[arg(long, help_heading = "Training", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Samples per gradient, or `full` for all samples of the worker [default: 32]
    #[arg(long, value_name = "N|full", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text_or_number")]
    pub batch: Option<String>,
    /// Stop after N server updates [default: 1000, if neither --time nor --epochs is given]
    #[arg(long, value_name = "N", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updates: Option<u64>,
    /// Stop at the first arrival after S seconds on the run's clock
    #[arg(long, value_name = "S", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<f64>,
    /// Stop when the workers together have drawn E times the number of training samples
    #[arg(long, value_name = "E", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Evaluate every N updates; 0 evaluates only at the end [default: a fifth of --updates, at least 100]
    ///
    /// Other defaults: 500 without --updates; a 10,000th of --updates, at least 1, for libsvm and quadratic data;
    /// half of --updates in a short comparison.
    #[arg(long, value_name = "N", help_heading = "Evaluation and output", verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<u64>,
    /// What to do when a gradient contains NaN or infinite values: stop, skip or clip [default: stop]
    ///
    /// Non-finite values are detected in the update kernel, before the weights change, and are never applied.
    ///
    /// - stop: end the run
    /// - skip: continue; a gradient whose loss is not finite is ignored as a whole
    /// - clip: continue; the finite values of every gradient are applied
    #[arg(
        long,
        value_name = "POLICY",
        help_heading = "Checkpoints and failures",
        hide_short_help = true,
        verbatim_doc_comment
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_nan: Option<String>,
    /// What to do when a worker panics or hangs: stop, drop or restart [default: stop]
    ///
    /// - stop: end the run
    /// - drop: continue without the worker
    /// - restart: compute the job again, up to three times; a hung worker is dropped
    #[arg(
        long,
        value_name = "POLICY",
        help_heading = "Checkpoints and failures",
        hide_short_help = true,
        verbatim_doc_comment
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<String>,
    /// Treat a worker as hung if a job takes longer than S seconds [default: no limit]
    ///
    /// S is in real seconds and does not include the simulated delay of the job.
    #[arg(
        long,
        value_name = "S",
        help_heading = "Checkpoints and failures",
        hide_short_help = true,
        verbatim_doc_comment
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_timeout: Option<f64>,
    /// Inject faults: worker=I,job=K,kind=panic|hang|nan|slow; several are separated by `;`
    ///
    /// Workers and jobs are numbered from 0. `slow` also takes seconds=S (10 by default). `hang` requires
    /// --worker-timeout.
    #[arg(
        long,
        value_name = "FAULTS",
        help_heading = "Checkpoints and failures",
        hide_short_help = true,
        verbatim_doc_comment
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inject: Option<String>,
    /// Save a checkpoint every N updates; 0 saves none [default: only at the end]
    ///
    /// A checkpoint is also saved when the run ends or is interrupted, unless N is 0.
    #[arg(
        long,
        value_name = "N",
        help_heading = "Checkpoints and failures",
        hide_short_help = true,
        verbatim_doc_comment
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// Number of newest checkpoints to keep [default: 2]
    ///
    /// The checkpoint with the best evaluation is kept in addition.
    #[arg(
        long,
        value_name = "K",
        help_heading = "Checkpoints and failures",
        hide_short_help = true,
        verbatim_doc_comment
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_checkpoints: Option<usize>,
    /// Evaluate on the first N test images only [default: all]
    #[arg(long, value_name = "N", help_heading = "Evaluation and output", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_samples: Option<usize>,
    /// Hold out the last N training images and evaluate on them instead of the test set
    ///
    /// Use it to choose settings without looking at the test set.
    #[arg(
        long,
        value_name = "N",
        help_heading = "Evaluation and output",
        hide_short_help = true,
        verbatim_doc_comment
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<usize>,
    /// Random seed [default: 0]
    #[arg(long, help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Initial weights: default, or const:X to set all weights to X [default: default]
    #[arg(long, help_heading = "Data and model", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Regularizer for libsvm data: none, l2:LAMBDA or nonconvex:LAMBDA [default: none]
    ///
    /// l2 adds LAMBDA/2 |x|^2 to the loss, nonconvex adds LAMBDA times the sum of x^2 / (1 + x^2).
    #[arg(long, help_heading = "Data and model", hide_short_help = true, verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regularizer: Option<String>,
    /// Image augmentation: crop-flip, crop or none [default: crop-flip for cifar10, none otherwise]
    ///
    /// crop pads a training image by 4 pixels and cuts out a random window. crop-flip also mirrors it with
    /// probability 1/2.
    #[arg(long, help_heading = "Data and model", hide_short_help = true, verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub augment: Option<String>,
    /// CPU threads per worker [default: cores / workers, at least 1]
    #[arg(long, value_name = "N", help_heading = "Device and speed", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads_per_worker: Option<usize>,
    /// How a worker's training step is launched: auto, eager, captured or stacked[:N] [default: auto]
    ///
    /// - auto: captured on CUDA, eager elsewhere
    /// - eager: one kernel launch after another
    /// - captured: recorded once, then replayed with one launch (CUDA and WGPU)
    /// - stacked, stacked:N: the steps of up to N workers (16 by default) in one pass; for --clock virtual
    #[arg(long, value_name = "KIND", help_heading = "Device and speed", hide_short_help = true, verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Measure the fastest GPU kernel for each matrix product and store the choices in FILE
    ///
    /// Runs with the same FILE use the same kernels, so they are reproducible.
    #[arg(long, value_name = "FILE", help_heading = "Device and speed", hide_short_help = true, verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tune_kernels: Option<PathBuf>,
    /// Record when the device computes the first N gradients, with CUDA events [default: 0]
    ///
    /// CUDA only. The updates during that time are recorded too. The times go to device.csv and to the report.
    ///
    /// Each recorded gradient costs two events and an empty launch. Each recorded update costs two events, and an
    /// empty launch for every gradient that it folds. Eager steps cost more, because the thread that requests the
    /// events waits for them.
    #[arg(long, value_name = "N", help_heading = "Device and speed", hide_short_help = true, verbatim_doc_comment)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_timeline: Option<u64>,
    /// Data type of the gradient tables of dude and related rules: f32 or bf16 [default: f32]
    #[arg(long, help_heading = "Device and speed", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_dtype: Option<String>,
    /// Data type of the factors in matrix products: f32, bf16 or f16 [default: f32]
    ///
    /// The factors in convolutions and in linear layers with more than 16,384 weights are rounded to this type.
    /// Sums, gradients, weights and updates stay f32.
    #[arg(long, help_heading = "Device and speed", hide_short_help = true, verbatim_doc_comment)]
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
