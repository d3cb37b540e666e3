//! The device side of stagger: buffers, streams, and the project's own kernels.
//!
//! | module | content |
//! | --- | --- |
//! | [`device`] | a [`Device`] (the CPU, or a CubeCL client for WGPU or CUDA), buffers, streams, fences, replicas |
//! | [`failure`] | errors of a device, and their causes |
//! | [`cuda`] | a check whether CUDA can be used on this machine |
//! | [`graph`] | recorded steps: launches that are recorded once and replayed as one launch |
//! | `launch` | launches of kernels that each thread creates once |
//! | [`layout`] | the position of each parameter in the flat weight buffer |
//! | [`update`] | the fused update: one launch folds a gradient and computes the new weights |
//! | [`row`] | table rows in f32 and bf16 |
//! | [`mixing`] | the fused update of rules that mix models |
//! | [`clip`] | gradient clipping by norm |
//! | [`live`] | weights that all workers write without a lock (Hogwild!) |
//! | [`layers`] | the layers of the convolutional networks, forward and backward |
//! | [`stack`] | several models in one buffer, for a stacked pass |
//! | [`gather`] | batches from the u8 training set: drawn, normalised, cropped, flipped |
//! | [`timing`] | start and end times of work, by the device's own clock |
//! | [`random`] | counter-based random numbers, the same on host and device |
//! | `scratch` | host buffers that are reused |
//! | `simd` | vector instructions of the CPU |
//!
//! Next to each kernel is a plain loop, which is both the CPU path and the kernel's reference. The tests
//! compare the two. This crate does not depend on rules, workers or threads.
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
