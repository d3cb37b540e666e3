//! Output for people: progress of a run on the terminal, the dashboard, and figures.

pub mod dashboard;
pub mod figure;
pub mod progress;
