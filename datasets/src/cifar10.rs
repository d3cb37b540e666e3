//! CIFAR-10 in its binary form (Krizhevsky, 2009): six files of 10,000 records. A record is a label byte and
//! 3,072 pixels.

use crate::{DataError, ImageData, ImageSet, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Name of the folder inside the official archive.
pub const FOLDER: &str = "cifar-10-batches-bin";
/// URL of the official archive.
pub const URL: &str = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz";
const ARCHIVE_SHA256: &str = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd";
const ARCHIVE_BYTES: u64 = 170_052_171;
const RECORD: usize = 1 + 3072;
const RECORDS: usize = 10_000;

/// File names with their SHA-256 checksums. The last file is the test set.
const FILES: [(&str, &str); 6] = [
    ("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
    ("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
    ("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
    ("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
    ("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
    ("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
];

/// Names of the labels, in order.
pub const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Finds the folder with the batch files: `folder` itself, or the archive's folder inside it.
pub fn find(folder: &Path) -> Option<PathBuf> {
    [folder.to_path_buf(), folder.join(FOLDER)].into_iter().find(|f| f.join(FILES[0].0).is_file())
}

fn locate(folder: &Path) -> Result<PathBuf> {
    if !folder.is_dir() {
        let why = if folder.exists() { "is not a folder" } else { "does not exist" };
        return Err(DataError(format!(
            "the data folder {} {why}: give a folder that holds {FOLDER}/ with --data, or run `stagger data fetch`",
            folder.display()
        )));
    }
    find(folder).ok_or_else(|| {
        DataError(format!(
            "{} does not contain CIFAR-10: {} is neither there nor in {FOLDER}/ below it; run `stagger data fetch`",
            folder.display(),
            FILES[0].0
        ))
    })
}

/// Checks the sizes and SHA-256 checksums of all six files under `folder`. Returns one line per file.
pub fn verify(folder: &Path) -> Result<Vec<String>> {
    let folder = locate(folder)?;
    FILES
        .iter()
        .map(|(name, sum)| checked(&folder.join(name), sum).map(|_| format!("{name}: ok, SHA-256 {sum}")))
        .collect()
}

/// Reads the whole set, and checks the size and the SHA-256 checksum of every file.
pub fn load(folder: &Path) -> Result<ImageData> {
    let folder = locate(folder)?;
    let mut sets =
        [ImageSet { pixels: Vec::new(), labels: Vec::new() }, ImageSet { pixels: Vec::new(), labels: Vec::new() }];
    for (k, (name, sum)) in FILES.iter().enumerate() {
        let set = &mut sets[(k == 5) as usize];
        for record in checked(&folder.join(name), sum)?.chunks_exact(RECORD) {
            set.labels.push(record[0]);
            set.pixels.extend_from_slice(&record[1..]);
        }
    }
    let [train, test] = sets;
    Ok(ImageData {
        train,
        test,
        channels: 3,
        side: 32,
        classes: CLASSES.map(String::from).to_vec(),
        mean: [0.4914, 0.4822, 0.4465],
        std: [0.2470, 0.2435, 0.2616],
    })
}

/// Reads one batch file and checks its size and checksum.
fn checked(path: &Path, sum: &str) -> Result<Vec<u8>> {
    let expected = RECORD * RECORDS;
    let bytes = crate::read(path, 4 * expected as u64)?;
    if bytes.len() != expected {
        return Err(DataError(format!(
            "{} has {} bytes instead of {expected}: it is truncated or not a CIFAR-10 batch; delete it and run `stagger data fetch`",
            path.display(),
            bytes.len()
        )));
    }
    let found = format!("{:x}", Sha256::digest(&bytes));
    if found != sum {
        return Err(DataError(format!(
            "{} has the wrong checksum (SHA-256 {found}, not {sum}): it is damaged; delete it and run `stagger data fetch`",
            path.display()
        )));
    }
    Ok(bytes)
}

/// Downloads the archive to `folder`, checks its SHA-256 checksum and unpacks it. A partial download is
/// resumed.
///
/// `progress` is called with the number of bytes so far and in total. A partial file never gets its final name:
/// the archive is `*.part`, and its files are unpacked in a folder next to the final one and then renamed into
/// it.
pub fn fetch(url: &str, folder: &Path, progress: impl FnMut(u64, u64)) -> Result<PathBuf> {
    fetch_checked(url, folder, ARCHIVE_SHA256, ARCHIVE_BYTES, progress)
}

fn fetch_checked(
    url: &str,
    folder: &Path,
    sum: &str,
    limit: u64,
    mut progress: impl FnMut(u64, u64),
) -> Result<PathBuf> {
    let target = folder.join(FOLDER);
    if find(&target).is_some() && verify(&target).is_ok() {
        return Ok(target);
    }
    fs::create_dir_all(folder).map_err(|e| DataError(format!("cannot create {}: {e}", folder.display())))?;
    let part = folder.join("cifar-10-binary.tar.gz.part");
    let at = |e: std::io::Error| DataError(format!("cannot write {}: {e}", part.display()));
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(&part).map_err(at)?;
    let mut have = file.metadata().map_err(at)?.len();
    if have < limit {
        let lost = |e: &dyn std::fmt::Display| {
            DataError(format!("the download of {url} failed: {e}; run `stagger data fetch` again to resume it"))
        };
        let mut response = ureq::get(url).header("Range", format!("bytes={have}-")).call().map_err(|e| lost(&e))?;
        if response.status() != 206 {
            // The server ignores the range and sends the whole file: start again.
            file.set_len(0).map_err(at)?;
            have = 0;
        }
        let mut body = response.body_mut().with_config().limit(limit + 1).reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let n = body.read(&mut buffer).map_err(|e| lost(&e))?;
            if n == 0 {
                break;
            }
            file.write_all(&buffer[..n]).map_err(at)?;
            have += n as u64;
            progress(have, limit);
        }
        if have < limit {
            return Err(lost(&format!("it ended after {have} of {limit} bytes")));
        }
    }
    let mut hash = Sha256::new();
    file.seek(SeekFrom::Start(0)).map_err(at)?;
    std::io::copy(&mut file, &mut hash).map_err(at)?;
    let found = format!("{:x}", hash.finalize());
    if found != sum {
        fs::remove_file(&part).map_err(at)?;
        return Err(DataError(format!(
            "the download of {url} has the wrong checksum (SHA-256 {found}, not {sum}); it was deleted, try again"
        )));
    }
    unpack(&part, folder)?;
    fs::remove_file(&part).map_err(at)?;
    Ok(target)
}

/// Unpacks only the batch files and the class names of the archive at `part`, and renames them into place.
fn unpack(part: &Path, folder: &Path) -> Result<()> {
    let bad = |e: std::io::Error| DataError(format!("cannot unpack {}: {e}", part.display()));
    let fresh = folder.join(format!("{FOLDER}.part"));
    fs::create_dir_all(&fresh).map_err(bad)?;
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(part).map_err(bad)?));
    for entry in archive.entries().map_err(bad)? {
        let mut entry = entry.map_err(bad)?;
        let name = entry.path().map_err(bad)?.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if FILES.iter().any(|(file, _)| *file == name) || name == "batches.meta.txt" {
            entry.unpack(fresh.join(name)).map_err(bad)?;
        }
    }
    // Rename file by file, so that a damaged set in the folder is repaired.
    let target = folder.join(FOLDER);
    fs::create_dir_all(&target).map_err(bad)?;
    for entry in fs::read_dir(&fresh).map_err(bad)? {
        let entry = entry.map_err(bad)?;
        fs::rename(entry.path(), target.join(entry.file_name())).map_err(bad)?;
    }
    fs::remove_dir(&fresh).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    /// A tiny archive with the right file names, and its checksum.
    fn archive() -> (Vec<u8>, String) {
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (name, _) in FILES {
            let mut header = tar::Header::new_gnu();
            header.set_size(3);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{FOLDER}/{name}"), &b"abc"[..]).unwrap();
        }
        let bytes = tar.into_inner().unwrap().finish().unwrap();
        let sum = format!("{:x}", Sha256::digest(&bytes));
        (bytes, sum)
    }

    /// Serves `bytes` once over HTTP, or only the first `cut` bytes. The thread returns the start of the
    /// requested range.
    fn serve(bytes: Vec<u8>, cut: Option<usize>) -> (String, std::thread::JoinHandle<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/archive", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut start = 0;
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let line = line.unwrap().to_lowercase();
                if let Some(range) = line.strip_prefix("range: bytes=") {
                    start = range.trim_end_matches('-').parse().unwrap();
                }
                if line.is_empty() {
                    break;
                }
            }
            let body = &bytes[start..];
            write!(
                stream,
                "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            )
            .unwrap();
            stream.write_all(&body[..cut.unwrap_or(body.len())]).unwrap();
            start
        });
        (url, thread)
    }

    #[test]
    fn an_interrupted_download_goes_on_where_it_stopped_and_is_unpacked_once_its_sum_is_right() {
        let (bytes, sum) = archive();
        let folder = crate::scratch("resume");
        let size = bytes.len() as u64;
        let (url, thread) = serve(bytes.clone(), Some(100));
        let error = fetch_checked(&url, &folder, &sum, size, |_, _| {}).unwrap_err();
        assert!(error.0.contains("again"), "{error}");
        assert_eq!(thread.join().unwrap(), 0);
        assert!(find(&folder).is_none(), "a partial download is not used");
        let (url, thread) = serve(bytes, None);
        let target = fetch_checked(&url, &folder, &sum, size, |_, _| {}).unwrap();
        assert_eq!(thread.join().unwrap(), 100);
        assert_eq!(fs::read(target.join("test_batch.bin")).unwrap(), b"abc");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_archive_with_a_wrong_checksum_is_deleted() {
        let (bytes, _) = archive();
        let folder = crate::scratch("wrong-sum");
        let size = bytes.len() as u64;
        let (url, thread) = serve(bytes, None);
        let error = fetch_checked(&url, &folder, &"0".repeat(64), size, |_, _| {}).unwrap_err();
        thread.join().unwrap();
        assert!(error.0.contains("wrong checksum"), "{error}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_truncated_or_damaged_file_is_named() {
        let folder = crate::scratch("damaged");
        let path = folder.join(FILES[0].0);
        fs::write(&path, vec![0; 100]).unwrap();
        let error = load(&folder).err().unwrap();
        assert!(error.0.contains("data_batch_1.bin") && error.0.contains("100 bytes"), "{error}");
        fs::write(&path, vec![0; RECORD * RECORDS]).unwrap();
        let error = load(&folder).err().unwrap();
        assert!(error.0.contains("data_batch_1.bin") && error.0.contains("checksum"), "{error}");
        let error = load(&folder.join("absent")).err().unwrap();
        assert!(error.0.contains("absent") && error.0.contains("--data"), "{error}");
        fs::remove_dir_all(folder).unwrap();
    }
}
