//! Reads the folder of a finished run: summary, configuration, curve and arrivals.

use crate::error::{Error, Result};
use crate::record::{self, Effect, LATEST, device_spans, recorded};
use serde_json::Value;
use std::path::Path;

/// Largest number of workers that is accepted. A folder may come from anyone, so its numbers are checked.
const MOST_WORKERS: u64 = 1 << 16;
/// Largest size of a file that is read, in bytes. The event log has no limit, because it is read line by line.
const MOST_BYTES: u64 = 1 << 30;

/// One line of `metrics.csv`. A metric that the run does not have is `None`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Point {
    /// Number of updates so far.
    pub update: u64,
    /// Time on the run's time axis, in seconds.
    pub time: f64,
    /// Number of gradients that have arrived so far.
    pub gradients: u64,
    /// Mean of the latest batch losses; for theory problems the full objective.
    pub train_loss: Option<f64>,
    /// Mean loss over the test set.
    pub test_loss: Option<f64>,
    /// Test accuracy, 0 to 1.
    pub test_accuracy: Option<f64>,
    /// Norm of the gradient of the full objective.
    pub grad_norm: Option<f64>,
}

/// The time of one job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Start of the job on the run's time axis, in seconds.
    pub began: f64,
    /// Arrival of the gradient, in seconds.
    pub ended: f64,
    /// What the server did with the gradient.
    pub effect: Effect,
}

/// The content of a run's folder.
pub struct Reading {
    /// Content of `summary.json`.
    pub summary: Value,
    /// Content of `config.toml`.
    pub config: toml::Table,
    /// Lines of `metrics.csv`.
    pub curve: Vec<Point>,
    /// The jobs that arrived: one list per worker, in the order of arrival.
    pub spans: Vec<Vec<Span>>,
    /// Histogram of the staleness: number of arrivals with staleness 0, 1, 2, ...
    pub staleness: Vec<u64>,
    /// Content of `device.csv`: when the device computed the first gradients and updates, sorted by their start. Empty
    /// without that file.
    pub device: Vec<record::Span>,
    /// Content of `partition.csv`, if that file exists: the names of the classes, and for each worker the number of
    /// samples per class.
    pub partition: Option<(Vec<String>, Vec<Vec<f64>>)>,
}

impl Reading {
    /// Reads the folder of a run. It is a usage error if a file is missing or damaged.
    pub fn of(folder: &Path) -> Result<Reading> {
        let text = |name: &str| {
            read(&folder.join(name)).map_err(|e| Error::usage(format!("{e}; name the folder of a finished run")))
        };
        let broken = |name: &str, e: &dyn std::fmt::Display| {
            Error::usage(format!("{}: {e}; the run did not finish, run it again", folder.join(name).display()))
        };
        let summary: Value = serde_json::from_str(&text("summary.json")?).map_err(|e| broken("summary.json", &e))?;
        let config = text("config.toml")?.parse().map_err(|e| broken("config.toml", &e))?;
        let mut curve = points(&text("metrics.csv")?).map_err(|e| broken("metrics.csv", &e))?;

        // The folder may come from anyone, so this can be any number.
        let workers = summary["workers"].as_u64().filter(|n| (1..=MOST_WORKERS).contains(n));
        let workers = workers.ok_or_else(|| broken("summary.json", &"no valid number of `workers`"))? as usize;
        let (mut spans, mut staleness) = (vec![Vec::<Span>::new(); workers], Vec::new());
        // The time at which each version was made.
        let mut made = vec![0.0];
        let (mut next, mut gradients) = (0, 0);
        for event in recorded(&folder.join("events.jsonl"), u64::MAX, workers)? {
            let event = event?;
            let own = &mut spans[event.worker];
            // A job begins when its worker is free and its version exists. Cancelled jobs are not in the log.
            let free = own.last().map_or(0.0, |span| span.ended);
            let began = free.max(made.get(event.version as usize).copied().unwrap_or(0.0)).min(event.time);
            own.push(Span { began, ended: event.time, effect: event.effect });
            if staleness.len() <= event.staleness as usize {
                staleness.resize(event.staleness as usize + 1, 0);
            }
            staleness[event.staleness as usize] += 1;
            gradients += 1;
            while made.len() <= event.t as usize {
                made.push(event.time);
            }
            while curve.get(next).is_some_and(|point| point.update <= event.t) {
                curve[next].gradients = gradients;
                next += 1;
            }
        }
        if let Some(first) = curve.first_mut().filter(|point| point.update == 0) {
            first.gradients = 0;
        }
        let partition = read(&folder.join("partition.csv")).ok().map(|text| {
            let mut lines = text.lines();
            let classes = lines.next().unwrap_or("").split(',').skip(1).map(String::from).collect();
            let count = |n: &str| n.parse::<u32>().ok().map(f64::from);
            (classes, lines.take(workers).map(|line| line.split(',').skip(1).filter_map(count).collect()).collect())
        });
        let device = match folder.join("device.csv").is_file() {
            true => device_spans(&text("device.csv")?, workers).map_err(|e| broken("device.csv", &e))?,
            false => Vec::new(),
        };
        Ok(Reading { summary, config, curve, spans, staleness, device, partition })
    }

