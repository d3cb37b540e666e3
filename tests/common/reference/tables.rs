//! Rules that keep a gradient, or a sum of gradients, for each worker. Every update averages the whole table
//! anew.

use super::{Parameters, Rule, Vector, add, mean};

/// Mean over the workers of each worker's mean gradient. A row is a sum of gradients and their number.
fn mean_of_means(sums: &[(Vector, f64)], d: usize) -> Vector {
    let means: Vec<Vector> = sums.iter().map(|(g, b)| g.iter().map(|g| g / b).collect()).collect();
    mean(&means, d)
}

/// The update waits until the harmonic mean of the workers' numbers of gradients exceeds s/n.
pub(super) fn malenia(p: &Parameters) -> Rule<'_> {
    let n = p.n;
    let mut sums: Vec<(Vector, f64)> = vec![(p.zero(), 0.0); n];
    Box::new(move |w, a| {
        add(&mut sums[a.worker].0, &a.g, 1.0);
        sums[a.worker].1 += 1.0;
        let inverse = sums.iter().map(|s| 1.0 / s.1).sum::<f64>() / n as f64;
        if 1.0 / inverse > p.number("s") / n as f64 {
            w.update(&mean_of_means(&sums, p.d), 1.0);
            sums = vec![(p.zero(), 0.0); n];
            (0..n).for_each(|j| w.restart(j));
        } else {
            w.assign(a.worker);
        }
    })
}

/// Rounds of n updates, one for each worker. A gradient of a worker that has had its update counts for the
/// next round.
pub(super) fn ringleader(p: &Parameters) -> Rule<'_> {
    let n = p.n;
    let mut sums: Vec<(Vector, f64)> = vec![(p.zero(), 0.0); n];
    // Sums of the next round.
    let mut later = sums.clone();
    // Workers whose update of this round is still to come; empty while the table fills.
    let mut need: Vec<usize> = Vec::new();
    Box::new(move |w, a| {
        let i = a.worker;
        let collecting = need.is_empty();
        if collecting || need.contains(&i) {
            add(&mut sums[i].0, &a.g, 1.0);
            sums[i].1 += 1.0;
            if collecting && sums.iter().all(|s| s.1 > 0.0) {
                need = (0..n).collect();
            }
            if !need.is_empty() {
                w.update(&mean_of_means(&sums, p.d), 1.0);
                need.retain(|j| *j != i);
                if need.is_empty() {
                    sums = std::mem::replace(&mut later, vec![(p.zero(), 0.0); n]);
                }
            }
        } else {
            add(&mut later[i].0, &a.g, 1.0);
            later[i].1 += 1.0;
        }
        w.assign(i);
    })
}

/// DuDe and ACE: the direction is the mean of each worker's latest gradient; c arrivals make an update.
pub(super) fn dude(p: &Parameters) -> Rule<'_> {
    let (n, nothing) = (p.n, p.zero());
    let init = p.find("init").unwrap_or("barrier");
    let c: usize = p.find("c").map_or(1, |c| c.parse().unwrap());
    let mut rows: Vec<Option<Vector>> = vec![None; n];
    let mut senders: Vec<usize> = Vec::new();
    Box::new(move |w, a| {
        let waits = rows.iter().any(|r| r.is_none()) && init != "zero";
        rows[a.worker] = Some(a.g);
        let all = rows.iter().all(|r| r.is_some());
        let direction = mean(rows.iter().map(|r| r.as_ref().unwrap_or(&nothing)), p.d);
        if waits && init == "barrier" {
            if all {
                w.update(&direction, 1.0);
                (0..n).for_each(|j| w.assign(j));
            }
        } else if waits {
            w.assign(a.worker);
        } else {
            senders.push(a.worker);
            if senders.len() == c {
                w.update(&direction, 1.0);
                senders.drain(..).for_each(|j| w.assign(j));
            }
        }
    })
}

/// MIFA: the direction is the mean of each worker's latest gradient. A round ends when all available workers
/// have replied.
pub(super) fn mifa(p: &Parameters) -> Rule<'_> {
    let nothing = p.zero();
    let mut rows: Vec<Option<Vector>> = vec![None; p.n];
    let mut replies = 0;
    Box::new(move |w, a| {
        rows[a.worker] = Some(a.g);
        replies += 1;
        let available = if w.t == 0 { p.n } else { w.s.targets[&w.t].len() };
        if replies == available {
            replies = 0;
            w.update(&mean(rows.iter().map(|r| r.as_ref().unwrap_or(&nothing)), p.d), 1.0);
            w.assign_by_log();
        }
    })
}

/// ACED: the direction is the mean of the latest gradients that are at most `max_age` versions old.
pub(super) fn aced(p: &Parameters) -> Rule<'_> {
    let age = p.number("max_age") as u64;
    let mut rows: Vec<Option<(u64, Vector)>> = vec![None; p.n];
    Box::new(move |w, a| {
        if a.tau > age {
            w.assign(a.worker);
        } else {
            rows[a.worker] = Some((a.job.version, a.g));
            let t = w.t;
            let young = rows.iter().flatten().filter(|(v, _)| t - v <= age).map(|r| &r.1);
            if t > 0 {
                w.update(&mean(young, p.d), 1.0);
                w.assign(a.worker);
            } else if rows.iter().all(|r| r.is_some()) {
                w.update(&mean(young, p.d), 1.0);
                (0..p.n).for_each(|j| w.assign(j));
            }
        }
    })
}

/// CA²FL: the direction is the mean of the table, plus the mean change of the b rows that arrived.
pub(super) fn ca2fl(p: &Parameters) -> Rule<'_> {
    let mut buffer: Vec<(usize, Vector)> = Vec::new();
    let mut rows: Vec<Option<Vector>> = vec![None; p.n];
    Box::new(move |w, a| {
        buffer.push((a.worker, a.g));
        if buffer.len() == p.count("b") {
            let row = |j: usize| rows[j].clone().unwrap_or_else(|| p.zero());
            let mut v = mean(&(0..p.n).map(row).collect::<Vec<_>>(), p.d);
            for (j, g) in &buffer {
                add(&mut v, g, 1.0 / buffer.len() as f64);
                add(&mut v, &row(*j), -1.0 / buffer.len() as f64);
            }
            w.update(&v, 1.0);
            for (j, g) in buffer.drain(..) {
                rows[j] = Some(g);
                w.assign(j);
            }
        }
    })
}
