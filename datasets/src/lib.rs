//! The data of stagger: readers that check what they read, a synthetic set, and partitions.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`cifar10`] | the standard binary CIFAR-10: find, verify, read, fetch |
//! | [`synthetic`] | a procedural set of ten textures, for machines without data |
//! | [`mnist`] | MNIST's own files |
//! | [`clusters`] | random vectors in ten classes |
//! | [`libsvm`] | sparse rows with two classes |
//! | [`syn`] | the same, made: Syn(α, β) |
//! | [`quadratic`] | centres of ½‖x - c_i‖² |
//! | [`partition`] | who holds which sample |
//!
//! This crate knows no training and no device.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod cifar10;
pub mod clusters;
pub mod libsvm;
pub mod mnist;
pub mod partition;
pub mod quadratic;
pub mod syn;
pub mod synthetic;

use rand_chacha::ChaCha8Core;
use rand_chacha::rand_core::SeedableRng;
use rand_chacha::rand_core::block::BlockRng;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Something is wrong with data; the sentence names the file and the way out.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DataError(pub String);

/// The result of reading data.
pub type Result<T> = std::result::Result<T, DataError>;

/// Labelled images, 8 bits a value, channel by channel, row by row.
pub struct ImageSet {
    /// One image after another.
    pub pixels: Vec<u8>,
    /// One label per image.
    pub labels: Vec<u8>,
}

impl ImageSet {
    /// Keeps the first `count` images, if there are more.
    pub fn truncate(&mut self, count: usize) {
        if count < self.labels.len() {
            self.pixels.truncate(self.pixels.len() / self.labels.len() * count);
            self.labels.truncate(count);
        }
    }
}

/// A training and a test set of images of one shape.
pub struct ImageData {
    /// Training images.
    pub train: ImageSet,
    /// Test images.
    pub test: ImageSet,
    /// Planes of an image.
    pub channels: usize,
    /// Rows and columns.
    pub side: usize,
    /// Names of the labels, in order.
    pub classes: Vec<String>,
    /// Mean of each channel of the training set, of values in 0..1.
    pub mean: [f32; 3],
    /// Standard deviation likewise.
    pub std: [f32; 3],
}

impl ImageData {
    /// The last `count` training images take the place of the test set; an error with the number that there are if none would remain.
    pub fn hold_out(&mut self, count: usize) -> std::result::Result<(), usize> {
        let have = self.train.labels.len();
        if count >= have {
            return Err(have);
        }
        let (rest, size) = (have - count, self.train.pixels.len() / have);
        self.test =
            ImageSet { pixels: self.train.pixels.split_off(rest * size), labels: self.train.labels.split_off(rest) };
        Ok(())
    }
}

/// A counter-based stream of random numbers: a function of what keys it, never of what was drawn before.
#[inline]
pub fn keyed(words: [u64; 4]) -> BlockRng<ChaCha8Core> {
    let mut key = [0u8; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    // Without its wrapper, which is a move of 300 bytes: a draw of a job's time is one of these.
    BlockRng::new(ChaCha8Core::from_seed(key))
}

/// Reads a whole file of at most `limit` bytes, or says which file could not be read and why.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| DataError(format!("cannot read {}: {e}", path.display()));
    let longer = || DataError(format!("{} is longer than {limit} bytes, the most that is read", path.display()));
    let file = std::fs::File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > limit {
        return Err(longer());
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // What is no plain file says nothing of its length.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit { Err(longer()) } else { Ok(bytes) }
}

/// Where data sets are kept unless `--data` says otherwise.
pub fn default_folder() -> PathBuf {
    PathBuf::from("datasets")
}

/// An empty folder for one test, below the system's temporary folder; a test removes it at its end.
#[cfg(test)]
pub(crate) fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("stagger-datasets-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    folder
}
