//! Rules: the host decides, the device computes.
//!
//! A [`Rule`] sees one [`Arrival`] at a time, scalars only, and answers with a [`Decision`]: how the gradient is folded
//! into the server's state (admission and accumulation), whether the server steps (trigger), who starts on the newest
//! model (assignment), and whose running job is given up (preemption). It never sees a tensor, a thread or a clock.
//!
//! A new rule is one file with one [`Entry`], one line in [`RULES`], and one row in the battery of `tests/rules.rs`; from
//! outside the library it is an entry that [`register`] is told of. `docs/write-your-own-rule.md` goes through it.

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
mod support;
mod sync;
mod waiting;

pub use support::without::goes_on_without_a_worker;

use crate::error::{Error, Result};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;

/// A gradient that has arrived, as far as a rule may know it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
    /// How long the job took on that axis, in seconds.
    pub seconds: f64,
    /// Local steps that the job consisted of; 1 for a plain gradient.
    pub steps: u32,
    /// Mean batch loss of a recent block of arrivals, for rules that ask for it ([`Needs::loss`]); none before the first.
    pub loss: Option<f64>,
}

/// How a gradient enters the server's state; see `stagger_kernels::update` and `mixing` for the arithmetic.
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
    /// r' = r + mix · (g - r), s += scale · (r' - r), with the sender's row r of a table.
    Row {
        /// The table: 0, or 1 for the second, which has a sum of its own.
        table: usize,
        /// 1 replaces the row; 1/B makes it the mean of B gradients.
        mix: f64,
        /// Factor of the row's change.
        scale: f64,
        /// What the row held is not in the sum: r counts as 0.
        forget: bool,
    },
    /// The direction g + λ g² (w - x) with the model x that the worker was sent.
    Compensated {
        /// λ.
        lambda: f64,
        /// m of the running square q = m q + (1 - m) g² that divides λ by its root, in the adaptive form.
        decay: Option<f64>,
    },
    /// w' = w + α (x - η g - w) with the model x that the worker was sent.
    Towards {
        /// α.
        alpha: f64,
    },
    /// Server and the worker's own model x pull at each other: y = x - η g, x' = y - α (y - w), w' = w + α (y - w).
    Elastic {
        /// α.
        alpha: f64,
    },
    /// The worker's own model and a peer's are averaged, then the worker steps; w follows the mean of all.
    Pair {
        /// The other worker, if there is one.
        peer: Option<usize>,
    },
    /// The worker has already written the shared weights itself.
    Live,
}

impl Fold {
    /// The sender's row of the first table is replaced, and the sum follows with `scale`.
    pub fn row(scale: f64) -> Self {
        Fold::Row { table: 0, mix: 1.0, scale, forget: false }
    }
}

/// A server update: w -= η · rate · (scale · direction, through weight decay and momentum), and then s *= keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Factor of the direction: what this gradient, or this sum, counts.
    pub scale: f64,
    /// Factor of the learning rate: how far this step goes, whatever its direction.
    pub rate: f64,
    /// What remains of the sum.
    pub keep: f64,
    /// With a base b ([`Needs::base`]): the direction is s + b, and b moves by this much of s.
    pub follow: Option<f64>,
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
    /// Workers whose rows leave the sum with this fold (their next row is folded with `forget`).
    pub retire: Vec<usize>,
    /// The update, if the rule fires.
    pub step: Option<Step>,
    /// After it, the second table and its sum take the place of the first, and the second is empty.
    pub swap: bool,
    /// Who starts.
    pub start: Start,
    /// Whose running job is given up; each begins anew on the newest model. A queued job of theirs is given up too.
    pub restart: Vec<usize>,
}

impl Decision {
    /// Step along the gradient and send the new model back to its sender.
    pub fn direct() -> Self {
        Decision::fold(Fold::Direct).step(1.0, Start::Sender)
    }

    /// Fold without a step; nobody starts.
    pub fn fold(fold: Fold) -> Self {
        Decision { fold, retire: Vec::new(), step: None, swap: false, start: Start::Nobody, restart: Vec::new() }
    }

