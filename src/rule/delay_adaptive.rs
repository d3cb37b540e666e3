//! Delay-adaptive asynchronous SGD: pure ASGD with smaller steps for gradients that come very late.
//! ```text
//! mishchenko   x -= η n/max(n, τ) g
//! koloskova    x -= η g  if τ <= τ_c,  else  min(η, 1/(4 L τ)) g  (L given),  η τ_c/τ g  (not given),  or nothing (late=drop)
//! ```
//! Mishchenko, Bach, Even, Woodworth 2022 (arXiv 2206.07638); Koloskova, Stich, Jaggi 2022 (arXiv 2206.08307). Proved for alike
//! data: rates by n, or by the mean delay, not the largest; else the bias of pure ASGD grows. A --schedule scales both forms.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Rule, Start};
use crate::error::Error;

pub(super) const ENTRY: Entry = Entry {
    name: "delay-adaptive",
    summary: "delay-adaptive ASGD: smaller steps for gradients that come very late",
    paper: "Mishchenko et al. 2022; Koloskova et al. 2022",
    source: include_str!("delay_adaptive.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: true },
    keys: &[
        Key { name: "form", default: "mishchenko", meaning: "mishchenko or koloskova" },
        Key { name: "tau_c", default: "the workers", meaning: "delay up to which the step is whole" },
        Key { name: "late", default: "scale", meaning: "koloskova: scale or drop what is later" },
        Key { name: "smoothness", default: "unknown", meaning: "koloskova: L of the step 1/(4 L τ)" },
    ],
    build: |keys, setting| {
        let koloskova = keys.choice("form", &[("mishchenko", false), ("koloskova", true)])?;
        let drops = keys.choice("late", &[("scale", false), ("drop", true)])?;
        let bound = keys.number("smoothness", 0.0, 1e-12..=1e12)? * 4.0 * setting.lr;
        if !koloskova && (drops || bound > 0.0) {
            return Err(Error::usage("--rule delay-adaptive: late and smoothness need form=koloskova"));
        }
        let tau_c = keys.count("tau_c", setting.workers, 1..=usize::MAX)? as f64;
        Ok(Box::new(DelayAdaptive { tau_c, drops, bound }))
    },
};

struct DelayAdaptive {
    tau_c: f64,
    drops: bool,
    bound: f64, // 4 L η, or 0
}

impl Rule for DelayAdaptive {
    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        let tau = arrival.staleness as f64;
        match tau > self.tau_c {
            false => Decision::direct(),
            true if self.drops => Decision::fold(Fold::Drop).start(Start::Sender),
            true if self.bound > 0.0 => Decision::direct().scaled((1.0 / (self.bound * tau)).min(1.0)),
            true => Decision::direct().scaled(self.tau_c / tau),
        }
    }
}

#[cfg(test)]
#[test]
fn late_gradients_step_less() {
    use super::tests::*;
    let scale = |keys: &str| arrive(&mut *rule(&format!("delay-adaptive:{keys}"), 3), 0, 0, 4).step.map(|s| s.scale);
    assert_eq!(["", "form=koloskova,tau_c=2", "form=koloskova,late=drop"].map(scale), [Some(0.75), Some(0.5), None]);
}
