//! Every rule in float64, written from the papers' recurrences in the plainest form: tables are averaged anew
//! at every update, models are copied, and nothing is incremental. This module shares no code with the
//! program. Job times are fixed. Assignments that a rule draws at random are read from the program's own log
//! (`Scenario::targets`).
//!
//! [`RULES`] maps a rule's name to a function that builds its recurrence. Rules of one family share a function.

// Recurrences are written with their indices, as in the papers.
#![allow(clippy::needless_range_loop)]

mod batches;
mod direct;
mod models;
mod tables;

use stagger::record::Event;
use std::collections::{BTreeMap, VecDeque};

type Vector = Vec<f64>;
type Gradient<'a> = dyn Fn(usize, &[f64]) -> (f64, Vector) + 'a;

/// What a rule does with an arrival. The closure owns the state that the rule keeps between arrivals.
type Rule<'p> = Box<dyn FnMut(&mut Simulation<'_>, Arrival) + 'p>;

/// Builds the recurrence of a rule.
type Build = fn(&Parameters) -> Rule<'_>;

/// The recurrence of every rule, by name.
const RULES: &[(&str, Build)] = &[
    // Every gradient is an update.
    ("asgd", direct::asgd),
    ("staleness", direct::staleness),
    ("delay-adaptive", direct::delay_adaptive),
    ("rescaled", direct::rescaled),
    ("ringmaster", direct::ringmaster),
    ("dcasgd", direct::dcasgd),
    ("random", direct::assigned_by_log),
    ("shuffled", direct::assigned_by_log),
    ("rr", direct::assigned_by_log),
    // An update averages a batch of gradients.
    ("sync", batches::assigned_after_update),
    ("localsgd", batches::assigned_after_update),
    ("waiting", batches::assigned_after_update),
    ("kasync", batches::assigned_after_update),
    ("ksync", batches::assigned_after_update),
    ("random-waiting", batches::assigned_after_update),
    ("minibatch", batches::assigned_after_update),
    ("kbatchsync", batches::assigned_at_once),
    ("kbatchasync", batches::assigned_at_once),
    ("rennala", batches::assigned_at_once),
    ("adasync", batches::adasync),
    ("sa-adasync", batches::adasync),
    ("abs", batches::abs),
    ("hybrid", batches::hybrid),
    ("hybrid-cyclic", batches::hybrid_cyclic),
    ("fedbuff", batches::fedbuff),
    ("fadas", batches::fadas),
    // The server keeps a gradient, or a sum of gradients, for each worker.
    ("malenia", tables::malenia),
    ("ringleader", tables::ringleader),
    ("dude", tables::dude),
    ("ace", tables::dude),
    ("mifa", tables::mifa),
    ("aced", tables::aced),
    ("ca2fl", tables::ca2fl),
    // The server mixes models, or takes the sum of local steps as a direction.
    ("fedasync", models::fedasync),
    ("easgd", models::easgd),
    ("adpsgd", models::adpsgd),
    ("diloco", models::diloco),
    ("async-diloco", models::async_diloco),
];

/// A run to be simulated.
pub struct Scenario<'a> {
    /// Time in seconds that a job of each worker takes.
    pub job_seconds: Vec<f64>,
    /// Maps a worker and a point to the loss and the gradient there.
    pub gradient: &'a Gradient<'a>,
    /// Weights of version 0.
    pub start: Vector,
    pub lr: f64,
    /// Number of updates after which the simulation ends.
    pub updates: usize,
    pub momentum: f64,
    /// The momentum buffer changes at every this many updates.
    pub momentum_every: usize,
    pub weight_decay: f64,
    /// Largest norm of a gradient.
    pub clip: Option<f64>,
    /// Factor of the learning rate at version t.
    pub schedule: &'a dyn Fn(u64) -> f64,
    /// Workers that were sent each version, in the order of their arrivals in the log.
    pub targets: BTreeMap<u64, Vec<usize>>,
}

