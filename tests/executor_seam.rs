//! An executor from outside the library: jobs go through a channel to a pool of threads that no worker owns.

mod common;

use common::{serve, serve_pool};
use crossbeam_channel::{Receiver, Sender, unbounded};
use stagger::engine::clock::Virtual;
use stagger::engine::executor::{Cancelled, Executor, Jobs, Submitted};
use stagger::engine::gate::Gate;
use stagger::engine::job::{Gradient, Job, Reply};
use stagger::engine::worker_pool::WorkerPool;
use stagger::error::{Error, Result};
use stagger::problem::{Objective, Problem, quadratic};
use stagger::record::Limits;
use stagger::rule::{Rule, RuleSpec, Setting};
use stagger_kernels::{Device, Fence};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Two threads that compute any worker's job. One plain gradient per job: local steps belong to `Worker`.
struct SharedPool {
    jobs: Option<Sender<(usize, Job)>>,
    replies: Receiver<Reply>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl SharedPool {
    fn start(objectives: Vec<Box<dyn Objective>>) -> Self {
        let objectives: Arc<Vec<_>> = Arc::new(objectives.into_iter().map(Mutex::new).collect());
        let (jobs, queue) = unbounded::<(usize, Job)>();
        let (answers, replies) = unbounded();
        let body = |queue: Receiver<(usize, Job)>,
                    answers: Sender<Reply>,
                    objectives: Arc<Vec<Mutex<Box<dyn Objective>>>>| {
            for (worker, job) in queue {
                let (buffers, loss) = objectives[worker].lock().unwrap().gradient(&job.snapshot, job.number).unwrap();
                let gradient =
                    Gradient { worker, job: job.number, buffers, factor: None, loss, fence: Fence::default() };
                drop(job);
                if answers.send(Reply::Gradient(gradient, None)).is_err() {
                    return;
                }
            }
        };
        let spawn = |_| {
            let (queue, answers, objectives) = (queue.clone(), answers.clone(), objectives.clone());
            std::thread::spawn(move || body(queue, answers, objectives))
        };
        SharedPool { jobs: Some(jobs), replies, threads: (0..2).map(spawn).collect() }
    }
}

impl Executor for SharedPool {
    fn submit(&mut self, worker: usize, job: &Job) -> Submitted {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send((worker, job.clone())).is_ok());
        if sent { Submitted::Accepted } else { Submitted::Gone }
    }

    fn cancel(&mut self, _worker: usize, _job: u64) -> Cancelled {
        Cancelled::AfterReply
    }

    fn complete(&mut self, _worker: usize, _jobs: &dyn Jobs) -> Result<Option<Reply>> {
        Ok(None)
    }

    fn try_reply(&mut self) -> Option<Reply> {
        self.replies.try_recv().ok()
    }

    fn wait_reply(&mut self, _timeout: Duration) -> Result<Option<Reply>> {
        self.replies.recv().map(Some).map_err(|_| Error::failed("the pool is gone"))
    }

    fn stop(&mut self) {
        self.jobs = None;
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

const DELAY: &str = "fixed:1,2,3";

fn problem() -> Problem {
    quadratic(&Device::Cpu, vec![vec![0.0, 1.0], vec![3.0, -1.0], vec![-6.0, 2.0]], 2.0)
}

fn rule(name: &str) -> Box<dyn Rule> {
    name.parse::<RuleSpec>().unwrap().build(&Setting::of(3)).unwrap()
}

#[test]
fn executor_from_outside_gives_the_same_bytes() {
    let limits = Limits { updates: Some(60), ..Limits::default() };
    for name in ["asgd", "sync", "dude", "ringmaster:r=2", "ksync:k=2", "fedbuff:b=2", "shuffled", "kbatchasync:k=2"] {
        let (inside, events) = serve(rule(name), problem(), DELAY, limits, 0.05);
        let mut problem = problem();
        let executor = SharedPool::start(std::mem::take(&mut problem.objectives));
        let pool = WorkerPool::new(3, Box::new(executor), Default::default());
        let clock = Box::new(Virtual::new(DELAY.parse().unwrap(), 0));
        let (outside, same) =
            serve_pool(pool, Gate::open(), clock, Default::default(), rule(name), problem, limits, 0.05);
        // The rest of the flat buffer is padding.
        assert_eq!((&inside.weights[..2], events), (&outside.weights[..2], same), "{name}");
    }
}
