//! Rules that collect gradients and make an update of their mean.

use super::{Parameters, Rule, Vector, mean};

/// The update averages a number of gradients. New models are assigned only after the update.
pub(super) fn assigned_after_update(p: &Parameters) -> Rule<'_> {
    let size = match p.name.as_str() {
        "sync" | "localsgd" => p.n,
        "waiting" | "random-waiting" | "minibatch" => p.count("b"),
        _ => p.count("k"),
    };
    let mut buffer: Vec<(usize, Vector)> = Vec::new();
    Box::new(move |w, a| {
        buffer.push((a.worker, a.g));
        if buffer.len() == size {
            w.update(&mean(buffer.iter().map(|b| &b.1), p.d), 1.0);
            let senders: Vec<usize> = buffer.drain(..).map(|b| b.0).collect();
            match p.name.as_str() {
                "random-waiting" | "minibatch" => w.assign_by_log(),
                "ksync" => (0..p.n).for_each(|j| w.restart(j)),
                _ => senders.into_iter().for_each(|j| w.assign(j)),
            }
        }
    })
}

/// The update averages a number of gradients. Between updates a sender gets a new model at once, so it may
/// contribute several of them.
pub(super) fn assigned_at_once(p: &Parameters) -> Rule<'_> {
    let size = p.count(if p.name == "rennala" { "s" } else { "k" });
    let mut buffer: Vec<Vector> = Vec::new();
    Box::new(move |w, a| {
        buffer.push(a.g);
        if buffer.len() < size {
            w.assign(a.worker);
        } else {
            w.update(&mean(&buffer, p.d), 1.0);
            buffer.clear();
            match p.name.as_str() {
                "kbatchasync" => w.assign(a.worker),
                _ => (0..p.n).for_each(|j| w.restart(j)),
            }
        }
    })
}

/// The number of gradients per update grows as the loss falls. `sa-adasync` also divides each gradient by its
/// staleness.
pub(super) fn adasync(p: &Parameters) -> Rule<'_> {
    let mut buffer: Vec<(usize, Vector)> = Vec::new();
    let mut k = 0usize;
    Box::new(move |w, a| {
        k = k.max(p.count("k0"));
        let scale = if p.name == "adasync" { 1.0 } else { 1.0 / a.tau.max(1) as f64 };
        buffer.push((a.worker, a.g.iter().map(|g| g * scale).collect()));
        if buffer.len() >= k {
            w.update(&mean(buffer.iter().map(|b| &b.1), p.d), 1.0);
            k = ((p.number("k0") * a.loss_ratio.sqrt()).round() as usize).clamp(1, p.n);
            buffer.drain(..).for_each(|b| w.assign(b.0));
        }
    })
}

/// The number of gradients per update never falls. Jobs that are too stale after an update are restarted.
pub(super) fn abs(p: &Parameters) -> Rule<'_> {
    let mut buffer: Vec<(usize, Vector)> = Vec::new();
    let mut began = vec![0u64; p.n];
    let mut k = 0usize;
    Box::new(move |w, a| {
        k = k.max(p.count("k0"));
        buffer.push((a.worker, a.g));
        if buffer.len() == k {
            w.update(&mean(buffer.iter().map(|b| &b.1), p.d), 1.0);
            let next = match p.word("schedule") {
                "loss" => (p.number("k0") * a.loss_ratio.powf(p.number("p"))).ceil(),
                "linear" => p.number("k0") + (p.number("a") * w.t as f64).floor(),
                "geometric" => (p.number("k0") * (1.0 + p.number("a")).powf(w.t as f64)).ceil(),
                _ => p.number("k0") + (w.t as f64 / p.number("a")).floor(),
            };
            k = k.max((next as usize).min(p.n));
            let bound = match p.word("tau") {
                "mean-staleness" => (p.number("beta") * p.n as f64 / k as f64).ceil().max(1.0) as u64,
                fixed => fixed.parse().unwrap(),
            };
            for (j, _) in buffer.drain(..) {
                w.assign(j);
                began[j] = w.t;
            }
            for j in 0..p.n {
                if w.t - began[j] > bound {
                    w.restart(j);
                    began[j] = w.t;
                }
            }
        }
    })
}

