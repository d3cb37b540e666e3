//! What a run leaves behind: its folder with the event log, metrics, summary, configuration and weights.

mod device;
mod event;
mod log;
mod outcome;
mod summary;
mod tensorboard;

pub use device::{Occupancy, Span, Work, device_spans, device_times};
pub use event::{Effect, Event};
pub use log::{LATEST, recorded};
pub use outcome::{Limits, Outcome};
pub use summary::Summary;

use crate::error::{Error, Result};
use crate::problem::{Columns, Evaluation};
use crossbeam_channel::Receiver;
use log::EventLog;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stagger_kernels::Layout;
use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tensorboard::TensorBoard;

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

/// How much of each log belongs to a checkpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogPositions {
    /// Bytes of `events.jsonl`.
    pub events: u64,
    /// Bytes of `metrics.csv`.
    pub metrics: u64,
    /// Bytes of TensorBoard's event file.
    pub board: u64,
    /// Pairs (staleness, number of arrivals with it) since the last evaluation.
    pub staleness: Vec<(u64, u64)>,
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
    pub fn reopen(path: &Path, config: &str, positions: &LogPositions) -> Result<Self> {
        let wrong = |e: std::io::Error| Error::usage(format!("the run in {} cannot go on: {e}", path.display()));
        let log = behind(&path.join("events.jsonl"), positions.events).map_err(wrong)?;
        lock(&log).map_err(wrong)?;
        let metrics = behind(&path.join("metrics.csv"), positions.metrics).map_err(wrong)?;
        let (board, written) = TensorBoard::open(path, positions.board).map_err(wrong)?;
        let copy = |file: &File| file.try_clone().map_err(wrong);
        let uncut =
            vec![(copy(&log)?, positions.events), (copy(&metrics)?, positions.metrics), (written, positions.board)];
        let events = EventLog::new(log).map_err(wrong)?;
        let (metrics, staleness) = (BufWriter::new(metrics), Vec::new());
        let mut folder =
            RunFolder { path: path.into(), events, metrics, board, staleness, uncut, config: config.into() };
        for (staleness, count) in &positions.staleness {
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

    /// Notes in `positions` how long the logs are, and gives what they still need before that is on the disk: the files to synchronise,
    /// and where the length of the event log will be told.
    pub fn mark(&mut self, positions: &mut LogPositions) -> Result<(Vec<File>, Receiver<std::io::Result<u64>>)> {
        let lost = |e: std::io::Error| Error::failed(format!("cannot write to {}: {e}", self.path.display()));
        self.metrics.flush().map_err(lost)?;
        positions.metrics = self.metrics.stream_position().map_err(lost)?;
        let metrics = self.metrics.get_ref().try_clone().map_err(lost)?;
        let (board, length) = self.board.mark().map_err(lost)?;
        positions.board = length;
        let some = self.staleness.iter().enumerate().filter(|(_, count)| **count > 0);
        positions.staleness = some.map(|(staleness, count)| (staleness as u64, *count)).collect();
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