    /// Adds a step that leaves `keep` of the sum, after which `start` begin.
    pub fn step(self, keep: f64, start: Start) -> Self {
        Decision { step: Some(Step { scale: 1.0, rate: 1.0, keep, follow: None }), start, ..self }
    }

    /// The same, if the rule `fires`; without a step otherwise, and nobody starts.
    pub fn step_if(self, fires: bool, keep: f64, start: impl FnOnce() -> Start) -> Self {
        if fires { self.step(keep, start()) } else { self }
    }

    /// Scales the step's direction, if there is a step.
    pub fn scaled(mut self, scale: f64) -> Self {
        self.step = self.step.map(|step| Step { scale: scale * step.scale, ..step });
        self
    }

    /// Scales the step's learning rate, if there is a step.
    pub fn rated(mut self, rate: f64) -> Self {
        self.step = self.step.map(|step| Step { rate: rate * step.rate, ..step });
        self
    }

    /// Who starts.
    pub fn start(self, start: Start) -> Self {
        Decision { start, ..self }
    }

    /// Brings jobs (worker, version) up to date with it, where every job takes the same time: who is given up leaves, who starts comes.
    pub(crate) fn follow(&self, jobs: &mut VecDeque<(usize, u64)>, sender: usize, t: u64, workers: usize) {
        jobs.retain(|(i, _)| !self.restart.contains(i));
        jobs.extend(self.restart.iter().map(|i| (*i, t)));
        match &self.start {
            Start::Nobody => {}
            Start::Sender => jobs.push_back((sender, t)),
            Start::Everybody => jobs.extend((0..workers).map(|i| (i, t))),
            Start::These(who) => jobs.extend(who.iter().map(|i| (*i, t))),
        }
    }

    /// Whose job is given up and begun anew.
    pub fn restart(self, restart: Vec<usize>) -> Self {
        Decision { restart, ..self }
    }
}

/// What turns the server's directions into steps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ServerOptimizer {
    /// w -= η d, with the momentum that the user asks for.
    #[default]
    Plain,
    /// Nesterov momentum whose momentum part comes every few updates.
    Nesterov {
        /// β.
        beta: f64,
        /// Updates from one momentum part to the next.
        every: u64,
    },
    /// AMSGrad with β1, β2 and ε.
    AmsGrad(f64, f64, f64),
}

/// What a worker does on its own before it answers with the sum of its directions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Local {
    /// Steps per job at most; 0 and 1 mean one plain gradient.
    pub steps: u32,
    /// Their learning rate; the server's when not given.
    pub lr: Option<f64>,
    /// μ of a proximal term (μ/2)‖x - x_received‖².
    pub proximal: f64,
    /// Weight decay of AdamW steps; plain SGD when not given.
    pub adamw: Option<f64>,
}

/// The state that a rule needs on the device, in copies of the parameters, and what else it asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Needs {
    /// A running sum.
    pub sum: bool,
    /// Tables with a row per worker, up to two; the second brings its own sum.
    pub tables: usize,
    /// A base that is added to the sum.
    pub base: bool,
    /// A running square of the gradients per worker.
    pub squares: bool,
    /// A model of each worker's own.
    pub own: bool,
    /// These are changed by others' arrivals, too (for the memory estimate).
    pub peers: bool,
    /// Models are mixed: there is no direction that momentum or weight decay could join.
    pub mixes: bool,
    /// Weights that the workers write themselves.
    pub live: bool,
    /// The sum (or the base) is to be derived from the table anew every so often, with this factor.
    pub derived: Option<f64>,
    /// No gradient is ever stale, so momentum may come at every update.
    pub synchronous: bool,
    /// Batch losses, a little late.
    pub loss: bool,
    /// Gradients that every update takes, if it takes more than one (for the memory estimate).
    pub gradients: usize,
    /// What turns directions into steps.
    pub optimizer: ServerOptimizer,
    /// What workers do before they answer.
    pub local: Local,
}

impl Local {
    /// Whether a worker walks on its own, and answers with the sum of its directions instead of a gradient.
    pub fn walks(&self) -> bool {
        self.steps > 1 || self.adamw.is_some()
    }
}

impl Needs {
    /// A running sum and nothing else.
    pub fn sum() -> Self {
        Needs { sum: true, ..Needs::default() }
    }

