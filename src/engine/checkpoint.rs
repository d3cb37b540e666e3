//! Checkpoints: a run's state between two arrivals, in a folder that is there whole or not at all.
//!
//! What lies on the device is saved: weights, sums, tables, moments, and the models that unfinished jobs were sent. What the host knows is
//! not: rule, queues, workers' positions and the clock are functions of what arrived, so the event log, which is beside the checkpoint,
//! is told to them again ([`crate::server`]). So a rule has nothing to save, and what was derived wrongly would not fit the log.
//!
//! Invariant: a folder of the final name is whole. Its files are written and synchronised in a folder of another name, the manifest with
//! the sums last; then the folder is renamed and its parent synchronised. The event log is synchronised before, up to the place that the
//! manifest names.
//!
//! Nothing that is read is trusted: lengths are those of the files, names are not used as paths, the state must fit its checksum and the run.

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

/// Of the files' form.
const FORMAT: u32 = 1;
/// Below a run's folder.
const FOLDER: &str = "checkpoints";
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.safetensors";
/// Beginning of the names of folders that are not whole.
const PARTIAL: &str = ".partial-";
/// No manifest is longer.
const LONGEST_MANIFEST: u64 = 64 << 20;

/// What a checkpoint is of, and what fits it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// Of the files' form.
    pub format: u32,
    /// Of the program.
    pub version: String,
    /// From which it was built.
    pub commit: String,
    /// The rule, as it was given.
    pub rule: String,
    /// Number of workers.
    pub workers: usize,
    /// Where it computed.
    pub backend: String,
    /// Server updates.
    pub updates: u64,
    /// Arrivals.
    pub gradients: u64,
    /// Of the run's clock in real time.
    pub seconds: f64,
    /// The version of the last evaluation.
    pub evaluated: Option<u64>,
    /// What that found.
    pub evaluation: Evaluation,
    /// The same as one number, if it was of this version: the larger the better.
    pub score: Option<f64>,
    /// How much of the logs belongs to it.
    #[serde(flatten)]
    pub logs: LogPositions,
    /// Workers that failed and were dropped, each with the number of gradients that had arrived then.
    pub lost: Vec<(usize, u64)>,
    /// Failures of workers so far.
    pub failures: Vec<Failure>,
    /// Gradients so far with numbers that are none.
    pub not_finite: u64,
    /// The server's counters.
    pub counts: Counts,
    /// SHA-256 of the state's file.
    pub sha256: String,
}

/// What the server counts beside versions: see the fields of `State` and `OptimizerState`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub(super) arrivals: u64,
    pub(super) since: u64,
    pub(super) counted: Vec<bool>,
}

/// A state's buffers, each with its name, in host memory that nobody writes any more.
pub type Tensors = Vec<(String, Buffer)>;

/// A checkpoint in memory.
pub struct Checkpoint {
    /// What it is of.
    pub manifest: Manifest,
    tensors: HashMap<String, Vec<f32>>,
}

/// A checkpoint to be written.
pub struct Draft {
    /// All but `events` and the checksum.
    pub manifest: Manifest,
    /// The state.
    pub tensors: Tensors,
    /// Tells how long the event log is, once that is on the disk.
    pub log: Receiver<std::io::Result<u64>>,
    /// On the disk before the manifest is.
    pub files: Vec<File>,
}

/// Writes checkpoints on a thread of its own.
pub struct Saver {
    drafts: Option<Sender<Draft>>,
    /// One is waiting or being written.
    busy: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Saver {
    /// For a run's folder, of which the newest `keep` checkpoints and the best one stay. A run that begins or goes on after `gradients`
    /// has no checkpoint beyond that: what is there is of a run before it, or damaged.
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
                    note!("NOTE       {error}; the run goes on, and what was saved before is whole");
                }
            }
            last
        };
        let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(write);
        let thread = thread.map_err(|e| Error::failed(format!("cannot start the thread that saves: {e}")))?;
        Ok(Saver { drafts: Some(drafts), busy, thread: Some(thread) })
    }

    /// Whether none is being written, so that no two copies of the state are held.
    pub fn is_free(&self) -> bool {
        !self.busy.load(Ordering::Acquire)
    }

    /// Hands over a draft, behind those before it.
    pub fn save(&self, draft: Draft) {
        if let Some(drafts) = &self.drafts {
            self.busy.store(true, Ordering::Release);
            // A thread that is gone has panicked; `finish` says so.
            let _ = drafts.send(draft);
        }
    }

    /// Waits until all is written; an error if the last could not be.
    pub fn finish(&mut self) -> Result<()> {
        self.drafts = None;
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(Error::failed("the thread that saves panicked")))
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

