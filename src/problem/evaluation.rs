//! The result of an evaluation, and the metrics of a problem.

use serde::{Deserialize, Serialize};

/// The result of an evaluation. A metric that the problem does not have is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Full training objective, for the theory problems.
    pub train_loss: Option<f64>,
    /// Euclidean norm of the gradient of the full objective, for the theory problems.
    pub grad_norm: Option<f64>,
    /// Mean loss over the test set.
    pub test_loss: Option<f64>,
    /// Share of the test set that is classified correctly, 0 to 1.
    pub test_accuracy: Option<f64>,
}

impl Evaluation {
    /// One number to compare models by; a larger number is better. It is the test accuracy, or the negative
    /// training loss. `None` if it is not finite or neither is known.
    pub fn score(&self) -> Option<f64> {
        self.test_accuracy.or(self.train_loss.map(|loss| -loss)).filter(|x| x.is_finite())
    }
}

/// The columns of `metrics.csv` after `update` and `time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// `train_loss,grad_norm` of the full objective.
    Theory,
    /// `train_loss,test_loss,test_accuracy`.
    Images,
}
