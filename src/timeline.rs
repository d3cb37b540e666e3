//! When the device computed what: the first gradients of a run and their updates, by the device's own clock (`--device-timeline`).
//!
//! Nothing of it is on the way of a gradient unless it is asked for; then each of the first gradients, and each update until the last of
//! them, stands between two events in its stream. They are read after the last update.

use crate::error::{Error, Result};
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::{Deserialize, Serialize};
use stagger_kernels::timing::Stretch;
use stagger_kernels::{Device, Seal, Stream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What the device did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// A gradient, on its worker's stream.
    Gradient,
    /// The launch of the server's that an arrival brought about, on the server's stream.
    Update,
}

/// A line of `device.csv`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// What.
    pub work: Work,
    /// Whose gradient.
    pub worker: usize,
    /// Of which job.
    pub job: u64,
    /// Seconds since the device began with the first.
    pub began: f64,
    /// The same, when it was through.
    pub ended: f64,
}

/// What was done, whose gradient it was, and of which job.
type Done = (Work, usize, u64);

struct Inner {
    device: Device,
    /// Gradients that are still to be noted, once the run has begun.
    left: AtomicU64,
    epoch: Instant,
    send: Sender<(Done, Option<Stretch>)>,
    noted: Receiver<(Done, Option<Stretch>)>,
}

/// Notes when the device did what. Clones are the same; the default notes nothing.
#[derive(Clone, Default)]
pub struct Timeline(Option<Arc<Inner>>);

impl Timeline {
    /// One that will note what this device does. What noting compiles and sets up is done here.
    pub fn of(device: Device) -> Self {
        device.put_behind(Stream::here(), &device.seal());
        device.timed(|| ());
        let (send, noted) = unbounded();
        Timeline(Some(Arc::new(Inner { device, left: AtomicU64::new(0), epoch: Instant::now(), send, noted })))
    }

    /// From now on so many gradients are noted, and the updates meanwhile.
    pub fn begin(&self, gradients: u64) {
        if let Some(inner) = &self.0 {
            inner.left.store(gradients, Ordering::Relaxed);
        }
    }

    /// Runs `work`, which enqueues something on this thread's stream, and notes it. What the stream waits for at the seals is no part of it.
    pub fn note<'a, T>(&self, done: Done, seals: impl Iterator<Item = &'a Seal>, work: impl FnOnce() -> T) -> T {
        let Some(inner) = &self.0 else { return work() };
        let one_less = |left: u64| left.checked_sub((done.0 == Work::Gradient) as u64).filter(|_| left > 0);
        if inner.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err() {
            return work();
        }
        seals.for_each(|seal| inner.device.put_behind(Stream::here(), seal));
        let (result, stretch) = inner.device.timed(work);
        // The other end is here, too.
        let _ = inner.send.send((done, stretch));
        result
    }

    /// Waits until the device is through with what was noted, and gives it in the order of its beginnings; and of how much the device did
    /// not tell when.
    pub fn read(&self) -> (Vec<Span>, usize) {
        let Some(inner) = &self.0 else { return Default::default() };
        inner.left.store(0, Ordering::Relaxed);
        let noted: Vec<_> = inner.noted.try_iter().collect();
        let count = noted.len();
        let read = |(done, stretch): (Done, Option<Stretch>)| Some((stretch?.read(inner.epoch)?, done));
        let mut told: Vec<((Duration, Duration), Done)> = noted.into_iter().filter_map(read).collect();
        told.sort_by_key(|(span, _)| *span);
        let first = told.first().map_or(Duration::ZERO, |(span, _)| span.0);
        let seconds = |time: Duration| (time - first).as_secs_f64();
        let span = |((began, ended), (work, worker, job))| Span {
            work,
            worker,
            job,
            began: seconds(began),
            ended: seconds(ended),
        };
        let untold = count - told.len();
        (told.into_iter().map(span).collect(), untold)
    }
}

/// How busy the device was between the first beginning and the last end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Occupancy {
    /// Gradients and updates in flight at once, on average over the time in which there was any.
    pub at_once: f64,
    /// Share of the time in which there was none.
    pub idle: f64,
}

impl Occupancy {
    /// Of spans in the order of their beginnings; nothing without a span.
    pub fn of(spans: &[Span]) -> Option<Self> {
        let (mut end, mut busy, mut all) = (0.0f64, 0.0, 0.0);
        for span in spans {
            all += span.ended - span.began;
            busy += (span.ended - span.began.max(end)).max(0.0);
            end = end.max(span.ended);
        }
        (busy > 0.0).then(|| Occupancy { at_once: all / busy, idle: (1.0 - busy / end).max(0.0) })
    }
}

