//! The settings of a run. The command line, a TOML file and `--set` all fill the same [`Options`]; [`Options::resolve`]
//! turns them into typed [`Settings`], and back into the complete `config.toml` of the run's folder.

use crate::host::backend::Choice;
use crate::engine::clock::delay::DelayModel;
use crate::error::{Error, Result};
use crate::fault::{Faults, Kind, Policy};
use crate::problem::{Regularizer, StepKind};
use crate::rule::RuleSpec;
use crate::schedule::Schedule;
use serde::{Deserialize, Serialize};
use stagger_datasets::partition::Partition;
use stagger_kernels::Dtype;
use stagger_kernels::layers::Precision;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Threads that a worker may have: more than any machine has cores for.
const MOST_THREADS: usize = 1024;

/// Gradients whose time on the device is noted at most: each, and each update meanwhile, keeps two events of the driver until the end.
const MOST_NOTED: u64 = 100_000;

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

/// Applies `--set key=value` to the keys of a run, `--set compare.key=value` to the section `[compare]`, and `--set rule.key=value` to
/// the rule's parameters.
pub fn set(mut table: toml::Table, mut section: toml::Table, sets: &[String]) -> Result<(toml::Table, toml::Table)> {
    for set in sets {
        let (key, text) = set.split_once('=').ok_or_else(|| Error::usage(format!("--set `{set}` is not key=value")))?;
        let key = key.trim();
        match key.split_once('.') {
            None => table.insert(key.into(), value(text)),
            Some(("compare", key)) => section.insert(key.into(), value(text)),
            Some(("rule", part)) => {
                let rule = table.get("rule").and_then(|rule| rule.as_str()).unwrap_or("dude");
                let rule = with_parameter(rule, part, text);
                table.insert("rule".into(), rule.into())
            }
            Some(_) => return Err(unknown_key(key, "a key of a run", keys().iter().map(|k| k.name.as_str()))),
        };
    }
    Ok((table, section))
}

/// A key of a run's configuration.
pub struct Key {
    /// Its name: the flag's, with `_` for `-`.
    pub name: String,
    /// What it means: the flag's help.
    pub help: String,
    /// What may stand there, as JSON calls it.
    pub kinds: Vec<&'static str>,
}

/// All keys of a run, in the order of the flags.
pub fn keys() -> Vec<Key> {
    let command = <Options as clap::Args>::augment_args(clap::Command::new("train"));
    let key = |flag: &clap::Arg| {
        let name = flag.get_long()?.replace('-', "_");
        let help = flag.get_long_help().or(flag.get_help()).map(|text| text.to_string()).unwrap_or_default();
        // Asked of the type itself, so that it cannot say anything else.
        let samples = [("integer", "1"), ("number", "1.5"), ("string", "\"1\"")];
        let fits = |sample: &&(&str, &str)| toml::from_str::<Options>(&format!("{name} = {}", sample.1)).is_ok();
        let kinds = samples.iter().filter(fits).map(|(kind, _)| *kind).collect();
        Some(Key { name, help, kinds })
    };
    command.get_arguments().filter_map(key).collect()
}

/// The JSON schema of a run's configuration, and of a scenario's section `[compare]`.
pub fn schema() -> serde_json::Value {
    use serde_json::json;
    let property = |key: Key| (key.name, json!({"description": key.help, "type": key.kinds}));
    let mut properties: serde_json::Map<_, _> = keys().into_iter().map(property).collect();
    let list = |of: &str, what: &str| json!({"type": "array", "items": {"type": of}, "description": what});
    properties.insert(
        "compare".into(),
        json!({
            "type": "object",
            "description": "for `stagger compare`",
            "additionalProperties": false,
            "properties": {
                "rules": list("string", "the rules"),
                "seeds": list("integer", "the seeds, each for every rule"),
                "vary": {"type": "object", "additionalProperties": {"type": "array"}, "description": "a key of a run and its values"},
                "target": {"type": "number", "description": "test accuracy in percent"},
                "tune": list("number", "learning rates of which each rule takes its best"),
                "jobs": {"type": "integer", "description": "runs at a time"},
            },
        }),
    );
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A run of stagger",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}

/// A value as TOML reads it, or else the text itself.
pub fn value(text: &str) -> toml::Value {
    let parsed = format!("v = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("v"));
    parsed.unwrap_or_else(|| toml::Value::String(text.trim().into()))
}

/// That `key` is not `what`, with the nearest of those that are.
pub fn unknown_key<'a>(key: &str, what: &str, known: impl IntoIterator<Item = &'a str>) -> Error {
    Error::usage(unknown(key, what, known))
}

/// The beginning of a text that somebody else wrote, which may be of any length.
pub fn shortened(text: &str) -> String {
    const MOST: usize = 120;
    if text.chars().count() > MOST { text.chars().take(MOST).chain(['…']).collect() } else { text.into() }
}

/// The sentence of [`unknown_key`].
pub fn unknown<'a>(key: &str, what: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let last = key.rsplit('.').next().unwrap_or(key);
    let near = known.into_iter().map(|name| (strsim::damerau_levenshtein(last, name), name)).min();
    let hint = near.filter(|(distance, _)| *distance <= 1 + last.len() / 3);
    let lists = if what.contains("stagger ") { "" } else { "; `stagger config schema` lists them" };
    let hint = hint.map_or(lists.into(), |(_, name)| format!("; did you mean `{name}`?"));
    format!("`{key}` is not {what}{hint}")
}

