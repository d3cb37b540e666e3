//! The protocol between server and workers, with a checker that interleaves the threads in every order.
//!
//! The books are the real [`WorkerPool`]; the executor and its threads belong to the test, because the checker must own their channels.
//! In every order of events: no send finds its channel full (I1), every job that is not cancelled is delivered once, no cancelled job
//! is delivered, and all threads end when the outboxes are dropped. An executor that makes an easy mistake (it calls a worker free
//! before the worker has replied for a cancelled job) is found.

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use shuttle::thread::{self, JoinHandle};
use stagger::engine::executor::{Cancelled, Executor, Jobs, Submitted};
use stagger::engine::job::{Gradient, Job, Reply, Request};
use stagger::engine::worker_pool::WorkerPool;
use stagger::error::{Error, Result};
use stagger::problem::Snapshot;
use stagger_kernels::{Device, Fence};
use std::panic::catch_unwind;
use std::time::Duration;

const WORKERS: usize = 2;
const JOBS: u64 = 6;
const SCHEDULES: usize = 20_000;

/// As `Worker::run`: between two steps it looks whether its job was cancelled.
fn work(worker: usize, requests: Receiver<Request>, replies: SyncSender<Reply>) {
    while let Ok(request) = requests.recv() {
        let Request::Job(job) = request else { continue };
        let mut cancelled = false;
        for _step in 0..2 {
            match requests.try_recv() {
                Ok(Request::Cancel(number)) if number == job.number => {
                    cancelled = true;
                    break;
                }
                Ok(Request::Cancel(_)) | Err(TryRecvError::Empty) => {}
                Ok(Request::Job(_)) => panic!("a worker gets its next job after its reply"),
                Err(TryRecvError::Disconnected) => return,
            }
            thread::yield_now();
        }
        let loss = job.snapshot.weights.clone();
        let buffers = [loss.clone()].into();
        let gradient = Gradient { worker, job: job.number, buffers, factor: None, loss, fence: Fence::default() };
        let reply = if cancelled { Reply::Cancelled { worker } } else { Reply::Gradient(gradient, None) };
        // I1: there is room for one reply of each worker.
        assert!(replies.try_send(reply).is_ok(), "the inbox is full or gone");
    }
}

/// Worker threads of the checker. With `mistaken` a cancelled worker counts as free at once.
struct Checked {
    outboxes: Vec<SyncSender<Request>>,
    inbox: Receiver<Reply>,
    threads: Vec<JoinHandle<()>>,
    mistaken: bool,
}

impl Checked {
    fn start(mistaken: bool) -> Self {
        let (replies, inbox) = sync_channel(WORKERS);
        let start = |worker| {
            let (outbox, requests) = sync_channel(3);
            let replies = replies.clone();
            (outbox, thread::spawn(move || work(worker, requests, replies)))
        };
        let (outboxes, threads) = (0..WORKERS).map(start).unzip();
        Checked { outboxes, inbox, threads, mistaken }
    }
}

impl Executor for Checked {
    fn submit(&mut self, worker: usize, job: &Job) -> Submitted {
        assert!(self.outboxes[worker].try_send(Request::Job(job.clone())).is_ok(), "the outbox is full");
        Submitted::Accepted
    }

    fn cancel(&mut self, worker: usize, job: u64) -> Cancelled {
        let sent = self.outboxes[worker].try_send(Request::Cancel(job)).is_ok();
        assert!(sent, "the outbox has no room for a cancellation");
        if self.mistaken { Cancelled::Now } else { Cancelled::AfterReply }
    }

    fn complete(&mut self, _worker: usize, _jobs: &dyn Jobs) -> Result<Option<Reply>> {
        Ok(None)
    }

    fn try_reply(&mut self) -> Option<Reply> {
        self.inbox.try_recv().ok()
    }

    fn wait_reply(&mut self, _timeout: Duration) -> Result<Option<Reply>> {
        self.inbox.recv().map(Some).map_err(|_| Error::failed("every worker is gone"))
    }

    fn stop(&mut self) {
        self.outboxes.clear();
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Serves [`JOBS`] jobs to each worker, and cancels some of them.
fn serve(mistaken: bool) {
    let mut pool = WorkerPool::new(WORKERS, Box::new(Checked::start(mistaken)), Default::default());
    let weights = Device::Cpu.upload(vec![0.0]);
    let mut started = [0; WORKERS];
    let mut seen: [Vec<u64>; WORKERS] = Default::default();
    let assign = |pool: &mut WorkerPool, worker: usize, started: &mut [u64; WORKERS]| {
        let snapshot = Snapshot { weights: weights.clone(), fence: Fence::default() };
        pool.assign(worker, Job::at(snapshot, 0), 0.0, &mut |_, _, _| 0.0).unwrap();
        started[worker] += 1;
    };
    (0..WORKERS).for_each(|worker| assign(&mut pool, worker, &mut started));
    while !pool.is_idle() {
        // A rule cancels a job now and then.
        let worker = thread_rng().gen_range(0..WORKERS);
        if started[worker] < JOBS
            && thread_rng().gen_bool(0.4)
            && let Some(job) = pool.cancel(worker)
        {
            seen[worker].push(job.number);
            assign(&mut pool, worker, &mut started);
        }
        let gradient = pool.next_completed().unwrap();
        let worker = gradient.worker;
        assert_eq!(pool.accept(worker).number, gradient.job, "the gradient of the current job");
        seen[worker].push(gradient.job);
        if started[worker] < JOBS {
            assign(&mut pool, worker, &mut started);
        }
    }
    for (jobs, started) in seen.iter_mut().zip(started) {
        jobs.sort_unstable();
        assert_eq!(*jobs, (0..started).collect::<Vec<_>>(), "every job is delivered or cancelled, once");
    }
    pool.stop();
}

#[test]
fn no_order_of_events_breaks_the_protocol() {
    shuttle::check_random(|| serve(false), SCHEDULES);
    shuttle::check_pct(|| serve(false), SCHEDULES, 3);
}

#[test]
fn planted_mistake_is_found() {
    let found = catch_unwind(|| shuttle::check_random(|| serve(true), SCHEDULES));
    assert!(found.is_err(), "a job that was submitted too early went unseen");
}
