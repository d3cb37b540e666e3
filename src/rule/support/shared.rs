//! Parameters that several rules share: how many gradients to wait for as the run goes on, the largest
//! staleness of a job, and the outer step of DiLoCo.

use super::super::{Key, Keys, Local, Setting};
use crate::error::{Error, Result};

/// The ratio F(w_0)/F(w_t) of the first known batch loss to the present one.
#[derive(Default)]
pub(in crate::rule) struct LossRatio {
    first: Option<f64>,
}

impl LossRatio {
    /// The ratio for the present loss, at least 0. It is 1 if the loss is unknown or not finite. A present
    /// loss below 1e-12 counts as 1e-12.
    pub(in crate::rule) fn of(&mut self, loss: Option<f64>) -> f64 {
        let Some(now) = loss.filter(|l| l.is_finite()) else { return 1.0 };
        let first = *self.first.get_or_insert(now);
        (first / now.max(1e-12)).max(0.0)
    }
}

/// How ABS increases K: a function of the update t, the loss ratio and K_0.
#[derive(Clone, Copy, PartialEq)]
enum Growth {
    /// K = ceil(K_0 (F_0/F)^p).
    Loss,
    /// K = K_0 + floor(a t).
    Linear,
    /// K = ceil(K_0 (1+a)^t).
    Geometric,
    /// K = K_0 + floor(t/a).
    Step,
}

/// The schedule of K of ABS, with the parameters `k0`, `schedule`, `a` and `p`.
pub(in crate::rule) struct KSchedule {
    /// K_0: K at the start.
    pub(in crate::rule) k0: usize,
    n: usize,
    growth: Growth,
    a: f64,
    p: f64,
    ratio: LossRatio,
}

impl KSchedule {
    /// Reads the parameters.
    pub(in crate::rule) fn new(keys: &Keys, setting: &Setting) -> Result<Self> {
        let names = [
            ("loss", Growth::Loss),
            ("linear", Growth::Linear),
            ("geometric", Growth::Geometric),
            ("step", Growth::Step),
        ];
        let growth = keys.choice("schedule", &names)?;
        let default_a = if growth == Growth::Step { 100.0 } else { 0.01 };
        let a = keys.number("a", default_a, 1e-9..=1e9)?;
        let p = keys.number("p", 0.5, 0.0..=10.0)?;
        let n = setting.workers;
        let k0 = keys.count("k0", 1, 1..=n)?;
        Ok(KSchedule { k0, n, growth, a, p, ratio: LossRatio::default() })
    }

    /// K after update `t`, from 1 to n.
    pub(in crate::rule) fn k(&mut self, t: u64, loss: Option<f64>) -> usize {
        let k0 = self.k0 as f64;
        let t = t as f64;
        let ratio = self.ratio.of(loss);
        let k = match self.growth {
            Growth::Loss => (k0 * ratio.powf(self.p)).ceil(),
            Growth::Linear => k0 + (self.a * t).floor(),
            Growth::Geometric => (k0 * (1.0 + self.a).powf(t)).ceil(),
            Growth::Step => k0 + (t / self.a).floor(),
        };
        k.clamp(1.0, self.n as f64) as usize
    }
}

/// τ_max of ABS: a running job with a larger staleness is cancelled.
pub(in crate::rule) enum Bound {
    /// A fixed number of updates.
    Fixed(u64),
    /// max(1, ceil(β n/K)). With equal speeds a worker contributes to one of n/K updates.
    MeanStaleness(f64),
}

impl Bound {
    /// Reads the parameters `tau` and `beta`.
    pub(in crate::rule) fn new(keys: &Keys) -> Result<Self> {
        let fixed = keys.text("tau").filter(|tau| *tau != "mean-staleness");
        if fixed.is_some() && keys.text("beta").is_some() {
            return Err(Error::usage("--rule abs: beta needs tau=mean-staleness"));
        }
        match fixed {
            None => Ok(Bound::MeanStaleness(keys.number("beta", 2.0, 0.01..=1e9)?)),
            Some(text) => text.parse().map(Bound::Fixed).map_err(|_| {
                Error::usage(format!("--rule: tau={text} must be mean-staleness or a whole number of updates"))
            }),
        }
    }

