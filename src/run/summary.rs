//! The summary of a run: `summary.json`, and the lines at the end.

use super::Finished;
use super::build::Facts;
use crate::problem::Columns;
use crate::record::{Occupancy, Outcome, Summary};
use crate::view::progress::duration;
use indicatif::BinaryBytes;
use stagger_kernels::{row, update};

/// The summary of a finished run.
pub fn summarise(facts: &Facts, outcome: &Outcome, weights_sha256: String) -> Summary {
    let Facts { resolved, backend, .. } = facts;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let seconds = outcome.wall_seconds.max(1e-9);
    let finite = |x: Option<f64>| x.filter(|x| x.is_finite());
    Summary {
        rule: text(&resolved.rule),
        workers: resolved.workers.unwrap_or(0),
        backend: backend.device.name().into(),
        device: backend.name.clone(),
        clock: text(&resolved.clock),
        dataset: text(&resolved.dataset),
        partition: text(&resolved.partition),
        model: text(&resolved.model),
        parameters: facts.layout.parameters(),
        batch: facts.batch,
        lr: resolved.lr.unwrap_or(0.0),
        seed: resolved.seed.unwrap_or(0),
        threads_per_worker: resolved.threads_per_worker,
        updates: outcome.updates,
        gradients: outcome.gradients,
        dropped: outcome.dropped,
        restarted: outcome.restarted,
        not_finite: outcome.not_finite,
        time: outcome.time,
        wall_seconds: outcome.wall_seconds,
        gradients_per_second: outcome.gradients as f64 / seconds,
        samples_per_second: outcome.samples as f64 / seconds,
        mean_staleness: outcome.staleness as f64 / outcome.gradients.max(1) as f64,
        max_staleness: outcome.max_staleness,
        final_train_loss: finite(match facts.columns {
            Columns::Theory => outcome.evaluation.train_loss,
            Columns::Images => outcome.recent_loss,
        }),
        final_grad_norm: finite(outcome.evaluation.grad_norm),
        final_test_loss: finite(outcome.evaluation.test_loss),
        final_test_accuracy: finite(outcome.evaluation.test_accuracy),
        update_launches: update::launches(),
        cores_busy: None,
        memory_estimate: facts.memory_estimate,
        memory: backend.memory_taken(),
        failures: outcome.failures.clone(),
        occupancy: outcome.occupancy,
        weights_sha256,
        version: env!("CARGO_PKG_VERSION").into(),
        interrupted: outcome.interrupted,
    }
}

/// Prints the lines at the end of a run. With `profile`, also prints the executor and the number of launches.
pub fn report(Finished { summary: s, folder, executor }: &Finished, profile: bool) {
    say!();
    say!(
        "done       {} updates from {} gradients ({} dropped, {} restarted) in {}",
        s.updates,
        s.gradients,
        s.dropped,
        s.restarted,
        duration(s.wall_seconds)
    );
    say!("time       {:.3} s on the {} clock", s.time, s.clock.split(':').next().unwrap_or(""));
    say!("speed      {:.1} gradients/s, {:.0} samples/s on {}", s.gradients_per_second, s.samples_per_second, s.device);
    say!("staleness  {:.2} on average, {} at most", s.mean_staleness, s.max_staleness);
    let number = |x: Option<f64>| x.map_or("not finite".into(), |x| format!("{x:.6}"));
    for failure in &s.failures {
        say!("FAILED     {failure}; {}", failure.handled);
    }
    if s.not_finite > 0 {
        say!("NOT FINITE values in {} gradients: these values were left out", s.not_finite);
    }
    say!("train loss {}", number(s.final_train_loss));
    if let Some(norm) = s.final_grad_norm {
        say!("grad norm  {norm:.6e}");
    }
    if let Some(accuracy) = s.final_test_accuracy {
        say!("test       accuracy {:.2} %, loss {}", 100.0 * accuracy, number(s.final_test_loss));
    }
    if let Some(memory) = s.memory {
        say!("memory     {} at most", BinaryBytes(memory));
    }
    if let Some(Occupancy { at_once, idle }) = s.occupancy {
        say!("device     {at_once:.2} streams at once, idle for {:.1} % of the time (device.csv)", 100.0 * idle);
    }
    say!("weights    SHA-256 {}", s.weights_sha256);
    if profile {
        say!("executor   {:?}: {}", executor.kind, executor.why);
        say!("launches   {} update launches for {} arrivals", s.update_launches, s.gradients);
        if row::resums() > 0 {
            say!("           {} more that recomputed the sum from its table", row::resums());
        }
        if update::worker_launches() > 0 {
            say!("           {} steps that the workers launched themselves", update::worker_launches());
        }
    }
    say!("folder     {}", folder.display());
}
