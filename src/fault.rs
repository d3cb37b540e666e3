//! Injected faults (`--inject`), and the policy for workers that fail (`--on-failure`, `--worker-timeout`).

use crate::error::{Error, Result};
use std::str::FromStr;
use std::time::Duration;

/// What an injected fault does to a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The worker's thread panics.
    Panic,
    /// The job never ends.
    Hang,
    /// The gradient and the loss become NaN.
    Nan,
    /// The job takes this many seconds longer, in the time of the run's clock.
    Slow(f64),
}

/// A fault in one job of one worker. It happens once: a restarted job succeeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// Index of the worker, from 0.
    pub worker: usize,
    /// Number of the worker's job, from 0.
    pub job: u64,
    /// What the fault does.
    pub kind: Kind,
}

/// All injected faults of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// The faults of one worker.
    pub fn of(&self, worker: usize) -> Vec<Fault> {
        self.0.iter().copied().filter(|fault| fault.worker == worker).collect()
    }

    /// Additional seconds that a job of `worker` takes.
    pub fn delay(&self, worker: usize, job: u64) -> f64 {
        let slow = self.0.iter().filter(|fault| (fault.worker, fault.job) == (worker, job));
        slow.map(|fault| if let Kind::Slow(seconds) = fault.kind { seconds } else { 0.0 }).sum()
    }
}

impl FromStr for Faults {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let one = |part: &str| -> Option<Fault> {
            let (mut worker, mut job, mut kind, mut seconds) = (None, None, None, None);
            for item in part.split(',') {
                match item.trim().split_once('=')? {
                    ("worker", value) => worker = Some(value.parse().ok()?),
                    ("job", value) => job = Some(value.parse().ok()?),
                    ("kind", value) => kind = Some(value),
                    ("seconds", value) => {
                        seconds = Some(value.parse().ok().filter(|s: &f64| s.is_finite() && *s >= 0.0)?)
                    }
                    _ => return None,
                }
            }
            let kind = match (kind?, seconds) {
                ("panic", None) => Kind::Panic,
                ("hang", None) => Kind::Hang,
                ("nan", None) => Kind::Nan,
                ("slow", seconds) => Kind::Slow(seconds.unwrap_or(10.0)),
                _ => return None,
            };
            Some(Fault { worker: worker?, job: job?, kind })
        };
        let all: Option<Vec<Fault>> = text.split(';').filter(|part| !part.trim().is_empty()).map(one).collect();
        all.map(Faults).ok_or_else(|| {
            Error::usage(format!(
                "--inject `{text}`: write worker=I,job=K,kind=panic|hang|nan|slow (and seconds=S for slow), several are separated by ;"
            ))
        })
    }
}

/// What a run does when a worker fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The run ends.
    #[default]
    Stop,
    /// The run continues without the worker.
    Drop,
    /// The worker computes the job again, a limited number of times. A hung worker is dropped, because its
    /// thread cannot be recovered.
    Restart,
}

impl FromStr for OnFailure {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "stop" => Ok(OnFailure::Stop),
            "drop" => Ok(OnFailure::Drop),
            "restart" => Ok(OnFailure::Restart),
            _ => Err(Error::usage(format!("--on-failure `{text}` is not one of stop, drop, restart"))),
        }
    }
}

/// How a run handles workers that fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// Action for a worker that panics or hangs.
    pub on_failure: OnFailure,
    /// Real time after which a worker without a result counts as hung, not counting simulated delays. `None`
    /// for no limit.
    pub timeout: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_parsed_and_errors_quote_the_text() {
        let faults: Faults = "worker=3,job=40,kind=panic; job=1,worker=0,kind=slow,seconds=2.5".parse().unwrap();
        assert_eq!(faults.of(3), [Fault { worker: 3, job: 40, kind: Kind::Panic }]);
        assert_eq!((faults.delay(0, 1), faults.delay(0, 2), faults.delay(3, 40)), (2.5, 0.0, 0.0));
        for text in
            ["worker=1", "worker=1,job=2,kind=melt", "worker=x,job=1,kind=nan", "worker=1,job=1,kind=nan,seconds=1"]
        {
            assert!(text.parse::<Faults>().unwrap_err().to_string().contains(text));
        }
    }
}
