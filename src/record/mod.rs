//! What a run leaves behind: its folder with the event log, metrics, summary, configuration and weights.

mod device;
mod log;
mod outcome;
mod tensorboard;

pub use device::{device_spans, device_times};
pub use log::{LATEST, recorded};
pub use outcome::{Limits, Outcome};

use crate::checkpoint::Manifest;
use crate::error::{Error, Result};
use crate::fault::Failure;
use crate::timeline::{Occupancy, Span};
use crossbeam_channel::Receiver;
use log::EventLog;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stagger_kernels::Layout;
use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tensorboard::TensorBoard;

/// One arrival, one line of `events.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number, from 0.
    pub seq: u64,
    /// When, in seconds on the run's axis.
    pub time: f64,
    /// Who.
    pub worker: usize,
    /// The version v at which it was computed.
    pub version: u64,
    /// t - v before the update.
    pub staleness: u64,
    /// The batch loss; null where it is not finite.
    pub loss: Option<f32>,
    /// What became of it.
    pub effect: Effect,
    /// The version after it.
    pub t: u64,
}

/// What became of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The server stepped.
    Step,
    /// It was folded into the server's state.
    Fold,
    /// It was not applied.
    Drop,
}

impl Effect {
    /// Whether it made a version.
    pub fn is_step(self) -> bool {
        self == Effect::Step
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Effect::Step => "step",
            Effect::Fold => "fold",
            Effect::Drop => "drop",
        })
    }
}

/// What an evaluation found. What does not apply is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The full objective, for the problems of theory.
    pub train_loss: Option<f64>,
    /// Norm of the full objective's gradient.
    pub grad_norm: Option<f64>,
    /// Mean loss over the test set.
    pub test_loss: Option<f64>,
    /// Share of the test set that is classified correctly.
    pub test_accuracy: Option<f64>,
}

impl Evaluation {
    /// The larger, the better the model is.
    pub fn score(&self) -> Option<f64> {
        self.test_accuracy.or(self.train_loss.map(|loss| -loss)).filter(|x| x.is_finite())
    }
}

/// `summary.json`.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Summary {
    pub rule: String,
    pub workers: usize,
    pub backend: String,
    pub device: String,
    pub clock: String,
    pub dataset: String,
    pub partition: String,
    pub model: String,
    pub parameters: usize,
    pub batch: usize,
    pub lr: f64,
    pub seed: u64,
    pub threads_per_worker: Option<usize>,
    /// Server updates: the final version.
    pub updates: u64,
    /// Arrivals.
    pub gradients: u64,
    /// Arrivals that were not applied.
    pub dropped: u64,
    /// Jobs that were given up and never arrived.
    pub restarted: u64,
    /// Arrivals whose gradient or loss was not finite; what was not was left out.
    pub not_finite: u64,
    /// The last arrival's time on the run's axis, in seconds.
    pub time: f64,
    /// Real seconds from the first job to the last arrival, without evaluation.
    pub wall_seconds: f64,
    pub gradients_per_second: f64,
    pub samples_per_second: f64,
    pub mean_staleness: f64,
    pub max_staleness: u64,
    /// Mean of the latest batch losses, or the full objective where it is evaluated.
    pub final_train_loss: Option<f64>,
    pub final_grad_norm: Option<f64>,
    pub final_test_loss: Option<f64>,
    pub final_test_accuracy: Option<f64>,
    /// Launches of the fused update kernel (0 on the CPU).
    pub update_launches: u64,
    /// Cores of the host that computed, on average (evaluations included); unknown where the system does not tell.
    pub cores_busy: Option<f64>,
    /// Bytes that the run was expected to need.
    pub memory_estimate: u64,
    /// Bytes that it took: of the process on the CPU, of the device's pools on a GPU.
    pub memory: Option<u64>,
    /// Workers that failed, in which job, why, and what was done about it.
    pub failures: Vec<Failure>,
    /// How busy the device was while it was noted when it computed what (`device.csv`).
    pub occupancy: Option<Occupancy>,
    pub weights_sha256: String,
    pub version: String,
    pub interrupted: bool,
}