impl<'a> Scenario<'a> {
    /// A scenario without momentum, weight decay, clipping and schedule. `log` says which workers were sent
    /// which version.
    pub fn new(
        job_seconds: Vec<f64>,
        gradient: &'a Gradient<'a>,
        start: Vector,
        lr: f64,
        updates: usize,
        log: &[Event],
    ) -> Self {
        let mut targets: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        log.iter().for_each(|e| targets.entry(e.version).or_default().push(e.worker));
        Scenario {
            job_seconds,
            gradient,
            start,
            lr,
            updates,
            momentum: 0.0,
            momentum_every: 1,
            weight_decay: 0.0,
            clip: None,
            schedule: &|_| 1.0,
            targets,
        }
    }
}

/// A rule's name and keys, and the size of the problem.
struct Parameters {
    /// The rule as on the command line.
    text: String,
    name: String,
    keys: BTreeMap<String, String>,
    /// Number of workers.
    n: usize,
    /// Weights of version 0.
    start: Vector,
    /// Number of weights.
    d: usize,
}

impl Parameters {
    fn parse(rule: &str, s: &Scenario) -> Self {
        let (name, list) = rule.split_once(':').unwrap_or((rule, ""));
        let pairs = list.split(',').filter_map(|key| key.split_once('='));
        Parameters {
            text: rule.to_string(),
            name: name.to_string(),
            keys: pairs.map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            n: s.job_seconds.len(),
            start: s.start.clone(),
            d: s.start.len(),
        }
    }

    /// The text of a key, if the rule has it.
    fn find(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    /// The text of a key that the rule must have.
    fn word(&self, key: &str) -> &str {
        self.find(key).unwrap_or_else(|| panic!("{} without {key}", self.text))
    }

    fn number(&self, key: &str) -> f64 {
        self.word(key).parse().unwrap()
    }

    fn optional(&self, key: &str) -> Option<f64> {
        self.find(key).map(|text| text.parse().unwrap())
    }

    fn count(&self, key: &str) -> usize {
        self.number(key) as usize
    }

    /// A vector of zeros, as long as the weights.
    fn zero(&self) -> Vector {
        vec![0.0; self.d]
    }

    /// Number of local steps of a full job.
    fn local_steps(&self) -> usize {
        match self.name.as_str() {
            "abs" | "localsgd" => self.count("u"),
            "fedbuff" | "fedasync" | "fadas" => self.count("q"),
            "easgd" => self.count("period"),
            "diloco" | "async-diloco" => self.count("h"),
            _ => 1,
        }
    }
}

/// A model that a worker computes on.
struct Job {
    /// Version of the model.
    version: u64,
    x: Vector,
    /// Learning rate at the time of the assignment.
    rate: f64,
    /// Number of local steps.
    steps: usize,
}

/// The reply of a worker, as a rule sees it.
struct Arrival {
    worker: usize,
    job: Job,
    /// Staleness.
    tau: u64,
    /// A gradient, or the sum of the directions of the local steps.
    g: Vector,
    /// Number of arrivals so far, this one included.
    received: usize,
    /// [`BlockLoss::ratio`] before this arrival.
    loss_ratio: f64,
}

/// Server and workers at one moment.
struct Simulation<'a> {
    s: &'a Scenario<'a>,
    /// Simulated time in seconds.
    now: f64,
    /// Version of the weights: the number of updates so far.
    t: u64,
    /// Weights.
    x: Vector,
    /// Each worker's jobs; the first one is running.
    queues: Vec<VecDeque<Job>>,
    /// Time at which each worker's running job ends.
    finish: Vec<Option<f64>>,
    /// Number of local steps of a full job.
    local_steps: usize,
    /// Momentum of [`Simulation::update`].
    velocity: Vector,
    /// Sum of the directions since the momentum last changed.
    gathered: Vector,
    /// Time and weights after each update.
    record: Vec<(f64, Vector)>,
}

/// `a += scale * b`
fn add(a: &mut Vector, b: &[f64], scale: f64) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += scale * b);
}

