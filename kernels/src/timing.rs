//! When a device did what, by its own clock.
//!
//! On CUDA a stretch of work stands between two events in its stream. The device stamps them when it comes to them, and they are read
//! later, so nobody waits for the work; but who asks for an event waits until the thread that issues launches has come to it. On WGPU, with
//! its one queue, the runtime tells how long a stretch was, but not when: it sets each stream's clock by the moment at which the stream was
//! first asked.

use crate::device::Device;
use crate::failure::DeviceError;
use cubecl::client::{Client, ProfileWindow};
use cubecl::profile::{ProfileDuration, ProfileTicks, TimingMethod};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// What the runtime says of a stretch whose events cannot be read.
const UNREADABLE: Duration = Duration::from_secs(3600);

/// A stretch of work that was enqueued, to be read when the device is through with it.
pub struct Stretch(ProfileDuration);

impl Stretch {
    /// Waits until the device is through, and gives when it began and ended, since `epoch` of the host's clock (zero for what was
    /// before); nothing if the device did not tell. It begins when the stream comes to the first event: where the stream has nothing else to
    /// do, that is before the host has asked for the first of the work. The length is as exact as the device's clock, the place as a thread
    /// of the host wakes up, for the two clocks are compared once a second.
    pub fn read(self, epoch: Instant) -> Option<(Duration, Duration)> {
        let span = |ticks: ProfileTicks| (ticks.start_duration_since(epoch), ticks.end_duration_since(epoch));
        cubecl::future::block_on(self.0.into_future()).map(span).filter(|(began, ended)| *ended - *began < UNREADABLE)
    }
}

/// A window that is abandoned unless it is closed.
struct Open<'a>(&'a Client, Option<ProfileWindow>);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(window) = self.1.take() {
            self.0.profile_abandon(window);
        }
    }
}

impl Device {
    /// Whether it tells when it did what, on one clock for all streams.
    pub fn tells_when(&self) -> bool {
        matches!(self, Device::Gpu(gpu) if gpu.overlaps)
    }

    /// Runs `work`, and gives the stretch of what it enqueued on this thread's stream; no stretch if the device refused, or does not tell.
    pub fn timed<T>(&self, work: impl FnOnce() -> T) -> (T, Option<Stretch>) {
        let Device::Gpu(gpu) = self else { return (work(), None) };
        if !self.tells_when() {
            return (work(), None);
        }
        let mut open = Open(&gpu.client, gpu.client.profile_start().ok());
        let result = work();
        let closed = open.1.take().and_then(|window| gpu.client.profile_end(window).ok());
        (result, closed.map(Stretch))
    }

    /// Runs `work`, and gives the seconds from where this thread's stream stood before to the end of what `work` enqueued there, by the
    /// device's own clock; `None` on the CPU, and where the device has no such clock. On an idle stream that holds the time that the host
    /// needed to enqueue.
    pub fn profile<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send) -> Result<(T, Option<f64>), DeviceError> {
        let Device::Gpu(gpu) = self else { return Ok((work(), None)) };
        let (result, span) = gpu
            .client
            .profile(|| catch_unwind(AssertUnwindSafe(work)), "work")
            .map_err(|error| DeviceError(format!("{error:?}")))?;
        let result = result.unwrap_or_else(|panic| resume_unwind(panic));
        let by_device = span.timing_method() == TimingMethod::Device;
        let ticks = cubecl::future::block_on(span.into_future());
        Ok((result, ticks.filter(|_| by_device).map(|ticks| ticks.duration().as_secs_f64()).filter(|s| *s > 0.0)))
    }
}
