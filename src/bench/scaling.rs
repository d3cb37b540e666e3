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

/// The numbers of workers to measure: the value of `--workers`, or the powers of 2 up to `most`.
pub fn workers(bench: &BenchOptions, most: usize) -> Vec<usize> {
    let doubled = || (0..).map(|k| 1 << k).take_while(|n| *n <= most).collect();
    if bench.workers.is_empty() { doubled() } else { bench.workers.clone() }
}

/// Number of steps in the measurement of a step alone. One more step, which is not measured, runs before them and keeps
/// the device busy while they are enqueued.
const STEPS: u64 = 10;

/// Number of gradients whose times on the device are recorded, in total and per worker. The larger one applies.
const RECORDED: u64 = 500;
const RECORDED_PER_WORKER: u64 = 20;

/// How busy the device is in a run with these settings; `None` if it reports no times.
fn occupancy(settings: &Options, workers: u64) -> Result<Option<Occupancy>> {
    let recorded = RECORDED.max(RECORDED_PER_WORKER * workers);
    // All workers are still busy when the last gradient is recorded.
    let updates = Some(recorded + workers);
    Ok(measure(&Options { updates, device_timeline: Some(recorded), ..settings.clone() }, None)?.summary.occupancy)
}

/// How the benchmark's steps are launched on this backend.
fn step_kind(bench: &BenchOptions, backend: &Backend) -> Result<StepKind> {
    StepKind::on(StepKind::parse(&bench.step)?, &backend.device)
}

/// Seconds that one step takes alone on the device. `None` on the CPU, and on devices that report no times.
fn step_alone(bench: &BenchOptions, backend: &Backend) -> Result<Option<f64>> {
    if matches!(backend.device, Device::Cpu) || backend.runs_on == RunsOn::Nothing {
        return Ok(None);
    }
    let step = step_kind(bench, backend)?;
    let mut problem = one_worker(bench, &backend.device, synthetic::generate(1), step)?;
    let weights = backend.device.upload(problem.initial.clone());
    let snapshot = Snapshot { weights, fence: Fence::default() };
    let objective = &mut problem.objectives[0];
    // The first jobs compile the kernels and record the step.
    for job in 0..3 {
        objective.gradient(&snapshot, job)?;
    }
    backend.device.sync()?;
    objective.gradient(&snapshot, 3)?;
    let steps =
        || (4..4 + STEPS).try_for_each(|job| objective.gradient(&snapshot, job).map(drop).map_err(|e| e.to_string()));
    let (done, seconds) = backend.device.profile(steps)?;
    done.map_err(Error::failed)?;
    Ok(seconds.map(|seconds| seconds / STEPS as f64))
}

/// Measures the throughput of ASGD for every number of workers.
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
    // The events of a recorded step show what the device does, because the step is one launch.
    let recorded = backend.device.tells_when() && step_kind(bench, backend)? != StepKind::Eager;
    let counts = workers(bench, 16);
    let settings = |n: usize| Options {
        rule: Some("asgd".into()),
        time: Some(bench.seconds),
        eval_every: Some(0),
        ..options(bench, backend, n)
    };
    let runs = measure_rounds(bench, &counts, settings)?;
    let too_short = runs.iter().flatten().any(|run| run.rate == 0.0);
    let first: Vec<f64> = runs[0].iter().map(|run| run.rate).collect();
    for (n, mut runs) in counts.into_iter().zip(runs) {
        // The ratio to the first number of workers in the same round, which was measured at about the same time.
        let mut times: Vec<f64> = runs.iter().zip(&first).map(|(run, first)| run.rate / first).collect();
        times.sort_by(f64::total_cmp);
        runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        let median = (bench.rounds - 1) / 2;
        let Measured { summary, rate, .. } = &runs[median];
        let samples = |rate: f64| json!(rate * summary.batch as f64);
        // A separate run, because recording the times makes a run slower.
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
            "gradients/s and samples/s: the median of {} rounds; least and most: the smallest and the largest \
             samples/s; times the first: the median ratio to the first row in the same round",
            bench.rounds
        ));
    }
    if too_short {
        report.notes.push("0 gradients/s: no worker finished two gradients in this time; use more --seconds".into());
    }
    report.notes.extend(device_notes(backend, alone, recorded));
    Ok(report)
}

/// The runs of every number of workers, one per round. The numbers of workers take turns, so that a disturbance of a
/// few seconds does not affect only one of them.
fn measure_rounds(
    bench: &BenchOptions,
    counts: &[usize],
    settings: impl Fn(usize) -> Options,
) -> Result<Vec<Vec<Measured>>> {
    let mut runs: Vec<Vec<Measured>> = counts.iter().map(|_| Vec::new()).collect();
    for _ in 0..bench.rounds {
        for (n, runs) in counts.iter().zip(&mut runs) {
            let run = measure(&settings(*n), None)?;
            say!("{n} workers: {:.1} gradients/s, {:.0} samples/s", run.rate, run.rate * run.summary.batch as f64);
            runs.push(run);
        }
    }
    Ok(runs)
}

/// What the columns about the device mean. `alone` is the time of a step alone on the device, in seconds. `recorded`
/// says whether the device's events were recorded.
fn device_notes(backend: &Backend, alone: Option<f64>, recorded: bool) -> Vec<String> {
    let mut notes = Vec::new();
    match (&backend.device, alone) {
        (Device::Cpu, _) => notes.push(format!(
            "idle share of the CPU: 1 - host cores busy / {} (the server's thread and the rules count as busy)",
            backend::cores()
        )),
        (_, Some(seconds)) => notes.push(format!(
            "steps in flight: gradients/s times {:.3} ms, the time of a step alone on the device by its own clock \
             (mean of {STEPS} in a row; the host's time if the host is slower than the device); above 1, streams \
             overlap",
            1e3 * seconds
        )),
        (_, None) => notes
            .push("steps in flight: not measured, because the time of a step alone on the device is unknown".into()),
    }
    if recorded {
        notes.push(format!(
            "streams at once, device idle: from the device's events, in a separate run of {RECORDED} gradients \
             ({RECORDED_PER_WORKER} for each worker, if that is more); `train --device-timeline` records such a run, \
             and `stagger report` draws it"
        ));
    } else if backend.device.tells_when() {
        notes.push(
            "streams at once, device idle: not measured, because the events of an eager step are as far apart \
             as the host's launches"
                .into(),
        );
    }
    notes
}