    /// A running sum of so many gradients an update.
    pub fn sum_of(gradients: usize) -> Self {
        Needs { gradients, ..Needs::sum() }
    }

    /// A table of latest gradients and their sum.
    pub fn table() -> Self {
        Needs { tables: 1, ..Needs::sum() }
    }
}

/// An asynchronous rule.
pub trait Rule: Send {
    /// State on the device; none unless a rule says otherwise.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Who gets a job at version 0, in this order; everybody unless a rule says otherwise.
    fn begin(&mut self, workers: usize) -> Vec<usize> {
        (0..workers).collect()
    }

    /// Local steps of the worker's next job, at most `needs().local.steps`. A shorter job takes proportionally less time.
    fn steps(&self, _worker: usize) -> u32 {
        self.needs().local.steps
    }

    /// Decides about one arrival.
    fn on_arrival(&mut self, arrival: &Arrival) -> Decision;
}

/// What a rule may know of the run when it is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// n.
    pub workers: usize,
    /// Keys random draws.
    pub seed: u64,
    /// η.
    pub lr: f64,
    /// Mean time of a job of each worker under the delay model; unknown where real time decides.
    pub seconds: Option<Vec<f64>>,
}

impl Setting {
    /// A run of `workers` workers, all else being default.
    pub fn of(workers: usize) -> Self {
        Setting { workers, seed: 0, lr: 0.05, seconds: Some(vec![1.0; workers]) }
    }
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

/// What a rule costs and promises, for `stagger rules`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Copies of the parameters at the server.
    pub server: &'static str,
    /// Copies of the parameters per worker besides its replica.
    pub worker: &'static str,
    /// Models sent out per update.
    pub copies: &'static str,
    /// Whether unequal speeds move its limit away from the minimiser of (1/n) Σ f_i when the f_i differ.
    pub biased: bool,
}

/// A rule in the table.
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Authors and year.
    pub paper: &'static str,
    /// The rule's file: its head states recurrence, source, what is proved, and where we differ.
    pub source: &'static str,
    /// State, traffic, bias.
    pub cost: Cost,
    /// Parameters.
    pub keys: &'static [Key],
    /// Makes the rule for a run.
    pub build: fn(&Keys, &Setting) -> Result<Box<dyn Rule>>,
}

impl Entry {
    /// The head of the rule's file.
    pub fn about(&self) -> impl Iterator<Item = &'static str> {
        let lines = self.source.lines().take_while(|line| line.starts_with("//!"));
        lines.map(|line| line.strip_prefix("//! ").unwrap_or("")).filter(|line| !line.starts_with("```"))
    }
}

/// Every rule of the library.
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

static REGISTERED: Mutex<Vec<&'static Entry>> = Mutex::new(Vec::new());

/// Adds a rule of a program's own, before it starts the command line. A name can be taken once.
pub fn register(entry: &'static Entry) -> Result<()> {
    if entries().any(|e| e.name == entry.name) {
        return Err(Error::usage(format!("a rule called `{}` is there already", entry.name)));
    }
    REGISTERED.lock().expect("nobody panics with it").push(entry);
    Ok(())
}

