//! The wall clock of a run: seconds since its start, without the time spent on evaluation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
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
    /// When each pause began and how long it was, in nanoseconds since the start.
    past: Mutex<Vec<(u64, u64)>>,
}

impl Default for Stopwatch {
    fn default() -> Self {
        let (pauses, paused_at, past) = (AtomicU64::new(0), AtomicU64::new(RUNNING), Mutex::default());
        Stopwatch { start: Instant::now(), before: 0, pauses, paused_at, past }
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

    /// When it began to run.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// Seconds that it showed so long after its start.
    pub fn showed(&self, after: Duration) -> f64 {
        let after = after.as_nanos() as u64;
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let stood: u64 = past.iter().map(|(began, long)| after.saturating_sub(*began).min(*long)).sum();
        (self.before + after - stood) as f64 * 1e-9
    }

    /// Runs `work` while the clock stands still.
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
        // In the middle of the pause, and as far behind its end.
        let began = Duration::from_secs_f64(start);
        let showed = [10, 30].map(|after| clock.showed(began + Duration::from_millis(after)) - start);
        assert!((0.0..1e-3).contains(&showed[0]) && (0.002..0.0101).contains(&showed[1]), "{showed:?}");
    }
}