    /// τ_max for `n` workers and the present K, in updates.
    pub(in crate::rule) fn of(&self, n: usize, k: usize) -> u64 {
        match self {
            Bound::Fixed(tau) => *tau,
            Bound::MeanStaleness(beta) => (beta * n as f64 / k as f64).ceil().max(1.0) as u64,
        }
    }
}

/// The form of hybrid SGD's threshold K(u), before it is limited to 1..=n.
#[derive(Clone, Copy, PartialEq)]
enum ThresholdKind {
    /// K = 1 + floor(u/S).
    Step,
    /// K = ceil(1 + (n-1) u/U).
    Linear,
    /// K = ceil(n^{u/U}).
    Exponential,
    /// K = 1 + floor((n-1)/(1 + e^{-k(u/U - 1/2)})).
    Sigmoid,
    /// K = √(F_0/F), rounded.
    Loss,
}

/// The threshold K(u) of hybrid SGD: gradients per update, as a function of the number u of gradients
/// received. It never decreases.
pub(in crate::rule) struct Threshold {
    kind: ThresholdKind,
    /// S: gradients from one K to the next.
    step: f64,
    /// U: gradients until K = n.
    horizon: f64,
    /// k of the sigmoid.
    steepness: f64,
    n: usize,
    /// Gradients received.
    u: u64,
    /// The largest K so far.
    k: usize,
    ratio: LossRatio,
}

impl Threshold {
    /// Reads the parameters `threshold`, `step`, `horizon` and `steepness`.
    pub(in crate::rule) fn new(keys: &Keys, setting: &Setting) -> Result<Self> {
        let kinds = [
            ("step", ThresholdKind::Step),
            ("linear", ThresholdKind::Linear),
            ("exp", ThresholdKind::Exponential),
            ("sigmoid", ThresholdKind::Sigmoid),
            ("loss", ThresholdKind::Loss),
        ];
        Ok(Threshold {
            kind: keys.choice("threshold", &kinds)?,
            step: keys.count("step", 300, 1..=1 << 40)? as f64,
            horizon: keys.count("horizon", 10_000, 1..=1 << 40)? as f64,
            steepness: keys.number("steepness", 10.0, 0.001..=1000.0)?,
            n: setting.workers,
            u: 0,
            k: 1,
            ratio: LossRatio::default(),
        })
    }

    /// Whether the threshold depends on the loss.
    pub(in crate::rule) fn by_loss(&self) -> bool {
        self.kind == ThresholdKind::Loss
    }

    /// The threshold after one more gradient, from 1 to n.
    pub(in crate::rule) fn next(&mut self, loss: Option<f64>) -> usize {
        self.u += 1;
        let n = self.n as f64;
        let u = self.u as f64;
        let share = u / self.horizon;
        let k = match self.kind {
            ThresholdKind::Step => 1.0 + (u / self.step).floor(),
            ThresholdKind::Linear => (1.0 + (n - 1.0) * share).ceil(),
            ThresholdKind::Exponential => n.powf(share).ceil(),
            ThresholdKind::Sigmoid => 1.0 + ((n - 1.0) / (1.0 + (-self.steepness * (share - 0.5)).exp())).floor(),
            ThresholdKind::Loss => self.ratio.of(loss).sqrt().round(),
        };
        self.k = self.k.max(k.clamp(1.0, n) as usize);
        self.k
    }
}

/// The parameters of ABS.
pub(in crate::rule) const KEYS: [Key; 7] = [
    Key { name: "k0", default: "1", meaning: "K at the start" },
    Key { name: "u", default: "5", meaning: "local steps per job" },
    Key { name: "schedule", default: "loss", meaning: "schedule of K: loss, linear, geometric or step" },
    Key { name: "a", default: "0.01, or 100 for step", meaning: "a of the schedules linear, geometric and step" },
    Key { name: "p", default: "0.5", meaning: "exponent p of the schedule loss" },
    Key { name: "tau", default: "mean-staleness", meaning: "the bound τ_max: mean-staleness, or a number of updates" },
    Key { name: "beta", default: "2", meaning: "β of tau=mean-staleness" },
];

