//! [`RunFolder`]: the folder into which a run writes its files.

use super::files::{lock, open_at, write_whole};
use super::log::EventLog;
use super::tensorboard::TensorBoard;
use super::{Event, Span, Summary, device_times};
use crate::error::{Error, Result};
use crate::problem::{Columns, Evaluation};
use crossbeam_channel::Receiver;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stagger_kernels::Layout;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

/// Files and folders that a run writes, in addition to its event files for TensorBoard.
const RUN_FILES: [&str; 8] = [
    "events.jsonl",
    "config.toml",
    "metrics.csv",
    "partition.csv",
    "device.csv",
    "summary.json",
    "model.safetensors",
    "checkpoints",
];

/// Moves the files of an earlier run in `path` to the first free folder of `path.1`, `path.2`, and so on.
/// Returns that folder; `None` if there was no earlier run.
fn move_earlier_run(path: &Path) -> std::io::Result<Option<PathBuf>> {
    let log = path.join("events.jsonl");
    // Without a log there was no run, or one that ended before its first arrival.
    if fs::metadata(&log).map_or(0, |data| data.len()) == 0 && !path.join("summary.json").exists() {
        return Ok(None);
    }
    // The files of a run that is still active are not moved.
    if let Ok(log) = fs::OpenOptions::new().write(true).open(&log) {
        lock(&log)?;
    }
    let beside = |k: usize| {
        // Removes a separator at the end of the path.
        let mut name = path.components().collect::<PathBuf>().into_os_string();
        name.push(format!(".{k}"));
        PathBuf::from(name)
    };
    let kept = (1..).map(beside).find(|folder| !folder.exists()).expect("some number is free");
    fs::create_dir(&kept)?;
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if RUN_FILES.contains(&&*text) || text.starts_with("events.out.tfevents.") {
            fs::rename(path.join(&name), kept.join(&name))?;
        }
    }
    Ok(Some(kept))
}

/// The part of each log that belongs to a checkpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogPositions {
    /// Length of that part of `events.jsonl`, in bytes.
    pub events: u64,
    /// Length of that part of `metrics.csv`, in bytes.
    pub metrics: u64,
    /// Length of that part of TensorBoard's event file, in bytes.
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
    /// Number of arrivals per staleness since the last evaluation.
    staleness: Vec<u64>,
    /// In a resumed run: the logs that are not yet cut back to the checkpoint, each with its length at the
    /// checkpoint.
    uncut: Vec<(File, u64)>,
    /// The text of `config.toml`.
    config: String,
}

