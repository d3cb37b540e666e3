//! Every rule in float64, written from the papers' recurrences as plainly as can be: tables are averaged anew at every update,
//! models are copied, nothing is incremental. It shares no code with the program. Speeds are fixed; what a rule draws at random
//! is read from the program's own log (`targets`: who was sent which version).

// Recurrences are written with their indices, as in the papers.
#![allow(clippy::needless_range_loop)]

use stagger::record::Event;
use std::collections::{BTreeMap, VecDeque};

type Vector = Vec<f64>;
type Gradient<'a> = dyn Fn(usize, &[f64]) -> (f64, Vector) + 'a;

/// A run to be simulated.
pub struct Scenario<'a> {
    /// Time of a job of each worker.
    pub speeds: Vec<f64>,
    /// Worker, point → loss and gradient.
    pub gradient: &'a Gradient<'a>,
    pub start: Vector,
    pub lr: f64,
    pub updates: usize,
    pub momentum: f64,
    pub momentum_every: usize,
    pub weight_decay: f64,
    pub clip: Option<f64>,
    /// Factor of the rate at version t.
    pub schedule: &'a dyn Fn(u64) -> f64,
    pub targets: BTreeMap<u64, Vec<usize>>,
}

impl<'a> Scenario<'a> {
    /// Without momentum, decay, clipping or a schedule, from `start`; of the log it takes who was sent which version.
    pub fn new(
        speeds: Vec<f64>,
        gradient: &'a Gradient<'a>,
        start: Vector,
        lr: f64,
        updates: usize,
        log: &[Event],
    ) -> Self {
        let mut targets: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        log.iter().for_each(|e| targets.entry(e.version).or_default().push(e.worker));
        Scenario {
            speeds,
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

struct Job {
    version: u64,
    x: Vector,
    rate: f64,
    steps: usize,
}

struct World<'a> {
    s: &'a Scenario<'a>,
    now: f64,
    t: u64,
    x: Vector,
    queues: Vec<VecDeque<Job>>,
    finish: Vec<Option<f64>>,
    most: usize,
    velocity: Vector,
    gathered: Vector,
    /// (time, x) after each update.
    record: Vec<(f64, Vector)>,
}

fn add(a: &mut Vector, b: &[f64], scale: f64) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += scale * b);
}

fn mean<'v>(vectors: impl IntoIterator<Item = &'v Vector>, d: usize) -> Vector {
    let (mut sum, mut count) = (vec![0.0; d], 0.0);
    for v in vectors {
        add(&mut sum, v, 1.0);
        count += 1.0;
    }
    sum.iter_mut().for_each(|s| *s /= count);
    sum
}

impl World<'_> {
    fn rate(&self) -> f64 {
        self.s.lr * (self.s.schedule)(self.t)
    }

    fn begin(&mut self, i: usize) {
        if let (None, Some(job)) = (self.finish[i], self.queues[i].front()) {
            self.finish[i] = Some(self.now + self.s.speeds[i] * job.steps as f64 / self.most as f64);
        }
    }

    fn give_model(&mut self, i: usize, x: Vector, steps: usize) {
        let job = Job { version: self.t, x, rate: self.rate(), steps };
        self.queues[i].push_back(job);
        self.begin(i);
    }

    fn give(&mut self, i: usize) {
        self.give_model(i, self.x.clone(), self.most);
    }

    fn restart(&mut self, i: usize) {
        self.queues[i].clear();
        self.finish[i] = None;
        self.give(i);
    }

    fn targets(&mut self) {
        for i in self.s.targets.get(&self.t).cloned().unwrap_or_default() {
            self.give(i);
        }
    }

    /// One update along a direction, with momentum and weight decay as the user asked for them.
    fn step(&mut self, direction: &[f64], scale: f64) {
        let (rate, mut d) = (self.rate(), direction.iter().map(|d| d * scale).collect::<Vector>());
        add(&mut d, &self.x.clone(), self.s.weight_decay);
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

    fn move_by(&mut self, d: &[f64], rate: f64) {
        add(&mut self.x, d, -rate);
        self.published();
    }

    fn published(&mut self) {
        self.t += 1;
        self.record.push((self.now, self.x.clone()));
    }
}