/// Nobody else writes this log, as long as it is open.
fn lock(log: &File) -> std::io::Result<()> {
    match log.try_lock() {
        Err(TryLockError::WouldBlock) => Err(std::io::Error::other("another run is writing to it")),
        // Some file systems know no locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// What a run leaves in its folder, beside its event files for TensorBoard.
const LEFT: [&str; 8] = [
    "events.jsonl",
    "config.toml",
    "metrics.csv",
    "partition.csv",
    "device.csv",
    "summary.json",
    "model.safetensors",
    "checkpoints",
];

/// Moves what an earlier run left in `path` to the first free `path.1`, `path.2`, ..; gives that place, if there was such a run.
fn keep(path: &Path) -> std::io::Result<Option<PathBuf>> {
    let log = path.join("events.jsonl");
    // Without a log there was no run, only perhaps one that did not come to its first job.
    if fs::metadata(&log).map_or(0, |data| data.len()) == 0 && !path.join("summary.json").exists() {
        return Ok(None);
    }
    // Of a run that still goes nothing is moved.
    if let Ok(log) = fs::OpenOptions::new().write(true).open(&log) {
        lock(&log)?;
    }
    let beside = |k: usize| {
        // Without a separator at the end.
        let mut name = path.components().collect::<PathBuf>().into_os_string();
        name.push(format!(".{k}"));
        PathBuf::from(name)
    };
    let kept = (1..).map(beside).find(|place| !place.exists()).expect("some number is free");
    fs::create_dir(&kept)?;
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if LEFT.contains(&&*text) || text.starts_with("events.out.tfevents.") {
            fs::rename(path.join(&name), kept.join(&name))?;
        }
    }
    Ok(Some(kept))
}

/// Writes a file that is there whole or not at all, and on the disk.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let beside = path.with_extension("part");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

/// Opens a file to write behind its first `bytes` bytes.
fn behind(path: &Path, bytes: u64) -> std::io::Result<File> {
    let named = |e: std::io::Error| std::io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let mut file = fs::OpenOptions::new().write(true).open(path).map_err(named)?;
    let have = file.metadata().map_err(named)?.len();
    if have < bytes {
        let why = format!("{} has {have} bytes, and the checkpoint belongs to its first {bytes}", path.display());
        return Err(std::io::Error::other(why));
    }
    file.seek(SeekFrom::Start(bytes)).map_err(named)?;
    Ok(file)
}

/// A run's folder.
pub struct RunFolder {
    path: PathBuf,
    events: EventLog,
    metrics: BufWriter<File>,
    board: TensorBoard,
    /// How many arrivals since the last evaluation had which staleness.
    staleness: Vec<u64>,
    /// Of a run that goes on: files that are still as long as they were, and how long they are to be; and its settings.
    uncut: Vec<(File, u64)>,
    config: String,
}

/// What `metrics.csv` holds besides update and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// `train_loss,grad_norm` of the full objective.
    Theory,
    /// `train_loss,test_loss,test_accuracy`.
    Images,
}

