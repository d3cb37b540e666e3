//! Helpers for the files in a run's folder: locks, complete writes, and opening at a position.

use std::fs::{self, File, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// Locks an event log for this process until the file is closed.
///
/// # Errors
///
/// If another run holds the lock. A file system without locks is not an error.
pub(super) fn lock(log: &File) -> std::io::Result<()> {
    match log.try_lock() {
        Err(TryLockError::WouldBlock) => Err(std::io::Error::other("another run is writing to it")),
        // Some file systems do not support locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// Writes a file and synchronises it to the disk. The file appears with its whole content or not at all.
pub(super) fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("part");
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// Opens a file for writing, positioned after its first `bytes` bytes.
///
/// # Errors
///
/// If the file cannot be opened or is shorter than that. The message names the file.
pub(super) fn open_at(path: &Path, bytes: u64) -> std::io::Result<File> {
    let named = |e: std::io::Error| std::io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let mut file = fs::OpenOptions::new().write(true).open(path).map_err(named)?;
    let have = file.metadata().map_err(named)?.len();
    if have < bytes {
        let why = format!("{} has {have} bytes, but the checkpoint belongs to its first {bytes}", path.display());
        return Err(std::io::Error::other(why));
    }
    file.seek(SeekFrom::Start(bytes)).map_err(named)?;
    Ok(file)
}
