//! What a rule does without one of its workers: found out by playing it, so that it cannot be told wrongly.

use super::super::{Arrival, Entry, Keys, Setting};
use std::collections::VecDeque;

/// Workers of the play, the arrival after which the last of them is gone, and arrivals in all.
const WORKERS: usize = 4;
const GONE_AFTER: usize = 40;
const ARRIVALS: usize = 4000;

/// Whether the rule, with its default parameters, makes updates for ever when a worker has gone. If not, it waits for that worker in the
/// end.
pub fn goes_on_without_a_worker(entry: &Entry) -> bool {
    let Ok(mut rule) = (entry.build)(&Keys::default(), &Setting::of(WORKERS)) else { return false };
    let gone = |arrivals: usize, worker: usize| arrivals > GONE_AFTER && worker == WORKERS - 1;
    // Jobs, in the order in which they were given; a worker's own jobs follow each other, as its queue has them.
    let mut jobs: VecDeque<(usize, u64)> = rule.begin(WORKERS).into_iter().map(|i| (i, 0)).collect();
    let (mut t, mut last_step) = (0, 0);
    for arrivals in 0..ARRIVALS {
        let Some((worker, version)) = jobs.pop_front() else { return false };
        if gone(arrivals, worker) {
            continue;
        }
        let steps = rule.steps(worker).max(1);
        let (time, staleness) = (arrivals as f64, t - version);
        let loss = Some(1.0);
        let decision = rule.on_arrival(&Arrival { worker, version, t, staleness, time, seconds: 1.0, steps, loss });
        if decision.step.is_some() {
            (t, last_step) = (t + 1, arrivals);
        }
        decision.follow(&mut jobs, worker, t, WORKERS);
    }
    last_step > ARRIVALS / 2
}

#[cfg(test)]
#[test]
fn barriers_wait_and_others_go_on() {
    let goes_on = |name: &str| goes_on_without_a_worker(super::super::RULES.iter().find(|e| e.name == name).unwrap());
    for (name, expected) in
        [("sync", false), ("asgd", true), ("dude", true), ("malenia", false), ("ringmaster", true), ("random", false)]
    {
        assert_eq!(goes_on(name), expected, "{name}");
    }
}
