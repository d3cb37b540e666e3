//! The event log, written by a thread of its own: neither its text nor a slow disk holds up the server.

use super::Event;
use crate::error;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Error, Read, Result, Seek, Write};
use std::path::Path;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Blocks of arrivals that may wait for the disk before the server does.
const WAITING: usize = 64;

/// Bytes written at a time.
const BUFFER: usize = 1 << 16;

/// Arrivals of a block: waking the thread costs as much as an arrival of a problem of theory, so it is woken for many.
const BLOCK: usize = 1024;

/// A smaller block is handed over when the last one is older than this, so the file is never far behind.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of a log's line at most.
const LONGEST_LINE: u64 = 1 << 12;

/// Seconds after which no run goes on: 1e12 for each of as many jobs as there can be.
pub const LATEST: f64 = 1e30;

/// Reads the events of a log's first `bytes` bytes, and checks that they are those of a run of `workers` workers, one after another.
pub fn recorded(path: &Path, bytes: u64, workers: usize) -> error::Result<impl Iterator<Item = error::Result<Event>>> {
    let name = path.display().to_string();
    let failed = |e: &dyn std::fmt::Display| error::Error::usage(format!("cannot read the event log {name}: {e}"));
    // To open what is no file may take for ever.
    if !std::fs::metadata(path).map_err(|e| failed(&e))?.is_file() {
        return Err(failed(&"it is no file"));
    }
    let file = File::open(path).map_err(|e| failed(&e))?;
    let mut log = BufReader::new(file.take(bytes));
    let lines = std::iter::from_fn(move || {
        // What is longer than a line can be is not read to its end.
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
        // An arrival makes one version at most, and is computed at one that was there.
        let possible = event.t <= event.seq + 1 && event.version <= event.t && event.staleness <= event.t;
        if !possible || !(0.0..LATEST).contains(&event.time) {
            return Err(wrong(format!("line {}: no run has such a version, staleness or time", k + 1)));
        }
        if event.worker >= workers {
            let worker = event.worker;
            return Err(wrong(format!(
                "is the log of another run: worker {worker} answers in it, but the workers here are {workers}"
            )));
        }
        Ok(event)
    }))
}

/// The recorded time to the last bit: serde_json's fast reader of numbers may be off by one unit in the last place.
fn exact_time(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once("\"time\":")?;
    rest.split([',', '}']).next()?.trim().parse().ok()
}

/// To the thread.
enum Entry {
    Block(Vec<Event>),
    /// Everything before is to be on the disk; the file's length is told.
    Mark(Sender<Result<u64>>),
}

pub struct EventLog {
    /// The block that is being gathered.
    block: Vec<Event>,
    handed_over: Instant,
    blocks: Option<Sender<Entry>>,
    /// Emptied blocks come back.
    empty: Receiver<Vec<Event>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl EventLog {
    /// Starts the thread that writes to `file`.
    pub fn new(file: File) -> Result<Self> {
        let (blocks, full) = bounded(WAITING);
        let (give_back, empty) = bounded(WAITING);
        let thread = Builder::new().name("event-log".into()).spawn(move || write(file, full, give_back))?;
        let (block, handed_over) = (Vec::with_capacity(BLOCK), Instant::now());
        Ok(EventLog { block, handed_over, blocks: Some(blocks), empty, thread: Some(thread) })
    }

    /// Appends arrivals, and leaves none.
    pub fn append(&mut self, arrivals: &mut Vec<Event>) -> Result<()> {
        self.block.append(arrivals);
        if self.block.len() < BLOCK && self.handed_over.elapsed() < PATIENCE {
            return Ok(());
        }
        self.hand_over()
    }

    fn hand_over(&mut self) -> Result<()> {
        let empty = self.empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(BLOCK));
        let full = std::mem::replace(&mut self.block, empty);
        self.handed_over = Instant::now();
        match &self.blocks {
            Some(blocks) if blocks.send(Entry::Block(full)).is_ok() => Ok(()),
            // The thread is gone: it says why.
            _ => self.join().and(Err(Error::other("the log is closed"))),
        }
    }

    /// Asks for everything appended so far to be brought to the disk; how long the file then is will be told.
    pub fn mark(&mut self) -> Result<Receiver<Result<u64>>> {
        let (tell, told) = bounded(1);
        self.hand_over()?;
        match &self.blocks {
            Some(blocks) if blocks.send(Entry::Mark(tell)).is_ok() => Ok(told),
            _ => self.join().and(Err(Error::other("the log is closed"))),
        }
    }

    /// Waits until everything is written. Nothing can be appended afterwards.
    pub fn finish(&mut self) -> Result<()> {
        if !self.block.is_empty() && self.blocks.is_some() {
            self.hand_over()?;
        }
        self.join()
    }

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

fn write(file: File, full: Receiver<Entry>, give_back: Sender<Vec<Event>>) -> Result<()> {
    let mut file = BufWriter::with_capacity(BUFFER, file);
    let mut line = Vec::new();
    while let Ok(entry) = full.recv() {
        let mut block = match entry {
            Entry::Block(block) => block,
            Entry::Mark(tell) => {
                file.flush()?;
                let length = file.get_ref().sync_data().and_then(|()| file.stream_position());
                // Nobody may want to know any more.
                let _ = tell.send(length);
                continue;
            }
        };
        for event in block.drain(..) {
            line.clear();
            serde_json::to_writer(&mut line, &event).expect("an event is plain data");
            line.push(b'\n');
            file.write_all(&line)?;
        }
        if full.is_empty() {
            file.flush()?;
        }
        // Nobody may want it any more.
        let _ = give_back.try_send(block);
    }
    file.flush()
}