impl RunFolder {
    /// Creates the folder and opens its logs, so that a folder that cannot be written is found out before the work.
    pub fn create(path: &Path, config: &str, columns: Columns) -> Result<Self> {
        let wrong = |what: &Path, e: std::io::Error| {
            Error::usage(format!("cannot write {}: {e}; choose another folder with --out", what.display()))
        };
        fs::create_dir_all(path).map_err(|e| wrong(path, e))?;
        if let Some(kept) = keep(path).map_err(|e| wrong(path, e))? {
            note!("NOTE       {} held a run already: that one is in {} now", path.display(), kept.display());
        }
        let open = |name: &str| {
            let file = path.join(name);
            File::create(&file).map_err(|e| wrong(&file, e))
        };
        // Locked before it is emptied: it may be that of a run that still goes.
        let file = path.join("events.jsonl");
        let events =
            fs::OpenOptions::new().create(true).truncate(false).write(true).open(&file).map_err(|e| wrong(&file, e))?;
        lock(&events).and_then(|()| events.set_len(0)).map_err(|e| wrong(&file, e))?;
        let mut metrics = BufWriter::new(open("metrics.csv")?);
        let events = EventLog::new(events).map_err(|e| wrong(path, e))?;
        let header = match columns {
            Columns::Theory => "update,time,train_loss,grad_norm",
            Columns::Images => "update,time,train_loss,test_loss,test_accuracy",
        };
        writeln!(metrics, "{header}").map_err(|e| wrong(path, e))?;
        let file = path.join("config.toml");
        write_whole(&file, config).map_err(|e| wrong(&file, e))?;
        let board = TensorBoard::create(path).map_err(|e| wrong(path, e))?;
        let (staleness, uncut) = (Vec::new(), Vec::new());
        Ok(RunFolder { path: path.into(), events, metrics, board, staleness, uncut, config: config.into() })
    }

    /// Opens the folder of a run that is to go on from a checkpoint; nothing in it is changed before [`RunFolder::go_on`].
    pub fn reopen(path: &Path, config: &str, manifest: &Manifest) -> Result<Self> {
        let wrong = |e: std::io::Error| Error::usage(format!("the run in {} cannot go on: {e}", path.display()));
        let log = behind(&path.join("events.jsonl"), manifest.events).map_err(wrong)?;
        lock(&log).map_err(wrong)?;
        let metrics = behind(&path.join("metrics.csv"), manifest.metrics).map_err(wrong)?;
        let (board, written) = TensorBoard::open(path, manifest.board).map_err(wrong)?;
        let copy = |file: &File| file.try_clone().map_err(wrong);
        let uncut =
            vec![(copy(&log)?, manifest.events), (copy(&metrics)?, manifest.metrics), (written, manifest.board)];
        let events = EventLog::new(log).map_err(wrong)?;
        let (metrics, staleness) = (BufWriter::new(metrics), Vec::new());
        let mut folder =
            RunFolder { path: path.into(), events, metrics, board, staleness, uncut, config: config.into() };
        for (staleness, count) in &manifest.staleness {
            folder.count(*staleness as usize, *count);
        }
        Ok(folder)
    }

    /// The run has been told its past, and it is the run of this folder: what its logs hold beyond the checkpoint is cut off.
    pub fn go_on(&mut self) -> Result<()> {
        let wrong = |e: std::io::Error| Error::usage(format!("the run in {} cannot go on: {e}", self.path.display()));
        for (file, bytes) in std::mem::take(&mut self.uncut) {
            file.set_len(bytes).map_err(wrong)?;
        }
        write_whole(&self.path.join("config.toml"), &self.config).map_err(wrong)
    }

    /// Notes so many arrivals of this staleness.
    fn count(&mut self, staleness: usize, arrivals: u64) {
        if self.staleness.len() <= staleness {
            self.staleness.resize(staleness + 1, 0);
        }
        self.staleness[staleness] += arrivals;
    }

