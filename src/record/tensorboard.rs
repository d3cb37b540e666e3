//! TensorBoard's event file: scalars of each evaluation, and a histogram of the staleness since the previous
//! one.
//!
//! The file is a sequence of records (length, checksum, bytes, checksum). Each record is an `Event` of
//! TensorBoard's protocol buffers. Only these fields are written:
//!
//! ```text
//! Event          { 1 wall_time, 2 step, 3 file_version, 5 summary }
//! Summary        { 1 value }
//! Value          { 1 tag, 2 simple_value, 5 histo }
//! HistogramProto { 1 min, 2 max, 3 num, 4 sum, 5 sum_squares, 6 bucket_limit, 7 bucket }
//! ```

use std::fs::File;
use std::io::{BufWriter, Result, Seek, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of the file. Readers recognise the file by the beginning of the name.
const NAME: &str = "events.out.tfevents.0.stagger";

/// An open event file.
pub struct TensorBoard(BufWriter<File>);

impl TensorBoard {
    /// Creates the file in a run's folder. Replaces an existing file.
    pub fn create(folder: &Path) -> Result<Self> {
        let mut board = TensorBoard(BufWriter::new(File::create(folder.join(NAME))?));
        let mut event = event_now();
        bytes(&mut event, 3, b"brain.Event:2");
        board.record(&event)?;
        Ok(board)
    }

    /// Opens an existing file and continues after its first `bytes` bytes. Also returns a handle of the file.
    pub fn open(folder: &Path, bytes: u64) -> Result<(Self, File)> {
        let file = super::files::open_at(&folder.join(NAME), bytes)?;
        let written = file.try_clone()?;
        Ok((TensorBoard(BufWriter::new(file)), written))
    }

    /// Flushes the buffer to the file. Returns a handle of the file and its length in bytes.
    pub fn mark(&mut self) -> Result<(File, u64)> {
        self.0.flush()?;
        Ok((self.0.get_ref().try_clone()?, self.0.stream_position()?))
    }

    /// Writes the scalars after `step` updates. Also writes a histogram of the staleness if a count is not
    /// zero; `staleness[k]` is the number of arrivals with staleness k. Missing and non-finite scalars are left
    /// out.
    pub fn write(&mut self, step: u64, scalars: &[(&str, Option<f64>)], staleness: &[u64]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let Some(value) = value.filter(|x| x.is_finite()) else { continue };
            let mut entry = Vec::new();
            bytes(&mut entry, 1, tag.as_bytes());
            key(&mut entry, 2, 5);
            entry.extend((value as f32).to_le_bytes());
            bytes(&mut summary, 1, &entry);
        }
        if staleness.iter().any(|n| *n > 0) {
            let mut entry = Vec::new();
            bytes(&mut entry, 1, b"staleness");
            bytes(&mut entry, 5, &histogram(staleness));
            bytes(&mut summary, 1, &entry);
        }
        let mut event = event_now();
        key(&mut event, 2, 0);
        varint(&mut event, step);
        bytes(&mut event, 5, &summary);
        self.record(&event)?;
        // A running TensorBoard sees the values at once.
        self.0.flush()
    }

    /// Writes one record.
    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        self.0.write_all(&length)?;
        self.0.write_all(&masked(&length).to_le_bytes())?;
        self.0.write_all(data)?;
        self.0.write_all(&masked(data).to_le_bytes())
    }
}

/// The masked CRC-32C of the record format.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// An encoded event that contains only the current time.
fn event_now() -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    let mut event = Vec::new();
    double(&mut event, 1, now);
    event
}

/// Maximum number of buckets of a histogram, so that a file with ten thousand evaluations stays small.
const BUCKETS: usize = 50;

/// Encodes a histogram of the integers from 0; `counts[k]` is the number of values k. Each integer has its own
/// bucket, from k - ½ to k + ½. If that makes too many buckets, each bucket holds several integers.
fn histogram(counts: &[u64]) -> Vec<u8> {
    let known = || counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(x, n)| (x as f64, *n as f64));
    let sum = |of: fn(f64) -> f64| known().map(|(x, n)| n * of(x)).sum::<f64>();
    let mut out = Vec::new();
    double(&mut out, 1, known().map(|k| k.0).fold(f64::INFINITY, f64::min));
    double(&mut out, 2, known().map(|k| k.0).fold(0.0, f64::max));
    for (field, value) in [(3, sum(|_| 1.0)), (4, sum(|x| x)), (5, sum(|x| x * x))] {
        double(&mut out, field, value);
    }
    let packed = |values: &mut dyn Iterator<Item = f64>| values.flat_map(f64::to_le_bytes).collect::<Vec<u8>>();
    let width = counts.len().div_ceil(BUCKETS);
    let buckets = || counts.chunks(width);
    bytes(&mut out, 6, &packed(&mut (1..=buckets().count()).map(|k| (k * width) as f64 - 0.5)));
    bytes(&mut out, 7, &packed(&mut buckets().map(|bucket| bucket.iter().sum::<u64>() as f64)));
    out
}

/// Appends the key of a field: its number and its wire type.
fn key(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

/// Appends an integer with seven bits per byte, the lowest bits first.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a field of type double.
fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    key(out, field, 1);
    out.extend(value.to_le_bytes());
}

/// Appends a field that is a string, a message or a packed list.
fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend(value);
}
