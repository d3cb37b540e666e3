//! Gradients per second against the number of workers.

use super::model::one_worker;
use super::{BenchOptions, Figure, Report};
use crate::config::Options;
use crate::error::{Error, Result};
use crate::host::backend::{self, Backend, RunsOn};
use crate::host::tuning::Tuning;
use crate::problem::{Snapshot, StepKind};
use crate::record::Occupancy;
use crate::run::{Measured, measure};
use serde_json::json;
use stagger_datasets::synthetic;
use stagger_kernels::{Device, Fence};

/// The settings of a training run that all runs of a benchmark share.
pub fn options(bench: &BenchOptions, backend: &Backend, workers: usize) -> Options {
    Options {
        backend: Some(backend.device.name().into()),
        dataset: Some(bench.dataset.clone()),
        data: bench.data.clone(),
        model: Some(bench.model.clone()),
        batch: Some(bench.batch.to_string()),
        workers: Some(workers),
        threads_per_worker: bench.threads_per_worker.filter(|_| matches!(backend.device, Device::Cpu)),
        step: (!matches!(backend.device, Device::Cpu)).then(|| bench.step.clone()),
        tune_kernels: bench.tune_kernels.clone(),
        seed: Some(1),
        ..Options::default()
    }
}

/// Numbers of workers: those that were asked for, or doubled up to `most`.
pub fn workers(bench: &BenchOptions, most: usize) -> Vec<usize> {
    let doubled = || (0..).map(|k| 1 << k).take_while(|n| *n <= most).collect();
    if bench.workers.is_empty() { doubled() } else { bench.workers.clone() }
}

/// Steps in one measurement, behind one that is not measured and keeps the device busy while they are enqueued.
const TOGETHER: u64 = 10;

/// Gradients of which it is noted when the device computed them: so many, and for each worker so many, whatever is more.
const NOTED: u64 = 500;
const NOTED_EACH: u64 = 20;

/// How busy the device is in a run with these settings.
fn occupancy(settings: &Options, workers: u64) -> Result<Option<Occupancy>> {
    let noted = NOTED.max(NOTED_EACH * workers);
    // So that as many run beside the last that is noted.
    let updates = Some(noted + workers);
    Ok(measure(&Options { updates, device_timeline: Some(noted), ..settings.clone() }, None)?.summary.occupancy)
}

fn step_kind(bench: &BenchOptions, backend: &Backend) -> Result<StepKind> {
    StepKind::on(StepKind::parse(&bench.step)?, &backend.device)
}

/// Seconds that one step takes on the device with nothing beside it; `None` where nothing tells.
fn step_alone(bench: &BenchOptions, backend: &Backend) -> Result<Option<f64>> {
    if matches!(backend.device, Device::Cpu) || backend.runs_on == RunsOn::Nothing {
        return Ok(None);
    }
    let step = step_kind(bench, backend)?;
    let mut problem = one_worker(bench, &backend.device, synthetic::generate(1), step)?;
    let weights = backend.device.upload(problem.initial.clone());
    let snapshot = Snapshot { weights, fence: Fence::default() };
    let objective = &mut problem.objectives[0];
    // Compiles and records.
    for job in 0..3 {
        objective.gradient(&snapshot, job)?;
    }
    backend.device.sync()?;
    objective.gradient(&snapshot, 3)?;
    let ten = || {
        (4..4 + TOGETHER).try_for_each(|job| objective.gradient(&snapshot, job).map(drop).map_err(|e| e.to_string()))
    };
    let (done, seconds) = backend.device.profile(ten)?;
    done.map_err(Error::failed)?;
    Ok(seconds.map(|seconds| seconds / TOGETHER as f64))
}

