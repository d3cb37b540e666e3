//! Speed of the engine alone, with gradients that cost almost nothing: events of the virtual clock per second, and
//! the latency of a hand-over between threads.

use super::{Bar, BenchOptions, Figure, Report};
use crate::config::Options;
use crate::error::{Error, Result};
use crate::run::measure;
use crossbeam_channel::bounded;
use serde_json::json;
use std::path::Path;
use std::time::Instant;

/// Number of workers. Each has a scalar quadratic as its objective.
const WORKERS: usize = 1000;
/// Updates per run.
const UPDATES: u64 = 400_000;
/// Runs per rule. The rules take turns, so that a disturbance of a few seconds does not affect only one of them.
const ROUNDS: usize = 5;
const RULES: [&str; 5] = ["asgd", "dude", "shuffled", "ringmaster:r=1000", "fedbuff:b=10"];
/// Number of round trips between the two threads.
const HANDOVERS: usize = 200_000;

/// Measures the engine. The measurement has no options.
pub fn run(_: &BenchOptions) -> Result<Report> {
    // The row of hand-overs has no value in `best`. The figure leaves it out, because hand-overs are not events.
    let figure = Figure::Bars(
        "events/s",
        vec![
            Bar { name: "median", of: |row| row[2].as_f64().and_then(|_| row[1].as_f64()) },
            Bar { name: "best", of: |row| row[2].as_f64() },
        ],
    );
    let mut report = Report::new("engine", &["what", "events/s", "best", "p50 [us]", "p99 [us]"], figure);
    let folder = std::env::temp_dir().join(format!("stagger-bench-{}", std::process::id()));
    let failed = |e: std::io::Error| Error::failed(format!("{}: {e}", folder.display()));
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let file = folder.join("centres.csv");
    let centres: String = (0..WORKERS).map(|i| format!("{}\n", (i as f64 * 0.618).fract() - 0.5)).collect();
    std::fs::write(&file, centres).map_err(failed)?;
    let rates = events_per_second(&file);
    // The folder is removed even if a run failed.
    let _ = std::fs::remove_dir_all(&folder);
    for (rule, mut rates) in RULES.iter().zip(rates?) {
        rates.sort_by(f64::total_cmp);
        report.row(vec![
            json!(format!("virtual clock, {WORKERS} workers, {rule}")),
            json!(rates[ROUNDS / 2]),
            json!(rates[ROUNDS - 1]),
            json!(null),
            json!(null),
        ]);
    }
    let mut times = hand_overs();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1e6;
    let rate = times.len() as f64 / times.iter().sum::<f64>();
    let what = "hand-over between two threads (one way)";
    report.row(vec![json!(what), json!(rate), json!(null), json!(at(0.5)), json!(at(0.99))]);
    report.notes.push(format!(
        "an event includes the rule, the update, the event log and the gradient of a scalar; median and best of \
         {ROUNDS} runs of {UPDATES} updates each; the rules take turns"
    ));
    Ok(report)
}

/// Events per second of every rule in every round, on quadratics with the centres in this file.
fn events_per_second(centres: &Path) -> Result<[[f64; ROUNDS]; RULES.len()]> {
    let mut rates = [[0.0; ROUNDS]; RULES.len()];
    for round in 0..ROUNDS {
        for (rule, rates) in RULES.iter().zip(&mut rates) {
            let settings = Options {
                rule: Some(rule.to_string()),
                dataset: Some(format!("quadratic:{}", centres.display())),
                backend: Some("cpu".into()),
                clock: Some("virtual".into()),
                delay: Some("exp:1,2,3,4,5".into()),
                lr: Some(0.001),
                epochs: Some(UPDATES as f64 / WORKERS as f64),
                updates: Some(UPDATES),
                eval_every: Some(0),
                ..Options::default()
            };
            let summary = measure(&settings, None)?.summary;
            rates[round] = summary.gradients as f64 / summary.wall_seconds;
        }
    }
    Ok(rates)
}

/// Seconds per hand-over: half of each round trip. The two channels have the capacities of a worker's channels.
fn hand_overs() -> Vec<f64> {
    let (outbox, requests) = bounded::<usize>(3);
    let (replies, inbox) = bounded::<usize>(1);
    let worker = std::thread::spawn(move || {
        while let Ok(request) = requests.recv() {
            if replies.send(request).is_err() {
                return;
            }
        }
    });
    let times = (0..HANDOVERS)
        .map(|k| {
            let start = Instant::now();
            outbox.send(k).expect("the other thread receives until the channel closes");
            inbox.recv().expect("the other thread replies to every message");
            start.elapsed().as_secs_f64() / 2.0
        })
        .collect();
    drop(outbox);
    let _ = worker.join();
    times
}
