//! Rules that mix models, and rules with an outer optimizer. Workers make several local steps.

use super::{Parameters, Rule, Vector, add, mean};

/// w ← (1 - α) w + α y, where y is the worker's model after its local steps and α may fall with the staleness.
pub(super) fn fedasync(p: &Parameters) -> Rule<'_> {
    Box::new(move |w, a| {
        let tau = a.tau;
        let alpha = p.number("alpha")
            * match p.word("weighting") {
                "hinge" if tau as f64 > p.number("b") => {
                    f64::min(1.0, 1.0 / (p.number("a") * (tau as f64 - p.number("b"))))
                }
                "poly" => (1.0 + tau as f64).powf(-p.number("a")),
                _ => 1.0,
            };
        let mut end = a.job.x.clone();
        add(&mut end, &a.g, -a.job.rate);
        for j in 0..p.d {
            w.x[j] = (1.0 - alpha) * w.x[j] + alpha * end[j];
        }
        w.publish();
        w.assign(a.worker);
    })
}

/// Elastic averaging: the worker's own model and the server's weights move towards each other.
pub(super) fn easgd(p: &Parameters) -> Rule<'_> {
    let mut own = vec![p.start.clone(); p.n];
    Box::new(move |w, a| {
        let i = a.worker;
        let mut end = a.job.x.clone();
        add(&mut end, &a.g, -a.job.rate);
        for j in 0..p.d {
            let pull = p.number("alpha") * (end[j] - w.x[j]);
            own[i][j] = end[j] - pull;
            w.x[j] += pull;
        }
        w.publish();
        w.assign_model(i, own[i].clone(), w.local_steps);
    })
}

/// AD-PSGD: a worker averages its model with a neighbour's, then adds its own step.
pub(super) fn adpsgd(p: &Parameters) -> Rule<'_> {
    let n = p.n;
    assert!(n <= 2, "the log does not name the neighbour");
    let mut own = vec![p.start.clone(); n];
    Box::new(move |w, a| {
        let i = a.worker;
        let average = mean(&own, p.d);
        own = vec![average; n];
        add(&mut own[i], &a.g, -a.job.rate);
        w.x = mean(&own, p.d);
        w.publish();
        w.assign_model(i, own[i].clone(), w.local_steps);
    })
}

/// DiLoCo: Nesterov's momentum on the mean of all workers' sums of local steps.
pub(super) fn diloco(p: &Parameters) -> Rule<'_> {
    let mut buffer: Vec<Vector> = Vec::new();
    let mut velocity = p.zero();
    Box::new(move |w, a| {
        buffer.push(a.g);
        if buffer.len() == p.n {
            let direction = mean(&buffer, p.d);
            buffer.clear();
            let (beta, rate) = (p.number("momentum"), w.rate() * p.number("outer_lr"));
            let mut step = direction.clone();
            for j in 0..p.d {
                velocity[j] = beta * velocity[j] + direction[j];
                step[j] += beta * velocity[j];
            }
            w.move_by(&step, rate);
            (0..p.n).for_each(|j| w.assign(j));
        }
    })
}

/// Asynchronous DiLoCo with delayed Nesterov momentum: every n-th update also applies the momentum. A slower
/// worker makes fewer local steps.
pub(super) fn async_diloco(p: &Parameters) -> Rule<'_> {
    let n = p.n;
    let (mut velocity, mut gathered) = (p.zero(), p.zero());
    // Local steps per second of each worker; 0 until its first arrival.
    let mut speeds = vec![0.0f64; n];
    Box::new(move |w, a| {
        let (i, most) = (a.worker, w.local_steps);
        let (beta, rate) = (p.number("momentum"), w.rate() * p.number("outer_lr") / n as f64);
        add(&mut gathered, &a.g, 1.0);
        let mut step = a.g;
        if (w.t + 1).is_multiple_of(n as u64) {
            for j in 0..p.d {
                velocity[j] = beta * velocity[j] + gathered[j];
                gathered[j] = 0.0;
                step[j] += beta * velocity[j];
            }
        }
        w.move_by(&step, rate);
        // A job of h steps takes s_i seconds, so one step takes s_i/h.
        speeds[i] = most as f64 / w.s.job_seconds[i];
        let fastest = speeds.iter().copied().fold(0.0, f64::max);
        let steps = ((most as f64 * speeds[i] / fastest + 1e-9) as usize).clamp(1, most);
        w.assign_model(i, w.x.clone(), steps);
    })
}
