//! Copies of published weights on a consumer's own stream.

use super::{Buffer, Device, Fence, Gpu};
use burn::tensor::StreamId;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// A consumer's view of weights that another thread publishes.
///
/// Where streams do not overlap (CPU, WGPU) the replica is the published buffer itself, without a copy. On
/// CUDA it is a fixed buffer of the consumer's stream, filled by one small launch per pull.
///
/// Without the copy on CUDA, every launch that binds a parameter would be a cross-stream launch. Each of
/// those costs two events and an entry in the runtime's clean-up queue. The queue has eight entries, so a
/// step with thirty such launches would block the thread that issues the launches of all threads.
pub struct Replica {
    /// The own buffer and its stream. A replica that is moved to another thread allocates a new buffer there.
    own: Option<(StreamId, Buffer)>,
}

/// Published weights that a launch has to copy to a replica, behind `fence`.
pub struct WeightCopy {
    pub(crate) from: Buffer,
    pub(crate) fence: Fence,
    pub(crate) to: Buffer,
}

impl Replica {
    /// A replica without weights.
    pub fn new() -> Self {
        Replica { own: None }
    }

    /// Returns the weights for the next job. They are valid until the next pull. The copy binds `fence`, and
    /// everything that this thread enqueues afterwards is ordered behind it (I8).
    pub fn pull(&mut self, device: &Device, published: &Buffer, fence: &Fence) -> Buffer {
        let (weights, pull) = self.copy_weights(device, published, fence, false);
        if let (Device::Gpu(gpu), Some(WeightCopy { from, fence, to })) = (device, pull) {
            copy_behind(gpu, &from, gpu.fenced(&fence), &to);
        }
        weights
    }

    /// The same as [`Replica::pull`], but the caller makes the copy, if there is one, in a launch that also
    /// does other work.
    ///
    /// With `fixed` the weights always go to the replica's own buffer, whose address a recorded step knows.
    pub fn copy_weights(
        &mut self,
        device: &Device,
        published: &Buffer,
        fence: &Fence,
        fixed: bool,
    ) -> (Buffer, Option<WeightCopy>) {
        if fence.is_empty() && !fixed {
            return (published.clone(), None);
        }
        let own = self.fixed(device, published.len());
        (own.clone(), Some(WeightCopy { from: published.clone(), fence: fence.clone(), to: own }))
    }

    /// The replica's own buffer of `len` floats, on this thread's stream.
    pub fn fixed(&mut self, device: &Device, len: usize) -> Buffer {
        let here = StreamId::current();
        if self.own.as_ref().is_none_or(|(stream, _)| *stream != here) {
            self.own = Some((here, device.uninitialised(len)));
        }
        self.own.as_ref().expect("the buffer was just made").1.clone()
    }
}

impl Default for Replica {
    fn default() -> Self {
        Self::new()
    }
}

/// Copies a whole flat buffer: with one launch on a GPU, in host memory on the CPU.
pub fn copy(device: &Device, from: &Buffer, to: &mut Buffer) {
    match device {
        Device::Cpu => to.host_mut().copy_from_slice(from.host()),
        Device::Gpu(gpu) => copy_behind(gpu, from, gpu.unused(), to),
    }
}

/// Copies a flat buffer with one launch, behind `fence`.
fn copy_behind(gpu: &Gpu, from: &Buffer, fence: Handle, to: &Buffer) {
    let len = from.len() / 4;
    // SAFETY: both buffers hold the same number of floats, a multiple of the alignment. The fence has four
    // floats.
    unsafe {
        pull_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(len.div_ceil(256).clamp(1, 2048) as u32, 1, 1),
            CubeDim::new_1d(256),
            4,
            BufferArg::from_raw_parts(from.handle(), len),
            BufferArg::from_raw_parts(fence, 4),
            BufferArg::from_raw_parts(to.handle(), len),
        )
    }
}

#[cube(launch_unchecked)]
fn pull_kernel<N: Size>(from: &[Vector<f32, N>], _fence: &[f32], to: &mut [Vector<f32, N>]) {
    let stride = CUBE_DIM as usize * CUBE_COUNT;
    let mut i = ABSOLUTE_POS;
    while i < to.len() {
        to[i] = from[i];
        i += stride;
    }
}
