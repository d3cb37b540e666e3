//! Rules: the host decides, the device computes.
//!
//! A [`Rule`] gets one [`Arrival`] at a time. It sees scalars only, never a tensor, a thread or a clock. It
//! returns a [`Decision`]:
//!
//! * how the gradient enters the server's state ([`Fold`]),
//! * whether the server makes an update ([`Step`]),
//! * which workers get a job on the newest model ([`Start`]),
//! * which running jobs are cancelled and start again.
//!
//! A new rule of this crate is one file with one [`Entry`], one line in [`RULES`], and one row in `ROWS` of
//! `tests/rules.rs`. A rule of another crate is an entry that is passed to [`register`].
//! `docs/write-your-own-rule.md` explains both step by step.

mod decision;
mod entry;
mod keys;
mod needs;
mod spec;
mod support;

mod abs;
mod ace;
mod aced;
mod adasync;
mod adpsgd;
mod asgd;
mod async_diloco;
mod ca2fl;
mod dcasgd;
mod delay_adaptive;
mod diloco;
mod dude;
mod easgd;
mod fadas;
mod fedasync;
mod fedbuff;
mod hogwild;
mod hybrid;
mod hybrid_cyclic;
mod kasync;
mod kbatchasync;
mod kbatchsync;
mod ksync;
mod localsgd;
mod malenia;
mod mifa;
mod minibatch;
mod random;
mod random_waiting;
mod rennala;
mod rescaled;
mod ringleader;
mod ringmaster;
mod rr;
mod sa_adasync;
mod shuffled;
mod staleness;
mod sync;
mod waiting;

pub use decision::{Arrival, Decision, Fold, Start, Step};
pub use entry::{Cost, Entry, entries, register};
pub use keys::{Key, Keys};
pub use needs::{Local, Needs, ServerOptimizer};
pub use spec::RuleSpec;
pub use support::without::goes_on_without_a_worker;

/// All rules of this crate, in the order in which `stagger rules` lists them.
pub const RULES: &[Entry] = &[
    sync::ENTRY,
    asgd::ENTRY,
    waiting::ENTRY,
    random::ENTRY,
    random_waiting::ENTRY,
    shuffled::ENTRY,
    minibatch::ENTRY,
    rr::ENTRY,
    staleness::ENTRY,
    delay_adaptive::ENTRY,
    dude::ENTRY,
    mifa::ENTRY,
    ca2fl::ENTRY,
    ace::ENTRY,
    aced::ENTRY,
    rescaled::ENTRY,
    ksync::ENTRY,
    kbatchsync::ENTRY,
    kasync::ENTRY,
    kbatchasync::ENTRY,
    adasync::ENTRY,
    sa_adasync::ENTRY,
    abs::ENTRY,
    rennala::ENTRY,
    malenia::ENTRY,
    ringmaster::ENTRY,
    ringleader::ENTRY,
    hybrid::ENTRY,
    hybrid_cyclic::ENTRY,
    fedbuff::ENTRY,
    fedasync::ENTRY,
    fadas::ENTRY,
    dcasgd::ENTRY,
    localsgd::ENTRY,
    easgd::ENTRY,
    diloco::ENTRY,
    async_diloco::ENTRY,
    adpsgd::ENTRY,
    hogwild::ENTRY,
];

/// An asynchronous rule: decides about every gradient that arrives at the server.
pub trait Rule: Send {
    /// State on the device and other requirements. By default the rule needs nothing.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// The workers that get a job at version 0, in this order. By default all workers.
    fn begin(&mut self, workers: usize) -> Vec<usize> {
        (0..workers).collect()
    }

    /// Number of local steps of the worker's next job, at most `needs().local.steps`. A shorter job takes
    /// proportionally less simulated time.
    fn steps(&self, _worker: usize) -> u32 {
        self.needs().local.steps
    }

    /// Decides about one arrival.
    fn on_arrival(&mut self, arrival: &Arrival) -> Decision;
}

