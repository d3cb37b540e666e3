//! Rules: the host decides, the device computes.
//!
//! A [`Rule`] sees one [`Arrival`] at a time, scalars only, and answers with a [`Decision`]: how the gradient is folded
//! into the server's state (admission and accumulation), whether the server steps (trigger), who starts on the newest
//! model (assignment), and whose running job is given up (preemption). It never sees a tensor, a thread or a clock.
//!
//! A new rule is one file with one `Entry`, one line in [`RULES`], and one row in the battery of `tests/rules.rs`.

mod asgd;
mod dude;
mod sync;

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A gradient that has arrived, as far as a rule may know it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Who computed it, from 0.
    pub worker: usize,
    /// The version v at which it was computed.
    pub version: u64,
    /// The server's version t before any update.
    pub t: u64,
    /// t - v (invariant I4: measured by the server).
    pub staleness: u64,
    /// The arrival's time on the run's axis, in seconds.
    pub time: f64,
}

/// How a gradient enters the server's state; see `stagger_kernels::update` for the arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fold {
    /// Not at all.
    Drop,
    /// It is the step's direction itself.
    Direct,
    /// s += scale · g.
    Sum {
        /// Factor of the gradient.
        scale: f64,
    },
    /// s += scale · (g - row), row = g, with the sender's row of the table.
    Table {
        /// Factor of the row's change.
        scale: f64,
    },
}

/// A server update: w -= η · scale · direction, and then s *= keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Factor of the learning rate.
    pub scale: f64,
    /// What remains of the sum.
    pub keep: f64,
}

/// Who begins a job on the newest model. A busy worker queues it, with the snapshot of that moment.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// Nobody.
    Nobody,
    /// The worker whose gradient arrived.
    Sender,
    /// Every worker.
    Everybody,
    /// These, in this order.
    These(Vec<usize>),
}

/// A rule's answer to an arrival.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// How the gradient is folded.
    pub fold: Fold,
    /// The update, if the rule fires.
    pub step: Option<Step>,
    /// Who starts.
    pub start: Start,
    /// Whose running job is given up; each begins anew on the newest model. A queued job of theirs is given up too.
    pub restart: Vec<usize>,
}

impl Decision {
    /// Step along the gradient and send the new model back to its sender.
    pub fn direct() -> Self {
        Decision {
            fold: Fold::Direct,
            step: Some(Step { scale: 1.0, keep: 1.0 }),
            start: Start::Sender,
            restart: Vec::new(),
        }
    }

    /// Fold without a step; nobody starts.
    pub fn fold(fold: Fold) -> Self {
        Decision { fold, step: None, start: Start::Nobody, restart: Vec::new() }
    }

    /// Adds a step that leaves `keep` of the sum, after which `start` begin.
    pub fn step(self, keep: f64, start: Start) -> Self {
        Decision { step: Some(Step { scale: 1.0, keep }), start, ..self }
    }
}

/// The state that a rule needs on the device, in copies of the parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// A running sum.
    pub sum: bool,
    /// A row per worker.
    pub table: bool,
    /// Local steps per job, if the rule's workers take any (0 and 1: a plain gradient).
    pub local_steps: u32,
}

/// An asynchronous rule.
pub trait Rule: Send {
    /// State on the device.
    fn needs(&self) -> Needs;

    /// Who gets a job at version 0, in this order; everybody unless a rule says otherwise.
    fn begin(&mut self, workers: usize) -> Vec<usize> {
        (0..workers).collect()
    }

    /// Decides about one arrival.
    fn on_arrival(&mut self, arrival: &Arrival) -> Decision;
}

/// A parameter of a rule.
pub struct Key {
    /// Its name in `--rule name:key=value`.
    pub name: &'static str,
    /// What it is when not given.
    pub default: &'static str,
    /// One line.
    pub meaning: &'static str,
}

/// A rule in the table.
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Authors and year.
    pub paper: &'static str,
    /// Parameters.
    pub keys: &'static [Key],
    /// Makes the rule for a number of workers.
    pub build: fn(&Keys, usize) -> Result<Box<dyn Rule>>,
}

/// Every rule.
pub const RULES: &[Entry] = &[sync::ENTRY, asgd::ENTRY, dude::ENTRY];

/// A rule's name and parameters, as given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    name: String,
    keys: Keys,
}

/// The parameters of one rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(BTreeMap<String, String>);

impl Keys {
    /// A whole number within `range`, or `default`.
    pub fn count(&self, key: &str, default: usize, range: std::ops::RangeInclusive<usize>) -> Result<usize> {
        let Some(text) = self.0.get(key) else { return Ok(default) };
        text.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| {
            Error::usage(format!(
                "--rule: {key}={text} must be a whole number from {} to {}",
                range.start(),
                range.end()
            ))
        })
    }

    /// One of `choices`, the first being the default.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<T> {
        let Some(text) = self.0.get(key) else { return Ok(choices[0].1) };
        choices.iter().find(|(name, _)| name == text).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            Error::usage(format!("--rule: {key}={text} must be one of {}", names.join(", ")))
        })
    }
}

impl FromStr for RuleSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, list) = text.split_once(':').unwrap_or((text, ""));
        let entry = RULES.iter().find(|e| e.name == name).ok_or_else(|| {
            let names: Vec<_> = RULES.iter().map(|e| e.name).collect();
            Error::usage(format!(
                "--rule `{name}` is unknown; there are {} (`stagger rules` lists them)",
                names.join(", ")
            ))
        })?;
        let mut keys = Keys::default();
        for item in list.split(',').filter(|i| !i.is_empty()) {
            let (key, value) = item.split_once('=').unwrap_or((item, "true"));
            if !entry.keys.iter().any(|k| k.name == key) {
                let known: Vec<_> = entry.keys.iter().map(|k| k.name).collect();
                let known =
                    if known.is_empty() { "it has none".into() } else { format!("it has {}", known.join(", ")) };
                return Err(Error::usage(format!("--rule {name}: no parameter `{key}`; {known}")));
            }
            if keys.0.insert(key.into(), value.into()).is_some() {
                return Err(Error::usage(format!("--rule {name}: `{key}` is given twice")));
            }
        }
        Ok(RuleSpec { name: name.into(), keys })
    }
}

impl fmt::Display for RuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.name)?;
        for (k, (key, value)) in self.keys.0.iter().enumerate() {
            write!(f, "{}{key}={value}", if k == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}

impl RuleSpec {
    /// The rule's name without parameters.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes the rule for `workers` workers, or says which parameter is out of range.
    pub fn build(&self, workers: usize) -> Result<Box<dyn Rule>> {
        let entry = RULES.iter().find(|e| e.name == self.name).expect("parsed names are in the table");
        (entry.build)(&self.keys, workers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds (worker, version, t) to a rule.
    pub fn arrive(rule: &mut dyn Rule, worker: usize, version: u64, t: u64) -> Decision {
        rule.on_arrival(&Arrival { worker, version, t, staleness: t - version, time: 0.0 })
    }

    #[test]
    fn specs_are_read_and_written() {
        for text in ["sync", "asgd", "dude", "dude:c=2,init=zero"] {
            assert_eq!(text.parse::<RuleSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("sgd", "unknown"),
            ("asgd:b=1", "no parameter `b`"),
            ("dude:c=0", "c=0"),
            ("dude:c=9", "from 1 to 4"),
            ("dude:c=x", "c=x"),
            ("dude:init=warm", "init=warm"),
            ("dude:c=1,c=2", "twice"),
        ] {
            let built = text.parse::<RuleSpec>().and_then(|s| s.build(4).map(|_| ()));
            let error = built.unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
