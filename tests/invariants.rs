//! The invariants that the map in `src/lib.rs` lists. Each test builds its own rule or reads the log of a run.

mod common;

use common::{serve, serve_by};
use stagger::engine::clock::Wall;
use stagger::engine::clock::stopwatch::Stopwatch;
use stagger::error::Result;
use stagger::problem::{Objective, Problem, Snapshot, quadratic};
use stagger::record::{Effect, Event, Limits};
use stagger::rule::{Arrival, Decision, Fold, Local, Needs, Rule, RuleSpec, Setting, Start, Step};
use stagger_kernels::{Buffer, Device};
use std::sync::{Arc, Mutex};

/// A rule made from a function.
struct FunctionRule<F>(Needs, F);

impl<F: FnMut(&Arrival) -> Decision + Send> Rule for FunctionRule<F> {
    fn needs(&self) -> Needs {
        self.0
    }
    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        (self.1)(arrival)
    }
}

/// A rule that keeps a sum and decides by `rule`.
fn function_rule(rule: impl FnMut(&Arrival) -> Decision + Send + 'static) -> Box<dyn Rule> {
    Box::new(FunctionRule(Needs { sum: true, ..Needs::default() }, rule))
}

/// Quadratics with the centres 0, 1, ..., n - 1, from x = 2.
fn centres(n: usize) -> Problem {
    quadratic(&Device::Cpu, (0..n).map(|i| vec![i as f64]).collect(), 2.0)
}

fn updates(n: u64) -> Limits {
    Limits { updates: Some(n), ..Limits::default() }
}

fn arrivals(n: u64) -> Limits {
    Limits { samples: Some(n), ..Limits::default() }
}

/// Time, worker and version of each arrival.
fn order(events: &[Event]) -> Vec<(f64, usize, u64)> {
    events.iter().map(|e| (e.time, e.worker, e.version)).collect()
}

#[test]
fn i1_assigning_many_jobs_at_once_does_not_block() {
    // Every arrival assigns three jobs to worker 0, which is busy. The jobs queue, and the server does not wait.
    let rule = function_rule(|_| Decision { start: Start::These(vec![0, 0, 0]), ..Decision::direct() });
    let (outcome, _) = serve(rule, centres(2), "fixed:1", updates(50), 0.01);
    assert_eq!(outcome.updates, 50);
}

#[test]
fn i2_published_snapshot_is_never_modified() {
    /// Every snapshot that a worker was given, with a copy of its values.
    type Seen = Arc<Mutex<Vec<(Buffer, Vec<f32>)>>>;
    struct Remember(Box<dyn Objective>, Seen);
    impl Objective for Remember {
        fn gradient(&mut self, snapshot: &Snapshot, job: u64) -> Result<(Arc<[Buffer]>, Buffer)> {
            self.1.lock().unwrap().push((snapshot.weights.clone(), snapshot.weights.host().to_vec()));
            self.0.gradient(snapshot, job)
        }
    }
    let seen = Seen::default();
    let mut problem = centres(3);
    problem.objectives =
        problem.objectives.into_iter().map(|o| Box::new(Remember(o, seen.clone())) as Box<dyn Objective>).collect();
    serve(
        "dude".parse::<RuleSpec>().unwrap().build(&Setting::of(3)).unwrap(),
        problem,
        "fixed:1,2,3",
        updates(40),
        0.1,
    );
    let seen = seen.lock().unwrap();
    assert!(seen.len() > 40);
    for (weights, copy) in seen.iter() {
        assert_eq!(weights.host(), copy.as_slice());
    }
}

#[test]
fn i3_i4_version_counts_updates_and_staleness_is_a_difference_of_versions() {
    // Every second arrival is dropped.
    let mut k = 0;
    let rule = function_rule(move |a: &Arrival| {
        k += 1;
        assert_eq!(a.staleness, a.t - a.version);
        if k % 2 == 0 { Decision { start: Start::Sender, ..Decision::fold(Fold::Drop) } } else { Decision::direct() }
    });
    let (outcome, events) = serve(rule, centres(3), "fixed:1,2,3", arrivals(20), 0.1);
    assert_eq!((outcome.updates, outcome.gradients, outcome.dropped), (10, 20, 10));
    let mut t = 0;
    for event in &events {
        assert_eq!(event.staleness, t - event.version);
        t += (event.effect == Effect::Step) as u64;
        assert_eq!(event.t, t);
    }
}

