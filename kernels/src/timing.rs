//! When a device did what, by its own clock.
//!
//! On CUDA a stretch of work stands between two events in its stream. The device stamps them when it comes to them, and they are read
//! later: nobody waits for anything while the work goes on. On WGPU, with its one queue, the runtime tells how long a stretch was, but not
//! when: it sets each stream's clock by the moment at which the stream was first asked.

use crate::device::Device;
use crate::failure::DeviceError;
use cubecl::client::{Client, ProfileWindow};
use cubecl::profile::{ProfileDuration, ProfileTicks, TimingMethod};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// A stretch of work that was enqueued, to be read when the device is through with it.
pub struct Stretch(ProfileDuration);

impl Stretch {
    /// Waits until the device is through, and gives when it began and ended, since `epoch` of the host's clock (zero for what was
    /// before); nothing if it held no work, or the device did not tell. The beginning is known to some microseconds, as the clock of
    /// the device is set by that of the host once a second; the length as the device's clock has it.
    pub fn read(self, epoch: Instant) -> Option<(Duration, Duration)> {
        let span = |ticks: ProfileTicks| (ticks.start_duration_since(epoch), ticks.end_duration_since(epoch));
        cubecl::future::block_on(self.0.into_future()).map(span).filter(|(began, ended)| ended > began)
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
        matches!(self, Device::Gpu(gpu) if matches!(gpu.device, cubecl::Device::Cuda(_)))
    }

    /// Runs `work`, and gives the stretch of what it enqueued on this thread's stream; no stretch if the device refused, or does not tell.
    /// Nobody waits for it.
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
