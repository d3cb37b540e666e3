//! Parameters that several rules share: how many answers to wait for as a run goes on (by the loss, or by the number of
//! updates), how stale a job may be, and the outer step of DiLoCo.

use super::super::{Key, Keys, Local, Setting};
use crate::error::{Error, Result};

/// F(w_0)/F(w_t), from the batch losses that a rule is told.
#[derive(Default)]
pub(in crate::rule) struct LossRatio {
    first: Option<f64>,
}

impl LossRatio {
    /// The ratio now; 1 as long as nothing is known, and large when the loss has gone to nothing.
    pub(in crate::rule) fn of(&mut self, loss: Option<f64>) -> f64 {
        let Some(now) = loss.filter(|l| l.is_finite()) else { return 1.0 };
        (*self.first.get_or_insert(now) / now.max(1e-12)).max(0.0)
    }
}

/// K as a function of the update t, the loss ratio and K at the start.
#[derive(Clone, Copy)]
pub(in crate::rule) enum Growth {
    Loss,
    Linear,
    Geometric,
    Step,
}

/// A schedule with its parameters `k0`, `schedule`, `a` and `p`.
pub(in crate::rule) struct Schedule {
    pub(in crate::rule) k0: usize,
    n: usize,
    growth: Growth,
    a: f64,
    p: f64,
    ratio: LossRatio,
}

impl Schedule {
    pub(in crate::rule) fn new(keys: &Keys, setting: &Setting) -> Result<Self> {
        let names = [
            ("loss", Growth::Loss),
            ("linear", Growth::Linear),
            ("geometric", Growth::Geometric),
            ("step", Growth::Step),
        ];
        let growth = keys.choice("schedule", &names)?;
        let usual = if matches!(growth, Growth::Step) { 100.0 } else { 0.01 };
        let (n, ratio) = (setting.workers, LossRatio::default());
        let (a, p) = (keys.number("a", usual, 1e-9..=1e9)?, keys.number("p", 0.5, 0.0..=10.0)?);
        Ok(Schedule { k0: keys.count("k0", 1, 1..=n)?, n, growth, a, p, ratio })
    }

    /// K after update `t`, from 1 to n.
    pub(in crate::rule) fn k(&mut self, t: u64, loss: Option<f64>) -> usize {
        let (k0, t, ratio) = (self.k0 as f64, t as f64, self.ratio.of(loss));
        let k = match self.growth {
            Growth::Loss => (k0 * ratio.powf(self.p)).ceil(),
            Growth::Linear => k0 + (self.a * t).floor(),
            Growth::Geometric => (k0 * (1.0 + self.a).powf(t)).ceil(),
            Growth::Step => k0 + (t / self.a).floor(),
        };
        k.clamp(1.0, self.n as f64) as usize
    }
}

/// τ_max, the staleness beyond which a running job is given up.
pub(in crate::rule) enum Bound {
    Fixed(u64),
    /// max(1, ceil(β n / K)): with equal speeds a worker contributes every n/K updates.
    MeanStaleness(f64),
}

impl Bound {
    pub(in crate::rule) fn new(keys: &Keys) -> Result<Self> {
        let fixed = keys.text("tau").filter(|tau| *tau != "mean-staleness");
        if fixed.is_some() && keys.text("beta").is_some() {
            return Err(Error::usage("--rule abs: beta is for tau=mean-staleness"));
        }
        match fixed {
            None => Ok(Bound::MeanStaleness(keys.number("beta", 2.0, 0.01..=1e9)?)),
            Some(text) => text.parse().map(Bound::Fixed).map_err(|_| {
                Error::usage(format!("--rule: tau={text} must be mean-staleness or a whole number of updates"))
            }),
        }
    }

    pub(in crate::rule) fn of(&self, n: usize, k: usize) -> u64 {
        match self {
            Bound::Fixed(tau) => *tau,
            Bound::MeanStaleness(beta) => (beta * n as f64 / k as f64).ceil().max(1.0) as u64,
        }
    }
}

/// The threshold of hybrid SGD: gradients per step, by the number u of gradients received. It never falls.
pub(in crate::rule) struct Threshold {
    kind: &'static str,
    step: f64,
    horizon: f64,
    steepness: f64,
    n: usize,
    u: u64,
    k: usize,
    ratio: LossRatio,
}

impl Threshold {
    pub(in crate::rule) fn new(keys: &Keys, setting: &Setting) -> Result<Self> {
        let names = ["step", "linear", "exp", "sigmoid", "loss"].map(|name| (name, name));
        Ok(Threshold {
            kind: keys.choice("threshold", &names)?,
            step: keys.count("step", 300, 1..=1 << 40)? as f64,
            horizon: keys.count("horizon", 10_000, 1..=1 << 40)? as f64,
            steepness: keys.number("steepness", 10.0, 0.001..=1000.0)?,
            n: setting.workers,
            u: 0,
            k: 1,
            ratio: LossRatio::default(),
        })
    }

