//! TensorBoard's event file: scalars at each evaluation, and how stale the gradients since the last one were.
//!
//! A file of records (length, checksum, bytes, checksum); each record is an `Event` of TensorBoard's protocol buffers, of which these few
//! fields are written: Event { 1 wall_time, 2 step, 3 file_version, 5 summary }, Summary { 1 value }, Value { 1 tag, 2 simple_value,
//! 5 histo }, HistogramProto { 1 min, 2 max, 3 num, 4 sum, 5 sum_squares, 6 bucket_limit, 7 bucket }.

use std::fs::File;
use std::io::{BufWriter, Result, Seek, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Its name: readers look for what it begins with.
const NAME: &str = "events.out.tfevents.0.stagger";

/// The file, open.
pub struct TensorBoard(BufWriter<File>);

impl TensorBoard {
    /// Begins a file in a run's folder; one that is there of an earlier run is replaced.
    pub fn create(folder: &Path) -> Result<Self> {
        let mut board = TensorBoard(BufWriter::new(File::create(folder.join(NAME))?));
        let mut event = stamped();
        bytes(&mut event, 3, b"brain.Event:2");
        board.record(&event)?;
        Ok(board)
    }

    /// Opens a file to write behind its first `bytes` bytes; gives the file itself too.
    pub fn open(folder: &Path, bytes: u64) -> Result<(Self, File)> {
        let file = super::behind(&folder.join(NAME), bytes)?;
        let written = file.try_clone()?;
        Ok((TensorBoard(BufWriter::new(file)), written))
    }

    /// Brings what was written to the file; gives it and its length.
    pub fn mark(&mut self) -> Result<(File, u64)> {
        self.0.flush()?;
        Ok((self.0.get_ref().try_clone()?, self.0.stream_position()?))
    }

    /// Writes scalars after `step` updates, and the counts of the staleness 0, 1, 2, ... if there are any.
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
        let mut event = stamped();
        key(&mut event, 2, 0);
        varint(&mut event, step);
        bytes(&mut event, 5, &summary);
        self.record(&event)?;
        // Whoever watches sees it now.
        self.0.flush()
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        self.0.write_all(&length)?;
        self.0.write_all(&masked(&length).to_le_bytes())?;
        self.0.write_all(data)?;
        self.0.write_all(&masked(data).to_le_bytes())
    }
}

fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// An event that says when it was written.
fn stamped() -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    let mut event = Vec::new();
    double(&mut event, 1, now);
    event
}

/// Buckets of a histogram at most, so that a file of ten thousand evaluations stays small.
const BUCKETS: usize = 50;

/// Whole numbers from 0, each with a bucket of its own around it, or so many together that there are few buckets.
fn histogram(counts: &[u64]) -> Vec<u8> {
    let known = || counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(x, n)| (x as f64, *n as f64));
    let sum = |of: fn(f64) -> f64| known().map(|(x, n)| n * of(x)).sum::<f64>();
    let mut text = Vec::new();
    double(&mut text, 1, known().map(|k| k.0).fold(f64::INFINITY, f64::min));
    double(&mut text, 2, known().map(|k| k.0).fold(0.0, f64::max));
    for (field, value) in [(3, sum(|_| 1.0)), (4, sum(|x| x)), (5, sum(|x| x * x))] {
        double(&mut text, field, value);
    }
    let packed = |values: &mut dyn Iterator<Item = f64>| values.flat_map(f64::to_le_bytes).collect::<Vec<u8>>();
    let width = counts.len().div_ceil(BUCKETS);
    let buckets = || counts.chunks(width);
    bytes(&mut text, 6, &packed(&mut (1..=buckets().count()).map(|k| (k * width) as f64 - 0.5)));
    bytes(&mut text, 7, &packed(&mut buckets().map(|bucket| bucket.iter().sum::<u64>() as f64)));
    text
}

fn key(text: &mut Vec<u8>, field: u64, wire: u64) {
    varint(text, field << 3 | wire);
}

fn varint(text: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        text.push(value as u8 | 128);
        value >>= 7;
    }
    text.push(value as u8);
}

fn double(text: &mut Vec<u8>, field: u64, value: f64) {
    key(text, field, 1);
    text.extend(value.to_le_bytes());
}

fn bytes(text: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(text, field, 2);
    varint(text, value.len() as u64);
    text.extend(value);
}
