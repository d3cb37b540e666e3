//! Pooling: the maximum of 2×2 pixels, and the mean of an image.

use super::buffers::{UNITS, cubes, fresh, len};
use crate::launch::launch;
use crate::layers::Pool;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// 2×2 max pooling.
pub(super) fn max_forward(x: CubeTensor, plan: Pool) -> CubeTensor {
    let x = into_contiguous(x);
    let y = fresh(&x, &[plan.batch, plan.height / 2, plan.width / 2, plan.channels]);
    // SAFETY: each unit writes one element and reads its four.
    unsafe { launch!(max_pool_kernel, &x.client, cubes(len(&y)), UNITS; x; y;; plan) }
    y
}

/// The derivative of 2×2 max pooling.
pub(super) fn max_backward(x: CubeTensor, dy: CubeTensor, plan: Pool) -> CubeTensor {
    let (x, dy) = (into_contiguous(x), into_contiguous(dy));
    let dx = fresh(&x, x.meta.shape());
    // SAFETY: each unit writes the four elements of one window.
    unsafe { launch!(max_pool_backward_kernel, &x.client, cubes(len(&dy)), UNITS; x, dy; dx;; plan) }
    dx
}

/// The mean over all pixels.
pub(super) fn mean_forward(x: CubeTensor, plan: Pool) -> CubeTensor {
    let x = into_contiguous(x);
    let y = fresh(&x, &[plan.batch, plan.channels]);
    // SAFETY: each unit writes one element and reads the pixels of its image.
    unsafe { launch!(mean_pool_kernel, &x.client, cubes(len(&y)), UNITS; x; y;; plan) }
    y
}

/// The derivative of the mean over all pixels.
pub(super) fn mean_backward(dy: CubeTensor, plan: Pool) -> CubeTensor {
    let dy = into_contiguous(dy);
    let dx = fresh(&dy, &[plan.batch, plan.height, plan.width, plan.channels]);
    // SAFETY: each unit writes one element.
    unsafe { launch!(mean_pool_backward_kernel, &dy.client, cubes(len(&dx)), UNITS; dy; dx;; plan) }
    dx
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn max_pool_kernel(x: &[f32], y: &mut [f32], #[comptime] plan: Pool) {
    if ABSOLUTE_POS < y.len() {
        let first = window(ABSOLUTE_POS as u32, plan);
        let right = comptime!(plan.channels);
        let below = comptime!(plan.width * plan.channels);
        let above = larger(x[first], x[first + right]);
        y[ABSOLUTE_POS] = larger(above, larger(x[first + below], x[first + below + right]));
    }
}

/// The first element of the window of output element `i`.
#[cube]
fn window(i: u32, #[comptime] plan: Pool) -> usize {
    let channels = comptime!(plan.channels as u32);
    let half = comptime!(plan.width as u32 / 2);
    let column = i / channels % half;
    let row = i / comptime!(plan.channels as u32 * (plan.width as u32 / 2));
    ((row * 2u32 * comptime!(plan.width as u32) + column * 2u32) * channels + i % channels) as usize
}

/// The position of the maximum of x * factor + shift among the 2×2 pixels at `first`. If several are equal,
/// the first one.
#[cube]
pub(super) fn largest(x: &[f32], first: usize, right: usize, below: usize, factor: f32, shift: f32) -> usize {
    let (a, b) = (x[first] * factor + shift, x[first + right] * factor + shift);
    let (c, d) = (x[first + below] * factor + shift, x[first + below + right] * factor + shift);
    let top = larger(larger(a, b), larger(c, d));
    select(a == top, first, select(b == top, first + right, select(c == top, first + below, first + below + right)))
}

#[cube]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    select(a >= b, a, b)
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn max_pool_backward_kernel(x: &[f32], dy: &[f32], dx: &mut [f32], #[comptime] plan: Pool) {
    if ABSOLUTE_POS < dy.len() {
        let first = window(ABSOLUTE_POS as u32, plan);
        let right = comptime!(plan.channels);
        let below = comptime!(plan.width * plan.channels);
        let top = largest(x, first, right, below, 1.0f32, 0.0f32);
        #[unroll]
        for k in 0..4usize {
            let at = first + comptime!(k % 2) * right + comptime!(k / 2) * below;
            dx[at] = select(at == top, dy[ABSOLUTE_POS], 0.0f32);
        }
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn mean_pool_kernel(x: &[f32], y: &mut [f32], #[comptime] plan: Pool) {
    let pixels = comptime!(plan.height * plan.width);
    let channels = comptime!(plan.channels);
    if ABSOLUTE_POS < y.len() {
        let start =
            ABSOLUTE_POS / channels * comptime!(plan.height * plan.width * plan.channels) + ABSOLUTE_POS % channels;
        let mut total = 0.0f32;
        for pixel in 0..pixels {
            total += x[start + pixel * channels];
        }
        y[ABSOLUTE_POS] = total / comptime!((plan.height * plan.width) as f32);
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn mean_pool_backward_kernel(dy: &[f32], dx: &mut [f32], #[comptime] plan: Pool) {
    let channels = comptime!(plan.channels);
    if ABSOLUTE_POS < dx.len() {
        let image = ABSOLUTE_POS / comptime!(plan.height * plan.width * plan.channels);
        let value = dy[image * channels + ABSOLUTE_POS % channels];
        dx[ABSOLUTE_POS] = value / comptime!((plan.height * plan.width) as f32);
    }
}