    /// Whether it follows the loss.
    pub(in crate::rule) fn by_loss(&self) -> bool {
        self.kind == "loss"
    }

    /// The threshold after one more gradient, from 1 to n.
    pub(in crate::rule) fn next(&mut self, loss: Option<f64>) -> usize {
        self.u += 1;
        let (n, u, share) = (self.n as f64, self.u as f64, self.u as f64 / self.horizon);
        let k = match self.kind {
            "step" => 1.0 + (u / self.step).floor(),
            "linear" => (1.0 + (n - 1.0) * share).ceil(),
            "exp" => n.powf(share).ceil(),
            "sigmoid" => 1.0 + ((n - 1.0) / (1.0 + (-self.steepness * (share - 0.5)).exp())).floor(),
            _ => self.ratio.of(loss).sqrt().round(),
        };
        self.k = self.k.max(k.clamp(1.0, n) as usize);
        self.k
    }
}

/// The parameters of ABS.
pub(in crate::rule) const KEYS: [Key; 7] = [
    Key { name: "k0", default: "1", meaning: "K at the start" },
    Key { name: "u", default: "5", meaning: "local steps per job" },
    Key { name: "schedule", default: "loss", meaning: "of K: loss, linear, geometric or step" },
    Key { name: "a", default: "0.01, or 100 for step", meaning: "parameter of linear, geometric and step" },
    Key { name: "p", default: "0.5", meaning: "exponent of loss" },
    Key { name: "tau", default: "mean-staleness", meaning: "the bound τ_max: mean-staleness, or a number of updates" },
    Key { name: "beta", default: "2", meaning: "parameter of mean-staleness" },
];

/// The parameters of DiLoCo and its asynchronous form.
pub(in crate::rule) const OUTER: [Key; 5] = [
    Key { name: "h", default: "500", meaning: "local steps per job" },
    Key { name: "outer_lr", default: "0.7", meaning: "factor of the server's step; --lr is the local rate" },
    Key { name: "momentum", default: "0.9", meaning: "β of the server's Nesterov momentum" },
    Key { name: "inner", default: "adamw", meaning: "local steps: adamw or sgd" },
    Key { name: "decay", default: "0.1", meaning: "weight decay of adamw" },
];

/// Their values.
pub(in crate::rule) struct Outer {
    pub(in crate::rule) local: Local,
    pub(in crate::rule) lr: f64,
    pub(in crate::rule) momentum: f64,
}

impl Outer {
    pub(in crate::rule) fn new(keys: &Keys) -> Result<Self> {
        let adamw = keys.choice("inner", &[("adamw", true), ("sgd", false)])?;
        let decay = keys.number("decay", 0.1, 0.0..=1e6)?;
        let steps = keys.count("h", 500, 1..=1 << 20)? as u32;
        Ok(Outer {
            local: Local { steps, adamw: adamw.then_some(decay), ..Local::default() },
            lr: keys.number("outer_lr", 0.7, 0.0..=1e6)?,
            momentum: keys.number("momentum", 0.9, 0.0..=0.9999)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_grow_as_written_and_stop_at_n() {
        let k = |growth, a, t, ratio: f64| {
            let ratio_now = LossRatio { first: Some(ratio) };
            Schedule { k0: 2, n: 10, growth, a, p: 0.5, ratio: ratio_now }.k(t, Some(1.0))
        };
        assert_eq!(k(Growth::Loss, 0.0, 0, 4.0), 4);
        assert_eq!(k(Growth::Loss, 0.0, 0, 4.41), 5);
        assert_eq!(k(Growth::Linear, 0.1, 25, 1.0), 4);
        assert_eq!(k(Growth::Geometric, 0.5, 2, 1.0), 5);
        assert_eq!(k(Growth::Step, 10.0, 29, 1.0), 4);
        assert_eq!(k(Growth::Linear, 1.0, 1000, 1.0), 10);
        let threshold = |kind, u: u64| {
            let ratio = LossRatio { first: Some(4.0) };
            Threshold { kind, step: 4.0, horizon: 100.0, steepness: 10.0, n: 9, u: u - 1, k: 1, ratio }.next(Some(1.0))
        };
        assert_eq!([3, 4, 8, 1000].map(|u| threshold("step", u)), [1, 2, 3, 9]);
        assert_eq!([1, 50, 100].map(|u| threshold("linear", u)), [2, 5, 9]);
        assert_eq!([1, 50, 100].map(|u| threshold("exp", u)), [2, 3, 9]);
        assert_eq!([1, 50, 1000].map(|u| threshold("sigmoid", u)), [1, 5, 9]);
        assert_eq!(threshold("loss", 1), 2);
        let mut ratio = LossRatio::default();
        assert_eq!([None, Some(2.0), Some(0.5), Some(f64::NAN)].map(|l| ratio.of(l)), [1.0, 1.0, 4.0, 1.0]);
    }
}
