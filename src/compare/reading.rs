//! What a finished run's folder says: its curve, its arrivals, its summary.

use crate::error::{Error, Result};
use crate::record::{self, Effect, LATEST, device_spans, recorded};
use serde_json::Value;
use std::path::Path;

/// Workers of a run that is read at most, and bytes of its files (but the log, which is read line by line).
const MOST_WORKERS: u64 = 1 << 16;
const LONGEST: u64 = 1 << 30;

/// One line of `metrics.csv`; what does not apply is absent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Point {
    /// Server updates so far.
    pub update: u64,
    /// Seconds on the run's axis.
    pub time: f64,
    /// Gradients so far.
    pub gradients: u64,
    /// Mean of the latest batch losses, or the full objective.
    pub train_loss: Option<f64>,
    /// Mean loss over the test set.
    pub test_loss: Option<f64>,
    /// Share of the test set that is right.
    pub test_accuracy: Option<f64>,
    /// Norm of the full objective's gradient.
    pub grad_norm: Option<f64>,
}

/// A stretch in which a worker computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// When its job began, in seconds on the run's axis.
    pub began: f64,
    /// When its gradient arrived.
    pub ended: f64,
    /// What became of the gradient.
    pub effect: Effect,
}

/// A run, as its folder tells it.
pub struct Reading {
    /// `summary.json`.
    pub summary: Value,
    /// `config.toml`.
    pub config: toml::Table,
    /// `metrics.csv`.
    pub curve: Vec<Point>,
    /// Worker by worker, in order.
    pub spans: Vec<Vec<Span>>,
    /// How many arrivals had which staleness, from 0.
    pub staleness: Vec<u64>,
    /// `device.csv`, if there is one: when the device computed the first gradients and updates, in the order of their beginnings.
    pub device: Vec<record::Span>,
    /// `partition.csv`, if there is one: the classes, and worker by worker how many samples of each.
    pub partition: Option<(Vec<String>, Vec<Vec<f64>>)>,
}

impl Reading {
    /// Reads a run's folder.
    pub fn of(folder: &Path) -> Result<Reading> {
        let text = |name: &str| {
            read(&folder.join(name)).map_err(|e| Error::usage(format!("{e}; name the folder of a finished run")))
        };
        let broken = |name: &str, e: &dyn std::fmt::Display| {
            Error::usage(format!("{}: {e}; the run did not end, run it again", folder.join(name).display()))
        };
        let summary: Value = serde_json::from_str(&text("summary.json")?).map_err(|e| broken("summary.json", &e))?;
        let config = text("config.toml")?.parse().map_err(|e| broken("config.toml", &e))?;
        let mut curve = points(&text("metrics.csv")?).map_err(|e| broken("metrics.csv", &e))?;

        // Whoever made the folder may have written any number.
        let workers = summary["workers"].as_u64().filter(|n| (1..=MOST_WORKERS).contains(n));
        let workers = workers.ok_or_else(|| broken("summary.json", &"no number of `workers`"))? as usize;
        let (mut spans, mut staleness) = (vec![Vec::<Span>::new(); workers], Vec::new());
        // When each version was made.
        let mut made = vec![0.0];
        let (mut next, mut gradients) = (0, 0);
        for event in recorded(&folder.join("events.jsonl"), u64::MAX, workers)? {
            let event = event?;
            let own = &mut spans[event.worker];
            // A job begins when its worker is free and its model is there; a job that was given up is not in the log.
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

    /// A number of the summary.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.summary[key].as_f64()
    }

    /// Whether its axis is real time.
    pub fn is_wall(&self) -> bool {
        self.summary["clock"].as_str() == Some("wall")
    }

    /// Seconds of the run on its axis.
    pub fn time(&self) -> f64 {
        self.number("time").unwrap_or(0.0)
    }

    /// Share of all workers' time in which none of a worker's arrivals was being computed: it waited, or on what was given up.
    pub fn idle(&self) -> f64 {
        let busy: f64 = self.spans.iter().flatten().map(|span| span.ended - span.began).sum();
        let all = self.time() * self.spans.len() as f64;
        if all > 0.0 { (1.0 - busy / all).max(0.0) } else { 0.0 }
    }

    /// Bytes between server and workers: a model for every job, a gradient for every arrival.
    pub fn bytes(&self) -> f64 {
        let [parameters, gradients, restarted] =
            ["parameters", "gradients", "restarted"].map(|key| self.number(key).unwrap_or(0.0));
        4.0 * parameters * (2.0 * gradients + restarted)
    }

    /// Gradients that were computed, or begun, for nothing.
    pub fn wasted(&self) -> f64 {
        self.number("dropped").unwrap_or(0.0) + self.number("restarted").unwrap_or(0.0)
    }

    /// Mean of a metric over the run's time: each evaluation holds until the next, the first from the beginning on.
    pub fn over_time(&self, value: fn(&Point) -> Option<f64>) -> Option<f64> {
        let known: Vec<(f64, f64)> = self.curve.iter().filter_map(|p| Some((p.time, value(p)?))).collect();
        let ends = known.iter().skip(1).map(|p| p.0).chain([self.time()]);
        let begins = [0.0].into_iter().chain(known.iter().skip(1).map(|p| p.0));
        let sum: f64 = known.iter().zip(begins.zip(ends)).map(|(p, (begin, end))| p.1 * (end - begin)).sum();
        (known.len() > 1 && self.time() > 0.0).then(|| sum / self.time())
    }

    /// Mean of a metric over the last fifth of the updates.
    pub fn at_the_end(&self, value: fn(&Point) -> Option<f64>) -> Option<f64> {
        let last = self.curve.last()?.update;
        let is_late = |p: &&Point| 5 * p.update as u128 >= 4 * last as u128;
        let late: Vec<f64> = self.curve.iter().filter(is_late).filter_map(value).collect();
        (!late.is_empty()).then(|| late.iter().sum::<f64>() / late.len() as f64)
    }

    /// The first evaluation at this test accuracy.
    pub fn reached(&self, accuracy: f64) -> Option<Point> {
        self.curve.iter().find(|point| point.test_accuracy.is_some_and(|a| a >= accuracy)).copied()
    }
}

/// The text of a plain file of a bearable size: in a folder of somebody else's, a name may stand for anything.
fn read(file: &Path) -> std::result::Result<String, String> {
    if !file.is_file() {
        return Err(format!("{} is no file", file.display()));
    }
    let bytes = stagger_datasets::read(file, LONGEST).map_err(|e| e.0)?;
    String::from_utf8(bytes).map_err(|_| format!("{} is no text", file.display()))
}

fn points(text: &str) -> std::result::Result<Vec<Point>, String> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or("").split(',').collect();
    let point = |(k, line): (usize, &str)| {
        let mut point = Point::default();
        let cells: Vec<&str> = line.split(',').collect();
        for (name, cell) in header.iter().zip(&cells) {
            let value: Option<f64> = cell.parse().ok().filter(|value: &f64| value.is_finite());
            match *name {
                "update" => point.update = cell.parse().map_err(|_| format!("line {}: no update", k + 2))?,
                "time" => {
                    let time = value.filter(|time| (0.0..LATEST).contains(time));
                    point.time = time.ok_or_else(|| format!("line {}: no time", k + 2))?;
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
