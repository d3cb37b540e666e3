//! Notes when the device computes the first gradients of a run, and the updates meanwhile (`--device-timeline`).
//!
//! Nothing of it is on the way of a gradient unless it is asked for. Then each of the first gradients, and each update until the last of
//! them, stands between two events in its stream, behind an empty launch for every fence, so that what the stream waits for there is no
//! part of it. The events are read when the run is over.

use crate::engine::clock::stopwatch::Stopwatch;
use crate::error::{Error, Result};
use crate::record::{Span, Work};
use crossbeam_channel::{Receiver, Sender, unbounded};
use stagger_kernels::timing::Stretch;
use stagger_kernels::{Device, Fence, Stream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
        device.wait_fence(Stream::here(), &device.fence());
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

    /// Runs `work`, which enqueues something on this thread's stream behind the fences, and notes it.
    pub fn note<'a, T>(&self, done: Done, fences: impl Iterator<Item = &'a Fence>, work: impl FnOnce() -> T) -> T {
        let Some(inner) = &self.0 else { return work() };
        let one_less = |left: u64| left.checked_sub((done.0 == Work::Gradient) as u64).filter(|_| left > 0);
        if inner.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err() {
            return work();
        }
        fences.for_each(|fence| inner.device.wait_fence(Stream::here(), fence));
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
    fn the_first_gradients_are_noted_and_the_updates_until_the_last_of_them() {
        let timeline = Timeline::of(&Device::Cpu, &Arc::default(), 2);
        let note = |work| timeline.note((work, 0, 0), [Fence::default()].iter(), || 7);
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