/// Facts about the run that a rule may use when it is built.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Number of workers n.
    pub workers: usize,
    /// Random seed of the run.
    pub seed: u64,
    /// Learning rate η, without the factor of a schedule.
    pub lr: f64,
    /// Mean job time of each worker under the delay model, in seconds. `None` if real time decides: without a
    /// delay model, and not under the virtual clock.
    pub seconds: Option<Vec<f64>>,
}

impl Setting {
    /// A run of `workers` workers with seed 0, learning rate 0.05 and job times of one second.
    pub fn of(workers: usize) -> Self {
        Setting { workers, seed: 0, lr: 0.05, seconds: Some(vec![1.0; workers]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a rule for `n` workers.
    pub fn rule(text: &str, n: usize) -> Box<dyn Rule> {
        text.parse::<RuleSpec>().unwrap().build(&Setting::of(n)).unwrap()
    }

    /// Passes an arrival from `worker` to a rule. The gradient was computed at `version`; the server is at
    /// version `t`.
    pub fn arrive(rule: &mut dyn Rule, worker: usize, version: u64, t: u64) -> Decision {
        rule.on_arrival(&Arrival { worker, version, t, staleness: t - version, steps: 1, ..Arrival::default() })
    }

    #[test]
    fn rule_specs_round_trip() {
        for text in ["sync", "asgd", "dude", "dude:c=2,init=zero", "shuffled:order=2-0-1"] {
            assert_eq!(text.parse::<RuleSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn every_rule_has_a_head_with_its_source_and_a_test() {
        for entry in RULES {
            let about: Vec<_> = entry.about().collect();
            assert!(about.len() > 3 && about.iter().any(|l| l.contains("20")), "{}: recurrence and year", entry.name);
            assert!(entry.source.contains("#[test]"), "{} has no test", entry.name);
            assert_eq!(RULES.iter().filter(|e| e.name == entry.name).count(), 1);
        }
    }

    /// Compares 10,000 workers with 100. A loop over all workers takes 100 times as long. An ordered set, or
    /// a cache that is too small, takes a few times as long.
    #[test]
    fn an_arrival_at_a_table_costs_the_same_for_any_number_of_workers() {
        let seconds = |name: &str, n: usize| {
            let mut rule = rule(name, n);
            let mut t = 0;
            let began = std::time::Instant::now();
            for k in 0..100_000 {
                t += arrive(&mut *rule, k % n, t - t.min(n as u64 / 2), t).step.is_some() as u64;
            }
            began.elapsed().as_secs_f64()
        };
        // The best of five runs: other load on the machine only makes a run slower.
        let best = |name: &str, n: usize| (0..5).map(|_| seconds(name, n)).fold(f64::INFINITY, f64::min);
        let tables: Vec<_> = RULES.iter().map(|e| e.name).filter(|name| rule(name, 4).needs().tables > 0).collect();
        assert!(tables.len() >= 7, "{tables:?}");
        for name in tables {
            let few = best(name, 100);
            let many = best(name, 10_000);
            println!("{name}: {:.0} and {:.0} ns", 1e4 * few, 1e4 * many);
            assert!(many < 15.0 * few, "{name}: {few} s and {many} s");
        }
    }

    #[test]
    fn errors_name_the_wrong_part() {
        for (text, part) in [
            ("sgd", "unknown"),
            ("asgd:b=1", "no parameter `b`"),
            ("dude:c=0", "c=0"),
            ("dude:c=9", "from 1 to 4"),
            ("dude:c=x", "c=x"),
            ("dude:init=warm", "init=warm"),
            ("dude:c=1,c=2", "twice"),
            ("shuffled:order=0-1", "order=0-1"),
            ("shuffled:order=0-1-2-2", "order=0-1-2-2"),
            ("hybrid:flush=median", "flush=median"),
            ("fedbuff:q=4", "local_lr"),
            ("abs:tau=often", "tau=often"),
            ("ringmaster:r=0", "r=0"),
            ("mifa:available=0", "available=0"),
        ] {
            let built = text.parse::<RuleSpec>().and_then(|s| s.build(&Setting::of(4)).map(|_| ()));
            let error = built.unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
