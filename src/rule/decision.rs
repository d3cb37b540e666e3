//! What a rule gets, an [`Arrival`], and what it returns, a [`Decision`].

use std::collections::VecDeque;

/// The arrival of a gradient at the server. These are the facts that a rule may use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Arrival {
    /// Index of the worker that computed the gradient, from 0.
    pub worker: usize,
    /// Version v of the snapshot from which the gradient was computed.
    pub version: u64,
    /// The server's version t before any update by this arrival.
    pub t: u64,
    /// Staleness τ = t - v, in updates (invariant I4: measured by the server).
    pub staleness: u64,
    /// Time of the arrival on the run's time axis, in seconds.
    pub time: f64,
    /// Duration of the job on the same axis, in seconds.
    pub seconds: f64,
    /// Number of local steps of the job; 1 for a plain gradient.
    pub steps: u32,
    /// Mean batch loss of the last complete block of arrivals, for rules that ask for it
    /// ([`Needs::loss`](super::Needs::loss)). `None` before the first block is complete.
    pub loss: Option<f64>,
}

/// How a gradient g enters the server's state. The arithmetic is in `stagger_kernels::update` and
/// `stagger_kernels::mixing`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fold {
    /// The gradient is not used. It is logged as dropped.
    Drop,
    /// The gradient itself is the direction of the step.
    Direct,
    /// s += scale · g, with the running sum s.
    Sum {
        /// Factor of the gradient.
        scale: f64,
    },
    /// r' = r + mix · (g - r) and s += scale · (r' - r), with the sender's row r of a table and the table's
    /// sum s.
    Row {
        /// Index of the table: 0 for the first, 1 for the second. Each table has its own sum.
        table: usize,
        /// 1 replaces the row. 1/B makes the row the mean of B gradients.
        mix: f64,
        /// Factor of the row's change in the sum.
        scale: f64,
        /// Count the old row r as 0, because the sum does not contain it.
        forget: bool,
    },
    /// The direction is g + λ g² (w - x), with the model x that the worker received.
    Compensated {
        /// λ.
        lambda: f64,
        /// Adaptive form: decay m of the running square q = m q + (1 - m) g². λ is divided by √q. `None`: λ
        /// is fixed.
        decay: Option<f64>,
    },
    /// w' = w + α (x - η g - w), with the model x that the worker received.
    Towards {
        /// α.
        alpha: f64,
    },
    /// Elastic averaging of the server's model w and the worker's own model x:
    /// y = x - η g, x' = y - α (y - w), w' = w + α (y - w).
    Elastic {
        /// α.
        alpha: f64,
    },
    /// The worker's own model and a peer's are averaged, then the worker steps. w follows the mean of all
    /// models.
    Pair {
        /// Index of the other worker; `None` if there is no other worker.
        peer: Option<usize>,
    },
    /// The worker has already written its step to the shared weights.
    Live,
}

impl Fold {
    /// Replaces the sender's row of the first table; the sum follows with the factor `scale`.
    pub fn row(scale: f64) -> Self {
        Fold::Row { table: 0, mix: 1.0, scale, forget: false }
    }
}

/// A server update: w -= η · rate · (scale · direction, after weight decay and momentum), then s *= keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Factor of the direction: the weight of this gradient or of this sum.
    pub scale: f64,
    /// Factor of the learning rate: the length of this step for a given direction.
    pub rate: f64,
    /// Share of the sum that remains after the update.
    pub keep: f64,
    /// For rules with a base b ([`Needs::base`](super::Needs::base)): the direction is s + b, and then b
    /// moves by this share of s.
    pub follow: Option<f64>,
}

/// The workers that begin a job on the newest model. A busy worker queues the job with the current snapshot.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// No worker.
    Nobody,
    /// The worker whose gradient arrived.
    Sender,
    /// All workers.
    Everybody,
    /// These workers, in this order. A worker that is listed twice gets two jobs.
    These(Vec<usize>),
}

/// A rule's answer to an arrival.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// How the gradient enters the server's state.
    pub fold: Fold,
    /// Workers whose rows leave the sum together with this fold. Their next rows must be folded with `forget`.
    pub retire: Vec<usize>,
    /// The server update. `None`: the server makes no update.
    pub step: Option<Step>,
    /// After the update, the second table and its sum replace the first. The second counts as empty from then
    /// on: the step must have `keep` 0, and the next rows must be folded with `forget`.
    pub swap: bool,
    /// The workers that begin a job on the newest model.
    pub start: Start,
    /// Workers whose running and queued jobs are cancelled. Each begins a new job on the newest model.
    pub restart: Vec<usize>,
}

impl Decision {
    /// Steps along the gradient, and starts the sender on the new model.
    pub fn direct() -> Self {
        Decision::fold(Fold::Direct).step(1.0, Start::Sender)
    }

    /// Folds the gradient without an update; no worker starts.
    pub fn fold(fold: Fold) -> Self {
        Decision { fold, retire: Vec::new(), step: None, swap: false, start: Start::Nobody, restart: Vec::new() }
    }

    /// Adds an update that leaves the share `keep` of the sum. The workers in `start` begin after it.
    pub fn step(self, keep: f64, start: Start) -> Self {
        Decision { step: Some(Step { scale: 1.0, rate: 1.0, keep, follow: None }), start, ..self }
    }

    /// Adds an update as [`step`](Self::step) does if `fires` is true; otherwise returns the decision
    /// unchanged.
    pub fn step_if(self, fires: bool, keep: f64, start: impl FnOnce() -> Start) -> Self {
        if fires { self.step(keep, start()) } else { self }
    }

    /// Multiplies the factor of the step's direction, if there is a step.
    pub fn scaled(mut self, scale: f64) -> Self {
        self.step = self.step.map(|step| Step { scale: scale * step.scale, ..step });
        self
    }

    /// Multiplies the factor of the step's learning rate, if there is a step.
    pub fn rated(mut self, rate: f64) -> Self {
        self.step = self.step.map(|step| Step { rate: rate * step.rate, ..step });
        self
    }

    /// Sets the workers that begin a job.
    pub fn start(self, start: Start) -> Self {
        Decision { start, ..self }
    }

    /// Applies the decision to a queue of jobs (worker, version) in which every job takes the same time.
    /// Removes the cancelled jobs and appends the new ones. `t` is the version after the decision.
    pub(crate) fn follow(&self, jobs: &mut VecDeque<(usize, u64)>, sender: usize, t: u64, workers: usize) {
        jobs.retain(|(i, _)| !self.restart.contains(i));
        jobs.extend(self.restart.iter().map(|i| (*i, t)));
        match &self.start {
            Start::Nobody => {}
            Start::Sender => jobs.push_back((sender, t)),
            Start::Everybody => jobs.extend((0..workers).map(|i| (i, t))),
            Start::These(who) => jobs.extend(who.iter().map(|i| (*i, t))),
        }
    }

    /// Sets the workers whose jobs are cancelled and start again.
    pub fn restart(self, restart: Vec<usize>) -> Self {
        Decision { restart, ..self }
    }
}
