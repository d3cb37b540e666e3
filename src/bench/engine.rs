//! The engine without gradients' cost: events of the virtual clock, and hand-overs between threads.

use super::{BenchOptions, Report};
use crate::config::Options;
use crate::error::{Error, Result};
use crate::train::measure;
use crossbeam_channel::bounded;
use serde_json::json;
use std::time::Instant;

/// Scalar quadratics, one worker each.
const WORKERS: usize = 1000;
const UPDATES: u64 = 1_000_000;
const HANDOVERS: usize = 200_000;

pub fn run(_: &BenchOptions) -> Result<Report> {
    let mut report = Report::new("engine", &["what", "events/s", "p50 [us]", "p99 [us]"]);
    let folder = std::env::temp_dir().join(format!("stagger-bench-{}", std::process::id()));
    let failed = |e: std::io::Error| Error::failed(format!("{}: {e}", folder.display()));
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let file = folder.join("centres.csv");
    let centres: String = (0..WORKERS).map(|i| format!("{}\n", (i as f64 * 0.618).fract() - 0.5)).collect();
    std::fs::write(&file, centres).map_err(failed)?;
    for rule in ["asgd", "dude", "shuffled", "ringmaster:r=1000", "fedbuff:b=10"] {
        let settings = Options {
            rule: Some(rule.into()),
            dataset: Some(format!("quadratic:{}", file.display())),
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
        let events = summary.gradients as f64 / summary.wall_seconds;
        report.row(vec![
            json!(format!("virtual clock, {WORKERS} workers, {rule}")),
            json!(events),
            json!(null),
            json!(null),
        ]);
    }
    let _ = std::fs::remove_dir_all(&folder);
    let mut times = hand_overs();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1e6;
    let rate = times.len() as f64 / times.iter().sum::<f64>();
    report.row(vec![json!("hand-over between two threads (one way)"), json!(rate), json!(at(0.5)), json!(at(0.99))]);
    report.notes.push("events include rule, update, event log and the gradient of a scalar".into());
    Ok(report)
}

/// Seconds of hand-overs one way: half of there and back, through the two channels that a worker has.
fn hand_overs() -> Vec<f64> {
    let (outbox, orders) = bounded::<usize>(3);
    let (answer, inbox) = bounded::<usize>(1);
    let worker = std::thread::spawn(move || {
        while let Ok(order) = orders.recv() {
            if answer.send(order).is_err() {
                return;
            }
        }
    });
    let times = (0..HANDOVERS)
        .map(|k| {
            let start = Instant::now();
            outbox.send(k).expect("the other thread is there");
            inbox.recv().expect("the other thread is there");
            start.elapsed().as_secs_f64() / 2.0
        })
        .collect();
    drop(outbox);
    let _ = worker.join();
    times
}
