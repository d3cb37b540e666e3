//! The machine: which device works, which cores the host uses, signals, and the file of tuned kernels.

pub mod backend;
pub mod cores;
pub mod signals;
pub mod tuning;
