//! A place for the files that the targets write: the readers take paths.

use std::path::PathBuf;

/// A folder of this process's own, below the system's temporary folder.
pub fn scratch() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("stagger-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    folder
}

/// `bytes` as the file `name` in it.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let file = scratch().join(name);
    std::fs::write(&file, bytes).expect("a temporary file");
    file
}