/// Mean of vectors of length `d`.
fn mean<'v>(vectors: impl IntoIterator<Item = &'v Vector>, d: usize) -> Vector {
    let (mut sum, mut count) = (vec![0.0; d], 0.0);
    for v in vectors {
        add(&mut sum, v, 1.0);
        count += 1.0;
    }
    sum.iter_mut().for_each(|s| *s /= count);
    sum
}

impl<'a> Simulation<'a> {
    fn new(s: &'a Scenario<'a>, local_steps: usize) -> Self {
        let (n, d) = (s.job_seconds.len(), s.start.len());
        Simulation {
            s,
            now: 0.0,
            t: 0,
            x: s.start.clone(),
            queues: (0..n).map(|_| VecDeque::new()).collect(),
            finish: vec![None; n],
            local_steps,
            velocity: vec![0.0; d],
            gathered: vec![0.0; d],
            record: Vec::new(),
        }
    }

    /// Learning rate at the current version.
    fn rate(&self) -> f64 {
        self.s.lr * (self.s.schedule)(self.t)
    }

    /// Starts the first job of worker i's queue, unless the worker is busy.
    fn begin(&mut self, i: usize) {
        if let (None, Some(job)) = (self.finish[i], self.queues[i].front()) {
            self.finish[i] = Some(self.now + self.s.job_seconds[i] * job.steps as f64 / self.local_steps as f64);
        }
    }

    /// Queues a job of some local steps from the model `x` for worker i.
    fn assign_model(&mut self, i: usize, x: Vector, steps: usize) {
        let job = Job { version: self.t, x, rate: self.rate(), steps };
        self.queues[i].push_back(job);
        self.begin(i);
    }

    /// Queues a full job from the current weights for worker i.
    fn assign(&mut self, i: usize) {
        self.assign_model(i, self.x.clone(), self.local_steps);
    }

    /// Assigns the current weights to the workers that the log names.
    fn assign_by_log(&mut self) {
        for i in self.s.targets.get(&self.t).cloned().unwrap_or_default() {
            self.assign(i);
        }
    }

    /// Cancels all jobs of worker i and assigns the current weights.
    fn restart(&mut self, i: usize) {
        self.queues[i].clear();
        self.finish[i] = None;
        self.assign(i);
    }

    /// Moves the time to the end of the job that ends next. Returns the worker (the lowest index of several)
    /// and the job.
    fn next_finished(&mut self) -> (usize, Job) {
        let i = (0..self.finish.len())
            .filter(|i| self.finish[*i].is_some())
            .min_by(|a, b| self.finish[*a].unwrap().total_cmp(&self.finish[*b].unwrap()))
            .expect("at least one worker is busy");
        self.now = self.finish[i].take().unwrap();
        (i, self.queues[i].pop_front().unwrap())
    }

    /// One update along `scale * direction`, with the scenario's momentum and weight decay.
    fn update(&mut self, direction: &[f64], scale: f64) {
        let (rate, mut d) = (self.rate(), direction.iter().map(|d| d * scale).collect::<Vector>());
        add(&mut d, &self.x, self.s.weight_decay);
        if self.s.momentum > 0.0 && self.s.momentum_every == 1 {
            for (v, d) in self.velocity.iter_mut().zip(&mut d) {
                *v = self.s.momentum * *v + *d;
                *d = *v;
            }
        } else if self.s.momentum > 0.0 {
            add(&mut self.gathered, &d, 1.0);
            if (self.t + 1).is_multiple_of(self.s.momentum_every as u64) {
                for ((v, g), d) in self.velocity.iter_mut().zip(&mut self.gathered).zip(&mut d) {
                    *v = self.s.momentum * *v + *g;
                    *g = 0.0;
                    *d += self.s.momentum * *v;
                }
            }
        }
        self.move_by(&d, rate);
    }

