//! The machine: detection of devices, CPU cores for threads, signals, and the file of measured kernels.

pub mod backend;
pub mod cores;
pub mod signals;
pub mod tuning;
