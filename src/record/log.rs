//! The event log, written by a thread of its own: neither its text nor a slow disk holds up the server.

use super::Event;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::fs::File;
use std::io::{BufWriter, Error, Result, Write};
use std::thread::{Builder, JoinHandle};

/// Blocks of arrivals that may wait for the disk before the server does.
const WAITING: usize = 64;

/// Bytes written at a time.
const BUFFER: usize = 1 << 16;

pub struct EventLog {
    blocks: Option<Sender<Vec<Event>>>,
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
        Ok(EventLog { blocks: Some(blocks), empty, thread: Some(thread) })
    }

    /// Appends a block, and leaves an empty one in its place.
    pub fn append(&mut self, block: &mut Vec<Event>) -> Result<()> {
        let empty = self.empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(block.capacity()));
        let full = std::mem::replace(block, empty);
        match &self.blocks {
            Some(blocks) if blocks.send(full).is_ok() => Ok(()),
            // The thread is gone: it says why.
            _ => self.finish().and(Err(Error::other("the log is closed"))),
        }
    }

    /// Waits until everything is written. Nothing can be appended afterwards.
    pub fn finish(&mut self) -> Result<()> {
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

fn write(file: File, full: Receiver<Vec<Event>>, give_back: Sender<Vec<Event>>) -> Result<()> {
    let mut file = BufWriter::with_capacity(BUFFER, file);
    let mut line = Vec::new();
    for mut block in full {
        for event in block.drain(..) {
            line.clear();
            serde_json::to_writer(&mut line, &event).expect("an event is plain data");
            line.push(b'\n');
            file.write_all(&line)?;
        }
        // Nobody may want it any more.
        let _ = give_back.try_send(block);
    }
    file.flush()
}
