//! Temporary files for the fuzz targets, because the readers take paths.

use std::path::PathBuf;

/// The folder of this process, below the system's temporary folder.
pub fn scratch() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("stagger-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    folder
}

/// Writes `bytes` to the file `name` in the folder of this process, and returns its path.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let file = scratch().join(name);
    std::fs::write(&file, bytes).expect("a temporary file");
    file
}
