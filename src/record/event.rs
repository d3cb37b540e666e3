//! An arrival, as a line of `events.jsonl`.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One arrival: a line of `events.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Number of the arrival, from 0.
    pub seq: u64,
    /// Time of the arrival on the run's time axis, in seconds.
    pub time: f64,
    /// Index of the worker, from 0.
    pub worker: usize,
    /// Version v of the snapshot from which the gradient was computed.
    pub version: u64,
    /// Staleness t - v, with the version t before the update.
    pub staleness: u64,
    /// The batch loss; `None` (null) if it is not finite.
    pub loss: Option<f32>,
    /// What the server did with the gradient.
    pub effect: Effect,
    /// The server's version after the arrival.
    pub t: u64,
}

/// What the server did with a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The server made an update.
    Step,
    /// The gradient was folded into the server's state, without an update.
    Fold,
    /// The gradient was not used.
    Drop,
}

impl Effect {
    /// Whether the arrival made a new version.
    pub fn is_step(self) -> bool {
        self == Effect::Step
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Effect::Step => "step",
            Effect::Fold => "fold",
            Effect::Drop => "drop",
        })
    }
}