    /// Notes in `manifest` how long the logs are, and gives what they still need before that is on the disk: the files to synchronise,
    /// and where the length of the event log will be told.
    pub fn mark(&mut self, manifest: &mut Manifest) -> Result<(Vec<File>, Receiver<std::io::Result<u64>>)> {
        let lost = |e: std::io::Error| Error::failed(format!("cannot write to {}: {e}", self.path.display()));
        self.metrics.flush().map_err(lost)?;
        manifest.metrics = self.metrics.stream_position().map_err(lost)?;
        let metrics = self.metrics.get_ref().try_clone().map_err(lost)?;
        let (board, length) = self.board.mark().map_err(lost)?;
        manifest.board = length;
        let some = self.staleness.iter().enumerate().filter(|(_, count)| **count > 0);
        manifest.staleness = some.map(|(staleness, count)| (staleness as u64, *count)).collect();
        Ok((vec![metrics, board], self.events.mark().map_err(lost)?))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `partition.csv`: worker by worker how many samples of each class it holds.
    pub fn partition(&mut self, classes: &[String], counts: &[Vec<usize>]) -> Result<()> {
        let row = |(worker, counts): (usize, &Vec<usize>)| {
            let cells = counts.iter().map(|n| format!(",{n}"));
            std::iter::once(worker.to_string()).chain(cells).chain(["\n".to_string()]).collect::<String>()
        };
        let text = format!("worker,{}\n", classes.join(",")) + &counts.iter().enumerate().map(row).collect::<String>();
        fs::write(self.path.join("partition.csv"), text).map_err(|e| self.lost("partition.csv", e))
    }

    /// Writes `device.csv`: when the device computed what.
    pub fn device(&mut self, spans: &[Span]) -> Result<()> {
        fs::write(self.path.join("device.csv"), device_times(spans)).map_err(|e| self.lost("device.csv", e))
    }

    /// Appends arrivals, and leaves room for the next.
    pub fn events(&mut self, block: &mut Vec<Event>) -> Result<()> {
        for event in block.iter() {
            self.count(event.staleness as usize, 1);
        }
        self.events.append(block).map_err(|e| self.lost("events.jsonl", e))
    }

    /// Appends an evaluation after `update` updates.
    pub fn evaluation(
        &mut self,
        update: u64,
        time: f64,
        train_loss: Option<f64>,
        found: &Evaluation,
        columns: Columns,
    ) -> Result<()> {
        let cell = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
        let rest = match columns {
            Columns::Theory => [found.train_loss, found.grad_norm].map(cell).join(","),
            Columns::Images => [train_loss, found.test_loss, found.test_accuracy].map(cell).join(","),
        };
        writeln!(self.metrics, "{update},{time},{rest}").map_err(|e| self.lost("metrics.csv", e))?;
        let scalars = [
            ("time", Some(time)),
            ("loss/train", found.train_loss.or(train_loss)),
            ("loss/test", found.test_loss),
            ("accuracy/test", found.test_accuracy),
            ("gradient norm", found.grad_norm),
        ];
        let staleness = std::mem::take(&mut self.staleness);
        self.board.write(update, &scalars, &staleness).map_err(|e| self.lost("events.out.tfevents", e))
    }

    /// Writes what is buffered; the logs then are whole and closed.
    pub fn finish(&mut self) -> Result<()> {
        self.events.finish().map_err(|e| self.lost("events.jsonl", e))?;
        self.metrics.flush().map_err(|e| self.lost("metrics.csv", e))
    }

    /// Writes the weights by parameter name, and returns their SHA-256: over the parameters' bytes (little-endian f32) in
    /// the layout's order.
    pub fn weights(&mut self, layout: &Layout, weights: &[f32]) -> Result<String> {
        let mut hash = Sha256::new();
        let mut tensors: Vec<(&str, safetensors::tensor::TensorView)> = Vec::new();
        for segment in layout.segments() {
            let bytes: &[u8] = bytemuck::cast_slice(&weights[segment.start..segment.start + segment.len]);
            hash.update(bytes);
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, segment.shape.clone(), bytes);
            tensors.push((&segment.name, view.map_err(|e| Error::failed(format!("{}: {e}", segment.name)))?));
        }
        let none: Option<HashMap<String, String>> = None;
        let file = self.path.join("model.safetensors");
        safetensors::serialize_to_file(tensors, none, &file)
            .map_err(|e| Error::failed(format!("cannot write {}: {e}", file.display())))?;
        Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Writes `summary.json`.
    pub fn summary(&mut self, summary: &Summary) -> Result<()> {
        let text = serde_json::to_string_pretty(summary).expect("a summary is plain data");
        let file = self.path.join("summary.json");
        fs::write(&file, text + "\n").map_err(|e| Error::failed(format!("cannot write {}: {e}", file.display())))
    }

    fn lost(&self, name: &str, e: std::io::Error) -> Error {
        Error::failed(format!(
            "cannot write {}: {e}; what was written before it is whole",
            self.path.join(name).display()
        ))
    }
}
