//! Records when the device computes the first gradients of a run, and the updates in the same time
//! (`--device-timeline`).
//!
//! Without the flag nothing is recorded. With it, each of the first gradients, and each update until the last
//! of them, lies between two events in its stream. An empty launch per fence comes before the first event, so
//! that waiting for the fences is not part of the recorded time. The events are read after the run.

use crate::engine::clock::stopwatch::Stopwatch;
use crate::error::{Error, Result};
use crate::record::{Span, Work};
use crossbeam_channel::{Receiver, Sender, unbounded};
use stagger_kernels::timing::DeviceInterval;
use stagger_kernels::{Device, Fence, Stream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Kind of work, index of the gradient's worker, and number of its job.
type Done = (Work, usize, u64);

struct Inner {
    device: Device,
    stopwatch: Arc<Stopwatch>,
    /// Number of gradients to record.
    gradients: u64,
    /// Number of gradients that are still to be recorded; 0 before the run begins.
    left: AtomicU64,
    send: Sender<(Done, Option<DeviceInterval>)>,
    noted: Receiver<(Done, Option<DeviceInterval>)>,
}

/// Records when the device computes. Clones share the records. The default records nothing.
#[derive(Clone, Default)]
pub struct Timeline(Option<Arc<Inner>>);

impl Timeline {
    /// A timeline that records `gradients` gradients on this device, in the time of this stopwatch. With 0 it
    /// records nothing. Compiles and sets up now what recording needs.
    pub fn of(device: &Device, stopwatch: &Arc<Stopwatch>, gradients: u64) -> Self {
        if gradients == 0 {
            return Timeline::default();
        }
        device.wait_fence(Stream::here(), &device.fence());
        device.timed(|| ());
        let (device, stopwatch, (send, noted)) = (device.clone(), stopwatch.clone(), unbounded());
        Timeline(Some(Arc::new(Inner { device, stopwatch, gradients, left: AtomicU64::new(0), send, noted })))
    }

    /// Starts to record.
    pub fn begin(&self) {
        if let Some(inner) = &self.0 {
            inner.left.store(inner.gradients, Ordering::Relaxed);
        }
    }

    /// Runs `work`, which enqueues launches on this thread's stream behind the fences, and records their time.
    pub fn note<'a, T>(&self, done: Done, fences: impl Iterator<Item = &'a Fence>, work: impl FnOnce() -> T) -> T {
        let Some(inner) = &self.0 else { return work() };
        let one_less = |left: u64| left.checked_sub((done.0 == Work::Gradient) as u64).filter(|_| left > 0);
        if inner.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err() {
            return work();
        }
        fences.for_each(|fence| inner.device.wait_fence(Stream::here(), fence));
        let (result, interval) = inner.device.timed(work);
        // Sending cannot fail: the receiver is in `inner`.
        let _ = inner.send.send((done, interval));
        result
    }

    /// Waits until the device has finished the recorded work. Returns the spans sorted by their start, and
    /// the number of gradients and updates whose times the device did not report. `None` if the timeline
    /// records nothing.
    pub fn read(&self) -> Option<(Vec<Span>, usize)> {
        let inner = self.0.as_deref()?;
        inner.left.store(0, Ordering::Relaxed);
        let noted: Vec<_> = inner.noted.try_iter().collect();
        let count = noted.len();
        let span = |((work, worker, job), interval): (Done, Option<DeviceInterval>)| {
            let (began, ended) = interval?.read(inner.stopwatch.start())?;
            let [began, ended] = [began, ended].map(|after| inner.stopwatch.showed(after));
            Some(Span { work, worker, job, began, ended })
        };
        let mut spans: Vec<Span> = noted.into_iter().filter_map(span).collect();
        spans.sort_by(|a, b| a.began.total_cmp(&b.began));
        let untold = count - spans.len();
        Some((spans, untold))
    }
}

/// Refuses `--device-timeline` on a device that does not report times.
pub fn check(device: &Device, gradients: u64) -> Result<()> {
    if gradients == 0 || device.tells_when() {
        return Ok(());
    }
    let why = match device {
        Device::Cpu => "the CPU has none",
        Device::Gpu(_) => "WGPU has one queue, which executes one launch after another",
    };
    Err(Error::usage(format!(
        "--device-timeline shows how the streams of a GPU overlap, and {why}: use --backend cuda, or --device-timeline \
         0; the report shows when workers computed even without it"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_gradients_and_updates_until_the_last_of_them_are_recorded() {
        let timeline = Timeline::of(&Device::Cpu, &Arc::default(), 2);
        let note = |work| timeline.note((work, 0, 0), [Fence::default()].iter(), || 7);
        let noted = || {
            let (spans, untold) = timeline.read().expect("the timeline records");
            assert!(spans.is_empty(), "the CPU reports no times");
            untold
        };
        assert_eq!((note(Work::Gradient), noted()), (7, 0), "before the run");
        timeline.begin();
        let all = [Work::Gradient, Work::Update, Work::Gradient, Work::Update, Work::Gradient];
        assert_eq!((all.map(note), noted()), ([7; 5], 3));
        assert_eq!((note(Work::Gradient), noted()), (7, 0), "after the times are read");
        assert!(Timeline::of(&Device::Cpu, &Arc::default(), 0).read().is_none());
    }
}
