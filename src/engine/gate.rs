//! A gate: lets a few through at a time, in the order of their turns.
//!
//! On a GPU one permit: a device's launches are issued by one thread of the runtime anyway, and more producers only
//! starve it; the kernels of different streams overlap all the same. On the CPU as many as there are cores to compute on,
//! so that workers do not push each other out of the caches.
//!
//! Invariant: nobody waits while a permit is free, and a permit that comes back goes to whose turn is the earliest; of equal turns, to who
//! came first. A worker's turn is its job's: when it began, and of those that began at the same time the lowest worker. Workers that are
//! equally fast then take turns (none computes twice while another waits, and no gradient is older than the others make it), and simulated
//! time finds their gradients in the order in which it asks for them. A job of many steps makes way between two of them, to one at a time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Lets a few through at a time. Clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    turns: Option<Arc<Turns>>,
    /// After so long nobody waits for a permit any more: who has it hangs.
    patience: Option<Duration>,
}

/// A permit. It goes back when it is dropped, even by a panic, so that nobody is locked out for ever.
pub struct Permit(Arc<Turns>);

/// Who is before whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// Before every job.
    First,
    /// A job's: the bits of its time, which is not negative and so ordered as they are, and its worker.
    Job(u64, usize),
}

impl Turn {
    /// The turn of a job of `worker` at this time.
    pub fn at(time: f64, worker: usize) -> Self {
        Turn::Job(time.to_bits(), worker)
    }
}

/// Who is next. It is locked for as long as it takes to look, and nothing panics meanwhile.
struct Turns(Mutex<Next>);

struct Next {
    permits: usize,
    free: usize,
    /// By their turns.
    waiting: VecDeque<(Turn, Arc<Waiting>)>,
}

/// A thread that waits, or has waited.
struct Waiting {
    thread: Thread,
    called: AtomicBool,
}

thread_local! {
    /// This thread, where it waits; it waits at one gate at a time.
    static HERE: Arc<Waiting> = Arc::new(Waiting { thread: std::thread::current(), called: AtomicBool::new(false) });
}

impl Gate {
    /// A gate with `permits` permits.
    pub fn new(permits: usize) -> Self {
        let next = Next { permits, free: permits, waiting: VecDeque::new() };
        Gate { turns: Some(Arc::new(Turns(Mutex::new(next)))), patience: None }
    }

    /// A gate that lets everybody through.
    pub fn open() -> Self {
        Gate { turns: None, patience: None }
    }

    /// The same, where a worker without an answer after so long counts as hanging.
    pub fn patient(self, patience: Option<Duration>) -> Self {
        Gate { patience, ..self }
    }

    /// Waits for a permit. There is none where the gate is open, and where none came in time: who waited goes on without.
    pub fn enter(&self, turn: Turn) -> Option<Permit> {
        self.turns.as_ref()?.wait(self.patience, turn)
    }

    /// Runs `work` with a permit.
    pub fn pass<T>(&self, turn: Turn, work: impl FnOnce() -> T) -> T {
        let _permit = self.enter(turn);
        work()
    }

    /// Runs `work` with the next permit, before all whose turn is a job's.
    pub fn pass_first<T>(&self, work: impl FnOnce() -> T) -> T {
        self.pass(Turn::First, work)
    }

    /// Runs `work` while nobody has a permit: waits for those who have one, and keeps the others out. For the server
    /// alone; two at a time would wait for each other.
    pub fn closed<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some(turns) = &self.turns else { return work() };
        let permits = turns.next().permits;
        let _permits: Vec<Permit> = (0..permits).filter_map(|_| turns.wait(self.patience, Turn::First)).collect();
        work()
    }

    /// A permit in the place of one that a hanging worker may hold.
    pub fn replace_a_permit(&self) {
        self.turns.iter().for_each(|turns| turns.give_back());
    }

    /// From now on everybody is let through, and who waits is called. It cannot be closed any more.
    pub fn leave_open(&self) {
        let Some(turns) = &self.turns else { return };
        let mut next = turns.next();
        (next.permits, next.free) = (usize::MAX, usize::MAX);
        next.waiting.drain(..).for_each(|(_, waiting)| waiting.call());
    }
}

impl Turns {
    fn next(&self) -> MutexGuard<'_, Next> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(self: &Arc<Self>, patience: Option<Duration>, turn: Turn) -> Option<Permit> {
        let mut next = self.next();
        if next.free > 0 {
            next.free -= 1;
            return Some(Permit(self.clone()));
        }
        let here = HERE.with(Arc::clone);
        here.called.store(false, Ordering::Relaxed);
        let place = next.waiting.partition_point(|(other, _)| *other <= turn);
        next.waiting.insert(place, (turn, here.clone()));
        drop(next);
        let until = patience.map(|patience| Instant::now() + patience);
        while !here.called.load(Ordering::Acquire) {
            let Some(until) = until else {
                std::thread::park();
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Called in this very moment, or never: it is called under the lock.
                self.next().waiting.retain(|(_, other)| !Arc::ptr_eq(other, &here));
                break;
            }
            std::thread::park_timeout(left);
        }
        here.called.load(Ordering::Acquire).then(|| Permit(self.clone()))
    }

    fn give_back(&self) {
        let mut next = self.next();
        match next.waiting.pop_front() {
            Some((_, waiting)) => waiting.call(),
            // There is room, unless one was replaced meanwhile.
            None => next.free = next.free.saturating_add(1).min(next.permits),
        }
    }
}

impl Waiting {
    fn call(&self) {
        self.called.store(true, Ordering::Release);
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
        gate.turns.as_ref().unwrap().next().free
    }

    fn job(time: u8) -> Turn {
        Turn::at(time.into(), 0)
    }

    fn waiting(gate: &Gate) -> usize {
        gate.turns.as_ref().unwrap().next().waiting.len()
    }

    #[test]
    fn a_patient_gate_goes_on_without_a_permit_that_never_comes_back() {
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
        // Nobody waits for ever: neither who computes, nor who closes the gate.
        assert_eq!((gate.pass(job(2), || 1), gate.closed(|| 2)), (1, 2));
        assert_eq!(waiting(&gate), 0);
        gate.replace_a_permit();
        let again = Instant::now();
        assert_eq!(gate.pass(job(3), || 3), 3);
        assert!(again.elapsed() < Duration::from_millis(250), "the permit in its place is there at once");
        drop(let_go);
        hangs.join().unwrap();
        // One too many is not kept.
        assert_eq!(gate.closed(|| free(&gate)), 0);
        assert_eq!(free(&gate), 1);
    }

    #[test]
    fn permits_come_back_from_a_panic() {
        let gate = Gate::new(2);
        let fails = |work: &dyn Fn()| assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
        fails(&|| gate.pass(job(1), || panic!("with one permit")));
        fails(&|| gate.closed(|| panic!("with all of them")));
        assert_eq!(free(&gate), 2);
    }

    #[test]
    fn the_earliest_turn_is_next_and_the_server_before_all() {
        let gate = Gate::new(1);
        let (tell, told) = unbounded();
        std::thread::scope(|scope| {
            let permit = gate.enter(job(1));
            // In the order in which they come: of the same turn, who came first.
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
    fn a_gate_is_closed_while_others_wait_for_it() {
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
    fn a_gate_that_is_left_open_keeps_nobody() {
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
