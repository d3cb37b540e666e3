//! Learning rate schedules: a factor for η as a function of the server's version.

use crate::error::{Error, Result};
use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

/// A learning rate schedule. The factor is a function of the version t; T is a number of updates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Schedule {
    /// Always 1.
    #[default]
    Constant,
    /// `factor`^⌊t/`every`⌋: multiplied by `factor` after every `every` updates.
    Step {
        /// Number of updates between two drops.
        every: f64,
        /// Factor of each drop.
        factor: f64,
    },
    /// max(1 - t/T, 0).
    Linear(f64),
    /// (1 + cos(π t/T))/2 up to T, then 0 (Loshchilov & Hutter, 2017).
    Cosine(f64),
    /// 1/sqrt(1 + t/T).
    InverseSqrt(f64),
    /// min((t + 1)/T, 1).
    Warmup(f64),
}

/// The forms of a schedule, for messages.
const FORMS: &str = "constant, step:EVERY,FACTOR, linear:T, cosine:T, inverse-sqrt:T, warmup:T (T in updates)";

impl Schedule {
    /// The factor of η for the update from version t to t + 1.
    pub fn factor(&self, t: u64) -> f64 {
        let t = t as f64;
        match *self {
            Schedule::Constant => 1.0,
            Schedule::Step { every, factor } => factor.powf((t / every).floor()),
            Schedule::Linear(total) => (1.0 - t / total).max(0.0),
            Schedule::Cosine(total) => 0.5 * (1.0 + (PI * (t / total).min(1.0)).cos()),
            Schedule::InverseSqrt(scale) => 1.0 / (1.0 + t / scale).sqrt(),
            Schedule::Warmup(total) => ((t + 1.0) / total).min(1.0),
        }
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::usage(format!("--schedule `{text}` is not one of {FORMS}, with numbers above 0"));
        let (name, list) = text.split_once(':').unwrap_or((text, ""));
        let numbers: Option<Vec<f64>> = list.split(',').filter(|x| !x.is_empty()).map(|x| x.parse().ok()).collect();
        let numbers = numbers.filter(|n| n.iter().all(|x| *x > 0.0 && x.is_finite())).ok_or_else(wrong)?;
        Ok(match (name, numbers.as_slice()) {
            ("constant", []) => Schedule::Constant,
            ("step", [every, factor]) => Schedule::Step { every: *every, factor: *factor },
            ("linear", [total]) => Schedule::Linear(*total),
            ("cosine", [total]) => Schedule::Cosine(*total),
            ("inverse-sqrt", [scale]) => Schedule::InverseSqrt(*scale),
            ("warmup", [total]) => Schedule::Warmup(*total),
            _ => return Err(wrong()),
        })
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Schedule::Constant => write!(f, "constant"),
            Schedule::Step { every, factor } => write!(f, "step:{every},{factor}"),
            Schedule::Linear(total) => write!(f, "linear:{total}"),
            Schedule::Cosine(total) => write!(f, "cosine:{total}"),
            Schedule::InverseSqrt(scale) => write!(f, "inverse-sqrt:{scale}"),
            Schedule::Warmup(total) => write!(f, "warmup:{total}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_follow_the_formulas() {
        for (text, t, factor) in [
            ("constant", 9, 1.0),
            ("step:10,0.5", 25, 0.25),
            ("linear:100", 25, 0.75),
            ("linear:100", 200, 0.0),
            ("cosine:100", 50, 0.5),
            ("cosine:100", 500, 0.0),
            ("inverse-sqrt:10", 30, 0.5),
            ("warmup:4", 0, 0.25),
            ("warmup:4", 9, 1.0),
        ] {
            let schedule: Schedule = text.parse().unwrap();
            assert_eq!(schedule.to_string(), text);
            assert!((schedule.factor(t) - factor).abs() < 1e-12, "{text} at {t}");
        }
        for text in ["cosine", "cosine:0", "step:1", "linear:x", "polynomial:2", "constant:1"] {
            assert!(text.parse::<Schedule>().unwrap_err().to_string().contains(text));
        }
    }
}