/// The first line of `device.csv`.
const HEADER: &str = "work,worker,job,began,ended";

/// The text of `device.csv`.
pub fn written(spans: &[Span]) -> String {
    let line = |span: &Span| {
        let work = if span.work == Work::Gradient { "gradient" } else { "update" };
        format!("{work},{},{},{:.9},{:.9}\n", span.worker, span.job, span.began, span.ended)
    };
    format!("{HEADER}\n") + &spans.iter().map(line).collect::<String>()
}

/// Reads the text of a `device.csv` of a run with so many workers, in the order of the beginnings; the error is half a sentence.
pub fn parsed(text: &str, workers: usize) -> std::result::Result<Vec<Span>, String> {
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return Err(format!("its first line is not `{HEADER}`"));
    }
    let span = |line: &str| {
        let mut cells = line.split(',');
        let work = match cells.next()? {
            "gradient" => Work::Gradient,
            "update" => Work::Update,
            _ => return None,
        };
        let worker = cells.next()?.parse().ok().filter(|worker| *worker < workers)?;
        let job = cells.next()?.parse().ok()?;
        let mut time = || cells.next()?.parse().ok().filter(|time: &f64| (0.0..crate::record::LATEST).contains(time));
        let (began, ended) = (time()?, time()?);
        (began <= ended).then_some(Span { work, worker, job, began, ended })
    };
    let mut spans = Vec::new();
    for (k, line) in lines.enumerate() {
        spans.push(span(line).ok_or_else(|| format!("line {} is not a span of this run", k + 2))?);
    }
    spans.sort_by(|a: &Span, b| a.began.total_cmp(&b.began));
    Ok(spans)
}

/// Refuses what has no timeline of a device.
pub fn check(device: &Device, gradients: Option<u64>) -> Result<()> {
    if gradients.is_none() || device.tells_when() {
        return Ok(());
    }
    let why = match device {
        Device::Cpu => "the CPU has none",
        Device::Gpu(_) => "WGPU has one queue, in which everything comes in turn",
    };
    Err(Error::usage(format!(
        "--device-timeline shows how a GPU's streams run beside each other, and {why}: use --backend cuda, or leave it out; the report shows when \
         workers computed anyway"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(worker: usize, began: f64, ended: f64) -> Span {
        Span { work: if worker == 9 { Work::Update } else { Work::Gradient }, worker, job: 3, began, ended }
    }

    #[test]
    fn occupancy_counts_what_overlaps_and_what_is_empty() {
        assert_eq!(Occupancy::of(&[]), None);
        assert_eq!(Occupancy::of(&[span(0, 0.0, 2.0)]), Some(Occupancy { at_once: 1.0, idle: 0.0 }));
        // Two beside each other, one within another, and a gap of two before the last.
        let spans = [span(0, 0.0, 3.0), span(1, 1.0, 4.0), span(2, 2.0, 3.0), span(0, 6.0, 8.0)];
        assert_eq!(Occupancy::of(&spans), Some(Occupancy { at_once: 1.5, idle: 0.25 }));
    }

    #[test]
    fn a_written_timeline_is_read_again() {
        let spans = [span(0, 0.0, 0.5), span(9, 0.25, 0.75)];
        assert_eq!(parsed(&written(&spans), 10), Ok(spans.to_vec()));
        let why = parsed(&written(&spans), 9).unwrap_err();
        assert!(why.contains("line 3"), "{why}");
        for text in ["", "work\n", "work,worker,job,began,ended\ngradient,0,1,2,1\n"] {
            assert!(parsed(text, 1).is_err(), "{text}");
        }
    }

    #[test]
    fn what_notes_nothing_only_runs() {
        let ran = Timeline::default().note((Work::Gradient, 0, 0), [].iter(), || 7);
        assert_eq!((ran, Timeline::default().read()), (7, (Vec::new(), 0)));
    }

    #[test]
    fn the_first_gradients_are_noted_and_the_updates_until_the_last_of_them() {
        let timeline = Timeline::of(Device::Cpu);
        let note = |work| timeline.note((work, 0, 0), [Seal::default()].iter(), || ());
        let noted = || {
            let (spans, untold) = timeline.read();
            assert!(spans.is_empty(), "the CPU tells nothing");
            untold
        };
        note(Work::Gradient);
        timeline.begin(2);
        [Work::Gradient, Work::Update, Work::Gradient, Work::Update, Work::Gradient].into_iter().for_each(note);
        assert_eq!(noted(), 3);
        note(Work::Gradient);
        assert_eq!(noted(), 0);
    }
}