pub fn run(bench: &BenchOptions, backend: &Backend) -> Result<Report> {
    let title = format!("scaling: {}, batch {}, asgd", bench.model, bench.batch);
    let columns = [
        "workers",
        "threads each",
        "gradients/s",
        "samples/s",
        "least",
        "most",
        "times the first",
        "mean staleness",
        "host cores busy",
        "steps in flight",
        "streams at once",
        "device idle",
    ];
    let figure = Figure::Curves { x: 0, y: 3, range: (bench.rounds > 1).then_some([4, 5]), by: vec![] };
    let mut report = Report::new(title, &columns, figure);
    let tuning = Tuning::open(bench.tune_kernels.as_deref(), backend)?;
    let alone = step_alone(bench, backend)?;
    tuning.map(Tuning::finish).transpose()?;
    // Where a step is one launch, its events say what the device does.
    let recorded = backend.device.tells_when() && step_kind(bench, backend)? != StepKind::Eager;
    let counts = workers(bench, 16);
    let settings = |n: usize| Options {
        rule: Some("asgd".into()),
        time: Some(bench.seconds),
        eval_every: Some(0),
        ..options(bench, backend, n)
    };
    // In turn, so that a disturbance of seconds does not fall on one number of workers alone.
    let mut runs: Vec<Vec<Measured>> = counts.iter().map(|_| Vec::new()).collect();
    for _ in 0..bench.rounds {
        for (n, runs) in counts.iter().zip(&mut runs) {
            let run = measure(&settings(*n), None)?;
            say!("{n} workers: {:.1} gradients/s, {:.0} samples/s", run.rate, run.rate * run.summary.batch as f64);
            runs.push(run);
        }
    }
    let too_short = runs.iter().flatten().any(|run| run.rate == 0.0);
    let first: Vec<f64> = runs[0].iter().map(|run| run.rate).collect();
    for (n, mut runs) in counts.into_iter().zip(runs) {
        // By the first of the same round, which was measured in the same minute.
        let mut times: Vec<f64> = runs.iter().zip(&first).map(|(run, first)| run.rate / first).collect();
        times.sort_by(f64::total_cmp);
        runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        let median = (bench.rounds - 1) / 2;
        let Measured { summary, rate, .. } = &runs[median];
        let samples = |rate: f64| json!(rate * summary.batch as f64);
        // Apart, for it costs something.
        let occupancy = if recorded { occupancy(&settings(n), n as u64)? } else { None };
        let (threads, staleness) = (summary.threads_per_worker, summary.mean_staleness);
        report.row(vec![
            json!(n),
            json!(threads),
            json!(rate),
            samples(*rate),
            samples(runs[0].rate),
            samples(runs[runs.len() - 1].rate),
            json!(times[median]),
            json!(staleness),
            json!(summary.cores_busy),
            json!(alone.map(|seconds| rate * seconds)),
            json!(occupancy.map(|o| o.at_once)),
            json!(occupancy.map(|o| o.idle)),
        ]);
    }
    if bench.rounds > 1 {
        report.notes.push(format!(
            "gradients/s and samples/s: the median of {} rounds, and the least and the most of samples/s; times the first: the median of what each round says",
            bench.rounds
        ));
    }
    if too_short {
        report.notes.push("0 gradients/s: no worker came to two gradients in this time; use more --seconds".into());
    }
    match (&backend.device, alone) {
        (Device::Cpu, _) => report.notes.push(format!(
            "idle share of the processor: 1 - host cores busy / {} (the server's thread and the rules count as busy)",
            backend::cores()
        )),
        (_, Some(seconds)) => report.notes.push(format!(
            "steps in flight: gradients/s times {:.3} ms, which a step takes alone on the device by its own clock (of {TOGETHER} in a row; where the host is slower than the device, the host's time); above 1, streams overlap",
            1e3 * seconds
        )),
        (_, None) => report.notes.push("steps in flight: nothing tells here how long the device computes a step alone".into()),
    }
    if recorded {
        report.notes.push(format!(
            "streams at once, device idle: by the device's events, in another run of {NOTED} gradients ({NOTED_EACH} for each worker, if that is more); \
             `train --device-timeline` draws such a run"
        ));
    } else if backend.device.tells_when() {
        report.notes.push("streams at once, device idle: not measured, for an eager step's events are as far from each other as the host takes to launch it".into());
    }
    Ok(report)
}
