//! What people see of a run: progress on a terminal, a dashboard, figures.

pub mod dashboard;
pub mod figure;
pub mod progress;
