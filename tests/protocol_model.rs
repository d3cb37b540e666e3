//! Promise 16: the protocol between server and workers, in a model whose threads a checker interleaves as it likes.
//!
//! The model has the two bounded channels, the orders and answers, and the server's books (`busy`, `running`, `held`) of `stagger::crew`, and
//! nothing else; jobs are numbers. It holds, in every order of events: no send finds its channel full (I1), every job that is not given up is
//! answered once, none that is given up is, and all threads leave when the outboxes are dropped. A crew that makes a mistake which is
//! easy to make (to send the next job to a worker that has not yet said that it gave up the last) is found out.

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use shuttle::thread;
use std::panic::catch_unwind;

const WORKERS: usize = 2;
const JOBS: u64 = 6;
const SCHEDULES: usize = 20_000;

enum Order {
    Job(u64),
    Cancel(u64),
}

enum Answer {
    Gradient(usize, u64),
    Cancelled(usize),
}

/// As `worker::Worker::run`: between two steps it looks whether its job was given up.
fn work(index: usize, outbox: Receiver<Order>, inbox: SyncSender<Answer>) {
    while let Ok(order) = outbox.recv() {
        let Order::Job(job) = order else { continue };
        let mut answer = Answer::Gradient(index, job);
        for _step in 0..2 {
            match outbox.try_recv() {
                Ok(Order::Cancel(number)) if number == job => {
                    answer = Answer::Cancelled(index);
                    break;
                }
                Ok(Order::Cancel(_)) | Err(TryRecvError::Empty) => {}
                Ok(Order::Job(_)) => panic!("a worker gets its next job after its answer"),
                Err(TryRecvError::Disconnected) => return,
            }
            thread::yield_now();
        }
        // I1: there is room for one message of each worker.
        assert!(inbox.try_send(answer).is_ok(), "the inbox is full or gone");
    }
}

#[derive(Default)]
struct Slot {
    running: Option<u64>,
    busy: bool,
    held: Option<u64>,
    next: u64,
    answered: Vec<u64>,
    given_up: Vec<u64>,
}

/// As `crew::Crew`; with `mistaken` a job is sent at once to whoever was just told to give up.
fn serve(mistaken: bool) {
    let (answer, inbox) = sync_channel(WORKERS);
    let mut outboxes = Vec::new();
    let mut threads = Vec::new();
    for i in 0..WORKERS {
        let (outbox, orders) = sync_channel(3);
        let answer = answer.clone();
        outboxes.push(outbox);
        threads.push(thread::spawn(move || work(i, orders, answer)));
    }
    drop(answer);
    let mut slots: Vec<Slot> = (0..WORKERS).map(|_| Slot::default()).collect();
    let send = |slot: &mut Slot, i: usize, job| {
        slot.busy = true;
        assert!(outboxes[i].try_send(Order::Job(job)).is_ok(), "the outbox is full");
    };
    let assign = |slot: &mut Slot, i: usize| {
        let job = slot.next;
        (slot.running, slot.next) = (Some(job), job + 1);
        if slot.busy && !mistaken {
            slot.held = Some(job);
        } else {
            send(slot, i, job);
        }
    };
    slots.iter_mut().enumerate().for_each(|(i, slot)| assign(slot, i));
    while slots.iter().any(|slot| slot.running.is_some() || slot.busy) {
        // A rule gives somebody up now and then.
        let i = thread_rng().gen_range(0..WORKERS);
        let slot = &mut slots[i];
        if let Some(job) = slot.running.filter(|_| slot.next < JOBS && thread_rng().gen_bool(0.4)) {
            slot.running = None;
            slot.given_up.push(job);
            if slot.held.take().is_none() && slot.busy {
                assert!(outboxes[i].try_send(Order::Cancel(job)).is_ok(), "the outbox has no room for a cancellation");
            }
            assign(slot, i);
        }
        let i = match inbox.recv().expect("somebody has a job") {
            Answer::Gradient(i, job) => {
                slots[i].busy = false;
                if slots[i].running == Some(job) {
                    slots[i].running = None;
                    slots[i].answered.push(job);
                    if slots[i].next < JOBS {
                        assign(&mut slots[i], i);
                    }
                }
                i
            }
            Answer::Cancelled(i) => {
                slots[i].busy = false;
                i
            }
        };
        let busy = slots[i].busy;
        if let Some(job) = slots[i].held.take_if(|_| !busy) {
            send(&mut slots[i], i, job);
        }
    }
    for slot in &slots {
        let mut all = [slot.answered.clone(), slot.given_up.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..slot.next).collect::<Vec<_>>(), "every job is answered or given up, once");
    }
    drop(outboxes);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(inbox.recv().is_err(), "with the last worker the inbox disconnects");
}

#[test]
fn no_order_of_events_breaks_it() {
    shuttle::check_random(|| serve(false), SCHEDULES);
    shuttle::check_pct(|| serve(false), SCHEDULES, 3);
}

#[test]
fn a_planted_mistake_is_found() {
    let found = catch_unwind(|| shuttle::check_random(|| serve(true), SCHEDULES));
    assert!(found.is_err(), "a job that is sent too early went unseen");
}
