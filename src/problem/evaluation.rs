//! What an evaluation finds, and which metrics a problem has.

use serde::{Deserialize, Serialize};

/// What an evaluation found. What does not apply is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The full objective, for the problems of theory.
    pub train_loss: Option<f64>,
    /// Norm of the full objective's gradient.
    pub grad_norm: Option<f64>,
    /// Mean loss over the test set.
    pub test_loss: Option<f64>,
    /// Share of the test set that is classified correctly.
    pub test_accuracy: Option<f64>,
}

impl Evaluation {
    /// The larger, the better the model is.
    pub fn score(&self) -> Option<f64> {
        self.test_accuracy.or(self.train_loss.map(|loss| -loss)).filter(|x| x.is_finite())
    }
}

/// What `metrics.csv` holds besides update and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// `train_loss,grad_norm` of the full objective.
    Theory,
    /// `train_loss,test_loss,test_accuracy`.
    Images,
}
