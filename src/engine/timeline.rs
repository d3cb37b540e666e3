//! Notes when the device computes the first gradients of a run, and the updates meanwhile (`--device-timeline`).
//!
//! Nothing of it is on the way of a gradient unless it is asked for. Then each of the first gradients, and each update until the last of
//! them, stands between two events in its stream, behind an empty launch for every seal, so that what the stream waits for there is no
//! part of it. The events are read when the run is over.

use crate::error::{Error, Result};
use crate::stopwatch::Stopwatch;
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::Serialize;
use stagger_kernels::timing::Stretch;
use stagger_kernels::{Device, Seal, Stream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the device did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A gradient, on its worker's stream.
    Gradient,
    /// The launch of the server's that an arrival brought about, on the server's stream.
    Update,
}

/// A line of `device.csv`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// What.
    pub work: Work,
    /// Whose gradient.
    pub worker: usize,
    /// Of which job.
    pub job: u64,
    /// When the device began, in seconds of the run's real time (without evaluations).
    pub began: f64,
    /// When it was through.
    pub ended: f64,
}

/// How busy the device was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Occupancy {
    /// Gradients and updates in flight at once, on average over the time in which there was any.
    pub at_once: f64,
    /// Share of the time in which there was none.
    pub idle: f64,
}

impl Occupancy {
    /// Of spans in the order of their beginnings: from the first to where the last gradient began, for who computed beside that one was
    /// not noted any more. Nothing if that is no time.
    pub fn of(spans: &[Span]) -> Option<Self> {
        let begin = spans.first()?.began;
        let end = spans.iter().rfind(|span| span.work == Work::Gradient)?.began;
        let (mut until, mut busy, mut all) = (begin, 0.0, 0.0);
        for span in spans.iter().filter(|span| span.began < end) {
            let ended = span.ended.min(end);
            all += ended - span.began;
            busy += (ended - span.began.max(until)).max(0.0);
            until = until.max(ended);
        }
        (busy > 0.0).then(|| Occupancy { at_once: all / busy, idle: (1.0 - busy / (end - begin)).max(0.0) })
    }
}

/// What was done, whose gradient it was, and of which job.
type Done = (Work, usize, u64);

struct Inner {
    device: Device,
    stopwatch: Arc<Stopwatch>,
    gradients: u64,
    /// Those that are still to be noted, once the run has begun.
    left: AtomicU64,
    send: Sender<(Done, Option<Stretch>)>,
    noted: Receiver<(Done, Option<Stretch>)>,
}

/// Notes when the device does what. Clones are the same; the default notes nothing.
#[derive(Clone, Default)]
pub struct Timeline(Option<Arc<Inner>>);

impl Timeline {
    /// One that will note so many gradients on this device, by this clock; nothing if there is none to be noted. What noting compiles and
    /// sets up is done here.
    pub fn of(device: &Device, stopwatch: &Arc<Stopwatch>, gradients: u64) -> Self {
        if gradients == 0 {
            return Timeline::default();
        }
        device.put_behind(Stream::here(), &device.seal());
        device.timed(|| ());
        let (device, stopwatch, (send, noted)) = (device.clone(), stopwatch.clone(), unbounded());
        Timeline(Some(Arc::new(Inner { device, stopwatch, gradients, left: AtomicU64::new(0), send, noted })))
    }

    /// From now on gradients are noted, and the updates meanwhile.
    pub fn begin(&self) {
        if let Some(inner) = &self.0 {
            inner.left.store(inner.gradients, Ordering::Relaxed);
        }
    }

    /// Runs `work`, which enqueues something on this thread's stream behind the seals, and notes it.
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
    /// not tell when. Nothing if nothing was to be noted.
    pub fn read(&self) -> Option<(Vec<Span>, usize)> {
        let inner = self.0.as_deref()?;
        inner.left.store(0, Ordering::Relaxed);
        let noted: Vec<_> = inner.noted.try_iter().collect();
        let count = noted.len();
        let span = |((work, worker, job), stretch): (Done, Option<Stretch>)| {
            let (began, ended) = stretch?.read(inner.stopwatch.start())?;
            let [began, ended] = [began, ended].map(|after| inner.stopwatch.showed(after));
            Some(Span { work, worker, job, began, ended })
        };
        let mut spans: Vec<Span> = noted.into_iter().filter_map(span).collect();
        spans.sort_by(|a, b| a.began.total_cmp(&b.began));
        let untold = count - spans.len();
        Some((spans, untold))
    }
}

/// Refuses what has no timeline of a device.
pub fn check(device: &Device, gradients: u64) -> Result<()> {
    if gradients == 0 || device.tells_when() {
        return Ok(());
    }
    let why = match device {
        Device::Cpu => "the CPU has none",
        Device::Gpu(_) => "WGPU has one queue, in which everything comes in turn",
    };
    Err(Error::usage(format!(
        "--device-timeline shows how a GPU's streams run beside each other, and {why}: use --backend cuda, or --device-timeline 0; the report \
         shows when workers computed anyway"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occupancy_counts_what_overlaps_and_what_is_empty() {
        let span = |work, worker, began, ended| Span { work, worker, job: 3, began, ended };
        let gradient = |worker, began, ended| span(Work::Gradient, worker, began, ended);
        assert_eq!(Occupancy::of(&[]), None);
        assert_eq!(Occupancy::of(&[gradient(0, 1.0, 2.0)]), None, "nobody knows what was beside it");
        let alone = [gradient(0, 1.0, 3.0), span(Work::Update, 0, 3.0, 4.0), gradient(0, 4.0, 6.0)];
        assert_eq!(Occupancy::of(&alone), Some(Occupancy { at_once: 1.0, idle: 0.0 }));
        // Two beside each other, one within another, a gap of two, and one that is still going when the last begins.
        let spans = [
            gradient(0, 1.0, 4.0),
            gradient(1, 2.0, 5.0),
            span(Work::Update, 0, 3.0, 4.0),
            gradient(0, 7.0, 12.0),
            gradient(2, 9.0, 11.0),
        ];
        assert_eq!(Occupancy::of(&spans), Some(Occupancy { at_once: 1.5, idle: 0.25 }));
    }

    #[test]
    fn the_first_gradients_are_noted_and_the_updates_until_the_last_of_them() {
        let timeline = Timeline::of(&Device::Cpu, &Arc::default(), 2);
        let note = |work| timeline.note((work, 0, 0), [Seal::default()].iter(), || 7);
        let noted = || {
            let (spans, untold) = timeline.read().expect("something was to be noted");
            assert!(spans.is_empty(), "the CPU tells nothing");
            untold
        };
        assert_eq!((note(Work::Gradient), noted()), (7, 0), "before the run");
        timeline.begin();
        let all = [Work::Gradient, Work::Update, Work::Gradient, Work::Update, Work::Gradient];
        assert_eq!((all.map(note), noted()), ([7; 5], 3));
        assert_eq!((note(Work::Gradient), noted()), (7, 0), "after it was read");
        assert!(Timeline::of(&Device::Cpu, &Arc::default(), 0).read().is_none());
    }
}