/// The parameters of DiLoCo and of asynchronous DiLoCo.
pub(in crate::rule) const OUTER: [Key; 5] = [
    Key { name: "h", default: "500", meaning: "local steps per job" },
    Key { name: "outer_lr", default: "0.7", meaning: "factor of the server's step; --lr is the local rate" },
    Key { name: "momentum", default: "0.9", meaning: "β of the server's Nesterov momentum" },
    Key { name: "inner", default: "adamw", meaning: "local steps: adamw or sgd" },
    Key { name: "decay", default: "0.1", meaning: "weight decay of adamw" },
];

/// The values of the parameters in [`OUTER`].
pub(in crate::rule) struct Outer {
    /// The local steps.
    pub(in crate::rule) local: Local,
    /// Factor of the server's step.
    pub(in crate::rule) lr: f64,
    /// β of the server's Nesterov momentum.
    pub(in crate::rule) momentum: f64,
}

impl Outer {
    /// Reads the parameters.
    pub(in crate::rule) fn new(keys: &Keys) -> Result<Self> {
        let is_adamw = keys.choice("inner", &[("adamw", true), ("sgd", false)])?;
        let decay = keys.number("decay", 0.1, 0.0..=1e6)?;
        let steps = keys.count("h", 500, 1..=1 << 20)? as u32;
        Ok(Outer {
            local: Local { steps, adamw: is_adamw.then_some(decay), ..Local::default() },
            lr: keys.number("outer_lr", 0.7, 0.0..=1e6)?,
            momentum: keys.number("momentum", 0.9, 0.0..=0.9999)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_of_k_follow_their_formulas_up_to_n() {
        let k = |growth, a, t, ratio: f64| {
            let ratio = LossRatio { first: Some(ratio) };
            KSchedule { k0: 2, n: 10, growth, a, p: 0.5, ratio }.k(t, Some(1.0))
        };
        assert_eq!(k(Growth::Loss, 0.0, 0, 4.0), 4);
        assert_eq!(k(Growth::Loss, 0.0, 0, 4.41), 5);
        assert_eq!(k(Growth::Linear, 0.1, 25, 1.0), 4);
        assert_eq!(k(Growth::Geometric, 0.5, 2, 1.0), 5);
        assert_eq!(k(Growth::Step, 10.0, 29, 1.0), 4);
        assert_eq!(k(Growth::Linear, 1.0, 1000, 1.0), 10);
    }

    #[test]
    fn thresholds_follow_their_formulas_up_to_n() {
        let threshold = |kind, u: u64| {
            let ratio = LossRatio { first: Some(4.0) };
            Threshold { kind, step: 4.0, horizon: 100.0, steepness: 10.0, n: 9, u: u - 1, k: 1, ratio }.next(Some(1.0))
        };
        assert_eq!([3, 4, 8, 1000].map(|u| threshold(ThresholdKind::Step, u)), [1, 2, 3, 9]);
        assert_eq!([1, 50, 100].map(|u| threshold(ThresholdKind::Linear, u)), [2, 5, 9]);
        assert_eq!([1, 50, 100].map(|u| threshold(ThresholdKind::Exponential, u)), [2, 3, 9]);
        assert_eq!([1, 50, 1000].map(|u| threshold(ThresholdKind::Sigmoid, u)), [1, 5, 9]);
        assert_eq!(threshold(ThresholdKind::Loss, 1), 2);
    }

    #[test]
    fn the_loss_ratio_is_one_while_the_loss_is_unknown() {
        let mut ratio = LossRatio::default();
        assert_eq!([None, Some(2.0), Some(0.5), Some(f64::NAN)].map(|l| ratio.of(l)), [1.0, 1.0, 4.0, 1.0]);
    }
}