/// Time and weights after every update of `rule` (as on the command line, every parameter given).
pub fn simulate(rule: &str, s: &Scenario) -> Vec<(f64, Vector)> {
    let (name, list) = rule.split_once(':').unwrap_or((rule, ""));
    let keys: BTreeMap<&str, &str> = list.split(',').filter_map(|k| k.split_once('=')).collect();
    let number = |key: &str| keys.get(key).unwrap_or_else(|| panic!("{rule} without {key}")).parse::<f64>().unwrap();
    let count = |key: &str| number(key) as usize;
    let (n, d) = (s.speeds.len(), s.start.len());
    let zero = || vec![0.0; d];
    let most = match name {
        "abs" | "localsgd" => count("u"),
        "fedbuff" | "fedasync" | "fadas" => count("q"),
        "easgd" => count("period"),
        "diloco" | "async-diloco" => count("h"),
        _ => 1,
    };
    let mut w = World {
        s,
        now: 0.0,
        t: 0,
        x: s.start.clone(),
        queues: (0..n).map(|_| VecDeque::new()).collect(),
        finish: vec![None; n],
        most,
        velocity: zero(),
        gathered: zero(),
        record: Vec::new(),
    };
    match name {
        "rr" | "minibatch" => w.targets(),
        _ => (0..n).for_each(|i| w.give(i)),
    }

    // State of all rules; each uses what it needs.
    let mut buffer: Vec<(usize, u64, Vector)> = Vec::new();
    let mut rows: Vec<Option<(u64, Vector)>> = vec![None; n];
    let (mut sums, mut later) = (vec![(zero(), 0.0); n], vec![(zero(), 0.0); n]);
    let mut need: Vec<usize> = Vec::new();
    let (mut began, mut squares, mut own) = (vec![0u64; n], vec![zero(); n], vec![s.start.clone(); n]);
    let (mut m, mut u, mut most_u) = (zero(), zero(), zero());
    let (mut received, mut k) = (0usize, 0usize);
    let mut speeds = vec![0.0; n];
    let (mut block, mut told, mut first): (Vec<f64>, Option<f64>, Option<f64>) = (Vec::new(), None, None);

    while w.record.len() < s.updates {
        let i = (0..n)
            .filter(|i| w.finish[*i].is_some())
            .min_by(|a, b| w.finish[*a].unwrap().total_cmp(&w.finish[*b].unwrap()))
            .expect("somebody works");
        w.now = w.finish[i].take().unwrap();
        let job = w.queues[i].pop_front().unwrap();
        let tau = w.t - job.version;

        // The worker's answer: a gradient, or the sum of the directions of its local steps.
        let local_rate = keys.get("local_lr").map_or(job.rate, |x| x.parse().unwrap());
        let (mut y, mut g, mut loss) = (job.x.clone(), zero(), 0.0);
        let (mut m1, mut m2) = (zero(), zero());
        for step in 0..job.steps {
            let (l, mut direction) = (s.gradient)(i, &y);
            loss = l;
            if let Some(limit) = s.clip {
                let norm = direction.iter().map(|g| g * g).sum::<f64>().sqrt();
                direction.iter_mut().for_each(|g| *g *= (limit / norm).min(1.0));
            }
            if name == "fedasync" {
                let back: Vector = y.iter().zip(&job.x).map(|(y, x)| y - x).collect();
                add(&mut direction, &back, number("mu"));
            }
            if keys.get("inner") == Some(&"adamw") {
                for j in 0..d {
                    m1[j] = 0.9 * m1[j] + 0.1 * direction[j];
                    m2[j] = 0.999 * m2[j] + 0.001 * direction[j] * direction[j];
                    let (c1, c2) = (1.0 - 0.9f64.powi(step as i32 + 1), 1.0 - 0.999f64.powi(step as i32 + 1));
                    direction[j] = m1[j] / c1 / ((m2[j] / c2).sqrt() + 1e-8) + number("decay") * y[j];
                }
            }
            add(&mut y, &direction, -local_rate);
            add(&mut g, &direction, 1.0);
        }
        received += 1;
        let ratio = match told {
            None => 1.0,
            Some(now) => *first.get_or_insert(now) / now,
        };

        match name {
            "asgd" => (w.step(&g, 1.0), w.give(i)).1,
            "staleness" => (w.step(&g, 1.0 / tau.max(1) as f64), w.give(i)).1,
            "delay-adaptive" => {
                let scale = match keys["form"] {
                    "mishchenko" => n as f64 / (n as f64).max(tau as f64),
                    _ if tau as f64 <= number("tau_c") => 1.0,
                    _ if keys.get("late") == Some(&"drop") => 0.0,
                    _ if keys.contains_key("smoothness") => {
                        f64::min(1.0, 1.0 / (4.0 * number("smoothness") * tau as f64 * s.lr))
                    }
                    _ => number("tau_c") / tau as f64,
                };
                if scale > 0.0 {
                    w.step(&g, scale);
                }
                w.give(i);
            }
            "rescaled" => {
                speeds[i] = s.speeds[i];
                let known: Vec<f64> = match keys["speeds"] {
                    "known" => s.speeds.clone(),
                    _ => speeds.iter().copied().filter(|s| *s > 0.0).collect(),
                };
                w.step(&g, s.speeds[i] * known.len() as f64 / known.iter().sum::<f64>());
                w.give(i);
            }
            "ringmaster" => {
                let r = number("r") as u64;
                if tau < r {
                    w.step(&g, 1.0);
                    began[i] = w.t;
                    for j in (0..n).filter(|j| *j != i) {
                        if keys["stops"] == "true" && w.t - began[j] >= r {
                            w.restart(j);
                            began[j] = w.t;
                        }
                    }
                }
                w.give(i);
            }
            "dcasgd" => {
                for j in 0..d {
                    let mut lambda = number("lambda");
                    if keys["adaptive"] == "true" {
                        squares[i][j] = number("m") * squares[i][j] + (1.0 - number("m")) * g[j] * g[j];
                        lambda /= (squares[i][j] + 1e-7).sqrt();
                    }
                    g[j] += lambda * g[j] * g[j] * (w.x[j] - job.x[j]);
                }
                w.step(&g, 1.0);
                w.give(i);
            }
            "random" | "shuffled" | "rr" => {
                w.step(&g, 1.0);
                w.targets();
            }
            "sync" | "localsgd" | "waiting" | "kasync" | "ksync" | "random-waiting" | "minibatch" => {
                buffer.push((i, job.version, g));
                let size = match name {
                    "sync" | "localsgd" => n,
                    "waiting" | "random-waiting" | "minibatch" => count("b"),
                    _ => count("k"),
                };
                if buffer.len() == size {
                    w.step(&mean(buffer.iter().map(|b| &b.2), d), 1.0);
                    let senders: Vec<usize> = buffer.drain(..).map(|b| b.0).collect();
                    match name {
                        "random-waiting" | "minibatch" => w.targets(),
                        "ksync" => (0..n).for_each(|j| w.restart(j)),
                        _ => senders.into_iter().for_each(|j| w.give(j)),
                    }
                }
            }
            "kbatchsync" | "rennala" | "kbatchasync" => {
                buffer.push((i, job.version, g));
                if buffer.len() < count(if name == "rennala" { "s" } else { "k" }) {
                    w.give(i);
                } else {
                    w.step(&mean(buffer.iter().map(|b| &b.2), d), 1.0);
                    buffer.clear();
                    match name {
                        "kbatchasync" => w.give(i),
                        _ => (0..n).for_each(|j| w.restart(j)),
                    }
                }
            }
            "malenia" => {
                add(&mut sums[i].0, &g, 1.0);
                sums[i].1 += 1.0;
                let inverse = sums.iter().map(|s| 1.0 / s.1).sum::<f64>() / n as f64;
                if 1.0 / inverse > number("s") / n as f64 {
                    let means: Vec<Vector> = sums.iter().map(|(g, b)| g.iter().map(|g| g / b).collect()).collect();
                    w.step(&mean(&means, d), 1.0);
                    sums = vec![(zero(), 0.0); n];
                    (0..n).for_each(|j| w.restart(j));
                } else {
                    w.give(i);
                }
            }
            "ringleader" => {
                let collecting = need.is_empty();
                if collecting || need.contains(&i) {
                    add(&mut sums[i].0, &g, 1.0);
                    sums[i].1 += 1.0;
                    if collecting && sums.iter().all(|s| s.1 > 0.0) {
                        need = (0..n).collect();
                    }
                    if !need.is_empty() {
                        let means: Vec<Vector> = sums.iter().map(|(g, b)| g.iter().map(|g| g / b).collect()).collect();
                        w.step(&mean(&means, d), 1.0);
                        need.retain(|j| *j != i);
                        if need.is_empty() {
                            sums = std::mem::replace(&mut later, vec![(zero(), 0.0); n]);
                        }
                    }
                } else {
                    add(&mut later[i].0, &g, 1.0);
                    later[i].1 += 1.0;
                }
                w.give(i);
            }
            "dude" | "ace" | "mifa" => {
                let init = keys.get("init").copied().unwrap_or("barrier");
                let waits = rows.iter().any(|r| r.is_none()) && init != "zero";
                rows[i] = Some((job.version, g));
                let all = rows.iter().all(|r| r.is_some());
                let nothing = zero();
                let direction = mean(rows.iter().map(|r| r.as_ref().map_or(&nothing, |r| &r.1)), d);
                if name == "mifa" {
                    buffer.push((i, 0, zero()));
                    let there = if w.t == 0 { n } else { s.targets[&w.t].len() };
                    if buffer.len() == there {
                        buffer.clear();
                        w.step(&direction, 1.0);
                        w.targets();
                    }
                } else if waits && init == "barrier" {
                    if all {
                        w.step(&direction, 1.0);
                        (0..n).for_each(|j| w.give(j));
                    }
                } else if waits {
                    w.give(i);
                } else {
                    buffer.push((i, 0, zero()));
                    if buffer.len() == keys.get("c").map_or(1, |c| c.parse().unwrap()) {
                        w.step(&direction, 1.0);
                        buffer.drain(..).for_each(|b| w.give(b.0));
                    }
                }
            }
            "aced" => {
                let age = number("max_age") as u64;
                if tau > age {
                    w.give(i);
                } else {
                    rows[i] = Some((job.version, g));
                    let t = w.t;
                    let young = rows.iter().flatten().filter(|(v, _)| t - v <= age).map(|r| &r.1);
                    if t > 0 {
                        w.step(&mean(young, d), 1.0);
                        w.give(i);
                    } else if rows.iter().all(|r| r.is_some()) {
                        w.step(&mean(young, d), 1.0);
                        (0..n).for_each(|j| w.give(j));
                    }
                }
            }
            "ca2fl" => {
                buffer.push((i, 0, g));
                if buffer.len() == count("b") {
                    let row = |j: usize| rows[j].clone().map_or(zero(), |r| r.1);
                    let mut v = mean(&(0..n).map(row).collect::<Vec<_>>(), d);
                    for (j, _, g) in &buffer {
                        add(&mut v, g, 1.0 / buffer.len() as f64);
                        add(&mut v, &row(*j), -1.0 / buffer.len() as f64);
                    }
                    w.step(&v, 1.0);
                    for (j, _, g) in buffer.drain(..) {
                        rows[j] = Some((0, g));
                        w.give(j);
                    }
                }
            }
            "adasync" | "sa-adasync" => {
                k = k.max(count("k0"));
                let scale = if name == "adasync" { 1.0 } else { 1.0 / tau.max(1) as f64 };
                buffer.push((i, 0, g.iter().map(|g| g * scale).collect()));
                if buffer.len() >= k {
                    w.step(&mean(buffer.iter().map(|b| &b.2), d), 1.0);
                    k = ((number("k0") * ratio.sqrt()).round() as usize).clamp(1, n);
                    buffer.drain(..).for_each(|b| w.give(b.0));
                }
            }
            "abs" => {
                k = k.max(count("k0"));
                buffer.push((i, 0, g));
                if buffer.len() == k {
                    w.step(&mean(buffer.iter().map(|b| &b.2), d), 1.0);
                    let next = match keys["schedule"] {
                        "loss" => (number("k0") * ratio.powf(number("p"))).ceil(),
                        "linear" => number("k0") + (number("a") * w.t as f64).floor(),
                        "geometric" => (number("k0") * (1.0 + number("a")).powf(w.t as f64)).ceil(),
                        _ => number("k0") + (w.t as f64 / number("a")).floor(),
                    };
                    k = k.max((next as usize).min(n));
                    let bound = match keys["tau"] {
                        "mean-staleness" => (number("beta") * n as f64 / k as f64).ceil().max(1.0) as u64,
                        fixed => fixed.parse().unwrap(),
                    };
                    for (j, _, _) in buffer.drain(..) {
                        w.give(j);
                        began[j] = w.t;
                    }
                    for j in 0..n {
                        if w.t - began[j] > bound {
                            w.restart(j);
                            began[j] = w.t;
                        }
                    }
                }
            }
            "hybrid" => {
                buffer.push((i, 0, g));
                let (nf, share) = (n as f64, received as f64 / number("horizon"));
                let now = match keys["threshold"] {
                    "step" => 1.0 + (received as f64 / number("step")).floor(),
                    "linear" => (1.0 + (nf - 1.0) * share).ceil(),
                    "exp" => nf.powf(share).ceil(),
                    "sigmoid" => 1.0 + ((nf - 1.0) / (1.0 + (-number("steepness") * (share - 0.5)).exp())).floor(),
                    _ => ratio.sqrt().round(),
                };
                k = k.max((now as usize).clamp(1, n));
                if buffer.len() >= k {
                    let factor = if keys["flush"] == "sum" { buffer.len() as f64 } else { 1.0 };
                    w.step(&mean(buffer.iter().map(|b| &b.2), d), factor);
                    buffer.clear();
                }
                w.give(i);
            }
            "hybrid-cyclic" => {
                let (p, q) = (number("sync") as u64, number("async") as u64);
                if w.t % (p + q) < p {
                    buffer.push((i, 0, g));
                    if buffer.len() == n {
                        w.step(&mean(buffer.iter().map(|b| &b.2), d), 1.0);
                        buffer.clear();
                        (0..n).for_each(|j| w.give(j));
                    }
                } else {
                    w.step(&g, 1.0);
                    if w.t.is_multiple_of(p + q) && keys["enter"] == "cancel" {
                        (0..n).filter(|j| *j != i).for_each(|j| w.restart(j));
                    }
                    w.give(i);
                }
            }
            "fedbuff" | "fadas" => {
                let factor = keys.get("local_lr").map_or(1.0, |x| x.parse().unwrap());
                let weight = if name == "fedbuff" { (1.0 + tau as f64).powf(-number("exponent")) } else { 1.0 };
                buffer.push((i, tau, g.iter().map(|g| g * weight * factor).collect()));
                if buffer.len() == count("b") {
                    let mut direction = mean(buffer.iter().map(|b| &b.2), d);
                    let late = buffer.drain(..).map(|b| b.1).max().unwrap();
                    if name == "fadas" {
                        for j in 0..d {
                            m[j] = 0.9 * m[j] + 0.1 * direction[j];
                            u[j] = 0.99 * u[j] + 0.01 * direction[j] * direction[j];
                            most_u[j] = f64::max(most_u[j], u[j]);
                            direction[j] = m[j] / (most_u[j].sqrt() + 1e-8);
                        }
                        let scale = if late > number("tau_c") as u64 { 1.0 / late as f64 } else { 1.0 };
                        let rate = w.rate() * scale;
                        w.move_by(&direction, rate);
                    } else {
                        w.step(&direction, 1.0);
                    }
                }
                w.give(i);
            }
            "fedasync" => {
                let alpha = number("alpha")
                    * match keys["weighting"] {
                        "hinge" if tau as f64 > number("b") => {
                            f64::min(1.0, 1.0 / (number("a") * (tau as f64 - number("b"))))
                        }
                        "poly" => (1.0 + tau as f64).powf(-number("a")),
                        _ => 1.0,
                    };
                let mut end = job.x.clone();
                add(&mut end, &g, -job.rate);
                for j in 0..d {
                    w.x[j] = (1.0 - alpha) * w.x[j] + alpha * end[j];
                }
                w.published();
                w.give(i);
            }
            "easgd" => {
                let mut end = job.x.clone();
                add(&mut end, &g, -job.rate);
                for j in 0..d {
                    let pull = number("alpha") * (end[j] - w.x[j]);
                    own[i][j] = end[j] - pull;
                    w.x[j] += pull;
                }
                w.published();
                w.give_model(i, own[i].clone(), most);
            }
            "adpsgd" => {
                assert!(n <= 2, "the log does not say who the neighbour was");
                let average = mean(&own, d);
                own = vec![average; n];
                add(&mut own[i], &g, -job.rate);
                w.x = mean(&own, d);
                w.published();
                w.give_model(i, own[i].clone(), most);
            }
            "diloco" => {
                buffer.push((i, 0, g));
                if buffer.len() == n {
                    let direction = mean(buffer.drain(..).map(|b| b.2).collect::<Vec<_>>().iter(), d);
                    let (beta, rate) = (number("momentum"), w.rate() * number("outer_lr"));
                    let mut step = direction.clone();
                    for j in 0..d {
                        w.velocity[j] = beta * w.velocity[j] + direction[j];
                        step[j] += beta * w.velocity[j];
                    }
                    w.move_by(&step, rate);
                    (0..n).for_each(|j| w.give(j));
                }
            }
            "async-diloco" => {
                let (beta, rate) = (number("momentum"), w.rate() * number("outer_lr") / n as f64);
                add(&mut w.gathered, &g, 1.0);
                let mut step = g.clone();
                if (w.t + 1).is_multiple_of(n as u64) {
                    for j in 0..d {
                        w.velocity[j] = beta * w.velocity[j] + w.gathered[j];
                        w.gathered[j] = 0.0;
                        step[j] += beta * w.velocity[j];
                    }
                }
                w.move_by(&step, rate);
                // A job of all steps takes s_i, so a step takes s_i/h.
                speeds[i] = most as f64 / s.speeds[i];
                let fastest = speeds.iter().copied().fold(0.0, f64::max);
                let steps = ((most as f64 * speeds[i] / fastest + 1e-9) as usize).clamp(1, most);
                w.give_model(i, w.x.clone(), steps);
            }
            _ => panic!("no reference for {name}"),
        }
        w.begin(i);
        // What a rule is told of the loss: the mean of each whole block of arrivals.
        block.push(loss);
        if block.len() == n.clamp(8, 64) {
            told = Some(block.drain(..).sum::<f64>() / n.clamp(8, 64) as f64);
        }
    }
    w.record
}
