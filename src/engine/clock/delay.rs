//! Delay models: the duration of a job as a pure function of (seed, worker, job).
//!
//! A draw is in simulated seconds. Under the virtual clock it is the whole duration of the job. Under the
//! wall clock the worker waits until that time, multiplied by `--time-scale`, has passed since the job began.

use crate::error::{Error, Result};
use rand_distr::{Distribution, Exp, Normal, Pareto, Poisson, Uniform};
use stagger_datasets::keyed;
use std::fmt;
use std::str::FromStr;

/// A distribution of job times, in seconds. `s` lists one parameter per worker. If there are more workers
/// than parameters, the list repeats.
#[derive(Clone, Debug, PartialEq)]
pub enum DelayModel {
    /// No delay. Under the virtual clock every job takes one second.
    None,
    /// Exactly s_i.
    Fixed(Vec<f64>),
    /// Poisson(s_i). A draw of 0 means that the job takes no time.
    Poisson(Vec<f64>),
    /// |N(s_i, s_i)| + 1; the second s_i is the standard deviation (AsGrad's experiments, RULES D.4).
    Normal(Vec<f64>),
    /// Uniform(0, s_i).
    Uniform(Vec<f64>),
    /// N(mean, std) truncated below 0.1, drawn once per worker.
    TruncNormal {
        /// Mean before truncation.
        mean: f64,
        /// Standard deviation before truncation.
        std: f64,
    },
    /// Exponential with mean s_i.
    Exp(Vec<f64>),
    /// shift + Exponential. `mean` is the mean of the sum.
    ShiftedExp {
        /// Smallest time.
        shift: f64,
        /// Mean of the sum.
        mean: f64,
    },
    /// Pareto with the given smallest value and shape.
    Pareto {
        /// Smallest time.
        scale: f64,
        /// Tail exponent. A smaller exponent gives a heavier tail.
        shape: f64,
    },
}

/// The forms of a delay model, for help and messages.
pub const DELAYS: &str = "none, fixed:S1,S2,.., poisson:S1,.., normal:S1,.., uniform:S1,.., truncnormal:MEAN,STD, \
     exp:M1,.., shifted-exp:SHIFT,MEAN, pareto:SCALE,SHAPE";
/// Lower end of the truncated normal distribution, in seconds.
const TRUNCATED_AT: f64 = 0.1;
/// Largest duration of a job, in seconds: about 30,000 years.
const LONGEST: f64 = 1e12;

impl FromStr for DelayModel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::usage(format!("--delay `{text}`: {why}; write one of {DELAYS}"));
        let (name, list) = text.split_once(':').unwrap_or((text, ""));
        let numbers: Vec<f64> = if list.is_empty() {
            Vec::new()
        } else {
            list.split(',')
                .map(|x| x.trim().parse::<f64>().ok().filter(|x| x.is_finite() && *x >= 0.0))
                .collect::<Option<_>>()
                .ok_or_else(|| wrong("parameters are numbers that are at least 0"))?
        };
        let some = |numbers: Vec<f64>, least: f64| match numbers.iter().all(|x| *x >= least) && !numbers.is_empty() {
            true => Ok(numbers),
            false => Err(wrong(if least > 0.0 { "it needs numbers above 0" } else { "it needs at least one number" })),
        };
        let two = |numbers: &[f64]| match *numbers {
            [a, b] => Ok((a, b)),
            _ => Err(wrong("it needs two numbers")),
        };
        Ok(match name {
            "none" if numbers.is_empty() => DelayModel::None,
            "fixed" => DelayModel::Fixed(some(numbers, 0.0)?),
            "poisson" if numbers.iter().any(|x| *x > 1e9) => return Err(wrong("its mean must be at most 1e9")),
            "poisson" => DelayModel::Poisson(some(numbers, f64::MIN_POSITIVE)?),
            "normal" => DelayModel::Normal(some(numbers, 0.0)?),
            "uniform" => DelayModel::Uniform(some(numbers, f64::MIN_POSITIVE)?),
            "exp" => DelayModel::Exp(some(numbers, f64::MIN_POSITIVE)?),
            "truncnormal" => {
                let (mean, std) = two(&numbers)?;
                DelayModel::TruncNormal { mean, std }
            }
            "shifted-exp" => {
                let (shift, mean) = two(&numbers)?;
                if mean <= shift {
                    return Err(wrong("the mean must be larger than the shift"));
                }
                DelayModel::ShiftedExp { shift, mean }
            }
            "pareto" => {
                let (scale, shape) = two(&numbers)?;
                if scale <= 0.0 || shape <= 0.0 {
                    return Err(wrong("scale and shape must be above 0"));
                }
                DelayModel::Pareto { scale, shape }
            }
            _ => return Err(wrong("unknown model")),
        })
    }
}

impl fmt::Display for DelayModel {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let list = |s: &[f64]| s.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
        match self {
            DelayModel::None => write!(f, "none"),
            DelayModel::Fixed(s) => write!(f, "fixed:{}", list(s)),
            DelayModel::Poisson(s) => write!(f, "poisson:{}", list(s)),
            DelayModel::Normal(s) => write!(f, "normal:{}", list(s)),
            DelayModel::Uniform(s) => write!(f, "uniform:{}", list(s)),
            DelayModel::Exp(s) => write!(f, "exp:{}", list(s)),
            DelayModel::TruncNormal { mean, std } => write!(f, "truncnormal:{mean},{std}"),
            DelayModel::ShiftedExp { shift, mean } => write!(f, "shifted-exp:{shift},{mean}"),
            DelayModel::Pareto { scale, shape } => write!(f, "pareto:{scale},{shape}"),
        }
    }
}

