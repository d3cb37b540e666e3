//! Gradient clipping by norm: the factor min(1, limit / ‖g‖) of a gradient in several buffers, as one float
//! on the device.
//!
//! Non-finite elements do not count in the norm, because the update leaves them out. The gradient is not
//! rewritten: the kernel that reads it multiplies it by the factor. Squares are added in a fixed order (units
//! in stripes, then groups of units), so the same gradient always gets the same factor. On a GPU the sum of
//! squares is in f32. A norm above 1e19 overflows there, and the factor is 0.

use crate::device::{Buffer, Device};
use crate::layout::Layout;
use crate::simd::{Lanes, for_each_instruction_set};
use crate::update::finite;
use cubecl::prelude::*;

/// Units of the first pass. Each writes one partial sum.
const UNITS: usize = 4096;
/// Groups of the second pass. Each adds up `UNITS / GROUPS` partial sums.
const GROUPS: usize = 64;

/// Returns the factor that reduces the gradient's norm to `limit`: one float, at most 1.
pub fn factor(device: &Device, layout: &Layout, gradient: &[Buffer], limit: f32) -> Buffer {
    let Device::Gpu(gpu) = device else {
        let mut squares = [0.0; LANES];
        add_squares(gradient, &mut squares);
        let norm = squares.iter().sum::<f64>().sqrt();
        return device.upload(vec![(limit as f64 / norm).min(1.0) as f32]);
    };
    let vector = layout.vector_size();
    let parts = device.uninitialised(UNITS);
    let groups = device.uninitialised(GROUPS);
    let factor = device.uninitialised(1);
    let room = gpu.bindings().saturating_sub(4).max(1);
    for (part, gradients) in gradient.chunks(room).enumerate() {
        // SAFETY: every length is that of the bound buffer, in vectors; `parts` has one float per unit.
        unsafe {
            squares_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static((UNITS / 256) as u32, 1, 1),
                CubeDim::new_1d(256),
                vector,
                gradients.iter().map(|g| BufferArg::from_raw_parts(g.handle(), g.len() / vector)).collect(),
                BufferArg::from_raw_parts(parts.handle(), UNITS),
                gradients.iter().map(|g| g.len() / vector).collect(),
                part == 0,
                vector,
            )
        }
    }
    // SAFETY: each of GROUPS units reads UNITS / GROUPS parts; then one unit reads GROUPS sums and writes one
    // float.
    unsafe {
        gather_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::new_single(),
            CubeDim::new_1d(GROUPS as u32),
            BufferArg::from_raw_parts(parts.handle(), UNITS),
            BufferArg::from_raw_parts(groups.handle(), GROUPS),
            limit,
            UNITS / GROUPS,
            false,
        );
        gather_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::new_single(),
            CubeDim::new_1d(1),
            BufferArg::from_raw_parts(groups.handle(), GROUPS),
            BufferArg::from_raw_parts(factor.handle(), 1),
            limit,
            GROUPS,
            true,
        );
    }
    factor
}

/// Number of partial sums on the CPU. Sum k adds the squares of elements k, k + LANES, k + 2 LANES, ... of
/// each buffer.
const LANES: usize = 16;

for_each_instruction_set! {
    fn add_squares(gradient: &[Buffer], sums: &mut [f64; LANES]) = squares_on_host
}

#[inline(always)]
fn squares_on_host<L: Lanes, const P: usize, const N: usize>(gradient: &[Buffer], sums: &mut [f64; LANES]) {
    // A local copy stays in registers. Sums behind the reference would be stored and loaded again for every
    // line.
    let mut own = *sums;
    let add = |own: &mut [f64; LANES], values: &[f32]| {
        for (sum, g) in own.iter_mut().zip(values) {
            let g = if g.is_finite() { *g as f64 } else { 0.0 };
            *sum += g * g;
        }
    };
    for buffer in gradient {
        let (lines, rest) = buffer.host().as_chunks::<LANES>();
        lines.iter().for_each(|line| add(&mut own, line));
        add(&mut own, rest);
    }
    *sums = own;
}

#[cube(launch_unchecked)]
fn squares_kernel<N: Size>(
    gradients: &Sequence<Box<[Vector<f32, N>]>>,
    parts: &mut [f32],
    #[comptime] lengths: Vec<usize>,
    #[comptime] anew: bool,
    #[comptime] vector: usize,
) {
    let mut squares = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for k in 0..comptime!(lengths.len()) {
        let len = comptime!(lengths[k]);
        let mut i = ABSOLUTE_POS;
        while i < len {
            let g = finite::<N>(gradients[k][i], vector);
            squares += g * g;
            i += comptime!(UNITS);
        }
    }
    let mut total = squares.extract(0usize);
    #[unroll]
    for lane in 1..comptime!(vector) {
        total += squares.extract(lane);
    }
    if comptime!(!anew) {
        total += parts[ABSOLUTE_POS];
    }
    parts[ABSOLUTE_POS] = total;
}

#[cube(launch_unchecked)]
fn gather_kernel(parts: &[f32], out: &mut [f32], limit: f32, #[comptime] members: usize, #[comptime] last: bool) {
    let mut total = 0.0f32;
    for k in 0..members {
        total += parts[ABSOLUTE_POS * members + k];
    }
    if comptime!(last) {
        let norm = f32::sqrt(total);
        out[ABSOLUTE_POS] = select(norm > limit, limit / norm, 1.0f32);
    } else {
        out[ABSOLUTE_POS] = total;
    }
}
