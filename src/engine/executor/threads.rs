//! One thread per worker, which is also its stream on a GPU. Requests and replies go through bounded channels.
//!
//! Invariant I1: a worker has at most one job, so no send blocks. An outbox holds at most three requests: a
//! cancellation that came too late, a job, and that job's cancellation. The inbox holds at most one reply per
//! worker.

use super::{Cancelled, Executor, Jobs, Submitted, failed_warm_up, interrupted_while_warming_up};
use crate::engine::gate::Gate;
use crate::engine::job::{Channels, Job, Reply, Request};
use crate::engine::worker::Worker;
use crate::error::{Error, Result};
use crate::host::cores;
use crate::host::signals::INTERRUPTED;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use stagger_kernels::{Device, Stream};
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Interval between two checks of the interruption flag.
const WATCH: Duration = Duration::from_millis(200);

/// What a worker's thread reports before its first job: its stream, or why it failed.
type Ready = (usize, std::result::Result<Stream, String>);

/// Worker threads.
pub struct Threads {
    /// `None` once the worker is dropped or hangs.
    outboxes: Vec<Option<Sender<Request>>>,
    streams: Vec<Stream>,
    device: Option<Device>,
    inbox: Receiver<Reply>,
    threads: Vec<JoinHandle<()>>,
    hung: Vec<bool>,
    gate: Gate,
    room: Gate,
    timeout: Option<Duration>,
}

impl Threads {
    /// Starts `workers` threads and waits until they are ready. `make` builds worker i around its channels.
    /// With `pool` each worker computes on a pool of that many threads (the CPU backend). `gate` and `room`
    /// are the workers' permits: for computing, and for a gradient that waits for the server. A thread that
    /// does not end within `timeout` is left behind.
    pub fn start(
        workers: usize,
        pool: Option<usize>,
        (gate, room): (Gate, Gate),
        timeout: Option<Duration>,
        mut make: impl FnMut(usize, Channels) -> Worker,
    ) -> Result<Self> {
        let (replies, inbox) = bounded(workers);
        let (tell_ready, ready) = bounded(workers);
        let mut all = Threads {
            outboxes: Vec::new(),
            streams: Vec::new(),
            device: None,
            inbox,
            threads: Vec::new(),
            hung: vec![false; workers],
            gate,
            room,
            timeout,
        };
        for i in 0..workers {
            let (outbox, requests) = bounded(3);
            let worker = make(i, Channels { requests, replies: replies.clone() });
            all.device.get_or_insert_with(|| worker.device.clone());
            let thread = spawn(worker, pool, tell_ready.clone()).map_err(|e| {
                Error::failed(format!("cannot start the thread of worker {i}: {e}; use fewer --workers"))
            })?;
            all.threads.push(thread);
            all.outboxes.push(Some(outbox));
        }
        drop(tell_ready);
        all.streams = wait_until_ready(workers, &ready)?;
        Ok(all)
    }
}

/// Starts a worker's thread.
fn spawn(worker: Worker, pool: Option<usize>, ready: Sender<Ready>) -> std::io::Result<JoinHandle<()>> {
    let index = worker.index;
    let body = move || match pool {
        None => {
            cores::submit_here();
            worker.run(|outcome| ready.send((index, outcome)).is_ok())
        }
        Some(count) => match rayon::ThreadPoolBuilder::new().num_threads(count).use_current_thread().build() {
            Ok(pool) => pool.install(|| worker.run(|outcome| ready.send((index, outcome)).is_ok())),
            Err(e) => _ = ready.send((index, Err(format!("cannot start its {count} threads: {e}")))),
        },
    };
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(body)
}

/// Waits for every worker's report.
fn wait_until_ready(workers: usize, ready: &Receiver<Ready>) -> Result<Vec<Stream>> {
    let mut streams: Vec<Option<Stream>> = vec![None; workers];
    while streams.iter().any(Option::is_none) {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err(interrupted_while_warming_up());
        }
        match ready.recv_timeout(WATCH) {
            Ok((worker, Ok(stream))) => streams[worker] = Some(stream),
            Ok((worker, Err(reason))) => return Err(failed_warm_up(worker, &reason)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Error::failed("every worker is gone")),
        }
    }
    Ok(streams.into_iter().flatten().collect())
}

impl Executor for Threads {
    fn submit(&mut self, worker: usize, job: &Job) -> Submitted {
        // The stream waits for the fence now, before the server launches more, because the worker may start
        // much later. This takes no permit: it is one launch, and a worker may keep the permit for a whole
        // step.
        if let (Some(device), Some(stream)) = (&self.device, self.streams.get(worker)) {
            device.wait_fence(*stream, &job.snapshot.fence);
        }
        let sent =
            self.outboxes[worker].as_ref().is_some_and(|outbox| outbox.try_send(Request::Job(job.clone())).is_ok());
        if sent { Submitted::Accepted } else { Submitted::Gone }
    }

    fn cancel(&mut self, worker: usize, job: u64) -> Cancelled {
        if let Some(outbox) = &self.outboxes[worker] {
            let sent = outbox.try_send(Request::Cancel(job)).is_ok();
            debug_assert!(sent, "the outbox has room for a cancellation (I1)");
        }
        Cancelled::AfterReply
    }

    fn complete(&mut self, _worker: usize, _jobs: &dyn Jobs) -> Result<Option<Reply>> {
        Ok(None)
    }

    fn try_reply(&mut self) -> Option<Reply> {
        self.inbox.try_recv().ok()
    }

    fn wait_reply(&mut self, timeout: Duration) -> Result<Option<Reply>> {
        match self.inbox.recv_timeout(timeout) {
            Ok(reply) => Ok(Some(reply)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Error::failed("every worker is gone")),
        }
    }

    fn has_reply(&self) -> bool {
        !self.inbox.is_empty()
    }

    fn abandon(&mut self, worker: usize) {
        self.gate.replace_a_permit();
        self.room.replace_a_permit();
        self.hung[worker] = true;
        self.outboxes[worker] = None;
    }

    fn drop_worker(&mut self, worker: usize) {
        self.outboxes[worker] = None;
    }

    fn stop(&mut self) {
        // A worker ends when its outbox is dropped. The room is opened, because a worker that waits for it
        // must end too.
        self.outboxes.iter_mut().for_each(|outbox| *outbox = None);
        self.room.leave_open();
        for (worker, thread) in self.threads.drain(..).enumerate() {
            // A hung thread is not joined. The panic of a worker was reported through the inbox.
            let patience = if self.hung[worker] { Some(Duration::ZERO) } else { self.timeout };
            let began = Instant::now();
            while !thread.is_finished() && patience.is_some_and(|patience| began.elapsed() < patience) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() || patience.is_none() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}
