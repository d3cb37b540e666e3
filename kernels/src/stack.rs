//! The buffers of a stacked pass: joins the models of several workers, and splits the gradients of the pass.
//!
//! A stacked buffer has the stacked layout ([`Layout::stacked`]): for each parameter, the values of all
//! replicas one after another. All launches are on the stream that owns the models, so no fence is needed.

use crate::device::{Buffer, Device, Gpu};
use crate::layout::{ALIGNMENT, Layout};
use crate::scratch::Scratch;
use cubecl::prelude::*;

/// A replica's gradient, one buffer per segment of the layout, and its loss.
pub type Gradient = (Vec<Buffer>, Buffer);

/// Copies models of this layout into one stacked buffer.
pub fn stack(device: &Device, layout: &Layout, models: &[&Buffer]) -> Buffer {
    let replicas = models.len();
    let Device::Gpu(gpu) = device else {
        let mut stacked = Scratch::take(replicas * layout.total());
        for segment in layout.segments() {
            let all = &mut stacked[replicas * segment.start..][..replicas * segment.len];
            for (values, model) in all.chunks_exact_mut(segment.len).zip(models) {
                values.copy_from_slice(&model.host()[segment.start..][..segment.len]);
            }
        }
        return stacked.into();
    };
    let vector = layout.vector_size();
    let stacked = device.uninitialised(replicas * layout.total());
    for (r, model) in models.iter().enumerate() {
        // SAFETY: the lengths are those of the buffers, in vectors; each place lies inside both buffers.
        unsafe {
            stack_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static(layout.total().div_ceil(256 * vector).clamp(1, 2048) as u32, 1, 1),
                CubeDim::new_1d(256),
                vector,
                BufferArg::from_raw_parts(model.handle(), layout.total() / vector),
                BufferArg::from_raw_parts(stacked.handle(), stacked.len() / vector),
                r as u32,
                replicas as u32,
                places(layout, vector),
            )
        }
    }
    stacked
}

/// Splits the gradients of a stacked pass (one buffer per segment, for all replicas) and its losses into one
/// gradient per replica. The gradients are copies, so a gradient that waits for a long time does not keep the
/// memory of the others.
pub fn unstack(
    device: &Device,
    layout: &Layout,
    replicas: usize,
    gradients: &[Buffer],
    losses: &Buffer,
) -> Vec<Gradient> {
    let Device::Gpu(gpu) = device else {
        let own = |all: &Buffer, r: usize| {
            let share = all.len() / replicas;
            device.upload(all.host()[r * share..][..share].to_vec())
        };
        return (0..replicas).map(|r| (gradients.iter().map(|all| own(all, r)).collect(), own(losses, r))).collect();
    };
    let own = |r: usize| {
        // Each view starts at an offset that every adapter can bind: the segments because of the layout, and
        // the loss behind them.
        let row = device.uninitialised(layout.total() + ALIGNMENT);
        take_apart(gpu, layout, (r, replicas), gradients, losses, &row);
        let of = |segment: &crate::Segment| row.view(segment.start, segment.len);
        (layout.segments().iter().map(of).collect(), row.view(layout.total(), 1))
    };
    (0..replicas).map(own).collect()
}

fn take_apart(
    gpu: &Gpu,
    layout: &Layout,
    (replica, replicas): (usize, usize),
    gradients: &[Buffer],
    losses: &Buffer,
    row: &Buffer,
) {
    let vector = layout.vector_size();
    let all = places(layout, vector);
    let room = gpu.bindings().saturating_sub(6).max(1);
    for (part, (places, gradients)) in all.chunks(room).zip(gradients.chunks(room)).enumerate() {
        let longest = places.iter().map(|p| p.1).max().unwrap_or(1);
        // SAFETY: the lengths are those of the buffers, in vectors; each place lies inside the row.
        unsafe {
            unstack_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static(longest.div_ceil(256).clamp(1, 2048) as u32, 1, 1),
                CubeDim::new_1d(256),
                vector,
                gradients.iter().map(|g| BufferArg::from_raw_parts(g.handle(), g.len() / vector)).collect(),
                BufferArg::from_raw_parts(losses.handle(), replicas),
                BufferArg::from_raw_parts(row.handle(), row.len() / vector),
                replica as u32,
                part == 0,
                places.to_vec(),
            )
        }
    }
}

/// Start and length of each segment, in vectors.
fn places(layout: &Layout, vector: usize) -> Vec<(usize, usize)> {
    layout.segments().iter().map(|s| (s.start / vector, s.len / vector)).collect()
}

// CubeCL unrolls loops over integers only.
#[allow(clippy::needless_range_loop)]
#[cube(launch_unchecked)]
fn stack_kernel<N: Size>(
    model: &[Vector<f32, N>],
    stacked: &mut [Vector<f32, N>],
    replica: u32,
    replicas: u32,
    #[comptime] places: Vec<(usize, usize)>,
) {
    let stride = CUBE_DIM as usize * CUBE_COUNT;
    #[unroll]
    for k in 0..comptime!(places.len()) {
        let place = comptime!(places[k]);
        let start = comptime!(place.0);
        let len = comptime!(place.1);
        let to = replicas as usize * start + replica as usize * len;
        let mut i = ABSOLUTE_POS;
        while i < len {
            stacked[to + i] = model[start + i];
            i += stride;
        }
    }
}

#[allow(clippy::needless_range_loop, clippy::too_many_arguments, clippy::collapsible_if)]
#[cube(launch_unchecked)]
fn unstack_kernel<N: Size>(
    gradients: &Sequence<Box<[Vector<f32, N>]>>,
    losses: &[f32],
    row: &mut [Vector<f32, N>],
    replica: u32,
    #[comptime] notes_loss: bool,
    #[comptime] places: Vec<(usize, usize)>,
) {
    if comptime!(notes_loss) {
        if ABSOLUTE_POS == 0 {
            // Stores a whole vector, whose first float is the loss. The loss is 64 floats before the end.
            let behind = comptime!(ALIGNMENT) / N::value();
            row[row.len() - behind] = Vector::new(losses[replica as usize]);
        }
    }
    let stride = CUBE_DIM as usize * CUBE_COUNT;
    #[unroll]
    for k in 0..comptime!(places.len()) {
        let place = comptime!(places[k]);
        let start = comptime!(place.0);
        let len = comptime!(place.1);
        let first = replica as usize * len;
        let mut i = ABSOLUTE_POS;
        while i < len {
            row[start + i] = gradients[k][first + i];
            i += stride;
        }
    }
}
