//! Runs for measurements: they print nothing, and their folder is removed afterwards.

use super::{Audience, Place, run};
use crate::config::Options;
use crate::error::{Error, Result};
use crate::record::{Event, Summary};
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The result of a measurement.
pub struct Measured {
    /// The run's summary.
    pub summary: Summary,
    /// The text of the run's `metrics.csv`.
    pub metrics: String,
    /// Gradients per second of all workers together. Each worker is measured from its first arrival to its
    /// last.
    pub rate: f64,
}

/// The arrivals of one worker.
struct Arrivals {
    /// Time of the first arrival, in seconds.
    first: f64,
    /// Time of the last arrival, in seconds.
    last: f64,
    /// Number of arrivals that are later than the one before.
    later: u64,
}

/// Gradients per second of all workers together: the sum of the workers' rates, each from the first arrival
/// to the last. Gradients that are not complete at the end do not count, and neither does their time. A
/// worker with fewer than two gradients counts as 0.
fn rate(log: &Path) -> Result<f64> {
    let file = File::open(log).map_err(|e| Error::failed(format!("cannot read {}: {e}", log.display())))?;
    let mut workers: HashMap<usize, Arrivals> = HashMap::new();
    for event in serde_json::Deserializer::from_reader(BufReader::new(file)).into_iter::<Event>() {
        let event = event.map_err(|e| Error::failed(format!("{}: {e}", log.display())))?;
        let first = Arrivals { first: event.time, last: event.time, later: 0 };
        let worker = workers.entry(event.worker).or_insert(first);
        worker.later += (event.time > worker.last) as u64;
        worker.last = event.time;
    }
    let measured = workers.values().filter(|worker| worker.later > 0);
    Ok(measured.map(|worker| worker.later as f64 / (worker.last - worker.first)).sum())
}

/// Trains without output in a temporary folder. With a `target`, the run ends at the first evaluation that
/// reaches this test accuracy (0 to 1). Without a target nothing is evaluated, not even at the end.
pub fn measure(options: &Options, target: Option<f64>) -> Result<Measured> {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let number = RUNS.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("stagger-measured-{}-{number}", std::process::id()));
    let result = run(options, Place::New(Some(folder.clone())), Audience::Program { target });
    let metrics = std::fs::read_to_string(folder.join("metrics.csv")).unwrap_or_default();
    let rate = rate(&folder.join("events.jsonl"));
    let _ = std::fs::remove_dir_all(&folder);
    let summary = result?.summary;
    if summary.interrupted {
        return Err(Error::Interrupted("interrupted".into()));
    }
    Ok(Measured { summary, metrics, rate: rate? })
}
