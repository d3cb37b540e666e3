//! Time to a target accuracy, with injected stragglers, in simulated or real seconds.

use super::scaling::{options, workers};
use super::{BenchOptions, Figure, Report};
use crate::config::Options;
use crate::error::{Error, Result};
use crate::host::backend::Backend;
use crate::run::{Measured, measure};
use serde_json::{Value, json};

/// Updates between two evaluations.
const EVERY: u64 = 25;

/// Trains with every rule and every number of workers until the target is reached.
pub fn run(bench: &BenchOptions, backend: &Backend) -> Result<Report> {
    let BenchOptions { clock, target, model, batch, delay, .. } = bench;
    let title = format!("time to {target} %: {model}, batch {batch}, delay {delay}, {clock} clock");
    let columns = ["rule", "workers", "time to target [s]", "updates", "gradients", "best accuracy [%]", "wall [s]"];
    let mut report = Report::new(title, &columns, Figure::Curves { x: 1, y: 2, range: None, by: vec![0] });
    for rule in &bench.rules {
        for n in workers(bench, 8) {
            let settings = Options {
                rule: Some(rule.clone()),
                clock: Some(clock.clone()),
                delay: Some(delay.clone()),
                updates: Some(2000),
                eval_every: Some(EVERY),
                ..options(bench, backend, n)
            };
            let Measured { summary, metrics, .. } = measure(&settings, Some(target / 100.0))?;
            let reached = first_at(&metrics, target / 100.0)?;
            let (time, updates) = reached.0.map_or((Value::Null, Value::Null), |(t, u)| (json!(t), json!(u)));
            say!("{rule}, {n} workers: {} s", super::cell(&time));
            let (gradients, wall) = (json!(summary.gradients), json!(summary.wall_seconds));
            report.row(vec![json!(rule), json!(n), time, updates, gradients, json!(100.0 * reached.1), wall]);
        }
    }
    report.notes.push(format!(
        "time: seconds on the {clock} clock, checked every {EVERY} updates; a run ends when it reaches the target, \
         or after 2,000 updates; gradients and wall: totals of the run, wall without evaluations"
    ));
    Ok(report)
}

/// Time and version of the first evaluation that reaches the target, and the best accuracy of all evaluations.
type Reached = (Option<(f64, u64)>, f64);

/// Searches the text of a `metrics.csv` for the first evaluation with an accuracy of at least `target` (0 to 1).
fn first_at(metrics: &str, target: f64) -> Result<Reached> {
    let mut lines = metrics.lines();
    let header: Vec<&str> = lines.next().unwrap_or("").split(',').collect();
    let column = |name: &str| {
        header.iter().position(|h| *h == name).ok_or_else(|| Error::failed(format!("metrics.csv has no column {name}")))
    };
    let (update, time, accuracy) = (column("update")?, column("time")?, column("test_accuracy")?);
    let (mut found, mut best) = (None, 0.0);
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let Ok(a) = cells[accuracy].parse::<f64>() else { continue };
        best = f64::max(best, a);
        if found.is_none() && a >= target {
            found = cells[time].parse().ok().zip(cells[update].parse().ok());
        }
    }
    Ok((found, best))
}
