//! Invariants of the rules under random schedules. Any busy worker may reply next, as if job times were
//! arbitrary.

use proptest::prelude::*;
use stagger::rule::{Arrival, Decision, Fold, RULES, Rule, RuleSpec, Setting, Start};
use std::collections::VecDeque;

/// The part of the server that rules see: the jobs of each worker and their versions.
struct Schedule {
    rule: Box<dyn Rule>,
    /// Workers that get a job at the start.
    first: Vec<usize>,
    /// Versions of each worker's jobs; the first one is running.
    queues: Vec<VecDeque<u64>>,
    /// Current version.
    t: u64,
}

/// The effect of one arrival.
struct Outcome {
    worker: usize,
    staleness: u64,
    decision: Decision,
    /// Version after the arrival.
    t: u64,
    /// Workers that were sent a model.
    sent: Vec<usize>,
    /// Version of each worker's running job after the arrival.
    running: Vec<Option<u64>>,
}

impl Schedule {
    fn new(rule: &str, n: usize, seed: u64) -> Self {
        let setting = Setting { seed, ..Setting::of(n) };
        let mut rule = rule.parse::<RuleSpec>().unwrap().build(&setting).unwrap();
        let mut queues = vec![VecDeque::new(); n];
        let first = rule.begin(n);
        first.iter().for_each(|i| queues[*i].push_back(0));
        Schedule { rule, first, queues, t: 0 }
    }

    /// The busy worker number `choice` (modulo their number) replies.
    fn next(&mut self, choice: usize) -> Outcome {
        let n = self.queues.len();
        let busy: Vec<usize> = (0..n).filter(|i| !self.queues[*i].is_empty()).collect();
        assert!(!busy.is_empty(), "no worker is busy: the run would hang");
        let worker = busy[choice % busy.len()];
        let version = self.queues[worker].pop_front().unwrap();
        let (t, steps) = (self.t, self.rule.steps(worker).max(1));
        assert!(steps <= self.rule.needs().local.steps.max(1));
        let loss = Some(10.0 / (1.0 + t as f64));
        let staleness = t - version;
        let arrival = Arrival { worker, version, t, staleness, time: t as f64, seconds: 1.0, steps, loss };
        let decision = self.rule.on_arrival(&arrival);
        self.t += decision.step.is_some() as u64;
        for &i in &decision.restart {
            assert_ne!(i, worker, "the sender has no job to restart");
            assert!(!self.queues[i].is_empty(), "worker {i} is restarted but has no job");
            self.queues[i].clear();
        }
        let start = match decision.start.clone() {
            Start::Nobody => vec![],
            Start::Sender => vec![worker],
            Start::Everybody => (0..n).collect(),
            Start::These(who) => who,
        };
        let sent: Vec<usize> = decision.restart.iter().copied().chain(start).collect();
        sent.iter().for_each(|i| self.queues[*i].push_back(self.t));
        let running = self.queues.iter().map(|q| q.front().copied()).collect();
        Outcome { worker, staleness, decision, t: self.t, sent, running }
    }
}

/// Runs a rule on a schedule.
fn play(rule: &str, n: usize, seed: u64, choices: &[usize]) -> Vec<Outcome> {
    let mut schedule = Schedule::new(rule, n, seed);
    choices.iter().map(|c| schedule.next(*c)).collect()
}

/// A random schedule: the number of workers, a seed, and the choices of the next worker.
fn schedules() -> impl Strategy<Value = (usize, u64, Vec<usize>)> {
    (1..7usize, any::<u64>(), proptest::collection::vec(any::<usize>(), 60..200))
}

/// Workers of the arrivals of each update. The last arrival of a round is the one that made the update.
fn rounds(happened: &[Outcome]) -> Vec<Vec<usize>> {
    let mut rounds = vec![vec![]];
    for h in happened {
        rounds.last_mut().unwrap().push(h.worker);
        if h.decision.step.is_some() {
            rounds.push(vec![]);
        }
    }
    rounds.pop();
    rounds
}

