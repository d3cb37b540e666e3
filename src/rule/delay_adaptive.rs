//! Delay-adaptive asynchronous SGD: pure asynchronous SGD with smaller steps for gradients that are very late.
//!
//! ```text
//! on g_i with delay τ = t - v:
//! mishchenko   x -= η n/max(n, τ) g_i ;  x to worker i                        (tau_c, if given, replaces n)
//! koloskova    τ <= τ_c:  x -= η g_i ;  x to worker i
//!              τ > τ_c:   x -= min(η, 1/(4 L τ)) g_i   if L is given (smoothness)
//!                         x -= η τ_c/τ g_i             if L is not given
//!                         nothing, g_i is dropped      if late=drop, with or without L ;  x to worker i in every case
//! ```
//!
//! τ_c is n by default. So without `smoothness` and `late=drop` both forms are the same rule. A --schedule
//! multiplies the step of both forms: η in min(η, 1/(4 L τ)) is --lr, and the schedule's factor applies to
//! the minimum.
//!
//! Mishchenko, Bach, Even, Woodworth 2022 (arXiv 2206.07638); Koloskova, Stich, Jaggi 2022 (arXiv
//! 2206.08307). Proved, for identical data on all workers: rates that depend on n, or on the mean delay, and
//! not on the largest delay. With different data the bias of pure asynchronous SGD grows, because slow
//! workers take smaller steps.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Rule, Start};
use crate::error::Error;

pub(super) const ENTRY: Entry = Entry {
    name: "delay-adaptive",
    summary: "delay-adaptive asynchronous SGD: smaller steps for gradients with a large delay",
    paper: "Mishchenko et al. 2022; Koloskova et al. 2022",
    source: include_str!("delay_adaptive.rs"),
    cost: Cost { server: "1", worker: "0", copies: "1", biased: true },
    keys: &[
        Key { name: "form", default: "mishchenko", meaning: "mishchenko or koloskova" },
        Key { name: "tau_c", default: "the workers", meaning: "largest delay with a full step" },
        Key { name: "late", default: "scale", meaning: "koloskova: scale or drop gradients with a larger delay" },
        Key { name: "smoothness", default: "unknown", meaning: "koloskova: L of the step 1/(4 L τ)" },
    ],
    build: |keys, setting| {
        let form = keys.choice("form", &[("mishchenko", Form::Mishchenko), ("koloskova", Form::Koloskova)])?;
        let late = keys.choice("late", &[("scale", Late::Scale), ("drop", Late::Drop)])?;
        let four_l_eta = keys.number("smoothness", 0.0, 1e-12..=1e12)? * 4.0 * setting.lr;
        if form == Form::Mishchenko && (late == Late::Drop || four_l_eta > 0.0) {
            return Err(Error::usage("--rule delay-adaptive: late and smoothness need form=koloskova"));
        }
        let tau_c = keys.count("tau_c", setting.workers, 1..=usize::MAX)? as f64;
        Ok(Box::new(DelayAdaptive { tau_c, late, four_l_eta }))
    },
};

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Mishchenko,
    Koloskova,
}

/// What happens to a gradient with τ > τ_c.
#[derive(Clone, Copy, PartialEq)]
enum Late {
    Scale,
    Drop,
}

struct DelayAdaptive {
    tau_c: f64,
    late: Late,
    /// 4 L η, or 0 if L is unknown.
    four_l_eta: f64,
}

impl Rule for DelayAdaptive {
    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        let tau = a.staleness as f64;
        // τ <= τ_c:  x -= η g_i
        if tau <= self.tau_c {
            return Decision::direct();
        }
        match self.late {
            Late::Drop => Decision::fold(Fold::Drop).start(Start::Sender),
            // x -= η min(1, 1/(4 L η τ)) g_i
            Late::Scale if self.four_l_eta > 0.0 => Decision::direct().scaled((1.0 / (self.four_l_eta * tau)).min(1.0)),
            // x -= η τ_c/τ g_i
            Late::Scale => Decision::direct().scaled(self.tau_c / tau),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn late_gradients_take_smaller_steps() {
        let scale = |keys: &str| {
            let mut rule = rule(&format!("delay-adaptive:{keys}"), 3);
            arrive(&mut *rule, 0, 0, 4).step.map(|step| step.scale)
        };
        assert_eq!(scale(""), Some(0.75));
        assert_eq!(scale("form=koloskova,tau_c=2"), Some(0.5));
        assert_eq!(scale("form=koloskova,late=drop"), None);
    }
}
