//! Devices, flat f32 buffers on them, and the fences that order the streams of different threads.
//!
//! # Threads
//! On WGPU and CUDA every OS thread has its own stream, because CubeCL keys streams by thread.
//!
//! Guaranteed: the work that one thread submits runs in its order, and a buffer is not reused while enqueued
//! work still binds it.
//!
//! Not guaranteed: that a reader on another stream waits for the last write. Therefore (invariant I8) a
//! producer ends with [`Device::fence`], and the consumer's first launch binds that fence.

mod buffers;
mod replica;
mod streams;

pub(crate) use buffers::Slot;
pub use buffers::{Buffer, BufferPool, gradient_on_host};
pub use replica::{Replica, WeightCopy, copy};
pub use streams::{Fence, Stream};

use crate::failure::DeviceError;
use cubecl::MemoryScope;
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

/// Where buffers live and kernels run.
#[derive(Clone)]
pub enum Device {
    /// Host memory and plain loops.
    Cpu,
    /// A CubeCL device: WGPU or CUDA.
    Gpu(Arc<Gpu>),
}

/// A CubeCL device with what every launch needs.
pub struct Gpu {
    /// The client. Each thread that uses it gets a stream of its own.
    pub client: Client,
    /// The device's identity, which Burn's tensors carry.
    pub device: cubecl::Device,
    /// A small buffer, bound where a kernel has a parameter that a plan does not use.
    unused: Handle,
    /// Whether streams overlap, so that a hand-over between them needs a fence. True on CUDA; WGPU has one
    /// in-order queue.
    pub(crate) overlaps: bool,
}

impl Device {
    /// Wraps a CubeCL device. The caller must already know that its client starts without a panic.
    pub fn gpu(device: cubecl::Device) -> Self {
        let client = device.client();
        let unused = client.create_from_slice(&[0; 16]);
        let overlaps = matches!(device, cubecl::Device::Cuda(_));
        Device::Gpu(Arc::new(Gpu { client, device, unused, overlaps }))
    }

    /// `cpu`, `wgpu` or `cuda`.
    pub fn name(&self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Gpu(gpu) if gpu.overlaps => "cuda",
            Device::Gpu(_) => "wgpu",
        }
    }

    /// Whether this is a CUDA device.
    pub fn is_cuda(&self) -> bool {
        matches!(self, Device::Gpu(gpu) if gpu.overlaps)
    }

    /// Submits the enqueued work to the device, without waiting for its completion.
    pub fn flush(&self) -> Result<(), DeviceError> {
        match self {
            Device::Cpu => Ok(()),
            Device::Gpu(gpu) => gpu.client.flush().map_err(failed),
        }
    }

    /// Runs `work` on the thread that issues this device's launches, as if on this thread's stream. What it
    /// enqueues is issued at once.
    ///
    /// All of the work takes one hand-over between threads, and no flush. That pays off for a few launches,
    /// not for hundreds.
    pub fn issue<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send) -> Result<T, DeviceError> {
        match self {
            Device::Cpu => Ok(work()),
            Device::Gpu(gpu) => {
                // A panic in `work` continues on this thread. It is not an error of the device.
                let result = gpu.client.exclusive(|| catch_unwind(AssertUnwindSafe(work))).map_err(failed)?;
                result.map_or_else(|panic| resume_unwind(panic), Ok)
            }
        }
    }

    /// Waits until all work that this thread has enqueued is done.
    pub fn sync(&self) -> Result<(), DeviceError> {
        match self {
            Device::Cpu => Ok(()),
            Device::Gpu(gpu) => cubecl::future::block_on(gpu.client.sync()).map_err(failed),
        }
    }

    /// Runs a small kernel and checks its result.
    pub fn probe(&self) -> Result<(), DeviceError> {
        let Device::Gpu(gpu) = self else { return Ok(()) };
        let x = gpu.client.create(Bytes::from_elems(vec![1.0f32, 2.0, 3.0, 4.0]));
        let y = gpu.client.empty(16);
        // SAFETY: four units, four floats in both buffers.
        unsafe {
            probe_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::new_single(),
                CubeDim::new_1d(4),
                BufferArg::from_raw_parts(x, 4),
                BufferArg::from_raw_parts(y.clone(), 4),
            )
        }
        let got: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.client.read_one(y).map_err(failed)?);
        if got == [3.0, 5.0, 7.0, 9.0] {
            Ok(())
        } else {
            Err(DeviceError(format!("a test kernel gave {got:?} instead of [3.0, 5.0, 7.0, 9.0]")))
        }
    }
}

/// Wraps an error of the runtime.
fn failed(error: impl std::fmt::Display) -> DeviceError {
    DeviceError(error.to_string())
}

impl Gpu {
    /// Bytes of device memory that the memory pools of all streams hold.
    pub fn reserved(&self) -> u64 {
        self.client.memory_report(MemoryScope::Device).usage().bytes_reserved
    }

    /// A buffer of 16 bytes that no kernel reads or writes.
    pub(crate) fn unused(&self) -> Handle {
        self.unused.clone()
    }

    /// The largest number of buffers that one launch can bind.
    pub(crate) fn bindings(&self) -> usize {
        self.client.properties().hardware.max_bindings as usize
    }
}

#[cube(launch_unchecked)]
fn probe_kernel(x: &[f32], y: &mut [f32]) {
    y[ABSOLUTE_POS] = x[ABSOLUTE_POS] * 2.0f32 + 1.0f32;
}