/// Removes what is not whole, and what lies beyond so many gradients.
fn tidy(folder: &Path, gradients: u64) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PARTIAL) || name.parse::<u64>().is_ok_and(|number| number > gradients) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes a checkpoint, then lets go of those that are not kept.
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
        // Not the run's folder: whoever removed that wants nothing in it.
        if !folder.is_dir() {
            fs::create_dir(folder)?;
        }
        fs::create_dir(&partial)?;
        // Written from where it lies: a table of many workers is not to be there twice.
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
        // What is there of this name could not be read.
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

fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A folder's names are on the disk.
fn synchronise(folder: &Path) -> std::io::Result<()> {
    // Elsewhere folders cannot be opened, and renaming is as good as it gets.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Whole checkpoints of a folder, the newest first.
fn all(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let whole =
        |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    let mut found: Vec<PathBuf> = entries.filter(whole).collect();
    found.sort_by(|a, b| b.cmp(a));
    found
}

fn prune(folder: &Path, keep: usize) {
    let found = all(folder);
    let score = |path: &PathBuf| manifest(path).ok().and_then(|m| m.score);
    let best = found.iter().filter_map(|path| Some((score(path)?, path))).max_by(|a, b| a.0.total_cmp(&b.0));
    let best = best.map(|(_, path)| path.clone());
    for path in found.iter().skip(keep.max(1)).filter(|path| Some(*path) != best.as_ref()) {
        // First out of sight, so that nobody finds half of it.
        let gone = folder.join(format!("{PARTIAL}gone"));
        let _ = fs::remove_dir_all(&gone);
        let _ = fs::rename(path, &gone).and_then(|()| fs::remove_dir_all(&gone));
    }
}

fn manifest(folder: &Path) -> std::result::Result<Manifest, String> {
    let path = folder.join(MANIFEST);
    let text = stagger_datasets::read(&path, LONGEST_MANIFEST).map_err(|e| e.0)?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    match manifest.format {
        FORMAT => Ok(manifest),
        other => Err(format!("{} is of form {other}, and this program reads form {FORMAT}", path.display())),
    }
}

/// Reads one checkpoint's folder and checks its sum.
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

/// The newest whole checkpoint of a run's folder; those that are damaged are named and passed over.
pub fn newest(run: &Path) -> Result<Checkpoint> {
    for folder in all(&run.join(FOLDER)) {
        match read(&folder) {
            Ok(checkpoint) => return Ok(checkpoint),
            Err(why) => note!("NOTE       {why}: this checkpoint is passed over"),
        }
    }
    Err(Error::usage(format!(
        "{} holds no checkpoint that can be read: a run saves one when it ends or is interrupted, and with --checkpoint-every N",
        run.display()
    )))
}

impl Checkpoint {
    /// A buffer of the state, of `len` words.
    pub fn tensor(&self, name: &str, len: usize) -> Result<&[f32]> {
        let misfit = |why: String| Error::usage(format!("the checkpoint does not fit the run: {why}"));
        let found = self.tensors.get(name).ok_or_else(|| misfit(format!("it has no `{name}`")))?;
        match found.len() {
            have if have == len => Ok(found),
            have => Err(misfit(format!("`{name}` has {have} numbers instead of {len}"))),
        }
    }
}

/// The form, version and commit of checkpoints that this program writes.
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
    fn the_newest_and_the_best_are_kept_and_a_damaged_one_is_passed_over() {
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
    fn a_folder_that_cannot_be_written_leaves_the_last_one() {
        let run = folder("blocked");
        save(&run.join(FOLDER), draft(1, None), 2).unwrap();
        // A file stands where the folder should be made.
        fs::write(run.join(FOLDER).join(format!("{PARTIAL}{:015}", 2)), "").unwrap();
        assert!(save(&run.join(FOLDER), draft(2, None), 2).is_err());
        assert_eq!(newest(&run).unwrap().manifest.gradients, 1);
        fs::remove_dir_all(run).unwrap();
    }
}
