//! Rules that make an update of every gradient that they use.

use super::{Parameters, Rule};

/// Pure asynchronous SGD: w ← w - η g.
pub(super) fn asgd(_: &Parameters) -> Rule<'_> {
    Box::new(|w, a| {
        w.update(&a.g, 1.0);
        w.assign(a.worker);
    })
}

/// The rate is divided by the staleness.
pub(super) fn staleness(_: &Parameters) -> Rule<'_> {
    Box::new(|w, a| {
        w.update(&a.g, 1.0 / a.tau.max(1) as f64);
        w.assign(a.worker);
    })
}

/// The rate falls with the staleness; a gradient that is too late may be dropped.
pub(super) fn delay_adaptive(p: &Parameters) -> Rule<'_> {
    Box::new(move |w, a| {
        let tau = a.tau;
        let scale = match p.word("form") {
            "mishchenko" => p.n as f64 / (p.n as f64).max(tau as f64),
            _ if tau as f64 <= p.number("tau_c") => 1.0,
            _ if p.find("late") == Some("drop") => 0.0,
            _ if p.find("smoothness").is_some() => {
                f64::min(1.0, 1.0 / (4.0 * p.number("smoothness") * tau as f64 * w.s.lr))
            }
            _ => p.number("tau_c") / tau as f64,
        };
        if scale > 0.0 {
            w.update(&a.g, scale);
        }
        w.assign(a.worker);
    })
}

/// A gradient is weighted by the time that its worker takes, relative to the mean over the workers whose time
/// is known.
pub(super) fn rescaled(p: &Parameters) -> Rule<'_> {
    // Seconds per job of each worker; 0 until its first arrival.
    let mut measured = vec![0.0f64; p.n];
    Box::new(move |w, a| {
        let s = w.s;
        measured[a.worker] = s.job_seconds[a.worker];
        let known: Vec<f64> = match p.word("speeds") {
            "known" => s.job_seconds.clone(),
            _ => measured.iter().copied().filter(|seconds| *seconds > 0.0).collect(),
        };
        w.update(&a.g, s.job_seconds[a.worker] * known.len() as f64 / known.iter().sum::<f64>());
        w.assign(a.worker);
    })
}

/// A gradient that is r or more updates late is dropped; with `stops`, jobs that become so late are restarted.
pub(super) fn ringmaster(p: &Parameters) -> Rule<'_> {
    let r = p.number("r") as u64;
    let mut began = vec![0u64; p.n];
    Box::new(move |w, a| {
        if a.tau < r {
            w.update(&a.g, 1.0);
            began[a.worker] = w.t;
            for j in (0..p.n).filter(|j| *j != a.worker) {
                if p.word("stops") == "true" && w.t - began[j] >= r {
                    w.restart(j);
                    began[j] = w.t;
                }
            }
        }
        w.assign(a.worker);
    })
}

/// Delay compensation: the gradient is corrected by λ g² (w - w_sent), element by element.
pub(super) fn dcasgd(p: &Parameters) -> Rule<'_> {
    let mut squares = vec![p.zero(); p.n];
    Box::new(move |w, a| {
        let (i, mut g) = (a.worker, a.g);
        for j in 0..p.d {
            let mut lambda = p.number("lambda");
            if p.word("adaptive") == "true" {
                squares[i][j] = p.number("m") * squares[i][j] + (1.0 - p.number("m")) * g[j] * g[j];
                lambda /= (squares[i][j] + 1e-7).sqrt();
            }
            g[j] += lambda * g[j] * g[j] * (w.x[j] - a.job.x[j]);
        }
        w.update(&g, 1.0);
        w.assign(i);
    })
}

/// The update of [`asgd`]; a draw decides which workers get the new model.
pub(super) fn assigned_by_log(_: &Parameters) -> Rule<'_> {
    Box::new(|w, a| {
        w.update(&a.g, 1.0);
        w.assign_by_log();
    })
}