/// Every rule, registered ones last.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    RULES.iter().chain(REGISTERED.lock().expect("nobody panics with it").clone())
}

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
    /// The parameter as it was written, if it was.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// A whole number within `range`, or `default`.
    pub fn count(&self, key: &str, default: usize, range: std::ops::RangeInclusive<usize>) -> Result<usize> {
        let Some(text) = self.0.get(key) else { return Ok(default) };
        let most = match *range.end() {
            usize::MAX => "on".into(),
            end => format!("to {end}"),
        };
        text.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| {
            Error::usage(format!("--rule: {key}={text} must be a whole number from {} {most}", range.start()))
        })
    }

    /// A number within `range`, or `default`.
    pub fn number(&self, key: &str, default: f64, range: std::ops::RangeInclusive<f64>) -> Result<f64> {
        let Some(text) = self.0.get(key) else { return Ok(default) };
        text.parse().ok().filter(|x: &f64| range.contains(x) && x.is_finite()).ok_or_else(|| {
            Error::usage(format!("--rule: {key}={text} must be a number from {} to {}", range.start(), range.end()))
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

    /// Parameters `q` (local steps) and `local_lr` of rules whose workers answer with model differences: the steps, and the
    /// factor that turns the sum of their directions into a difference. One plain gradient by default.
    pub fn difference(&self) -> Result<(Local, f64)> {
        let steps = self.count("q", 1, 1..=1 << 16)? as u32;
        if steps > 1 && self.text("local_lr").is_none() {
            return Err(Error::usage(format!(
                "--rule: q={steps} local steps need local_lr, their learning rate; --lr is then the server's"
            )));
        }
        let lr = self.number("local_lr", 1.0, 1e-12..=1e6)?;
        Ok((Local { steps, lr: Some(lr), ..Local::default() }, lr))
    }

    /// `key`, `key=true` or `key=false`.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let (yes, no) = (("true", true), ("false", false));
        self.choice(key, &if default { [yes, no] } else { [no, yes] })
    }
}

impl FromStr for RuleSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, list) = text.split_once(':').unwrap_or((text, ""));
        let entry = entries().find(|e| e.name == name).ok_or_else(|| {
            let names: Vec<_> = entries().map(|e| e.name).collect();
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
                let known = match known.as_slice() {
                    [] => "it has none".into(),
                    [first, ..] => format!("it has {} (write {first}=VALUE)", known.join(", ")),
                };
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

    /// Its entry in the table.
    pub fn entry(&self) -> &'static Entry {
        entries().find(|e| e.name == self.name).expect("parsed names are in the table")
    }

    /// Makes the rule for a run, or says which parameter is out of range.
    pub fn build(&self, setting: &Setting) -> Result<Box<dyn Rule>> {
        (self.entry().build)(&self.keys, setting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a rule for n workers.
    pub fn rule(text: &str, n: usize) -> Box<dyn Rule> {
        text.parse::<RuleSpec>().unwrap().build(&Setting::of(n)).unwrap()
    }

    /// Feeds (worker, version, t) to a rule.
    pub fn arrive(rule: &mut dyn Rule, worker: usize, version: u64, t: u64) -> Decision {
        rule.on_arrival(&Arrival { worker, version, t, staleness: t - version, steps: 1, ..Arrival::default() })
    }

    #[test]
    fn specs_are_read_and_written() {
        for text in ["sync", "asgd", "dude", "dude:c=2,init=zero", "shuffled:order=2-0-1"] {
            assert_eq!(text.parse::<RuleSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn every_rule_says_what_it_is_within_sixty_lines() {
        for entry in RULES {
            let about: Vec<_> = entry.about().collect();
            assert!(about.len() > 3 && about.iter().any(|l| l.contains("20")), "{}: recurrence and year", entry.name);
            assert!(entry.source.lines().count() <= 60, "{} has {}", entry.name, entry.source.lines().count());
            assert!(entry.source.contains("#[test]"), "{} has no test", entry.name);
            assert_eq!(RULES.iter().filter(|e| e.name == entry.name).count(), 1);
        }
    }

    /// Ten thousand workers instead of a hundred: what looks at each of them takes a hundred times as long, an ordered set and a cache that
    /// is too small some times.
    #[test]
    fn an_arrival_at_a_table_costs_the_same_however_many_workers_there_are() {
        let seconds = |name: &str, n: usize| {
            let mut rule = rule(name, n);
            let (mut t, began) = (0, std::time::Instant::now());
            for k in 0..100_000 {
                t += arrive(&mut *rule, k % n, t - t.min(n as u64 / 2), t).step.is_some() as u64;
            }
            began.elapsed().as_secs_f64()
        };
        // The best of some: whatever else runs here makes them worse.
        let best = |name: &str, n: usize| (0..5).map(|_| seconds(name, n)).fold(f64::INFINITY, f64::min);
        let tables: Vec<_> = RULES.iter().map(|e| e.name).filter(|name| rule(name, 4).needs().tables > 0).collect();
        assert!(tables.len() >= 7, "{tables:?}");
        for name in tables {
            let (few, many) = (best(name, 100), best(name, 10_000));
            println!("{name}: {:.0} and {:.0} ns", 1e4 * few, 1e4 * many);
            assert!(many < 15.0 * few, "{name}: {few} s and {many} s");
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