impl RunFolder {
    /// Creates the folder, writes `config.toml` and opens the logs. If the folder holds an earlier run, its
    /// files are moved.
    ///
    /// # Errors
    ///
    /// If the folder cannot be written, or another run writes to it. The run has not begun then.
    pub fn create(path: &Path, config: &str, columns: Columns) -> Result<Self> {
        let wrong = |what: &Path, e: std::io::Error| {
            Error::usage(format!("cannot write {}: {e}; choose another folder with --out", what.display()))
        };
        fs::create_dir_all(path).map_err(|e| wrong(path, e))?;
        if let Some(kept) = move_earlier_run(path).map_err(|e| wrong(path, e))? {
            note!("NOTE       {} held a run already; that run is now in {}", path.display(), kept.display());
        }
        let open = |name: &str| {
            let file = path.join(name);
            File::create(&file).map_err(|e| wrong(&file, e))
        };
        // Locked before it is emptied, because it may belong to a run that is still active.
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

    /// Opens the folder of a run that continues from a checkpoint. Nothing in the folder changes before
    /// [`RunFolder::truncate_logs`].
    ///
    /// # Errors
    ///
    /// If a log is missing or too short for the checkpoint, or another run writes to the folder.
    pub fn reopen(path: &Path, config: &str, positions: &LogPositions) -> Result<Self> {
        let wrong = |e: std::io::Error| Error::usage(format!("the run in {} cannot go on: {e}", path.display()));
        let log = open_at(&path.join("events.jsonl"), positions.events).map_err(wrong)?;
        lock(&log).map_err(wrong)?;
        let metrics = open_at(&path.join("metrics.csv"), positions.metrics).map_err(wrong)?;
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

    /// Cuts the logs back to the checkpoint, and writes `config.toml`. Called after the replay of the log has
    /// shown that this run is the run of the folder.
    pub fn truncate_logs(&mut self) -> Result<()> {
        let wrong = |e: std::io::Error| Error::usage(format!("the run in {} cannot go on: {e}", self.path.display()));
        for (file, bytes) in std::mem::take(&mut self.uncut) {
            file.set_len(bytes).map_err(wrong)?;
        }
        write_whole(&self.path.join("config.toml"), &self.config).map_err(wrong)
    }

    /// Counts `arrivals` arrivals with this staleness.
    fn count(&mut self, staleness: usize, arrivals: u64) {
        if self.staleness.len() <= staleness {
            self.staleness.resize(staleness + 1, 0);
        }
        self.staleness[staleness] += arrivals;
    }

    /// Writes the lengths of the logs to `positions`, except the length of the event log. Returns the files
    /// that must still be synchronised to the disk, and a receiver that gets the length of the event log once
    /// the log is synchronised.
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

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `partition.csv`: the number of samples of each class per worker, `counts[worker][class]`.
    pub fn partition(&mut self, classes: &[String], counts: &[Vec<usize>]) -> Result<()> {
        let row = |(worker, counts): (usize, &Vec<usize>)| {
            let cells = counts.iter().map(|n| format!(",{n}"));
            std::iter::once(worker.to_string()).chain(cells).chain(["\n".to_string()]).collect::<String>()
        };
        let text = format!("worker,{}\n", classes.join(",")) + &counts.iter().enumerate().map(row).collect::<String>();
        fs::write(self.path.join("partition.csv"), text).map_err(|e| self.lost("partition.csv", e))
    }

    /// Writes `device.csv`: the times at which the device computed gradients and updates.
    pub fn device(&mut self, spans: &[Span]) -> Result<()> {
        fs::write(self.path.join("device.csv"), device_times(spans)).map_err(|e| self.lost("device.csv", e))
    }

    /// Appends arrivals to `events.jsonl`, and leaves `block` empty.
    pub fn events(&mut self, block: &mut Vec<Event>) -> Result<()> {
        for event in block.iter() {
            self.count(event.staleness as usize, 1);
        }
        self.events.append(block).map_err(|e| self.lost("events.jsonl", e))
    }

    /// Appends an evaluation after `update` updates, at `time` seconds on the run's time axis, to `metrics.csv`
    /// and to TensorBoard's event file. `train_loss` is the mean of the latest batch losses, for image
    /// problems.
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

    /// Writes everything that is buffered, and closes the event log.
    pub fn finish(&mut self) -> Result<()> {
        self.events.finish().map_err(|e| self.lost("events.jsonl", e))?;
        self.metrics.flush().map_err(|e| self.lost("metrics.csv", e))
    }

    /// Writes the weights to `model.safetensors`, by parameter name. Returns their SHA-256 as hexadecimal
    /// digits: the hash of the parameters' bytes (little-endian f32) in the order of the layout.
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
        Ok(format!("{:x}", hash.finalize()))
    }

    /// Writes `summary.json`.
    pub fn summary(&mut self, summary: &Summary) -> Result<()> {
        let text = serde_json::to_string_pretty(summary).expect("a summary can be serialized");
        let file = self.path.join("summary.json");
        fs::write(&file, text + "\n").map_err(|e| Error::failed(format!("cannot write {}: {e}", file.display())))
    }

    /// The error of a run that cannot write the file `name`.
    fn lost(&self, name: &str, e: std::io::Error) -> Error {
        Error::failed(format!(
            "cannot write {}: {e}; everything written before is complete",
            self.path.join(name).display()
        ))
    }
}
