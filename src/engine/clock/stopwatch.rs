//! The real time of a run: seconds since its start, without evaluations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Value of `paused_at` while the stopwatch runs.
const RUNNING: u64 = u64::MAX;

/// Measures the time since the start, without pauses. Server and workers share it.
///
/// Invariant: `paused_at` is `RUNNING`, or the time at which the stopwatch is paused, in nanoseconds.
#[derive(Debug)]
pub struct Stopwatch {
    start: Instant,
    /// Time that the stopwatch showed at the start, in nanoseconds.
    before: u64,
    /// Nanoseconds of finished pauses.
    pauses: AtomicU64,
    paused_at: AtomicU64,
    /// Start and length of each finished pause, in nanoseconds. The starts count real time from `start`.
    past: Mutex<Vec<(u64, u64)>>,
}

impl Default for Stopwatch {
    fn default() -> Self {
        let (pauses, paused_at, past) = (AtomicU64::new(0), AtomicU64::new(RUNNING), Mutex::default());
        Stopwatch { start: Instant::now(), before: 0, pauses, paused_at, past }
    }
}

impl Stopwatch {
    /// A stopwatch that shows `seconds` now, for a resumed run.
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

    /// The time in seconds.
    pub fn seconds(&self) -> f64 {
        self.nanos() as f64 * 1e-9
    }

    /// Time until the stopwatch shows `seconds`, at most an hour. `None` if it shows that time already.
    pub fn until(&self, seconds: f64) -> Option<Duration> {
        let left = seconds - self.seconds();
        (left > 0.0).then(|| Duration::from_secs_f64(left.min(3600.0)))
    }

    /// The instant at which it started.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// The time in seconds that it showed when the real time `after` had passed since [`Stopwatch::start`].
    pub fn showed(&self, after: Duration) -> f64 {
        let after = after.as_nanos() as u64;
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let stood: u64 = past.iter().map(|(began, long)| after.saturating_sub(*began).min(*long)).sum();
        (self.before + after - stood) as f64 * 1e-9
    }

    /// Runs `work` while the stopwatch is paused.
    pub fn paused<T>(&self, work: impl FnOnce() -> T) -> T {
        self.paused_at.store(self.nanos(), Ordering::Release);
        let began = Instant::now();
        let result = work();
        let pause = ((began - self.start).as_nanos() as u64, began.elapsed().as_nanos() as u64);
        self.past.lock().unwrap_or_else(PoisonError::into_inner).push(pause);
        self.pauses.fetch_add(pause.1, Ordering::AcqRel);
        self.paused_at.store(RUNNING, Ordering::Release);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paused_stopwatch_does_not_advance() {
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
        // 10 ms lie inside the pause, which takes 20 ms; 30 ms lie 10 ms after its end.
        let began = Duration::from_secs_f64(start);
        let showed = [10, 30].map(|after| clock.showed(began + Duration::from_millis(after)) - start);
        assert!((0.0..1e-3).contains(&showed[0]) && (0.002..0.0101).contains(&showed[1]), "{showed:?}");
    }
}
