//! Rescaled ASGD: pure ASGD with steps in proportion to the workers' job times, so that all weigh the same per second.
//! ```text
//! x -= η s_i / mean(s) · g_i ;   x to i
//! ```
//! Mahran, Maranjyan, Richtárik 2026 (arXiv 2605.13434). Proved: leading time Δ L σ²/(n ε²) · mean(s), no table and no idling;
//! a small bias of order η remains, since only rates are matched. Their poster prints the inverse ratio, against its own
//! sentence and against simulation; we follow the abstract. `known` takes s_i from the delay model, `estimated` an exponential
//! mean of measured job times, over the workers heard so far.

use super::{Arrival, Cost, Decision, Entry, Key, Rule};
use crate::error::Error;

pub(super) const ENTRY: Entry = Entry {
    name: "rescaled",
    summary: "rescaled ASGD: steps in proportion to the workers' job times",
    paper: "Mahran et al. 2026",
    source: include_str!("rescaled.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: false },
    keys: &[
        Key { name: "speeds", default: "known where there is a delay model", meaning: "known or estimated" },
        Key { name: "memory", default: "0.9", meaning: "estimated: weight of the past in the mean" },
    ],
    build: |keys, setting| {
        let estimates = keys.choice("speeds", &[("known", false), ("estimated", true)])?;
        if setting.seconds.is_none() && keys.text("speeds") == Some("known") {
            return Err(Error::usage("--rule rescaled: speeds=known needs a --delay model; speeds=estimated does not"));
        }
        let known = setting.seconds.clone().filter(|_| !estimates);
        let (estimates, seconds) = (known.is_none(), known.unwrap_or(vec![0.0; setting.workers]));
        Ok(Box::new(Rescaled { estimates, memory: keys.number("memory", 0.9, 0.0..=0.9999)?, seconds }))
    },
};

struct Rescaled {
    estimates: bool,
    memory: f64,
    seconds: Vec<f64>, // 0: not heard yet
}

impl Rule for Rescaled {
    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        let own = &mut self.seconds[arrival.worker];
        if self.estimates {
            *own += (arrival.seconds - *own) * if *own == 0.0 { 1.0 } else { 1.0 - self.memory };
        }
        let own = *own;
        let (sum, heard) = self.seconds.iter().fold((0.0, 0.0), |(s, k), x| (s + x, k + (*x > 0.0) as u8 as f64));
        Decision::direct().scaled(if sum > 0.0 { own * heard / sum } else { 1.0 })
    }
}

#[cfg(test)]
#[test]
fn the_slow_step_more() {
    let mut rule = super::tests::rule("rescaled:speeds=estimated", 2);
    let mut step =
        |worker, seconds| rule.on_arrival(&Arrival { worker, seconds, ..Arrival::default() }).step.unwrap().scale;
    assert_eq!([step(0, 1.0), step(1, 3.0), step(0, 1.0)], [1.0, 1.5, 0.5]);
}