/// `rule` with its parameter `key` set.
fn with_parameter(rule: &str, key: &str, text: &str) -> String {
    let (name, parameters) = rule.split_once(':').unwrap_or((rule, ""));
    let others = parameters.split(',').filter(|p| !p.is_empty() && p.split('=').next() != Some(key));
    let all: Vec<String> = others.map(String::from).chain([format!("{key}={}", text.trim())]).collect();
    format!("{name}:{}", all.join(","))
}

/// Whether a key is one of a run's, with a value that may stand there; else a sentence.
fn check(key: &str, value: &toml::Value) -> std::result::Result<(), String> {
    let single = toml::Table::from_iter([(key.to_string(), value.clone())]);
    if single.try_into::<Options>().is_ok() {
        return Ok(());
    }
    let keys = keys();
    let Some(known) = keys.iter().find(|k| k.name == key) else {
        return Err(unknown(key, "a key of a run", keys.iter().map(|k| k.name.as_str())));
    };
    let kinds = match known.kinds.as_slice() {
        ["integer"] => "a whole number",
        ["integer", "number"] => "a number, without a unit",
        ["integer", "string"] => "a whole number or a text in quotes",
        _ => "a text in quotes",
    };
    Err(format!("`{key}` takes {kinds}, not {value} ({})", known.help.replace('\n', " ")))
}

