//! Invariants of the rules under random schedules: the next answer is anybody's, as if job times were arbitrary.

use proptest::prelude::*;
use stagger::rule::{Arrival, Decision, Fold, RULES, Rule, RuleSpec, Setting, Start};
use std::collections::VecDeque;

/// The server's books alone: who computes at which version, who has what queued.
struct Books {
    rule: Box<dyn Rule>,
    /// Who began.
    first: Vec<usize>,
    queues: Vec<VecDeque<u64>>,
    t: u64,
}

/// What one arrival did.
struct Happened {
    worker: usize,
    staleness: u64,
    decision: Decision,
    /// Version after it.
    t: u64,
    /// Who was sent a model by it.
    sent: Vec<usize>,
    /// Version of each worker's running job after it.
    running: Vec<Option<u64>>,
}

impl Books {
    fn new(rule: &str, n: usize, seed: u64) -> Self {
        let setting = Setting { seed, ..Setting::of(n) };
        let mut rule = rule.parse::<RuleSpec>().unwrap().build(&setting).unwrap();
        let mut queues = vec![VecDeque::new(); n];
        let first = rule.begin(n);
        first.iter().for_each(|i| queues[*i].push_back(0));
        Books { rule, first, queues, t: 0 }
    }

    /// The `choice`-th of those who work answers.
    fn next(&mut self, choice: usize) -> Happened {
        let n = self.queues.len();
        let working: Vec<usize> = (0..n).filter(|i| !self.queues[*i].is_empty()).collect();
        assert!(!working.is_empty(), "nobody works: the run would hang");
        let worker = working[choice % working.len()];
        let version = self.queues[worker].pop_front().unwrap();
        let (t, steps) = (self.t, self.rule.steps(worker).max(1));
        assert!(steps <= self.rule.needs().local.steps.max(1));
        let loss = Some(10.0 / (1.0 + t as f64));
        let staleness = t - version;
        let arrival = Arrival { worker, version, t, staleness, time: t as f64, seconds: 1.0, steps, loss };
        let decision = self.rule.on_arrival(&arrival);
        self.t += decision.step.is_some() as u64;
        for &i in &decision.restart {
            assert_ne!(i, worker, "a sender has nothing to restart");
            assert!(!self.queues[i].is_empty(), "worker {i} is restarted but does nothing");
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
        Happened { worker, staleness, decision, t: self.t, sent, running }
    }
}

fn play(rule: &str, n: usize, seed: u64, choices: &[usize]) -> Vec<Happened> {
    let mut books = Books::new(rule, n, seed);
    choices.iter().map(|c| books.next(*c)).collect()
}

/// A schedule: the number of workers, a seed, and who answers next.
fn schedules() -> impl Strategy<Value = (usize, u64, Vec<usize>)> {
    (1..7usize, any::<u64>(), proptest::collection::vec(any::<usize>(), 60..200))
}

/// Answers between two updates, the one with the update being the last of each.
fn rounds(happened: &[Happened]) -> Vec<Vec<usize>> {
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

fn distinct(workers: &[usize]) -> bool {
    (0..workers.len()).all(|k| !workers[..k].contains(&workers[k]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_rule_hangs_or_steps_along_nothing((n, seed, choices) in schedules()) {
        for entry in RULES {
            for h in play(entry.name, n, seed, &choices) {
                // What is dropped takes no step; what steps or is folded is finite.
                let dropped = h.decision.fold == Fold::Drop;
                prop_assert!(!(dropped && h.decision.step.is_some()), "{}", entry.name);
                if let Some(step) = h.decision.step {
                    prop_assert!(step.scale.is_finite() && step.scale >= 0.0 && step.keep.is_finite(), "{}", entry.name);
                }
            }
        }
    }

    #[test]
    fn rules_without_stale_gradients_have_none((n, seed, choices) in schedules()) {
        for entry in RULES {
            let synchronous = Books::new(entry.name, n, seed).rule.needs().synchronous;
            for h in play(entry.name, n, seed, &choices).iter().filter(|_| synchronous) {
                prop_assert_eq!(h.staleness, 0, "{}", entry.name);
            }
        }
    }

    #[test]
    fn k_distinct_workers_contribute_to_ksync_and_kasync((n, seed, choices) in schedules(), k in 1..7usize) {
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
    fn with_k_equal_to_n_the_distinct_rules_are_synchronous_sgd((n, seed, choices) in schedules()) {
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
                sent.insert(0, Books::new(rule, n, seed).first[0]);
            }
            prop_assert!(sent.chunks_exact(n).all(distinct), "{} {:?}", rule, sent);
            if rule.ends_with("once") {
                prop_assert!(sent.chunks_exact(n).all(|round| *round == sent[..n]), "{} {:?}", rule, sent);
            }
        }
    }

    #[test]
    fn after_a_round_of_abs_no_running_job_is_too_stale((n, seed, choices) in schedules(), tau in 0..5u64, a in 1..30u32) {
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
    fn ringmaster_uses_no_gradient_that_is_r_late((n, seed, choices) in schedules(), r in 1..6u64) {
        for h in play(&format!("ringmaster:r={r},stops=true"), n, seed, &choices) {
            prop_assert!(h.decision.step.is_some() && h.running.iter().flatten().all(|v| h.t - v < r));
        }
        for h in play(&format!("ringmaster:r={r},stops=false"), n, seed, &choices) {
            prop_assert_eq!(h.decision.step.is_some(), h.staleness < r);
        }
    }

    #[test]
    fn a_round_of_ringleader_is_one_update_and_one_model_for_each((n, seed, choices) in schedules()) {
        let happened = play("ringleader", n, seed, &choices);
        prop_assert!(happened.iter().all(|h| h.staleness <= 2 * n as u64 - 2));
        let stepped: Vec<usize> = happened.iter().filter(|h| h.decision.step.is_some()).map(|h| h.worker).collect();
        prop_assert!(stepped.chunks_exact(n).all(distinct), "{:?}", stepped);
        for (k, h) in happened.iter().filter(|h| h.decision.step.is_some()).enumerate() {
            prop_assert_eq!(h.decision.swap, (k + 1) % n == 0);
        }
    }

    #[test]
    fn rows_that_count_are_young_in_aced((n, seed, choices) in schedules(), age in 0..9u64) {
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
    fn jobs_are_shared_evenly_by_rules_that_draw((n, seed) in (2..7usize, any::<u64>())) {
        let choices: Vec<usize> = (0..6000).map(|k| k * 31 % 977).collect();
        for rule in ["random", "random-waiting:b=2", "minibatch:b=3"] {
            let mut counts = vec![0f64; n];
            play(rule, n, seed, &choices).iter().flat_map(|h| h.sent.clone()).for_each(|i| counts[i] += 1.0);
            let each = counts.iter().sum::<f64>() / n as f64;
            // Chi-square with n - 1 <= 5 degrees of freedom: 30 is exceeded once in some 70,000.
            let square = counts.iter().map(|c| (c - each).powi(2) / each).sum::<f64>();
            prop_assert!(square < 30.0, "{} {:?}", rule, counts);
        }
    }

    #[test]
    fn workers_are_there_in_mifa_as_often_as_said((n, seed) in (4..9usize, any::<u64>())) {
        let choices: Vec<usize> = (0..8000).map(|k| k * 31 % 977).collect();
        let happened = play("mifa:available=0.7", n, seed, &choices);
        let rounds: Vec<_> = happened.iter().filter(|h| h.decision.step.is_some()).collect();
        let there: usize = rounds.iter().map(|h| h.sent.len()).sum();
        // Empty rounds are drawn again; with four workers or more that is less than one in a hundred.
        let share = there as f64 / (rounds.len() * n) as f64;
        prop_assert!((share - 0.7).abs() < 0.04, "{}", share);
    }
}
