//! A gate: limits how many workers compute at the same time, and decides in which order they compute.
//!
//! On a GPU there is one permit. One thread of the runtime issues all launches of a device, and more
//! producers only take time away from it. The kernels of different streams overlap anyway. On the CPU there
//! are as many permits as workers that the cores can compute, so that workers do not evict each other's data
//! from the caches.
//!
//! Invariant: no worker waits while a permit is free. A returned permit goes to the waiting worker with the
//! earliest turn. Among equal turns it goes to the one that came first.
//!
//! The turn of a worker is the start time of its job; if several jobs start at the same time, the lowest
//! worker is first. Workers of equal speed therefore take turns: none computes twice while another one waits,
//! and no gradient becomes older than necessary. Under simulated time, gradients are ready in the order in
//! which the clock asks for them. A job with several local steps returns its permit between two steps, so one
//! other worker can compute there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Limits how many threads work at the same time. Clones share the permits.
#[derive(Clone)]
pub struct Gate {
    /// `None` if the gate is open.
    permits: Option<Arc<Permits>>,
    /// Longest wait for a permit. After it the thread continues without one, because the holder hangs.
    patience: Option<Duration>,
}

/// A permit. Dropping it returns it, also during a panic, so that no thread waits forever.
pub struct Permit(Arc<Permits>);

/// The order in which waiting threads get permits: the smallest is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// Before every job.
    First,
    /// The turn of a job: the bits of its start time and its worker. The time is not negative, so its bits
    /// have the order of the times.
    Job(u64, usize),
}

impl Turn {
    /// The turn of a job of `worker` that starts at `time`, in seconds (at least 0).
    pub fn at(time: f64, worker: usize) -> Self {
        Turn::Job(time.to_bits(), worker)
    }
}

/// The permits of a gate. The lock is held only for short operations, and none of them panics.
struct Permits(Mutex<Queue>);

struct Queue {
    /// Number of permits.
    total: usize,
    /// Number of permits that no thread holds.
    free: usize,
    /// Waiting threads in the order of their turns.
    waiting: VecDeque<(Turn, Arc<Waiter>)>,
}

/// A thread that waits for a permit, or has waited.
struct Waiter {
    thread: Thread,
    /// Whether the thread was given a permit.
    has_permit: AtomicBool,
}

thread_local! {
    /// This thread as a waiter. A thread waits at one gate at a time.
    static THIS_THREAD: Arc<Waiter> =
        Arc::new(Waiter { thread: std::thread::current(), has_permit: AtomicBool::new(false) });
}

impl Gate {
    /// A gate with `permits` permits.
    pub fn new(permits: usize) -> Self {
        let queue = Queue { total: permits, free: permits, waiting: VecDeque::new() };
        Gate { permits: Some(Arc::new(Permits(Mutex::new(queue)))), patience: None }
    }

    /// A gate without a limit: every thread passes.
    pub fn open() -> Self {
        Gate { permits: None, patience: None }
    }

    /// Sets the longest wait for a permit. A worker that keeps its permit for longer hangs. `None`: threads
    /// wait forever.
    pub fn patient(self, patience: Option<Duration>) -> Self {
        Gate { patience, ..self }
    }

    /// Waits for a permit. Returns `None` if the gate is open, or after the longest wait; the caller
    /// continues without a permit then.
    pub fn enter(&self, turn: Turn) -> Option<Permit> {
        self.permits.as_ref()?.wait(self.patience, turn)
    }

    /// Runs `work` with a permit.
    pub fn pass<T>(&self, turn: Turn, work: impl FnOnce() -> T) -> T {
        let _permit = self.enter(turn);
        work()
    }

    /// Runs `work` with the next permit, before all waiting jobs.
    pub fn pass_first<T>(&self, work: impl FnOnce() -> T) -> T {
        self.pass(Turn::First, work)
    }

    /// Runs `work` while no other thread has a permit: takes all permits and returns them afterwards. Only
    /// the server may call it, because two callers at the same time would wait for each other.
    pub fn closed<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some(permits) = &self.permits else { return work() };
        let total = permits.lock().total;
        let _all: Vec<Permit> = (0..total).filter_map(|_| permits.wait(self.patience, Turn::First)).collect();
        work()
    }

    /// Adds a permit to replace the one that a hung worker may hold.
    pub fn replace_a_permit(&self) {
        self.permits.iter().for_each(|permits| permits.give_back());
    }

    /// Lets every thread pass from now on, and wakes the waiting ones. Afterwards the gate cannot be closed.
    pub fn leave_open(&self) {
        let Some(permits) = &self.permits else { return };
        let mut queue = permits.lock();
        (queue.total, queue.free) = (usize::MAX, usize::MAX);
        queue.waiting.drain(..).for_each(|(_, waiter)| waiter.grant());
    }
}

