//! Checkpoints: a run's state between two arrivals, in a folder that is complete or does not exist.
//!
//! A checkpoint holds the state on the device: weights, sums, tables, moments, and the models of unfinished
//! jobs. It does not hold the state of the host: rule, queues, workers' positions and the clock are functions
//! of the arrivals, so a resumed run replays the event log ([`crate::engine::server`]). A rule therefore has
//! nothing to save, and a wrong replay is found because it does not fit the log.
//!
//! Invariant: a folder with a final name is complete. The files are written to a folder with a temporary name
//! and synchronised, the manifest with the checksum last. Then the folder is renamed and its parent is
//! synchronised. The event log is synchronised before, up to the length that the manifest records.
//!
//! The reader trusts nothing: lengths come from the files, names are not used as paths, and the state must
//! fit its checksum and the run.

use crate::error::{Error, Failure, Result};
use crate::problem::Evaluation;
use crate::record::LogPositions;
use crossbeam_channel::{Receiver, Sender, bounded};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stagger_kernels::Buffer;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Version of the file format.
const FORMAT: u32 = 1;
/// Name of the folder of all checkpoints, in the run's folder.
const FOLDER: &str = "checkpoints";
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.safetensors";
/// Beginning of the names of incomplete folders.
const PARTIAL: &str = ".partial-";
/// Largest length of a manifest, in bytes.
const LONGEST_MANIFEST: u64 = 64 << 20;

/// Description of a checkpoint: the run that it belongs to, and the point of the run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the file format.
    pub format: u32,
    /// Version of the program.
    pub version: String,
    /// Commit from which the program was built.
    pub commit: String,
    /// The rule with its parameters, as in `--rule`.
    pub rule: String,
    /// Number of workers.
    pub workers: usize,
    /// The backend: `cpu`, `wgpu` or `cuda`.
    pub backend: String,
    /// Number of server updates.
    pub updates: u64,
    /// Number of arrivals.
    pub gradients: u64,
    /// Real time of the run in seconds, without evaluations.
    pub seconds: f64,
    /// The version of the last evaluation.
    pub evaluated: Option<u64>,
    /// Result of the last evaluation.
    pub evaluation: Evaluation,
    /// The evaluation as one number, if it belongs to this version. Larger is better.
    pub score: Option<f64>,
    /// The part of each log that belongs to the checkpoint.
    #[serde(flatten)]
    pub logs: LogPositions,
    /// Dropped workers, each with the number of gradients that had arrived by then.
    pub lost: Vec<(usize, u64)>,
    /// Failures of workers so far.
    pub failures: Vec<Failure>,
    /// Number of gradients so far with non-finite values.
    pub not_finite: u64,
    /// Counters of the server's state.
    pub counts: Counts,
    /// SHA-256 of the state file, in hexadecimal digits.
    pub sha256: String,
}

/// Counters of the server's state, besides the version. The fields have the meaning of those of `State` and
/// `OptimizerState`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Number of arrivals since a sum or a mean was last recomputed.
    pub(super) arrivals: u64,
    /// Number of updates since the last step of Nesterov momentum.
    pub(super) since: u64,
    /// Whether the sum of the first table contains each worker's row.
    pub(super) counted: Vec<bool>,
}

/// The buffers of a state, each with its name, in host memory that is not written any more.
pub type Tensors = Vec<(String, Buffer)>;

/// A checkpoint in memory.
pub struct Checkpoint {
    /// Description of the checkpoint.
    pub manifest: Manifest,
    tensors: HashMap<String, Vec<f32>>,
}

/// A checkpoint to be written.
pub struct Draft {
    /// Description of the checkpoint, without the length of the event log and the checksum.
    pub manifest: Manifest,
    /// The buffers of the state.
    pub tensors: Tensors,
    /// Receives the length of the event log in bytes, once the log is synchronised to the disk.
    pub log: Receiver<std::io::Result<u64>>,
    /// Files that are synchronised to the disk before the manifest is written.
    pub files: Vec<File>,
}

