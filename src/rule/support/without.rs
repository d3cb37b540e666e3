//! Whether a rule continues without one of its workers. A short simulation of the rule answers this, so the
//! answer cannot contradict the code.

use super::super::{Arrival, Entry, Keys, Setting};
use std::collections::VecDeque;

/// Number of workers in the simulation.
const WORKERS: usize = 4;
/// The worker that fails.
const FAILED: usize = WORKERS - 1;
/// The worker fails after this arrival.
const FAILS_AFTER: usize = 40;
/// Number of arrivals in the simulation.
const ARRIVALS: usize = 4000;

/// Whether the rule, with its default parameters, still makes updates after a worker has failed. If not, the
/// rule waits for that worker for ever.
pub fn goes_on_without_a_worker(entry: &Entry) -> bool {
    let Ok(mut rule) = (entry.build)(&Keys::default(), &Setting::of(WORKERS)) else { return false };
    // Jobs as (worker, version), in the order in which they were assigned. All jobs take the same time.
    let mut jobs: VecDeque<(usize, u64)> = rule.begin(WORKERS).into_iter().map(|i| (i, 0)).collect();
    let mut t = 0;
    let mut last_step = 0;
    for arrivals in 0..ARRIVALS {
        let Some((worker, version)) = jobs.pop_front() else { return false };
        if arrivals > FAILS_AFTER && worker == FAILED {
            continue;
        }
        let arrival = Arrival {
            worker,
            version,
            t,
            staleness: t - version,
            time: arrivals as f64,
            seconds: 1.0,
            steps: rule.steps(worker).max(1),
            loss: Some(1.0),
        };
        let decision = rule.on_arrival(&arrival);
        if decision.step.is_some() {
            t += 1;
            last_step = arrivals;
        }
        decision.follow(&mut jobs, worker, t, WORKERS);
    }
    last_step > ARRIVALS / 2
}

#[cfg(test)]
mod tests {
    use super::super::super::RULES;
    use super::*;

    #[test]
    fn rules_with_a_barrier_wait_and_others_continue() {
        let goes_on = |name: &str| goes_on_without_a_worker(RULES.iter().find(|e| e.name == name).unwrap());
        for (name, expected) in [
            ("sync", false),
            ("asgd", true),
            ("dude", true),
            ("malenia", false),
            ("ringmaster", true),
            ("random", false),
        ] {
            assert_eq!(goes_on(name), expected, "{name}");
        }
    }
}
