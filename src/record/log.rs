//! The event log. A separate thread formats and writes it, so that neither formatting nor a slow disk delays
//! the server.

use super::Event;
use crate::error;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Error, Read, Result, Seek, Write};
use std::path::Path;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Maximum number of blocks that wait for the disk. If the queue is full, the server waits.
const QUEUE: usize = 64;

/// Bytes per write.
const BUFFER: usize = 1 << 16;

/// Arrivals per block. Waking the thread costs as much as an arrival of a theory problem, so it is woken once
/// for many arrivals.
const BLOCK: usize = 1024;

/// A block that is not full is sent if the previous one is older than this, so that the file is never far
/// behind.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Maximum length of a line of a log, in bytes.
const LONGEST_LINE: u64 = 1 << 12;

/// Upper bound of every time in a run, in seconds: the longest job (1e12 s) times 1e18 jobs.
pub const LATEST: f64 = 1e30;

/// Reads the events in the first `bytes` bytes of a log, one after another. Checks that they can be the events
/// of a run with `workers` workers.
///
/// # Errors
///
/// If the file cannot be read. The iterator returns an error for a line that is not the next event of such a
/// run.
pub fn recorded(path: &Path, bytes: u64, workers: usize) -> error::Result<impl Iterator<Item = error::Result<Event>>> {
    let name = path.display().to_string();
    let failed = |e: &dyn std::fmt::Display| error::Error::usage(format!("cannot read the event log {name}: {e}"));
    // Opening something that is not a regular file, such as a pipe, can block for ever.
    if !std::fs::metadata(path).map_err(|e| failed(&e))?.is_file() {
        return Err(failed(&"it is not a file"));
    }
    let file = File::open(path).map_err(|e| failed(&e))?;
    let mut log = BufReader::new(file.take(bytes));
    let lines = std::iter::from_fn(move || {
        // A line that is too long is not read to its end.
        let mut line = String::new();
        match log.by_ref().take(LONGEST_LINE).read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok(line)),
            Err(e) => Some(Err(e)),
        }
    });
    Ok(lines.enumerate().map(move |(k, line)| {
        let line = line.map_err(|e| error::Error::usage(format!("cannot read the event log {name}: {e}")))?;
        let wrong = |why: String| error::Error::usage(format!("{name} {why}"));
        let mut event: Event =
            serde_json::from_str(&line).map_err(|e| wrong(format!("line {}: not an event of a run ({e})", k + 1)))?;
        if let Some(time) = exact_time(&line) {
            event.time = time;
        }
        if event.seq != k as u64 {
            return Err(wrong(format!("line {}: seq is {} instead of {k}: lines are missing", k + 1, event.seq)));
        }
        // An arrival makes at most one version, and its gradient is computed at a version that exists.
        let possible = event.t <= event.seq + 1 && event.version <= event.t && event.staleness <= event.t;
        if !possible || !(0.0..LATEST).contains(&event.time) {
            return Err(wrong(format!("line {}: no run has such a version, staleness or time", k + 1)));
        }
        if event.worker >= workers {
            let worker = event.worker;
            return Err(wrong(format!(
                "is the log of another run: it contains worker {worker}, but this run has {workers} workers"
            )));
        }
        Ok(event)
    }))
}

/// The recorded time, exact to the last bit. The default number parser of serde_json can be off by one unit in
/// the last place.
fn exact_time(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once("\"time\":")?;
    rest.split([',', '}']).next()?.trim().parse().ok()
}

/// A message to the thread.
enum Entry {
    /// Arrivals to be written.
    Block(Vec<Event>),
    /// Synchronise everything before this message to the disk, and reply with the length of the file in bytes.
    Mark(Sender<Result<u64>>),
}

/// The writer of an event log.
pub struct EventLog {
    /// The block to which arrivals are appended.
    block: Vec<Event>,
    handed_over: Instant,
    blocks: Option<Sender<Entry>>,
    /// Written blocks, whose memory is used again.
    empty: Receiver<Vec<Event>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl EventLog {
    /// Starts the thread that writes to `file`.
    pub fn new(file: File) -> Result<Self> {
        let (blocks, full) = bounded(QUEUE);
        let (give_back, empty) = bounded(QUEUE);
        let thread = Builder::new().name("event-log".into()).spawn(move || write(file, full, give_back))?;
        let (block, handed_over) = (Vec::with_capacity(BLOCK), Instant::now());
        Ok(EventLog { block, handed_over, blocks: Some(blocks), empty, thread: Some(thread) })
    }

    /// Appends arrivals, and leaves `arrivals` empty.
    pub fn append(&mut self, arrivals: &mut Vec<Event>) -> Result<()> {
        self.block.append(arrivals);
        if self.block.len() < BLOCK && self.handed_over.elapsed() < MAX_AGE {
            return Ok(());
        }
        self.hand_over()
    }

    /// Sends the current block to the thread.
    fn hand_over(&mut self) -> Result<()> {
        let empty = self.empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(BLOCK));
        let full = std::mem::replace(&mut self.block, empty);
        self.handed_over = Instant::now();
        match &self.blocks {
            Some(blocks) if blocks.send(Entry::Block(full)).is_ok() => Ok(()),
            // The thread has ended, and `join` returns its error.
            _ => self.join().and(Err(Error::other("the log is closed"))),
        }
    }

    /// Requests that everything appended so far is synchronised to the disk. The receiver then gets the length
    /// of the file in bytes.
    pub fn mark(&mut self) -> Result<Receiver<Result<u64>>> {
        let (reply, length) = bounded(1);
        self.hand_over()?;
        match &self.blocks {
            Some(blocks) if blocks.send(Entry::Mark(reply)).is_ok() => Ok(length),
            _ => self.join().and(Err(Error::other("the log is closed"))),
        }
    }

    /// Waits until everything is written. After this call nothing can be appended.
    pub fn finish(&mut self) -> Result<()> {
        if !self.block.is_empty() && self.blocks.is_some() {
            self.hand_over()?;
        }
        self.join()
    }

    /// Closes the channel and waits for the thread. Returns the thread's error.
    fn join(&mut self) -> Result<()> {
        self.blocks = None;
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(Error::other("its thread panicked")))
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

/// The body of the thread.
fn write(file: File, full: Receiver<Entry>, give_back: Sender<Vec<Event>>) -> Result<()> {
    let mut file = BufWriter::with_capacity(BUFFER, file);
    let mut line = Vec::new();
    while let Ok(entry) = full.recv() {
        let mut block = match entry {
            Entry::Block(block) => block,
            Entry::Mark(reply) => {
                file.flush()?;
                let length = file.get_ref().sync_data().and_then(|()| file.stream_position());
                // The receiver may have been dropped.
                let _ = reply.send(length);
                continue;
            }
        };
        for event in block.drain(..) {
            line.clear();
            serde_json::to_writer(&mut line, &event).expect("an event can be serialized");
            line.push(b'\n');
            file.write_all(&line)?;
        }
        if full.is_empty() {
            file.flush()?;
        }
        // If the channel is full or closed, the block is freed.
        let _ = give_back.try_send(block);
    }
    file.flush()
}
