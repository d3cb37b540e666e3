//! Gradients per second against the number of workers.

use super::{BenchOptions, Report};
use crate::backend::Backend;
use crate::config::Options;
use crate::error::Result;
use crate::train::measure;
use serde_json::json;
use stagger_kernels::Device;

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
        seed: Some(1),
        ..Options::default()
    }
}

/// Numbers of workers: those that were asked for, or doubled up to `most`.
pub fn workers(bench: &BenchOptions, most: usize) -> Vec<usize> {
    let doubled = || (0..).map(|k| 1 << k).take_while(|n| *n <= most).collect();
    if bench.workers.is_empty() { doubled() } else { bench.workers.clone() }
}

pub fn run(bench: &BenchOptions, backend: &Backend) -> Result<Report> {
    let title = format!("scaling: {}, batch {}, asgd, {}", bench.model, bench.batch, backend.device.name());
    let columns = ["workers", "threads each", "gradients/s", "samples/s", "times the first", "mean staleness"];
    let mut report = Report::new(title, &columns);
    report.figure = Some((0, 3, None));
    let mut first = None;
    for n in workers(bench, 16) {
        let settings = Options {
            rule: Some("asgd".into()),
            time: Some(bench.seconds),
            eval_every: Some(0),
            ..options(bench, backend, n)
        };
        let measured = measure(&settings, None)?;
        let (summary, rate) = (&measured.summary, measured.rate);
        let samples = rate * summary.batch as f64;
        let base = *first.get_or_insert(rate);
        let (threads, staleness) = (summary.threads_per_worker, summary.mean_staleness);
        report.row(vec![json!(n), json!(threads), json!(rate), json!(samples), json!(rate / base), json!(staleness)]);
        println!("{n} workers: {rate:.1} gradients/s, {samples:.0} samples/s");
    }
    if matches!(backend.device, Device::Gpu(_)) {
        report.notes.push("overlap of streams and idle share of the device are not measured by this subject: use the vendor's profiler".into());
    }
    if backend.name.contains("no GPU") {
        report.notes.push("this driver runs no kernel: the figures are what the host could submit".into());
    }
    Ok(report)
}