    /// One update along `d`, without momentum and weight decay.
    fn move_by(&mut self, d: &[f64], rate: f64) {
        add(&mut self.x, d, -rate);
        self.publish();
    }

    /// Makes the current weights the next version.
    fn publish(&mut self) {
        self.t += 1;
        self.record.push((self.now, self.x.clone()));
    }
}

/// The loss as rules see it: the mean of each complete block of arrivals.
struct BlockLoss {
    /// Number of arrivals in a block.
    size: usize,
    /// Losses of the current block.
    block: Vec<f64>,
    /// Mean of the first complete block.
    first: Option<f64>,
    /// Mean of the latest complete block.
    latest: Option<f64>,
}

impl BlockLoss {
    /// First block loss divided by the latest one; 1 until there is one.
    fn ratio(&mut self) -> f64 {
        match self.latest {
            None => 1.0,
            Some(now) => *self.first.get_or_insert(now) / now,
        }
    }

    /// Adds the loss of an arrival.
    fn push(&mut self, loss: f64) {
        self.block.push(loss);
        if self.block.len() == self.size {
            self.latest = Some(self.block.drain(..).sum::<f64>() / self.size as f64);
        }
    }
}

/// Computes a job of worker i. Returns the gradient, or the sum of the directions of the local steps, and the
/// loss of the last step.
fn compute(p: &Parameters, s: &Scenario, i: usize, job: &Job) -> (Vector, f64) {
    let local_rate = p.optional("local_lr").unwrap_or(job.rate);
    let (mut y, mut g, mut loss) = (job.x.clone(), p.zero(), 0.0);
    let (mut m1, mut m2) = (p.zero(), p.zero());
    for step in 0..job.steps {
        let (l, mut direction) = (s.gradient)(i, &y);
        loss = l;
        if let Some(limit) = s.clip {
            let norm = direction.iter().map(|g| g * g).sum::<f64>().sqrt();
            direction.iter_mut().for_each(|g| *g *= (limit / norm).min(1.0));
        }
        if p.name == "fedasync" {
            let back: Vector = y.iter().zip(&job.x).map(|(y, x)| y - x).collect();
            add(&mut direction, &back, p.number("mu"));
        }
        if p.find("inner") == Some("adamw") {
            for j in 0..p.d {
                m1[j] = 0.9 * m1[j] + 0.1 * direction[j];
                m2[j] = 0.999 * m2[j] + 0.001 * direction[j] * direction[j];
                let (c1, c2) = (1.0 - 0.9f64.powi(step as i32 + 1), 1.0 - 0.999f64.powi(step as i32 + 1));
                direction[j] = m1[j] / c1 / ((m2[j] / c2).sqrt() + 1e-8) + p.number("decay") * y[j];
            }
        }
        add(&mut y, &direction, -local_rate);
        add(&mut g, &direction, 1.0);
    }
    (g, loss)
}

/// Returns time and weights after every update. `rule` is written as on the command line, with every parameter.
pub fn simulate(rule: &str, s: &Scenario) -> Vec<(f64, Vector)> {
    let p = Parameters::parse(rule, s);
    let build = RULES.iter().find(|entry| entry.0 == p.name).unwrap_or_else(|| panic!("no reference for {}", p.name)).1;
    let mut on_arrival = build(&p);
    let mut w = Simulation::new(s, p.local_steps());
    match p.name.as_str() {
        "rr" | "minibatch" => w.assign_by_log(),
        _ => (0..p.n).for_each(|i| w.assign(i)),
    }
    let mut losses = BlockLoss { size: p.n.clamp(8, 64), block: Vec::new(), first: None, latest: None };
    let mut received = 0;
    while w.record.len() < s.updates {
        let (worker, job) = w.next_finished();
        let tau = w.t - job.version;
        let (g, loss) = compute(&p, s, worker, &job);
        received += 1;
        on_arrival(&mut w, Arrival { worker, job, tau, g, received, loss_ratio: losses.ratio() });
        w.begin(worker);
        losses.push(loss);
    }
    w.record
}