    /// A number in the summary; `None` if it is absent or null.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.summary[key].as_f64()
    }

    /// Whether the run's time axis is real time.
    pub fn is_wall(&self) -> bool {
        self.summary["clock"].as_str() == Some("wall")
    }

    /// Length of the run on its time axis, in seconds.
    pub fn time(&self) -> f64 {
        self.number("time").unwrap_or(0.0)
    }

    /// Share of all workers' time, 0 to 1, in which a worker computed no gradient that arrived. It waited, or its job
    /// was cancelled.
    pub fn idle(&self) -> f64 {
        let busy: f64 = self.spans.iter().flatten().map(|span| span.ended - span.began).sum();
        let all = self.time() * self.spans.len() as f64;
        if all > 0.0 { (1.0 - busy / all).max(0.0) } else { 0.0 }
    }

    /// Number of bytes sent between server and workers: a model for every job, and a gradient for every arrival.
    pub fn bytes(&self) -> f64 {
        let [parameters, gradients, restarted] =
            ["parameters", "gradients", "restarted"].map(|key| self.number(key).unwrap_or(0.0));
        4.0 * parameters * (2.0 * gradients + restarted)
    }

    /// Number of dropped gradients and cancelled jobs.
    pub fn wasted(&self) -> f64 {
        self.number("dropped").unwrap_or(0.0) + self.number("restarted").unwrap_or(0.0)
    }

    /// Mean of a metric over the run's time. A value holds until the next evaluation, and the first value holds from
    /// the start of the run. `None` if there are fewer than two values.
    pub fn over_time(&self, value: fn(&Point) -> Option<f64>) -> Option<f64> {
        let known: Vec<(f64, f64)> = self.curve.iter().filter_map(|p| Some((p.time, value(p)?))).collect();
        let ends = known.iter().skip(1).map(|p| p.0).chain([self.time()]);
        let begins = [0.0].into_iter().chain(known.iter().skip(1).map(|p| p.0));
        let sum: f64 = known.iter().zip(begins.zip(ends)).map(|(p, (begin, end))| p.1 * (end - begin)).sum();
        (known.len() > 1 && self.time() > 0.0).then(|| sum / self.time())
    }

    /// Mean of a metric over the evaluations in the last fifth of the updates.
    pub fn at_the_end(&self, value: fn(&Point) -> Option<f64>) -> Option<f64> {
        let last = self.curve.last()?.update;
        let is_late = |p: &&Point| 5 * p.update as u128 >= 4 * last as u128;
        let late: Vec<f64> = self.curve.iter().filter(is_late).filter_map(value).collect();
        (!late.is_empty()).then(|| late.iter().sum::<f64>() / late.len() as f64)
    }

    /// The first evaluation with at least this test accuracy (0 to 1).
    pub fn reached(&self, accuracy: f64) -> Option<Point> {
        self.curve.iter().find(|point| point.test_accuracy.is_some_and(|a| a >= accuracy)).copied()
    }
}

/// Reads a text file of at most [`MOST_BYTES`] bytes. Other file types are refused, because in a folder from someone
/// else a name may refer to a pipe or a device.
fn read(file: &Path) -> std::result::Result<String, String> {
    if !file.is_file() {
        return Err(format!("{} is not a file", file.display()));
    }
    let bytes = stagger_datasets::read(file, MOST_BYTES).map_err(|e| e.0)?;
    String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8 text", file.display()))
}

/// Parses the text of a `metrics.csv`.
fn points(text: &str) -> std::result::Result<Vec<Point>, String> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or("").split(',').collect();
    let point = |(k, line): (usize, &str)| {
        let mut point = Point::default();
        let cells: Vec<&str> = line.split(',').collect();
        for (name, cell) in header.iter().zip(&cells) {
            let value: Option<f64> = cell.parse().ok().filter(|value: &f64| value.is_finite());
            match *name {
                "update" => point.update = cell.parse().map_err(|_| format!("line {}: no valid `update`", k + 2))?,
                "time" => {
                    let time = value.filter(|time| (0.0..LATEST).contains(time));
                    point.time = time.ok_or_else(|| format!("line {}: no valid `time`", k + 2))?;
                }
                "train_loss" => point.train_loss = value,
                "test_loss" => point.test_loss = value,
                "test_accuracy" => point.test_accuracy = value,
                "grad_norm" => point.grad_norm = value,
                _ => {}
            }
        }
        Ok(point)
    };
    lines.enumerate().map(point).collect()
}
