//! Checks before a run is resumed, and before a log is replayed: the settings must fit the earlier run.

use crate::config::{Options, Settings};
use crate::engine::checkpoint::{self, Checkpoint};
use crate::error::{Error, Result};
use std::path::Path;

/// Settings that may change when a run is resumed: limits, evaluations, checkpoints, handling of failures,
/// and speed.
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

/// The options with which the run in `folder` is resumed: its own options, overwritten by `flags`.
///
/// # Errors
///
/// If a flag changes a setting that may not change. With `anyway`, the backend may change too.
pub fn resumed(folder: &Path, flags: &Options, anyway: bool) -> Result<Options> {
    let file = folder.join("config.toml");
    let then = Options::layered(&Options::default(), Some(&file), &[])?;
    // The device timeline records only the beginning of a run.
    let then = Options { device_timeline: None, ..then };
    let plain = |options: &Options| toml::Table::try_from(options).map_err(|e| Error::usage(e.to_string()));
    let (mut table, flags) = (plain(&then)?, plain(flags)?);
    // If a limit is given, it replaces all limits of the run.
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
            "--{} {value}: the run in {} has {had}, and a resumed run keeps this setting; {way}",
            key.replace('_', "-"),
            folder.display()
        )));
    }
    Options::of(table)
}

/// The newest checkpoint in `folder`, from which the run is resumed.
///
/// # Errors
///
/// If there is no checkpoint that can be read, or it was saved with another rule, another number of workers,
/// or (without `anyway`) another version of the program.
pub fn fitting_checkpoint(folder: &Path, settings: &Settings, anyway: bool) -> Result<Checkpoint> {
    let past = checkpoint::newest(folder)?;
    let (then, now) = (&past.manifest, checkpoint::blank());
    let refuse = |saved_with: String, but: String| {
        let folder = folder.display();
        Err(Error::usage(format!("the checkpoint in {folder} was saved with {saved_with}, but {but}")))
    };
    let rule = settings.rule.to_string();
    if then.rule != rule {
        return refuse(
            format!("rule {}", then.rule),
            format!("this run has rule {rule}, which has another state: begin a new run"),
        );
    }
    if let Some(workers) = settings.workers.filter(|n| *n != then.workers) {
        return refuse(
            format!("{} workers", then.workers),
            format!("this run has {workers}; the number of workers cannot change: begin a new run"),
        );
    }
    if then.version != now.version && !anyway {
        return refuse(
            format!("version {}", then.version),
            format!("this program is version {}; use that version, or give --resume-anyway", now.version),
        );
    }
    if then.commit != now.commit {
        say!(
            "NOTE       the checkpoint was saved by commit {}, and this program was built from {}: the bytes of the \
             run may differ",
            then.commit,
            now.commit
        );
    }
    Ok(past)
}

/// Settings that determine the arithmetic of a run. A log can be replayed only if all of them are equal.
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
    // Some rules use the job times. It is last, so that a difference in another setting is reported first.
    "delay",
];

/// Compares the options of this run with the configuration beside the log, if there is one. Prints a note if
/// the weights agree only up to rounding.
///
/// # Errors
///
/// If the configuration cannot be read, or a setting that determines the arithmetic differs.
pub fn compare_with_log(log: &Path, resolved: &Options) -> Result<()> {
    let beside = log.with_file_name("config.toml");
    let Ok(text) = std::fs::read_to_string(&beside) else { return Ok(()) };
    let then: toml::Table = text.parse().map_err(|e| Error::usage(format!("{}: {e}", beside.display())))?;
    let now = toml::Table::try_from(resolved).expect("options are plain data");
    let show = |value: Option<&toml::Value>| value.map_or("not set".into(), |v| v.to_string());
    for key in ARITHMETIC {
        // Configurations of older versions do not contain this key.
        let untold = key == "on_nan" && !then.contains_key(key);
        if then.get(key) != now.get(key) && !untold {
            return Err(Error::usage(format!(
                "{} is the log of another run: its {key} is {}, but here it is {}; give the flags of that run \
                 (--config {})",
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
        // Eager and recorded steps give the same bytes, but stacked passes do not.
        if recorded != here && (key != "step" || stacked(recorded) || stacked(here)) {
            say!(
                "NOTE       the log was recorded with {key} {}: with another {what} the weights agree only up to \
                 rounding",
                show(recorded)
            );
        }
    }
    Ok(())
}
