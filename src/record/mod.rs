//! The folder of a run: event log, metrics, summary, configuration and weights.

mod device;
mod event;
mod files;
mod folder;
mod log;
mod outcome;
mod summary;
mod tensorboard;

pub use device::{Occupancy, Span, Work, device_spans, device_times};
pub use event::{Effect, Event};
pub use folder::{LogPositions, RunFolder};
pub use log::{LATEST, recorded};
pub use outcome::{Limits, Outcome};
pub use summary::Summary;
