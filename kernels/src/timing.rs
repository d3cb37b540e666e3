//! Start and end times of work on a device, by the device's own clock.
//!
//! On CUDA a interval of work lies between two events in its stream. The device records the time of an event
//! when it reaches it. The times are read later, so no thread waits for the work. The thread that requests an
//! event waits, however, until the thread that issues launches has processed the request. On WGPU, which has
//! one queue, the runtime reports how long a interval took, but not when it ran: it starts the clock of each
//! stream at the first request on that stream.

use crate::device::Device;
use crate::failure::DeviceError;
use cubecl::client::{Client, ProfileWindow};
use cubecl::profile::{ProfileDuration, ProfileTicks, TimingMethod};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// The runtime reports at least this length for a interval whose events cannot be read.
const UNREADABLE: Duration = Duration::from_secs(3600);

/// A interval of enqueued work, whose times are read after the device has finished it.
pub struct DeviceInterval(ProfileDuration);

impl DeviceInterval {
    /// Waits until the device has finished the work, and returns its start and end relative to `epoch` of the
    /// host's clock (zero for times before `epoch`). Returns `None` if the device reports no times.
    ///
    /// The start is the time at which the stream reaches the first event. On an idle stream that is before
    /// the host enqueues the first launch. The length is as exact as the device's clock. The position in time
    /// is only as exact as the wake-up of a host thread, because the two clocks are compared once a second.
    pub fn read(self, epoch: Instant) -> Option<(Duration, Duration)> {
        let span = |ticks: ProfileTicks| (ticks.start_duration_since(epoch), ticks.end_duration_since(epoch));
        cubecl::future::block_on(self.0.into_future()).map(span).filter(|(began, ended)| *ended - *began < UNREADABLE)
    }
}

/// A profiling window that is abandoned on drop unless it was closed.
struct Open<'a>(&'a Client, Option<ProfileWindow>);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(window) = self.1.take() {
            self.0.profile_abandon(window);
        }
    }
}

impl Device {
    /// Whether the device reports start and end times, on one clock for all streams.
    pub fn tells_when(&self) -> bool {
        matches!(self, Device::Gpu(gpu) if gpu.overlaps)
    }

    /// Runs `work`, and returns its result and the interval of what it enqueued on this thread's stream. There
    /// is no interval if the device reports no times or refuses the request.
    pub fn timed<T>(&self, work: impl FnOnce() -> T) -> (T, Option<DeviceInterval>) {
        let Device::Gpu(gpu) = self else { return (work(), None) };
        if !self.tells_when() {
            return (work(), None);
        }
        let mut open = Open(&gpu.client, gpu.client.profile_start().ok());
        let result = work();
        let closed = open.1.take().and_then(|window| gpu.client.profile_end(window).ok());
        (result, closed.map(DeviceInterval))
    }

    /// Runs `work`, and returns its result and the seconds that this thread's stream needed for what `work`
    /// enqueued, by the device's own clock. The seconds are `None` on the CPU and on devices without such a
    /// clock.
    ///
    /// The time runs from the end of the work that was enqueued before. On an idle stream it includes the
    /// time that the host needed to enqueue.
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