/// Whether no worker occurs twice.
fn distinct(workers: &[usize]) -> bool {
    (0..workers.len()).all(|k| !workers[..k].contains(&workers[k]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_rule_hangs_or_updates_with_a_dropped_gradient((n, seed, choices) in schedules()) {
        for entry in RULES {
            for h in play(entry.name, n, seed, &choices) {
                // A dropped gradient makes no update, and the factors of an update are finite.
                let dropped = h.decision.fold == Fold::Drop;
                prop_assert!(!(dropped && h.decision.step.is_some()), "{}", entry.name);
                if let Some(step) = h.decision.step {
                    prop_assert!(step.scale.is_finite() && step.scale >= 0.0 && step.keep.is_finite(), "{}", entry.name);
                }
            }
        }
    }

    #[test]
    fn synchronous_rules_have_no_stale_gradients((n, seed, choices) in schedules()) {
        for entry in RULES {
            let synchronous = Schedule::new(entry.name, n, seed).rule.needs().synchronous;
            for h in play(entry.name, n, seed, &choices).iter().filter(|_| synchronous) {
                prop_assert_eq!(h.staleness, 0, "{}", entry.name);
            }
        }
    }

    #[test]
    fn each_update_uses_k_gradients((n, seed, choices) in schedules(), k in 1..7usize) {
        let k = k.min(n);
        for rule in [format!("ksync:k={k}"), format!("kasync:k={k}"), format!("waiting:b={k}"), format!("ca2fl:b={k}")] {
            let happened = play(&rule, n, seed, &choices);
            for round in rounds(&happened) {
                prop_assert!(round.len() == k && distinct(&round), "{} {:?}", rule, round);
            }
        }
        for rule in [format!("kbatchsync:k={k}"), format!("kbatchasync:k={k}"), format!("rennala:s={k}")] {
            prop_assert!(rounds(&play(&rule, n, seed, &choices)).iter().all(|round| round.len() == k), "{}", rule);
        }
    }

    #[test]
    fn rules_with_k_equal_to_n_are_synchronous_sgd((n, seed, choices) in schedules()) {
        let sync: Vec<_> = play("sync", n, seed, &choices).iter().map(|h| (h.worker, h.t, h.staleness)).collect();
        for rule in [format!("ksync:k={n}"), format!("kasync:k={n}"), format!("dude:c={n}"), format!("ca2fl:b={n}")] {
            let other: Vec<_> = play(&rule, n, seed, &choices).iter().map(|h| (h.worker, h.t, h.staleness)).collect();
            prop_assert_eq!(&sync, &other, "{}", rule);
        }
    }

    #[test]
    fn shuffled_sends_each_worker_one_model_in_n_updates((n, seed, choices) in schedules()) {
        for rule in ["shuffled", "shuffled:once", "rr", "rr:once"] {
            let mut sent: Vec<usize> = play(rule, n, seed, &choices).iter().flat_map(|h| h.sent.clone()).collect();
            if rule.starts_with("rr") {
                sent.insert(0, Schedule::new(rule, n, seed).first[0]);
            }
            prop_assert!(sent.chunks_exact(n).all(distinct), "{} {:?}", rule, sent);
            if rule.ends_with("once") {
                prop_assert!(sent.chunks_exact(n).all(|round| *round == sent[..n]), "{} {:?}", rule, sent);
            }
        }
    }

    #[test]
    fn abs_restarts_jobs_that_are_too_stale((n, seed, choices) in schedules(), tau in 0..5u64, a in 1..30u32) {
        let rule = format!("abs:k0=1,u=2,schedule=step,a={a},tau={tau}");
        let mut k = 0;
        for h in play(&rule, n, seed, &choices) {
            if h.decision.step.is_some() {
                prop_assert!(h.running.iter().flatten().all(|v| h.t - v <= tau), "{:?} at {}", h.running, h.t);
            }
            prop_assert!(h.staleness <= tau);
        }
        // K never falls.
        for round in rounds(&play(&rule, n, seed, &choices)) {
            prop_assert!(round.len() >= k && distinct(&round));
            k = round.len();
        }
    }

    #[test]
    fn ringmaster_uses_no_gradient_of_staleness_r((n, seed, choices) in schedules(), r in 1..6u64) {
        for h in play(&format!("ringmaster:r={r},stops=true"), n, seed, &choices) {
            prop_assert!(h.decision.step.is_some() && h.running.iter().flatten().all(|v| h.t - v < r));
        }
        for h in play(&format!("ringmaster:r={r},stops=false"), n, seed, &choices) {
            prop_assert_eq!(h.decision.step.is_some(), h.staleness < r);
        }
    }

    #[test]
    fn ringleader_round_has_one_update_per_worker((n, seed, choices) in schedules()) {
        let happened = play("ringleader", n, seed, &choices);
        prop_assert!(happened.iter().all(|h| h.staleness <= 2 * n as u64 - 2));
        let stepped: Vec<usize> = happened.iter().filter(|h| h.decision.step.is_some()).map(|h| h.worker).collect();
        prop_assert!(stepped.chunks_exact(n).all(distinct), "{:?}", stepped);
        for (k, h) in happened.iter().filter(|h| h.decision.step.is_some()).enumerate() {
            prop_assert_eq!(h.decision.swap, (k + 1) % n == 0);
        }
    }

    #[test]
    fn aced_averages_only_rows_up_to_max_age((n, seed, choices) in schedules(), age in 0..9u64) {
        let mut rows = vec![None; n];
        let mut t = 0;
        for h in play(&format!("aced:max_age={age}"), n, seed, &choices) {
            if let Fold::Row { forget, .. } = h.decision.fold {
                prop_assert_eq!(forget, rows[h.worker].is_none());
                rows[h.worker] = Some(t - h.staleness);
                for j in &h.decision.retire {
                    prop_assert!(rows[*j].take().is_some());
                }
                prop_assert!(rows.iter().flatten().all(|v: &u64| t - v <= age));
                if let Some(step) = h.decision.step {
                    prop_assert_eq!(step.scale, 1.0 / rows.iter().flatten().count() as f64);
                }
            }
            t = h.t;
        }
    }

    #[test]
    fn random_rules_assign_jobs_evenly((n, seed) in (2..7usize, any::<u64>())) {
        let choices: Vec<usize> = (0..6000).map(|k| k * 31 % 977).collect();
        for rule in ["random", "random-waiting:b=2", "minibatch:b=3"] {
            let mut counts = vec![0f64; n];
            play(rule, n, seed, &choices).iter().flat_map(|h| h.sent.clone()).for_each(|i| counts[i] += 1.0);
            let each = counts.iter().sum::<f64>() / n as f64;
            // Chi-square with n - 1 <= 5 degrees of freedom exceeds 30 about once in 70,000.
            let square = counts.iter().map(|c| (c - each).powi(2) / each).sum::<f64>();
            prop_assert!(square < 30.0, "{} {:?}", rule, counts);
        }
    }

    #[test]
    fn mifa_workers_are_available_as_often_as_set((n, seed) in (4..9usize, any::<u64>())) {
        let choices: Vec<usize> = (0..8000).map(|k| k * 31 % 977).collect();
        let happened = play("mifa:available=0.7", n, seed, &choices);
        let rounds: Vec<_> = happened.iter().filter(|h| h.decision.step.is_some()).collect();
        let available: usize = rounds.iter().map(|h| h.sent.len()).sum();
        // Empty rounds are drawn again. With four workers or more, these are less than one in a hundred.
        let share = available as f64 / (rounds.len() * n) as f64;
        prop_assert!((share - 0.7).abs() < 0.04, "{}", share);
    }
}