#[test]
fn i5_gradient_depends_only_on_snapshot_seed_worker_and_job() {
    let set = stagger_datasets::synthetic::generate(1);
    let partition = "iid".parse().unwrap();
    let options = |seed| stagger::problem::ImageOptions {
        model: "mlp",
        workers: 2,
        partition: &partition,
        batch: Some(4),
        seed,
        augment: stagger_kernels::gather::Augment { pad: 4, flip: true },
        step: stagger::problem::StepKind::Eager,
        precision: stagger_kernels::layers::Precision::F32,
    };
    let copy = || stagger_datasets::ImageData {
        train: stagger_datasets::ImageSet { pixels: set.train.pixels.clone(), labels: set.train.labels.clone() },
        test: stagger_datasets::ImageSet { pixels: set.test.pixels.clone(), labels: set.test.labels.clone() },
        classes: set.classes.clone(),
        ..set
    };
    let gradient = |seed, worker: usize, jobs: &[u64]| {
        let mut problem = stagger::problem::images(&Device::Cpu, copy(), &options(seed)).unwrap();
        let snapshot = Snapshot { weights: Device::Cpu.upload(problem.initial.clone()), fence: Default::default() };
        jobs.iter()
            .map(|&k| problem.objectives[worker].gradient(&snapshot, k).unwrap().0[0].host().to_vec())
            .last()
            .unwrap()
    };
    assert_eq!(gradient(1, 0, &[7]), gradient(1, 0, &[3, 9, 7]));
    assert_ne!(gradient(1, 0, &[7]), gradient(1, 0, &[8]));
    assert_ne!(gradient(1, 0, &[7]), gradient(1, 1, &[7]));
}

#[test]
fn i7_cancelled_job_never_arrives_and_is_counted() {
    // Worker 0 (1 s) restarts worker 1 (10 s) at each of its first three arrivals. Worker 1 then runs from
    // time 3 on.
    let mut k = 0;
    let rule = function_rule(move |a: &Arrival| {
        k += (a.worker == 0) as u32;
        Decision { restart: if a.worker == 0 && k <= 3 { vec![1] } else { vec![] }, ..Decision::direct() }
    });
    let (outcome, events) =
        serve(rule, centres(2), "fixed:1,10", Limits { time: Some(13.5), ..Limits::default() }, 0.01);
    assert_eq!(outcome.restarted, 3);
    let slow: Vec<_> = order(&events).into_iter().filter(|e| e.1 == 1).collect();
    // Worker 1 was restarted at time 3 with the current model, version 3.
    assert_eq!(slow, [(13.0, 1, 3)]);
    assert_eq!(outcome.gradients, outcome.updates + outcome.dropped);
}

#[test]
fn queued_job_keeps_its_snapshot_and_starts_when_the_worker_is_free() {
    // Worker 0 takes 1 s, worker 1 takes 2 s. Every arrival of worker 0 assigns a job to worker 1, and the
    // reverse.
    let rule = function_rule(|a: &Arrival| Decision { start: Start::These(vec![1 - a.worker]), ..Decision::direct() });
    let (_, events) = serve(rule, centres(2), "fixed:1,2", arrivals(6), 0.1);
    // 1.0: worker 0 arrives and queues version 1 for worker 1.
    // 2.0: worker 1 arrives (version 0), assigns version 2 to worker 0, and starts its queued job.
    // 3.0: worker 0 arrives (version 2) and queues version 3 for worker 1.
    // 4.0: worker 1 arrives with version 1. And so on.
    let expected = [(1.0, 0, 0), (2.0, 1, 0), (3.0, 0, 2), (4.0, 1, 1), (5.0, 0, 4), (6.0, 1, 3)];
    assert_eq!(order(&events), expected);
}