/// Reads a configuration, and checks it key by key, so that what is wrong is told with its line.
fn read(path: &Path) -> Result<toml::Table> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::usage(format!("cannot read the configuration {name}: {e}; a run's folder has one, config.toml"))
    })?;
    let line_of = |start: usize| 1 + text[..start.min(text.len())].matches('\n').count();
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let line = line_of(e.span().map_or(0, |span| span.start));
        let there = shortened(text.lines().nth(line - 1).unwrap_or("").trim());
        let why = e.message().replace('\n', ", ");
        Error::usage(format!("{name} line {line}, `{there}`: {why} (a text stands in quotes, each key once)"))
    })?;
    let spans = toml::de::DeTable::parse(&text).map_err(|e| Error::usage(format!("{name}: {}", e.message())))?;
    let line = |key: &str| {
        let found = spans.get_ref().iter().find(|(spanned, _)| spanned.get_ref() == key);
        found.map_or(1, |(spanned, _)| line_of(spanned.span().start))
    };
    let wrong = |key: &str, why: String| Error::usage(format!("{name} line {}: {why}", line(key)));
    let run: toml::Table =
        table.iter().filter(|(key, _)| *key != "compare").map(|(k, v)| (k.clone(), v.clone())).collect();
    for (key, value) in &run {
        check(key, value).map_err(|why| wrong(key, why))?;
    }
    let section = table.get("compare").and_then(toml::Value::as_table);
    for (key, value) in section.into_iter().flatten() {
        if let Some(why) = crate::compare::mistake(key, value) {
            let within = spans.get_ref().get("compare").and_then(|section| section.get_ref().as_table());
            let found = within.and_then(|section| section.iter().find(|(spanned, _)| spanned.get_ref() == key));
            let line = found.map_or(1, |(spanned, _)| line_of(spanned.span().start));
            return Err(Error::usage(format!("{name} line {line}: {why}")));
        }
    }
    let resolved = |table: &toml::Table| table.clone().try_into::<Options>().map(|options| options.resolve());
    if let Ok(Err(error)) = resolved(&run) {
        // The key without which it could be used, if there is one.
        let without = |key: &str| {
            let mut rest = run.clone();
            rest.remove(key);
            matches!(resolved(&rest), Ok(Ok(_)))
        };
        return Err(match run.keys().find(|key| without(key)) {
            Some(key) => wrong(key, error.to_string()),
            None => Error::usage(format!("{name}: {error}")),
        });
    }
    for (key, prefixes) in [("dataset", ["libsvm:", "quadratic:"]), ("clock", ["replay:", "replay:"])] {
        let text = run.get(key).and_then(|value| value.as_str()).unwrap_or("");
        let file = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix));
        if let Some(file) = file.filter(|file| !Path::new(file).exists()) {
            return Err(wrong(
                key,
                format!("`{key}` names {file}, which does not exist; paths start at the present folder"),
            ));
        }
    }
    let data = run.get("data").and_then(|value| value.as_str());
    if let Some(folder) = data.filter(|folder| !Path::new(folder).is_dir()) {
        return Err(wrong(
            "data",
            format!("`data` names the folder {folder}, which does not exist; paths start at the present folder"),
        ));
    }
    Ok(table)
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
    /// Reads a TOML file, applies `--set key=value`, and lets what was given on the command line win over both.
    pub fn layered(flags: &Options, file: Option<&Path>, sets: &[String]) -> Result<Options> {
        let (table, section) = Options::scenario(flags, file, sets)?;
        if !section.is_empty() {
            return Err(Error::usage("the section [compare] is for `stagger compare`; a run has none: leave it out"));
        }
        Options::of(table)
    }

    /// The same for several runs: the keys that they share, and the section `[compare]`.
    pub fn scenario(flags: &Options, file: Option<&Path>, sets: &[String]) -> Result<(toml::Table, toml::Table)> {
        let mut table = file.map_or(Ok(toml::Table::new()), read)?;
        let section = match table.remove("compare") {
            Some(toml::Value::Table(section)) => section,
            None => toml::Table::new(),
            Some(_) => return Err(Error::usage("`compare` is a section: [compare], then its keys")),
        };
        // Parameters of the rule go to the rule that there is in the end, whoever named it.
        let (of_the_rule, others): (Vec<String>, Vec<String>) =
            sets.iter().cloned().partition(|set| set.trim_start().starts_with("rule."));
        let (table, section) = set(table, section, &others)?;
        set(Options::layered_over(table, flags)?, section, &of_the_rule)
    }

    /// A table with what was given on the command line over it.
    pub fn layered_over(mut table: toml::Table, flags: &Options) -> Result<toml::Table> {
        let given = toml::Table::try_from(flags).map_err(|e| {
            Error::usage(format!(
                "a flag cannot be written to a configuration: {e} (whole numbers go up to {}, paths are UTF-8)",
                i64::MAX
            ))
        })?;
        table.extend(given);
        Ok(table)
    }

    /// The options that a table holds.
    pub fn of(table: toml::Table) -> Result<Options> {
        for (key, value) in &table {
            check(key, value).map_err(Error::usage)?;
        }
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
            "wall" => Clock::Wall,
            "virtual" => Clock::Virtual,
            other => match other.strip_prefix("replay:") {
                Some("") => {
                    return Err(Error::usage(
                        "--clock replay: names no log; give one, such as replay:runs/a/events.jsonl",
                    ));
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn set(sets: &[&str]) -> Result<Options> {
        Options::layered(&Options::default(), None, &sets.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn a_key_says_what_it_takes() {
        let keys = keys();
        let kinds = |name: &str| keys.iter().find(|k| k.name == name).unwrap().kinds.clone();
        assert_eq!(kinds("workers"), ["integer"]);
        assert_eq!(kinds("lr"), ["integer", "number"]);
        assert_eq!(kinds("batch"), ["integer", "string"]);
        assert_eq!(kinds("rule"), ["string"]);
        assert!(keys.iter().all(|k| !k.help.is_empty() && !k.kinds.is_empty()));
        assert_eq!(set(&["rule=dude:c=2,init=zero", "rule.c=3"]).unwrap().rule.unwrap(), "dude:init=zero,c=3");
        let error = set(&["wrokers=3"]).unwrap_err().to_string();
        assert!(error.contains("did you mean `workers`?"), "{error}");
        let error = set(&["time=\"10 s\""]).unwrap_err().to_string();
        assert!(error.contains("without a unit") && error.contains("10 s"), "{error}");
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
            ("dataset=imagenet", "imagenet"),
            ("init=const:x", "const:x"),
            ("momentum=1.0", "--momentum 1"),
            ("lr=-1.0", "--lr -1"),
            ("table_dtype=f16", "--table-dtype f16"),
            ("precision=f64", "--precision `f64`"),
            ("schedule=polynomial", "polynomial"),
            ("clip=0.0", "--clip 0"),
            ("momentum_every=2", "--momentum-every"),
            ("augment=blur", "blur"),
            ("device_timeline=100001", "--device-timeline 100001"),
            ("partition=zipf", "zipf"),
            ("rule=sgd", "sgd"),
        ] {
            let error = set(&[sets]).unwrap().resolve().unwrap_err().to_string();
            assert!(error.contains(part), "{sets}: {error}");
        }
    }
}
