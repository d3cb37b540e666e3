//! Rescaled ASGD: pure asynchronous SGD with steps in proportion to the workers' job times, so that all
//! workers have the same weight per second.
//!
//! ```text
//! on g_i:     x -= η (s_i / mean(s)) g_i ;  x to worker i        s_i: job time of worker i, in seconds
//! known:      s_i is the mean of the delay model
//! estimated:  s_i = the first measured job time of worker i ;  then  s_i += (1 - memory) (measured - s_i)
//!             mean(s) is over the workers that have been measured
//! ```
//!
//! Mahran, Maranjyan, Richtárik 2026 (arXiv 2605.13434). Proved: leading time Δ L σ²/(n ε²) · mean(s),
//! without a table and without idle workers. A small bias of order η remains, because only the rates are
//! matched.
//!
//! The authors' poster prints the inverse ratio. That contradicts the poster's own statement and a
//! simulation, so we follow the abstract.

use super::{Arrival, Cost, Decision, Entry, Key, Rule};
use crate::error::Error;

pub(super) const ENTRY: Entry = Entry {
    name: "rescaled",
    summary: "rescaled ASGD: steps in proportion to the workers' job times",
    paper: "Mahran et al. 2026",
    source: include_str!("rescaled.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: false },
    keys: &[
        Key { name: "speeds", default: "known with a delay model", meaning: "job times: known or estimated" },
        Key { name: "memory", default: "0.9", meaning: "estimated: weight of the past in the mean" },
    ],
    build: |keys, setting| {
        let speeds = keys.choice("speeds", &[("known", Speeds::Known), ("estimated", Speeds::Estimated)])?;
        if setting.seconds.is_none() && keys.text("speeds") == Some("known") {
            return Err(Error::usage("--rule rescaled: speeds=known needs a --delay model; speeds=estimated does not"));
        }
        let memory = keys.number("memory", 0.9, 0.0..=0.9999)?;
        // The default is `known`, but without a delay model the times are estimated.
        let (speeds, seconds) = match (speeds, &setting.seconds) {
            (Speeds::Known, Some(seconds)) => (Speeds::Known, seconds.clone()),
            _ => (Speeds::Estimated, vec![0.0; setting.workers]),
        };
        Ok(Box::new(Rescaled { speeds, memory, seconds }))
    },
};

/// Where the job times s_i come from.
#[derive(Clone, Copy, PartialEq)]
enum Speeds {
    /// The delay model.
    Known,
    /// Measured job times.
    Estimated,
}

struct Rescaled {
    speeds: Speeds,
    /// Weight of the past in the exponential mean.
    memory: f64,
    /// s_i of each worker, in seconds; 0 until measured.
    seconds: Vec<f64>,
}

impl Rule for Rescaled {
    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        if self.speeds == Speeds::Estimated {
            // s_i += (1 - memory) (measured - s_i), or s_i = measured
            let mean = &mut self.seconds[arrival.worker];
            let weight = if *mean == 0.0 { 1.0 } else { 1.0 - self.memory };
            *mean += (arrival.seconds - *mean) * weight;
        }
        let own = self.seconds[arrival.worker];
        let sum: f64 = self.seconds.iter().sum();
        let measured = self.seconds.iter().filter(|seconds| **seconds > 0.0).count() as f64;

        // x -= η (s_i / mean(s)) g_i
        let ratio = if sum > 0.0 { own * measured / sum } else { 1.0 };
        Decision::direct().scaled(ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rule;
    use super::*;

    #[test]
    fn slow_workers_take_larger_steps() {
        let mut rule = rule("rescaled:speeds=estimated", 2);
        let mut step = |worker, seconds| {
            let arrival = Arrival { worker, seconds, ..Arrival::default() };
            rule.on_arrival(&arrival).step.unwrap().scale
        };
        assert_eq!([step(0, 1.0), step(1, 3.0), step(0, 1.0)], [1.0, 1.5, 0.5]);
    }
}
