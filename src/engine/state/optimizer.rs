//! The server's optimizer: it turns directions into steps, and keeps momentum or moments on the device.

use super::UpdateSettings;
use crate::rule::{Needs, ServerOptimizer};
use stagger_kernels::{Adam, Buffer, OptimizerStep};

/// The optimizer and its state.
pub(super) enum OptimizerState {
    /// The step is the direction.
    Plain,
    /// Heavy-ball momentum.
    HeavyBall { velocity: Buffer, beta: f32 },
    /// Nesterov momentum. `pending` is the sum of the directions since the last momentum step; there is none
    /// if every update is a momentum step. `since` is the number of updates since the last momentum step.
    Nesterov { velocity: Buffer, pending: Option<Buffer>, beta: f32, every: u64, since: u64 },
    /// AMSGrad. The moments are the first, the second, and the largest second moment.
    AmsGrad { moments: [Buffer; 3], constants: Adam },
}

impl OptimizerState {
    /// The optimizer of the rule, or the user's momentum if the rule has none. `zeros` makes a buffer of one
    /// model's size.
    pub(super) fn new(needs: &Needs, settings: &UpdateSettings, zeros: impl Fn() -> Buffer) -> Self {
        let nesterov = |beta: f64, every: u64| OptimizerState::Nesterov {
            velocity: zeros(),
            pending: (every > 1).then(&zeros),
            beta: beta as f32,
            every,
            since: 0,
        };
        match needs.optimizer {
            ServerOptimizer::Plain if settings.momentum == 0.0 => OptimizerState::Plain,
            ServerOptimizer::Plain if settings.momentum_every <= 1 => {
                OptimizerState::HeavyBall { velocity: zeros(), beta: settings.momentum as f32 }
            }
            ServerOptimizer::Plain => nesterov(settings.momentum, settings.momentum_every),
            ServerOptimizer::Nesterov { beta, every } => nesterov(beta, every),
            ServerOptimizer::AmsGrad(beta1, beta2, epsilon) => OptimizerState::AmsGrad {
                moments: [zeros(), zeros(), zeros()],
                constants: Adam {
                    beta1: beta1 as f32,
                    beta2: beta2 as f32,
                    epsilon: epsilon as f32,
                    correction1: 1.0,
                    correction2: 1.0,
                },
            },
        }
    }

    /// The optimizer's part of the next update. Counts the update.
    pub(super) fn next_step(&mut self) -> OptimizerStep<'_> {
        match self {
            OptimizerState::Plain => OptimizerStep::Plain,
            OptimizerState::HeavyBall { velocity, beta } => OptimizerStep::HeavyBall { velocity, beta: *beta },
            OptimizerState::Nesterov { velocity, pending, beta, every, since } => {
                *since = (*since + 1) % *every;
                OptimizerStep::Nesterov { velocity, beta: *beta, pending: pending.as_mut(), turn: *since == 0 }
            }
            OptimizerState::AmsGrad { moments: [first, second, largest], constants } => {
                OptimizerStep::Adam { first, second, largest: Some(largest), constants: *constants }
            }
        }
    }

    /// The buffers, each with its name in a checkpoint.
    pub(super) fn buffers(&mut self) -> Vec<(String, &mut Buffer)> {
        match self {
            OptimizerState::Plain => Vec::new(),
            OptimizerState::HeavyBall { velocity, .. } => vec![("velocity".to_string(), velocity)],
            OptimizerState::Nesterov { velocity, pending, .. } => {
                let pending = pending.iter_mut().map(|pending| ("pending".to_string(), pending));
                [("velocity".to_string(), velocity)].into_iter().chain(pending).collect()
            }
            OptimizerState::AmsGrad { moments, .. } => {
                let moments = moments.iter_mut().enumerate();
                moments.map(|(k, moment)| (format!("moment/{k}"), moment)).collect()
            }
        }
    }

    /// Number of updates since the last step of Nesterov momentum; 0 for other optimizers.
    pub(super) fn since(&self) -> u64 {
        if let OptimizerState::Nesterov { since, .. } = self { *since } else { 0 }
    }

    /// Sets the number of updates since the last step of Nesterov momentum. Other optimizers ignore it.
    pub(super) fn set_since(&mut self, updates: u64) {
        if let OptimizerState::Nesterov { since, .. } = self {
            *since = updates;
        }
    }
}
