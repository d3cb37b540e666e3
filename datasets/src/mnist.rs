//! MNIST in its IDX format: four files, plain or as `.gz`.
//!
//! A file begins with big-endian 32-bit integers: the magic number 2051 (images) or 2049 (labels), the count
//! and, for images, rows and columns. The values follow, one byte each.

use crate::{DataError, ImageData, ImageSet, Result};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Rows and columns of an image.
const SIDE: usize = 28;
/// Number of images in the training set and in the test set.
const COUNTS: [usize; 2] = [60_000, 10_000];
/// Prefixes of the file names of the two sets.
const NAMES: [&str; 2] = ["train", "t10k"];
/// Length in bytes of the largest unpacked file.
const LONGEST: u64 = 16 + (COUNTS[0] * SIDE * SIDE) as u64;

/// Reads the set from `folder` or from `folder/mnist`.
pub fn load(folder: &Path) -> Result<ImageData> {
    let [train, test] = [0, 1].map(|k| set(folder, NAMES[k], COUNTS[k]));
    Ok(ImageData {
        train: train?,
        test: test?,
        channels: 1,
        side: SIDE,
        classes: (0..10).map(|c| c.to_string()).collect(),
        mean: [0.1307; 3],
        std: [0.3081; 3],
    })
}

fn set(folder: &Path, name: &str, count: usize) -> Result<ImageSet> {
    let pixels = body(folder, &format!("{name}-images-idx3-ubyte"), &[2051, count, SIDE, SIDE])?;
    let labels = body(folder, &format!("{name}-labels-idx1-ubyte"), &[2049, count])?;
    match labels.iter().find(|label| **label > 9) {
        Some(label) => Err(DataError(format!("{name}-labels-idx1-ubyte contains the label {label}; it is damaged"))),
        None => Ok(ImageSet { pixels, labels }),
    }
}

/// Reads a file whose header must equal `header`, and returns the bytes after it.
fn body(folder: &Path, name: &str, header: &[usize]) -> Result<Vec<u8>> {
    let places = [folder.to_path_buf(), folder.join("mnist")];
    let names = places.iter().flat_map(|place| [place.join(name), place.join(format!("{name}.gz"))]);
    let path: PathBuf = names.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        DataError(format!(
            "{} is neither in {} nor in mnist/ below it: put the four files of MNIST there, plain or as .gz, or name their folder with --data",
            name,
            folder.display()
        ))
    })?;
    let mut bytes = crate::read(&path, LONGEST)?;
    if path.extension().is_some_and(|e| e == "gz") {
        let mut plain = Vec::new();
        let unpacked = flate2::read::GzDecoder::new(&bytes[..]).take(LONGEST + 1).read_to_end(&mut plain);
        unpacked.map_err(|e| DataError(format!("{} is damaged: {e}", path.display())))?;
        bytes = plain;
    }
    let expected: Vec<u8> = header.iter().flat_map(|word| (*word as u32).to_be_bytes()).collect();
    let rest = header[1..].iter().product::<usize>();
    if bytes.len() != expected.len() + rest || !bytes.starts_with(&expected) {
        return Err(DataError(format!(
            "{} is not what MNIST calls {name}: {} bytes, expected the header {header:?} and {rest} bytes; download it again",
            path.display(),
            bytes.len()
        )));
    }
    bytes.drain(..expected.len());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn plain_and_gzip_files_are_read_and_damaged_files_are_named() {
        let folder = crate::scratch("mnist");
        let idx = |header: &[u32], body: Vec<u8>| {
            [header.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<u8>>(), body].concat()
        };
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
        write("train-images-idx3-ubyte", &idx(&[2051, 60_000, 28, 28], vec![7; 60_000 * 784]));
        write("train-labels-idx1-ubyte", &idx(&[2049, 60_000], vec![3; 60_000]));
        write("t10k-images-idx3-ubyte", &idx(&[2051, 10_000, 28, 28], vec![9; 10_000 * 784]));
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&idx(&[2049, 10_000], vec![5; 10_000])).unwrap();
        write("t10k-labels-idx1-ubyte.gz", &packed.finish().unwrap());
        let data = load(&folder).unwrap();
        assert_eq!((data.train.labels.len(), data.test.pixels.len()), (60_000, 10_000 * 784));
        assert_eq!((data.train.labels[0], data.test.labels[0]), (3, 5));

        write("train-labels-idx1-ubyte", &idx(&[2049, 60_000], vec![3; 59_999]));
        assert!(load(&folder).err().unwrap().0.contains("train-labels-idx1-ubyte is not what MNIST calls"));
        write("train-labels-idx1-ubyte", &idx(&[2049, 60_000], vec![10; 60_000]));
        assert!(load(&folder).err().unwrap().0.contains("label 10"));
        std::fs::remove_file(folder.join("t10k-images-idx3-ubyte")).unwrap();
        write("train-labels-idx1-ubyte", &idx(&[2049, 60_000], vec![1; 60_000]));
        assert!(load(&folder).err().unwrap().0.contains("t10k-images-idx3-ubyte is neither in"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