/// Writes checkpoints on a thread of its own.
pub struct Saver {
    drafts: Option<Sender<Draft>>,
    /// Whether a draft waits or is being written.
    busy: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Saver {
    /// A saver for the folder of a run that begins or continues after `gradients` arrivals. It keeps the
    /// newest `keep` checkpoints and the best one. Later checkpoints are removed: they belong to an earlier
    /// run or are damaged.
    pub fn new(run: &Path, keep: usize, gradients: u64) -> Result<Saver> {
        tidy(&run.join(FOLDER), gradients);
        let (drafts, waiting) = bounded::<Draft>(1);
        let folder = run.join(FOLDER);
        let busy = Arc::new(AtomicBool::new(false));
        let done = busy.clone();
        let write = move || {
            let mut last = Ok(());
            for draft in waiting {
                last = save(&folder, draft, keep);
                done.store(false, Ordering::Release);
                if let Err(error) = &last {
                    note!("NOTE       {error}; the run goes on, and earlier checkpoints are complete");
                }
            }
            last
        };
        let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(write);
        let thread =
            thread.map_err(|e| Error::failed(format!("cannot start the thread that saves checkpoints: {e}")))?;
        Ok(Saver { drafts: Some(drafts), busy, thread: Some(thread) })
    }

    /// Whether no draft waits or is being written. A new draft then does not add a second copy of the state.
    pub fn is_free(&self) -> bool {
        !self.busy.load(Ordering::Acquire)
    }

    /// Hands a draft to the thread that writes it. Waits if another draft waits already.
    pub fn save(&self, draft: Draft) {
        if let Some(drafts) = &self.drafts {
            self.busy.store(true, Ordering::Release);
            // If the thread has ended, it has panicked, and `finish` reports that.
            let _ = drafts.send(draft);
        }
    }

    /// Waits until all drafts are written.
    ///
    /// # Errors
    ///
    /// If the last draft could not be written.
    pub fn finish(&mut self) -> Result<()> {
        self.drafts = None;
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(Error::failed("the thread that saves checkpoints panicked")))
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

/// Removes incomplete folders, and checkpoints after more than `gradients` arrivals.
fn tidy(folder: &Path, gradients: u64) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PARTIAL) || name.parse::<u64>().is_ok_and(|number| number > gradients) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes a checkpoint, then removes the checkpoints that are not kept.
fn save(folder: &Path, draft: Draft, keep: usize) -> Result<()> {
    let Draft { mut manifest, tensors, log, files } = draft;
    let name = format!("{:015}", manifest.gradients);
    let (partial, whole) = (folder.join(format!("{PARTIAL}{name}")), folder.join(&name));
    if whole.is_dir() && read(&whole).is_ok() {
        return Ok(());
    }
    let failed =
        |e: std::io::Error| Error::failed(format!("a checkpoint cannot be written to {}: {e}", whole.display()));
    let mut write = || -> std::io::Result<()> {
        let _ = fs::remove_dir_all(&partial);
        // The run's folder itself is not created again: a user may have removed it on purpose.
        if !folder.is_dir() {
            fs::create_dir(folder)?;
        }
        fs::create_dir(&partial)?;
        // The buffers are written without a copy, because a table of many workers is large.
        let views = tensors.iter().map(|(name, values)| {
            let bytes: &[u8] = bytemuck::cast_slice(values.host());
            let view = TensorView::new(Dtype::F32, vec![values.len()], bytes).expect("four bytes a word");
            (name.as_str(), view)
        });
        let none: Option<HashMap<String, String>> = None;
        let state = partial.join(STATE);
        safetensors::serialize_to_file(views, none, &state).map_err(std::io::Error::other)?;
        let mut file = File::open(&state)?;
        file.sync_all()?;
        let mut hash = Sha256::new();
        std::io::copy(&mut file, &mut hash)?;
        manifest.sha256 = format!("{:x}", hash.finalize());
        let gone = || Err(std::io::Error::other("the event log is closed"));
        manifest.logs.events = log.recv().unwrap_or_else(|_| gone())?;
        files.iter().try_for_each(File::sync_all)?;
        put(&partial.join(MANIFEST), &serde_json::to_vec_pretty(&manifest).expect("plain data"))?;
        synchronise(&partial)?;
        // A folder with this name could not be read above, so it is damaged.
        let _ = fs::remove_dir_all(&whole);
        fs::rename(&partial, &whole)?;
        synchronise(folder)?;
        folder.parent().map_or(Ok(()), synchronise)
    };
    write().map_err(|e| {
        let _ = fs::remove_dir_all(&partial);
        failed(e)
    })?;
    prune(folder, keep);
    Ok(())
}

/// Writes a file and synchronises it to the disk.
fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Synchronises the names in a folder to the disk.
fn synchronise(folder: &Path) -> std::io::Result<()> {
    // Other systems cannot open folders. There the rename is not synchronised.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Complete checkpoints in a folder, the newest first.
fn all(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let whole =
        |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    let mut found: Vec<PathBuf> = entries.filter(whole).collect();
    found.sort_by(|a, b| b.cmp(a));
    found
}

/// Removes all checkpoints except the newest `keep` and the best one.
fn prune(folder: &Path, keep: usize) {
    let found = all(folder);
    let score = |path: &PathBuf| manifest(path).ok().and_then(|m| m.score);
    let best = found.iter().filter_map(|path| Some((score(path)?, path))).max_by(|a, b| a.0.total_cmp(&b.0));
    let best = best.map(|(_, path)| path.clone());
    for path in found.iter().skip(keep.max(1)).filter(|path| Some(*path) != best.as_ref()) {
        // Renamed first, so that a reader never finds an incomplete checkpoint.
        let gone = folder.join(format!("{PARTIAL}gone"));
        let _ = fs::remove_dir_all(&gone);
        let _ = fs::rename(path, &gone).and_then(|()| fs::remove_dir_all(&gone));
    }
}

/// Reads the manifest of one checkpoint. The error is a sentence.
fn manifest(folder: &Path) -> std::result::Result<Manifest, String> {
    let path = folder.join(MANIFEST);
    let text = stagger_datasets::read(&path, LONGEST_MANIFEST).map_err(|e| e.0)?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    match manifest.format {
        FORMAT => Ok(manifest),
        other => Err(format!("{} has format {other}, and this program reads format {FORMAT}", path.display())),
    }
}

/// Reads the folder of one checkpoint and verifies its checksum.
fn read(folder: &Path) -> std::result::Result<Checkpoint, String> {
    let manifest = manifest(folder)?;
    let path = folder.join(STATE);
    let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    if format!("{:x}", Sha256::digest(&bytes)) != manifest.sha256 {
        return Err(format!("{} has the wrong checksum", path.display()));
    }
    let state = SafeTensors::deserialize(&bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    let words = state.iter().filter(|(_, view)| view.dtype() == Dtype::F32);
    let tensors = words.map(|(name, view)| (name.to_string(), bytemuck::pod_collect_to_vec(view.data()))).collect();
    Ok(Checkpoint { manifest, tensors })
}

/// The newest readable checkpoint in a run's folder. A note names each damaged one.
///
/// # Errors
///
/// If no checkpoint can be read.
pub fn newest(run: &Path) -> Result<Checkpoint> {
    for folder in all(&run.join(FOLDER)) {
        match read(&folder) {
            Ok(checkpoint) => return Ok(checkpoint),
            Err(why) => note!("NOTE       {why}: this checkpoint is passed over"),
        }
    }
    Err(Error::usage(format!(
        "{} holds no checkpoint that can be read: a run saves one when it ends or is interrupted, and with \
         --checkpoint-every N",
        run.display()
    )))
}

impl Checkpoint {
    /// The buffer `name` of the state.
    ///
    /// # Errors
    ///
    /// If the checkpoint has no such buffer, or its length is not `len`.
    pub fn tensor(&self, name: &str, len: usize) -> Result<&[f32]> {
        let misfit = |why: String| Error::usage(format!("the checkpoint does not fit the run: {why}"));
        let found = self.tensors.get(name).ok_or_else(|| misfit(format!("it has no `{name}`")))?;
        match found.len() {
            have if have == len => Ok(found),
            have => Err(misfit(format!("`{name}` has {have} values instead of {len}"))),
        }
    }
}

/// A manifest with the format, version and commit of this program; the other fields are empty.
pub fn blank() -> Manifest {
    Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        commit: env!("STAGGER_COMMIT").into(),
        ..Manifest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stagger_kernels::Device;

    fn draft(gradients: u64, score: Option<f64>) -> Draft {
        let (tell, log) = bounded(1);
        tell.send(Ok(7)).unwrap();
        let manifest = Manifest { gradients, score, ..blank() };
        Draft {
            manifest,
            tensors: vec![("weights".into(), Device::Cpu.upload(vec![gradients as f32; 3]))],
            log,
            files: Vec::new(),
        }
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("stagger-checkpoint-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn newest_and_best_checkpoints_are_kept_and_damaged_ones_are_skipped() {
        let run = folder("keep");
        for (gradients, score) in [(10, Some(0.9)), (20, Some(0.2)), (30, None), (40, Some(0.3))] {
            save(&run.join(FOLDER), draft(gradients, score), 2).unwrap();
        }
        let kept: Vec<_> = all(&run.join(FOLDER));
        let names: Vec<_> =
            kept.iter().map(|p| p.file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap()).collect();
        assert_eq!(names, [40, 30, 10]);
        let newest_one = newest(&run).unwrap();
        assert_eq!((newest_one.manifest.gradients, newest_one.manifest.logs.events), (40, 7));
        assert_eq!(newest_one.tensor("weights", 3).unwrap(), [40.0; 3]);
        assert!(newest_one.tensor("weights", 4).is_err() && newest_one.tensor("../sums", 3).is_err());
        let state = kept[0].join(STATE);
        let mut bytes = fs::read(&state).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&state, bytes).unwrap();
        assert_eq!(newest(&run).unwrap().manifest.gradients, 30);
        fs::write(kept[1].join(MANIFEST), "{").unwrap();
        assert_eq!(newest(&run).unwrap().manifest.gradients, 10);
        fs::remove_dir_all(run.join(FOLDER)).unwrap();
        assert!(newest(&run).err().unwrap().to_string().contains("no checkpoint"));
        fs::remove_dir_all(run).unwrap();
    }

    #[test]
    fn failed_save_keeps_the_last_checkpoint() {
        let run = folder("blocked");
        save(&run.join(FOLDER), draft(1, None), 2).unwrap();
        // A file has the name of the temporary folder.
        fs::write(run.join(FOLDER).join(format!("{PARTIAL}{:015}", 2)), "").unwrap();
        assert!(save(&run.join(FOLDER), draft(2, None), 2).is_err());
        assert_eq!(newest(&run).unwrap().manifest.gradients, 1);
        fs::remove_dir_all(run).unwrap();
    }
}