/// The number of gradients per update grows with the number of arrivals, or as the loss falls. Workers never
/// wait.
pub(super) fn hybrid(p: &Parameters) -> Rule<'_> {
    let mut buffer: Vec<Vector> = Vec::new();
    let mut k = 0usize;
    Box::new(move |w, a| {
        buffer.push(a.g);
        let (nf, share) = (p.n as f64, a.received as f64 / p.number("horizon"));
        let now = match p.word("threshold") {
            "step" => 1.0 + (a.received as f64 / p.number("step")).floor(),
            "linear" => (1.0 + (nf - 1.0) * share).ceil(),
            "exp" => nf.powf(share).ceil(),
            "sigmoid" => 1.0 + ((nf - 1.0) / (1.0 + (-p.number("steepness") * (share - 0.5)).exp())).floor(),
            _ => a.loss_ratio.sqrt().round(),
        };
        k = k.max((now as usize).clamp(1, p.n));
        if buffer.len() >= k {
            let factor = if p.word("flush") == "sum" { buffer.len() as f64 } else { 1.0 };
            w.update(&mean(&buffer, p.d), factor);
            buffer.clear();
        }
        w.assign(a.worker);
    })
}

/// A cycle of some synchronous updates and some asynchronous ones.
pub(super) fn hybrid_cyclic(p: &Parameters) -> Rule<'_> {
    let (synchronous, asynchronous) = (p.number("sync") as u64, p.number("async") as u64);
    let cycle = synchronous + asynchronous;
    let mut buffer: Vec<Vector> = Vec::new();
    Box::new(move |w, a| {
        if w.t % cycle < synchronous {
            buffer.push(a.g);
            if buffer.len() == p.n {
                w.update(&mean(&buffer, p.d), 1.0);
                buffer.clear();
                (0..p.n).for_each(|j| w.assign(j));
            }
        } else {
            w.update(&a.g, 1.0);
            if w.t.is_multiple_of(cycle) && p.word("enter") == "cancel" {
                (0..p.n).filter(|j| *j != a.worker).for_each(|j| w.restart(j));
            }
            w.assign(a.worker);
        }
    })
}

/// The update averages b results of local steps, each weighted by (1 + τ)^-exponent.
pub(super) fn fedbuff(p: &Parameters) -> Rule<'_> {
    let factor = p.optional("local_lr").unwrap_or(1.0);
    let mut buffer: Vec<Vector> = Vec::new();
    Box::new(move |w, a| {
        let weight = (1.0 + a.tau as f64).powf(-p.number("exponent"));
        buffer.push(a.g.iter().map(|g| g * weight * factor).collect());
        if buffer.len() == p.count("b") {
            let direction = mean(&buffer, p.d);
            buffer.clear();
            w.update(&direction, 1.0);
        }
        w.assign(a.worker);
    })
}

/// AMSGrad on the mean of b results of local steps; the rate is divided by the largest staleness if that
/// exceeds tau_c.
pub(super) fn fadas(p: &Parameters) -> Rule<'_> {
    let factor = p.optional("local_lr").unwrap_or(1.0);
    let mut buffer: Vec<(u64, Vector)> = Vec::new();
    let (mut m, mut u, mut largest_u) = (p.zero(), p.zero(), p.zero());
    Box::new(move |w, a| {
        buffer.push((a.tau, a.g.iter().map(|g| g * factor).collect()));
        if buffer.len() == p.count("b") {
            let mut direction = mean(buffer.iter().map(|b| &b.1), p.d);
            let late = buffer.drain(..).map(|b| b.0).max().unwrap();
            for j in 0..p.d {
                m[j] = 0.9 * m[j] + 0.1 * direction[j];
                u[j] = 0.99 * u[j] + 0.01 * direction[j] * direction[j];
                largest_u[j] = f64::max(largest_u[j], u[j]);
                direction[j] = m[j] / (largest_u[j].sqrt() + 1e-8);
            }
            let scale = if late > p.number("tau_c") as u64 { 1.0 / late as f64 } else { 1.0 };
            let rate = w.rate() * scale;
            w.move_by(&direction, rate);
        }
        w.assign(a.worker);
    })
}
