//! The data sets of stagger: readers that check their input, generated sets, and partitions.
//!
//! | module | contents |
//! | --- | --- |
//! | [`cifar10`] | CIFAR-10 in its binary form: find, verify, read, download |
//! | [`synthetic`] | generated images of ten textures, for machines without data |
//! | [`mnist`] | MNIST in its IDX format |
//! | [`clusters`] | generated random vectors in ten classes |
//! | [`libsvm`] | sparse rows with two classes, from LIBSVM files |
//! | [`syn`] | generated rows with two classes: Syn(α, β) |
//! | [`quadratic`] | centres c_i of the quadratics ½‖x - c_i‖² |
//! | [`partition`] | the samples of each worker |
//!
//! This crate depends on no training code and no device.
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

/// An error in a data set. The message names the file or flag and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DataError(pub String);

/// The result of reading data.
pub type Result<T> = std::result::Result<T, DataError>;

/// Labelled images with 8-bit values. An image is stored channel by channel, each channel row by row.
pub struct ImageSet {
    /// Pixels of all images, one image after another: `labels.len()` × channels × side × side bytes.
    pub pixels: Vec<u8>,
    /// Label of each image.
    pub labels: Vec<u8>,
}

impl ImageSet {
    /// Keeps only the first `count` images.
    pub fn truncate(&mut self, count: usize) {
        if count < self.labels.len() {
            self.pixels.truncate(self.pixels.len() / self.labels.len() * count);
            self.labels.truncate(count);
        }
    }
}

/// A training set and a test set of square images of one shape.
pub struct ImageData {
    /// Training images.
    pub train: ImageSet,
    /// Test images.
    pub test: ImageSet,
    /// Number of channels.
    pub channels: usize,
    /// Rows and columns of an image, in pixels.
    pub side: usize,
    /// Name of each label.
    pub classes: Vec<String>,
    /// Mean of each channel over the training set, with values scaled to 0..1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, on the same scale.
    pub std: [f32; 3],
}

impl ImageData {
    /// Replaces the test set by the last `count` training images.
    ///
    /// # Errors
    ///
    /// The number of training images, if none of them would remain.
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

/// A stream of random numbers (ChaCha8) that depends only on the key `words`, never on earlier draws.
#[inline]
pub fn keyed(words: [u64; 4]) -> BlockRng<ChaCha8Core> {
    let mut key = [0u8; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    // `BlockRng` without the wrapper `ChaCha8Rng` saves a move of 300 bytes. Every draw of a job time creates a
    // stream.
    BlockRng::new(ChaCha8Core::from_seed(key))
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
///
/// If the file cannot be read or is longer; the message names the file.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| DataError(format!("cannot read {}: {e}", path.display()));
    let longer = || DataError(format!("{} is longer than {limit} bytes, the maximum for this file", path.display()));
    let file = std::fs::File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > limit {
        return Err(longer());
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // The metadata of a special file does not give its length.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit { Err(longer()) } else { Ok(bytes) }
}

/// The default folder of data sets, without `--data`.
pub fn default_folder() -> PathBuf {
    PathBuf::from("datasets")
}

/// An empty folder for one test, below the system's temporary folder. The test removes it at its end.
#[cfg(test)]
pub(crate) fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("stagger-datasets-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    folder
}
