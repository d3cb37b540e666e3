//! The device side of stagger: buffers, and the few kernels that are ours.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`device`] | a [`Device`] (plain CPU, or a CubeCL client for WGPU and CUDA), buffers, fences |
//! | [`failure`] | what a device says that failed |
//! | [`cuda`] | whether CUDA can be used here |
//! | [`graph`] | launches recorded once and replayed with one |
//! | `launch` | launches of kernels that are made once |
//! | [`layout`] | where each parameter lies in the flat weight buffer |
//! | [`update`] | the fused update: one launch folds a gradient and makes the new weights |
//! | [`row`] | table rows in f32 and bf16 |
//! | [`mixing`] | the updates of rules that mix models |
//! | [`clip`] | the factor that clips a gradient by its norm |
//! | [`live`] | weights that everybody writes without a lock |
//! | [`nn`] | the layers of the convolutional networks, forward and backward |
//! | [`stack`] | several models as one of so many replicas |
//! | [`gather`] | draw a batch from the u8 training set, normalise, crop, flip |
//! | [`timing`] | when the device did what, by its own clock |
//! | [`random`] | counter-based randomness, the same numbers on host and device |
//!
//! Every kernel stands beside the plain loop that is both the CPU path and its reference; the tests hold them equal.
//! This crate knows no rule, no worker and no thread.
#![deny(missing_docs)]

pub mod clip;
pub mod cuda;
pub mod device;
pub mod failure;
pub mod gather;
pub mod graph;
mod launch;
pub mod layers;
pub mod layout;
pub mod live;
pub mod mixing;
pub mod random;
pub mod row;
mod scratch;
mod simd;
pub mod stack;
pub mod timing;
pub mod update;

pub use device::{Buffer, Device, Fence, Stream, copy};
pub use failure::{Cause, DeviceError};
pub use layout::{Layout, Segment};
pub use live::Live;
pub use row::{Dtype, Row};
pub use update::{Adam, FoldOp, GradientInput, OptimizerStep, PendingGradient, StepOp, Update};
