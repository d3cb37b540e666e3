//! The device side of stagger: buffers, and the few kernels that are ours.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`device`] | a [`Device`](device::Device) (plain CPU, or a CubeCL client for WGPU and CUDA), buffers, seals |
//! | [`cuda`] | whether CUDA can be used here |
//! | [`layout`] | where each parameter lies in the flat weight buffer |
//! | [`update`] | the fused update: one launch folds a gradient and makes the new weights |
//! | [`gather`] | draw a batch from the u8 training set, normalise, crop, flip |
//! | [`random`] | counter-based randomness, the same numbers on host and device |
//!
//! Every kernel stands beside the plain loop that is both the CPU path and its reference; the tests hold them equal.
//! This crate knows no rule, no worker and no thread.
#![deny(missing_docs)]

pub mod cuda;
pub mod device;
pub mod gather;
pub mod layout;
pub mod random;
pub mod update;

pub use device::{Buffer, Device, DeviceError, Seal};
pub use layout::{Layout, Segment};
pub use update::{Fold, Step, Update};