impl DelayModel {
    /// Whether every job of every worker takes the same time.
    pub fn is_constant(&self) -> bool {
        match self {
            DelayModel::None => true,
            DelayModel::Fixed(s) => s.iter().all(|time| *time == s[0]),
            _ => false,
        }
    }

    /// Duration of job `job` of worker `worker`, in seconds; at least 0.
    pub fn draw(&self, seed: u64, worker: usize, job: u64) -> f64 {
        let own = |s: &[f64]| s[worker % s.len()];
        if let DelayModel::Fixed(s) = self {
            return own(s).min(LONGEST);
        }
        let mut random = keyed([seed, 0x64656c61, worker as u64, job]);
        let time: f64 = match self {
            DelayModel::None | DelayModel::Fixed(_) => 0.0,
            DelayModel::Poisson(s) => Poisson::new(own(s)).expect("checked").sample(&mut random),
            DelayModel::Normal(s) => Normal::new(own(s), own(s)).expect("checked").sample(&mut random).abs() + 1.0,
            DelayModel::Uniform(s) => Uniform::new(0.0, own(s)).expect("checked").sample(&mut random),
            DelayModel::Exp(s) => Exp::new(1.0 / own(s)).expect("checked").sample(&mut random),
            DelayModel::TruncNormal { mean, std } => {
                // The job is not part of the key, so the draw is the same for all jobs of a worker. Values
                // below the limit are rejected, which keeps the shape of the distribution above it.
                let mut random = keyed([seed, 0x74727563, worker as u64, 0]);
                let normal = Normal::new(*mean, *std).expect("checked");
                (0..10_000).map(|_| normal.sample(&mut random)).find(|x| *x >= TRUNCATED_AT).unwrap_or(TRUNCATED_AT)
            }
            DelayModel::ShiftedExp { shift, mean } => {
                shift + Exp::new(1.0 / (mean - shift)).expect("checked").sample(&mut random)
            }
            DelayModel::Pareto { scale, shape } => Pareto::new(*scale, *shape).expect("checked").sample(&mut random),
        };
        // A draw of a heavy tail may overflow. Times stay finite, so that the event log can be read again.
        time.min(LONGEST)
    }

    /// Mean duration of a job of worker `worker`, in seconds. For a Pareto distribution without a mean (shape
    /// at most 1) it is the median.
    pub fn mean(&self, seed: u64, worker: usize) -> f64 {
        let own = |s: &[f64]| s[worker % s.len()];
        let mean = match self {
            DelayModel::None => 1.0,
            DelayModel::Fixed(s) | DelayModel::Poisson(s) | DelayModel::Exp(s) => own(s),
            // E|N(s, s)| = s (sqrt(2/π) e^{-1/2} + erf(1/sqrt 2)).
            DelayModel::Normal(s) => own(s) * 1.166_630_941_175_372_6 + 1.0,
            DelayModel::Uniform(s) => own(s) / 2.0,
            DelayModel::TruncNormal { .. } => self.draw(seed, worker, 0),
            DelayModel::ShiftedExp { mean, .. } => *mean,
            DelayModel::Pareto { scale, shape } if *shape > 1.0 => scale * shape / (shape - 1.0),
            DelayModel::Pareto { scale, shape } => scale * 2f64.powf(1.0 / shape),
        };
        mean.min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(text: &str, worker: usize) -> f64 {
        let model: DelayModel = text.parse().unwrap();
        assert_eq!(model.to_string(), text);
        (0..4000).map(|k| model.draw(7, worker, k)).sum::<f64>() / 4000.0
    }

    #[test]
    fn every_model_has_its_mean_and_repeats_its_parameters() {
        // Each bound is five standard errors or more.
        for (text, worker, expected, within) in [
            ("none", 0, 0.0, 0.0),
            ("fixed:1,2,3", 4, 2.0, 0.0),
            ("poisson:2,5", 1, 5.0, 0.2),
            // E|N(3,3)| = 3(sqrt(2/pi) e^-0.5 + erf(1/sqrt 2)) = 3.4999, plus 1.
            ("normal:3", 0, 4.4999, 0.2),
            ("uniform:4", 0, 2.0, 0.1),
            ("exp:2", 0, 2.0, 0.2),
            ("shifted-exp:0.5,1", 0, 1.0, 0.05),
            ("pareto:1,3", 0, 1.5, 0.1),
        ] {
            let mean = mean(text, worker);
            assert!((mean - expected).abs() <= within, "{text}: {mean}");
            if text != "none" {
                let exact = text.parse::<DelayModel>().unwrap().mean(7, worker);
                assert!((exact - expected).abs() < 1e-3, "{text}: {exact}");
            }
        }
    }

    #[test]
    fn truncated_normal_is_drawn_once_per_worker() {
        let model: DelayModel = "truncnormal:1,5".parse().unwrap();
        let draws: Vec<f64> = (0..50).map(|i| model.draw(1, i, 0)).collect();
        assert!((0..50).all(|i| model.draw(1, i, 99) == draws[i] && draws[i] >= TRUNCATED_AT));
        assert!(draws.windows(2).any(|w| w[0] != w[1]));
    }

    #[test]
    fn invalid_models_are_refused_and_quoted() {
        for text in [
            "fixed",
            "fixed:-1",
            "fixed:x",
            "truncnormal:1",
            "shifted-exp:2,1",
            "pareto:0,1",
            "exp:0",
            "gauss:1",
            "none:1",
            "poisson:0",
        ] {
            let error = text.parse::<DelayModel>().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