impl Permits {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(self: &Arc<Self>, patience: Option<Duration>, turn: Turn) -> Option<Permit> {
        let mut queue = self.lock();
        if queue.free > 0 {
            queue.free -= 1;
            return Some(Permit(self.clone()));
        }
        let this = THIS_THREAD.with(Arc::clone);
        this.has_permit.store(false, Ordering::Relaxed);
        let place = queue.waiting.partition_point(|(other, _)| *other <= turn);
        queue.waiting.insert(place, (turn, this.clone()));
        drop(queue);
        let until = patience.map(|patience| Instant::now() + patience);
        while !this.has_permit.load(Ordering::Acquire) {
            let Some(until) = until else {
                std::thread::park();
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Permits are granted under the lock: after this line the thread has one, or gets none.
                self.lock().waiting.retain(|(_, other)| !Arc::ptr_eq(other, &this));
                break;
            }
            std::thread::park_timeout(left);
        }
        this.has_permit.load(Ordering::Acquire).then(|| Permit(self.clone()))
    }

    fn give_back(&self) {
        let mut queue = self.lock();
        match queue.waiting.pop_front() {
            Some((_, waiter)) => waiter.grant(),
            // A permit that was replaced and then comes back is one too many.
            None => queue.free = queue.free.saturating_add(1).min(queue.total),
        }
    }
}

impl Waiter {
    /// Gives the thread a permit and wakes it.
    fn grant(&self) {
        self.has_permit.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{bounded, unbounded};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn free(gate: &Gate) -> usize {
        gate.permits.as_ref().unwrap().lock().free
    }

    fn job(time: u8) -> Turn {
        Turn::at(time.into(), 0)
    }

    fn waiting(gate: &Gate) -> usize {
        gate.permits.as_ref().unwrap().lock().waiting.len()
    }

    #[test]
    fn thread_continues_without_a_permit_after_the_longest_wait() {
        let gate = Gate::new(1).patient(Some(Duration::from_millis(300)));
        let (let_go, held) = bounded::<()>(1);
        let (hold, (begins, began)) = (gate.clone(), bounded::<()>(1));
        let hangs = std::thread::spawn(move || {
            hold.pass(job(1), || {
                begins.send(()).unwrap();
                let _ = held.recv();
            })
        });
        began.recv().unwrap();
        // Neither a worker nor the server, which closes the gate, waits forever.
        assert_eq!((gate.pass(job(2), || 1), gate.closed(|| 2)), (1, 2));
        assert_eq!(waiting(&gate), 0);
        gate.replace_a_permit();
        let again = Instant::now();
        assert_eq!(gate.pass(job(3), || 3), 3);
        assert!(again.elapsed() < Duration::from_millis(250), "the replacement is available at once");
        drop(let_go);
        hangs.join().unwrap();
        // The permit of the hung thread is one too many and is not kept.
        assert_eq!(gate.closed(|| free(&gate)), 0);
        assert_eq!(free(&gate), 1);
    }

    #[test]
    fn panic_returns_the_permits() {
        let gate = Gate::new(2);
        let fails = |work: &dyn Fn()| assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
        fails(&|| gate.pass(job(1), || panic!("with one permit")));
        fails(&|| gate.closed(|| panic!("with all permits")));
        assert_eq!(free(&gate), 2);
    }

    #[test]
    fn earliest_turn_gets_the_permit_and_the_server_is_first() {
        let gate = Gate::new(1);
        let (tell, told) = unbounded();
        std::thread::scope(|scope| {
            let permit = gate.enter(job(1));
            // The threads come in this order. Of two equal turns, the one that came first is first.
            for (i, turn) in [job(7), job(3), Turn::First, job(5), job(3), job(9)].into_iter().enumerate() {
                let (gate, tell) = (&gate, tell.clone());
                scope.spawn(move || match turn {
                    Turn::First => gate.pass_first(|| tell.send(i).unwrap()),
                    _ => gate.pass(turn, || tell.send(i).unwrap()),
                });
                while waiting(gate) <= i {
                    std::thread::yield_now();
                }
            }
            drop(permit);
        });
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [2, 1, 4, 3, 0, 5]);
        assert!(
            Turn::First < Turn::at(0.0, 0)
                && Turn::at(0.5, 9) < Turn::at(10.0, 1)
                && Turn::at(1.0, 1) < Turn::at(1.0, 2)
        );
        assert_eq!(free(&gate), 1);
    }

    #[test]
    fn closed_gate_keeps_waiting_threads_out() {
        let gate = Gate::new(3);
        let inside = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for i in 0..6 {
                let (gate, inside) = (&gate, &inside);
                scope.spawn(move || {
                    (0..2000).for_each(|_| {
                        gate.pass(job(i), || assert!(!inside.load(Ordering::SeqCst), "the gate is closed"))
                    })
                });
            }
            for _ in 0..200 {
                gate.closed(|| {
                    inside.store(true, Ordering::SeqCst);
                    std::thread::yield_now();
                    inside.store(false, Ordering::SeqCst);
                });
            }
        });
        assert_eq!((free(&gate), waiting(&gate)), (3, 0));
    }

    #[test]
    fn gate_that_is_left_open_lets_all_threads_pass() {
        let gate = Gate::new(1);
        std::thread::scope(|scope| {
            let _kept = gate.enter(job(1));
            (0..3).for_each(|_| _ = scope.spawn(|| gate.pass(job(1), || gate.pass(job(1), || ()))));
            while waiting(&gate) < 3 {
                std::thread::yield_now();
            }
            gate.leave_open();
        });
        assert_eq!(waiting(&gate), 0);
    }
}
