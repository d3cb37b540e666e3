//! The wall clock of a run: seconds since its start, without the time spent on evaluation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const RUNNING: u64 = u64::MAX;

/// Seconds since the start, pauses left out. Shared by server and workers.
///
/// Invariant: `paused_at` is `RUNNING`, or the reading at which the clock stands still.
#[derive(Debug)]
pub struct Stopwatch {
    start: Instant,
    /// Nanoseconds that it showed then.
    before: u64,
    /// Nanoseconds of finished pauses.
    pauses: AtomicU64,
    paused_at: AtomicU64,
}

impl Default for Stopwatch {
    fn default() -> Self {
        Stopwatch { start: Instant::now(), before: 0, pauses: AtomicU64::new(0), paused_at: AtomicU64::new(RUNNING) }
    }
}

impl Stopwatch {
    /// A clock that shows `seconds` now, for a run that goes on.
    pub fn showing(seconds: f64) -> Self {
        Stopwatch { before: (seconds.max(0.0) * 1e9) as u64, ..Stopwatch::default() }
    }

    fn nanos(&self) -> u64 {
        match self.paused_at.load(Ordering::Acquire) {
            RUNNING => (self.before + self.start.elapsed().as_nanos() as u64)
                .saturating_sub(self.pauses.load(Ordering::Acquire)),
            stopped => stopped,
        }
    }

    /// Seconds on the clock.
    pub fn seconds(&self) -> f64 {
        self.nanos() as f64 * 1e-9
    }

    /// Time left until the clock shows `seconds`; `None` once it does.
    pub fn until(&self, seconds: f64) -> Option<Duration> {
        let left = seconds - self.seconds();
        (left > 0.0).then(|| Duration::from_secs_f64(left.min(3600.0)))
    }

    /// Runs `work` while the clock stands still.
    pub fn paused<T>(&self, work: impl FnOnce() -> T) -> T {
        self.paused_at.store(self.nanos(), Ordering::Release);
        let began = Instant::now();
        let result = work();
        self.pauses.fetch_add(began.elapsed().as_nanos() as u64, Ordering::AcqRel);
        self.paused_at.store(RUNNING, Ordering::Release);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_still_while_paused() {
        let clock = Stopwatch::default();
        let before = clock.seconds();
        let (start, inside) = clock.paused(|| {
            let start = clock.seconds();
            let spun = Instant::now();
            while spun.elapsed() < Duration::from_millis(20) {}
            (start, clock.seconds())
        });
        assert_eq!(start, inside);
        assert!(start >= before && clock.seconds() - start < 0.015);
    }
}
