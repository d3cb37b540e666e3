//! One arrival as a line of `events.jsonl`.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One arrival, one line of `events.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number, from 0.
    pub seq: u64,
    /// When, in seconds on the run's axis.
    pub time: f64,
    /// Who.
    pub worker: usize,
    /// The version v at which it was computed.
    pub version: u64,
    /// t - v before the update.
    pub staleness: u64,
    /// The batch loss; null where it is not finite.
    pub loss: Option<f32>,
    /// What became of it.
    pub effect: Effect,
    /// The version after it.
    pub t: u64,
}

/// What became of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The server stepped.
    Step,
    /// It was folded into the server's state.
    Fold,
    /// It was not applied.
    Drop,
}

impl Effect {
    /// Whether it made a version.
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
