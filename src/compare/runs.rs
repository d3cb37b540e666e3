//! Runs the processes of a comparison, a limited number at a time. Finished runs are not repeated.
//!
//! Invariant: the folder of a run is complete. A run writes to a folder whose name contains the id of this process, and
//! that folder is renamed when the run has succeeded. If this process is stopped, the next one removes the folders that
//! were not renamed.

use super::hash;
use crate::config::Options;
use crate::error::{Error, Result};
use crate::host::signals::INTERRUPTED;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// One run.
pub struct Run {
    /// Name in messages.
    name: String,
    /// The folder of the finished run.
    pub folder: PathBuf,
    /// The text of its configuration file.
    config: String,
}

impl Run {
    /// The run with these settings. The name of its folder contains `name`, the seed and a hash of the settings.
    pub fn of(comparison: &Path, name: &str, options: &Options) -> Result<Run> {
        let config = toml::to_string(options).map_err(|e| Error::usage(format!("cannot write a setting: {e}")))?;
        let name = format!("{name}, seed {}", options.seed.unwrap_or(0));
        let letters = |c: char| if c.is_ascii_alphanumeric() || "=.-".contains(c) { c } else { '_' };
        let short: String = name.chars().map(letters).collect::<String>().replace("__", "_");
        let folder = comparison.join("runs").join(format!("{}-{}", &short[..short.len().min(80)], hash(&config)));
        Ok(Run { name, folder, config })
    }

    /// Whether the run ended without an interruption.
    fn is_finished(&self) -> bool {
        let summary = fs::read_to_string(self.folder.join("summary.json")).ok();
        let summary: Option<Value> = summary.and_then(|text| serde_json::from_str(&text).ok());
        summary.is_some_and(|s| s["interrupted"] == false)
    }

    /// A path next to the folder, with this suffix.
    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.folder.clone().into_os_string();
        name.push(ending);
        name.into()
    }

    /// The folder to which the run writes until it has succeeded.
    fn part(&self) -> PathBuf {
        self.beside(&format!(".part-{}", std::process::id()))
    }

    /// Starts the process of the run.
    fn start(&self) -> Result<Child> {
        let failed = |what: &Path, e: std::io::Error| Error::failed(format!("cannot write {}: {e}", what.display()));
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder).map_err(|e| failed(&self.folder, e))?;
        }
        let (config, log) = (self.beside(".toml"), self.beside(".log"));
        fs::write(&config, &self.config).map_err(|e| failed(&config, e))?;
        let output = File::create(&log).map_err(|e| failed(&log, e))?;
        let errors = output.try_clone().map_err(|e| failed(&log, e))?;
        let program = std::env::current_exe().map_err(|e| Error::failed(format!("cannot find this program: {e}")))?;
        Command::new(program)
            .args(["train", "--config"])
            .arg(&config)
            .arg("--out")
            .arg(self.part())
            // No checkpoints: an interrupted run is repeated from the start.
            .args(["--checkpoint-every", "0"])
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|e| Error::failed(format!("cannot start a run: {e}")))
    }

    /// Gives the folder of a successful process its final name. Returns whether the run is now finished.
    fn finish(&self) -> bool {
        fs::rename(self.part(), &self.folder).is_ok() && self.is_finished()
    }

    /// The error message of a failed run.
    fn reason(&self) -> String {
        let log = fs::read_to_string(self.beside(".log")).unwrap_or_default();
        let sentence = log.lines().rev().find_map(|line| line.strip_prefix("stagger: "));
        sentence.unwrap_or("it ended without a message").into()
    }
}

/// Runs all unfinished runs, at most `jobs` at a time. A failed run does not stop the others. If runs failed, the error
/// contains the first reason.
pub fn run_all(runs: &[Run], jobs: usize) -> Result<()> {
    crate::host::signals::catch_signals();
    let mut waiting: Vec<&Run> = Vec::new();
    for run in runs.iter().filter(|run| !run.is_finished()) {
        // Two rows may need the same run.
        if !waiting.iter().any(|other| other.folder == run.folder) {
            waiting.push(run);
        }
    }
    if waiting.len() < runs.len() {
        say!("finished   {} runs of {} are there already", runs.len() - waiting.len(), runs.len());
    }
    if let Some(first) = waiting.first() {
        clear(first.folder.parent().unwrap_or(Path::new(".")));
    }
    let (all, mut ended) = (waiting.len(), 0);
    let mut waiting = waiting.into_iter();
    let mut running: Vec<(&Run, Child)> = Vec::new();
    let mut failures: Vec<String> = Vec::new();
    loop {
        while running.len() < jobs && !INTERRUPTED.load(Ordering::Relaxed) {
            let Some(run) = waiting.next() else { break };
            running.push((run, run.start()?));
        }
        if running.is_empty() {
            break;
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            running.iter_mut().for_each(|(_, child)| _ = child.kill());
        }
        let mut still = Vec::new();
        for (run, mut child) in running {
            match child.try_wait() {
                Ok(None) => still.push((run, child)),
                Ok(Some(status)) => {
                    ended += 1;
                    if status.success() && run.finish() {
                        say!("[{ended}/{all}] {}", run.name);
                    } else if !INTERRUPTED.load(Ordering::Relaxed) {
                        let failure = format!("{}: {}", run.name, run.reason());
                        say!("[{ended}/{all}] FAILED {failure}");
                        failures.push(failure);
                    }
                }
                Err(e) => return Err(Error::failed(format!("cannot wait for a run: {e}"))),
            }
        }
        running = still;
        std::thread::sleep(Duration::from_millis(50));
    }
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(Error::Interrupted("interrupted; the same command continues the comparison".into()));
    }
    match failures.first() {
        None => Ok(()),
        Some(first) => Err(Error::failed(format!("{} of {all} runs failed, the first: {first}", failures.len()))),
    }
}

/// Removes the incomplete folders of processes that were stopped.
fn clear(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(".part-") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
