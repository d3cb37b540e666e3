//! Going on from a checkpoint, and comparing a run with the log that it replays.

use crate::config::{Options, Settings};
use crate::engine::checkpoint::{self, Checkpoint};
use crate::error::{Error, Result};
use std::path::Path;

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

/// The checkpoint from which the run in `folder` goes on, if it may.
pub fn fitting_checkpoint(folder: &Path, settings: &Settings, anyway: bool) -> Result<Checkpoint> {
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
pub fn compare_with_log(log: &Path, resolved: &Options) -> Result<()> {
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
