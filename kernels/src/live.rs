//! Weights that all workers write at the same time, without a lock (Hogwild!).
//!
//! They have no version and no snapshot. A reader may see one parameter before a step and another parameter
//! after it. If two steps write a parameter at the same time, one of the two changes may be lost.

use crate::device::{Buffer, Device, Gpu};
use crate::layout::Layout;
use crate::update::finite;
use cubecl::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The shared weights. Cloning shares them.
#[derive(Clone)]
pub enum Live {
    /// Bits of f32 in host memory.
    Host(Arc<[AtomicU32]>),
    /// One device buffer, which every stream writes in place.
    Device(Buffer),
}

impl Live {
    /// Shared weights with the initial content `values`.
    pub fn new(device: &Device, values: Vec<f32>) -> Self {
        match device {
            Device::Cpu => Live::Host(values.into_iter().map(|v| AtomicU32::new(v.to_bits())).collect()),
            Device::Gpu(_) => Live::Device(device.upload(values)),
        }
    }

    /// A copy of the weights as this thread sees them now.
    pub fn read(&self, device: &Device) -> Buffer {
        match (self, device) {
            (Live::Host(bits), _) => {
                device.upload(bits.iter().map(|b| f32::from_bits(b.load(Ordering::Relaxed))).collect())
            }
            (Live::Device(live), Device::Gpu(_)) => {
                let mut copy = device.uninitialised(live.len());
                crate::device::copy(device, live, &mut copy);
                copy
            }
            (Live::Device(_), Device::Cpu) => unreachable!("the CPU device has no device buffers"),
        }
    }

    /// w -= η (factor · g + λ w), parameter by parameter, without a lock. `lr` is η and `decay` is λ. A
    /// non-finite element of the gradient counts as zero.
    pub fn step(
        &self,
        device: &Device,
        layout: &Layout,
        gradient: &[Buffer],
        factor: Option<&Buffer>,
        lr: f32,
        decay: f32,
    ) {
        match (self, device) {
            (Live::Host(bits), _) => {
                let factor = factor.map_or(1.0, |f| f.host()[0]);
                for (segment, gradient) in layout.segments().iter().zip(gradient) {
                    for (bits, g) in bits[segment.start..].iter().zip(gradient.host()) {
                        let w = f32::from_bits(bits.load(Ordering::Relaxed));
                        let g = Some(factor * g).filter(|g| g.is_finite()).unwrap_or(0.0);
                        bits.store((w - lr * (g + decay * w)).to_bits(), Ordering::Relaxed);
                    }
                }
            }
            (Live::Device(live), Device::Gpu(gpu)) => on_gpu(gpu, live, layout, gradient, factor, lr, decay),
            (Live::Device(_), Device::Cpu) => unreachable!("the CPU device has no device buffers"),
        }
    }
}

fn on_gpu(
    gpu: &Gpu,
    live: &Buffer,
    layout: &Layout,
    gradient: &[Buffer],
    factor: Option<&Buffer>,
    lr: f32,
    decay: f32,
) {
    let vector = layout.vector_size();
    let room = gpu.bindings().saturating_sub(4).max(1);
    for (segments, gradients) in layout.segments().chunks(room).zip(gradient.chunks(room)) {
        let places: Vec<_> = segments.iter().map(|s| (s.start / vector, s.len / vector)).collect();
        let longest = places.iter().map(|p| p.1).max().unwrap_or(1);
        // SAFETY: every length is that of the bound buffer, in vectors.
        unsafe {
            live_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static(longest.div_ceil(256).clamp(1, 2048) as u32, 1, 1),
                CubeDim::new_1d(256),
                vector,
                gradients.iter().map(|g| BufferArg::from_raw_parts(g.handle(), g.len() / vector)).collect(),
                BufferArg::from_raw_parts(live.handle(), live.len() / vector),
                BufferArg::from_raw_parts(factor.map_or(gpu.unused(), |f| f.handle()), 1),
                lr,
                decay,
                places,
                factor.is_some(),
                vector,
            )
        }
        crate::update::count_worker_launch();
    }
}

#[allow(clippy::collapsible_if)]
#[cube(launch_unchecked)]
fn live_kernel<N: Size>(
    gradients: &Sequence<Box<[Vector<f32, N>]>>,
    live: &mut [Vector<f32, N>],
    factor: &[f32],
    lr: f32,
    decay: f32,
    #[comptime] places: Vec<(usize, usize)>,
    #[comptime] clipped: bool,
    #[comptime] vector: usize,
) {
    let stride = CUBE_DIM as usize * CUBE_COUNT;
    #[unroll]
    for k in 0..comptime!(places.len()) {
        let place = comptime!(places[k]);
        let start = comptime!(place.0);
        let len = comptime!(place.1);
        let mut i = ABSOLUTE_POS;
        while i < len {
            let mut g = gradients[k][i];
            if comptime!(clipped) {
                g *= Vector::new(factor[0]);
            }
            g = finite::<N>(g, vector);
            let w = live[start + i];
            live[start + i] = w - (g + w * Vector::new(decay)) * Vector::new(lr);
            i += stride;
        }
    }
}