#[test]
fn restart_cancels_a_delay_under_the_wall_clock() {
    // Worker 0 restarts worker 1, which cancels its simulated delay of one hour. The run ends at once.
    let stopwatch = Arc::new(Stopwatch::default());
    let delay = "fixed:0.001,3600".parse().unwrap();
    let wall = Wall { stopwatch: stopwatch.clone(), delay, time_scale: 1.0, seed: 0, faults: Default::default() };
    let rule = function_rule(|_: &Arrival| Decision { restart: vec![1], ..Decision::direct() });
    let (outcome, events) = serve_by(Box::new(wall), stopwatch, rule, centres(2), updates(5), 0.1);
    assert!(events.iter().all(|e| e.worker == 0) && outcome.restarted >= 4, "{events:?}");
}

#[test]
fn local_steps_arrive_as_the_sum_of_their_gradients() {
    // f(x) = ½ x² from x = 2 with three local steps of rate 0.1: gradients 2, 1.8, 1.62.
    // Then w' = 2 - 0.1 · 5.42.
    let needs = Needs { local: Local { steps: 3, ..Local::default() }, ..Needs::sum() };
    let rule =
        Box::new(FunctionRule(needs, |_: &Arrival| Decision::fold(Fold::Sum { scale: 1.0 }).step(0.0, Start::Sender)));
    let (outcome, _) = serve(rule, centres(1), "none", updates(1), 0.1);
    assert!((outcome.weights[0] - (2.0 - 0.542)).abs() < 1e-6, "{}", outcome.weights[0]);
}

#[test]
fn step_scales_the_rate_and_keeps_part_of_the_sum() {
    // f(x) = ½ x²: s = 2, w = 2 - 0.1·0.5·2 = 1.9, s = 0.5·2 = 1; s = 1 + 1.9 = 2.9, w = 1.9 - 0.05·2.9.
    let rule = function_rule(|_: &Arrival| Decision {
        step: Some(Step { scale: 0.5, rate: 1.0, keep: 0.5, follow: None }),
        start: Start::Sender,
        ..Decision::fold(Fold::Sum { scale: 1.0 })
    });
    let (outcome, _) = serve(rule, centres(1), "none", updates(2), 0.1);
    assert!((outcome.weights[0] - (1.9 - 0.145)).abs() < 1e-6, "{}", outcome.weights[0]);
}

#[test]
fn panic_of_a_worker_ends_the_run_and_names_the_worker() {
    struct Panics;
    impl Objective for Panics {
        fn gradient(&mut self, _: &Snapshot, job: u64) -> Result<(Arc<[Buffer]>, Buffer)> {
            panic!("out of luck in job {job}")
        }
    }
    let mut problem = centres(3);
    problem.objectives[1] = Box::new(Panics);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        serve("sync".parse::<RuleSpec>().unwrap().build(&Setting::of(3)).unwrap(), problem, "fixed:1", updates(5), 0.1)
    }));
    let text = stagger::error::panic_text(&*caught.unwrap_err());
    assert!(text.contains("worker 1") && text.contains("out of luck in job 0"), "{text}");
}

#[test]
fn sum_of_dude_equals_the_mean_of_its_table() {
    // With exact gradients the rows of the table are x_v - c_i, so the direction of each step follows from
    // the log.
    let n = 4;
    let rule = "dude".parse::<RuleSpec>().unwrap().build(&Setting::of(n)).unwrap();
    let (outcome, events) = serve(rule, centres(n), "exp:1,2,3,4", updates(200), 0.05);
    let (mut x, mut rows) = (vec![2.0f64], vec![0.0f64; n]);
    for event in &events {
        rows[event.worker] = x[event.version as usize] - event.worker as f64;
        if event.effect == Effect::Step {
            let direction = rows.iter().sum::<f64>() / n as f64;
            x.push(x.last().unwrap() - 0.05 * direction);
        }
    }
    assert!(
        (outcome.weights[0] as f64 - x.last().unwrap()).abs() < 1e-5,
        "x is {} instead of {}",
        outcome.weights[0],
        x.last().unwrap()
    );
}

#[test]
fn evaluation_changes_neither_arrivals_nor_weights() {
    let flags = "--dataset synthetic --model logreg --rule asgd --workers 3 --batch 4 --backend cpu --clock virtual --delay exp:1 --updates 20";
    let (without, with) =
        (common::train(&format!("{flags} --eval-every 0")), common::train(&format!("{flags} --eval-every 3")));
    assert_eq!(common::events(&without), common::events(&with));
    assert_eq!(common::weights(&without), common::weights(&with));
}
