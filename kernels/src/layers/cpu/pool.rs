//! Pooling on the CPU.

use super::parallel;
use crate::layers::Pool;
use crate::simd::{Lanes, for_each_instruction_set};

/// 2×2 max pooling.
pub fn max(plan: &Pool, x: &[f32], y: &mut [f32]) {
    let row = plan.width * plan.channels;
    parallel(y.chunks_mut(plan.height * row / 4).zip(x.chunks(plan.height * row)), |(y, x)| max_image(plan, x, y));
}

/// dX of 2×2 max pooling: each dY goes to the first maximum of its 2×2 pixels.
pub fn max_backward(plan: &Pool, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    let size = plan.height * plan.width * plan.channels;
    parallel(dx.chunks_mut(size).zip(x.chunks(size)).zip(dy.chunks(size / 4)), |((dx, x), dy)| {
        max_backward_image(plan, x, dy, dx)
    });
}

for_each_instruction_set! {
    fn max_image(plan: &Pool, x: &[f32], y: &mut [f32]) = max_loops
}

#[inline(always)]
fn max_loops<L: Lanes, const P: usize, const N: usize>(plan: &Pool, x: &[f32], y: &mut [f32]) {
    let c = plan.channels;
    let row = plan.width * c;
    for (y, x) in y.chunks_exact_mut(row / 2).zip(x.chunks_exact(2 * row)) {
        let (above, below) = x.split_at(row);
        for ((y, a), b) in y.chunks_exact_mut(c).zip(above.chunks_exact(2 * c)).zip(below.chunks_exact(2 * c)) {
            let ((a0, a1), (b0, b1)) = (a.split_at(c), b.split_at(c));
            for ((((y, a0), a1), b0), b1) in y.iter_mut().zip(a0).zip(a1).zip(b0).zip(b1) {
                *y = larger(larger(*a0, *a1), larger(*b0, *b1));
            }
        }
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a >= b { a } else { b }
}

for_each_instruction_set! {
    fn max_backward_image(plan: &Pool, x: &[f32], dy: &[f32], dx: &mut [f32]) = max_backward_loops
}

#[inline(always)]
fn max_backward_loops<L: Lanes, const P: usize, const N: usize>(plan: &Pool, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    let c = plan.channels;
    let row = plan.width * c;
    for ((dx, x), dy) in dx.chunks_exact_mut(2 * row).zip(x.chunks_exact(2 * row)).zip(dy.chunks_exact(row / 2)) {
        let ((dx_above, dx_below), (above, below)) = (dx.split_at_mut(row), x.split_at(row));
        let inputs = above.chunks_exact(2 * c).zip(below.chunks_exact(2 * c)).zip(dy.chunks_exact(c));
        let outputs = dx_above.chunks_exact_mut(2 * c).zip(dx_below.chunks_exact_mut(2 * c));
        for ((da, db), ((a, b), dy)) in outputs.zip(inputs) {
            let ((a0, a1), (b0, b1)) = (a.split_at(c), b.split_at(c));
            let ((da0, da1), (db0, db1)) = (da.split_at_mut(c), db.split_at_mut(c));
            route([a0, a1, b0, b1], dy, da0, da1, db0, db1);
        }
    }
}

/// Writes each value of `dy` to the position of the first maximum, and zero to the other three positions.
/// This is a separate function because the compiler knows that slice arguments do not overlap. Without that,
/// it does not vectorise the loop.
#[inline(always)]
fn route(x: [&[f32]; 4], dy: &[f32], d0: &mut [f32], d1: &mut [f32], d2: &mut [f32], d3: &mut [f32]) {
    let c = dy.len();
    let [x0, x1, x2, x3] = x.map(|x| &x[..c]);
    let (d0, d1, d2, d3) = (&mut d0[..c], &mut d1[..c], &mut d2[..c], &mut d3[..c]);
    for i in 0..c {
        let top = larger(larger(x0[i], x1[i]), larger(x2[i], x3[i]));
        let first = x0[i] == top;
        let second = !first & (x1[i] == top);
        let third = !first & !second & (x2[i] == top);
        let fourth = !first & !second & !third;
        d0[i] = if first { dy[i] } else { 0.0 };
        d1[i] = if second { dy[i] } else { 0.0 };
        d2[i] = if third { dy[i] } else { 0.0 };
        d3[i] = if fourth { dy[i] } else { 0.0 };
    }
}

/// The mean over the pixels of each image.
pub fn mean(plan: &Pool, x: &[f32], y: &mut [f32]) {
    let pixels = plan.height * plan.width;
    for (y, x) in y.chunks_mut(plan.channels).zip(x.chunks(pixels * plan.channels)) {
        y.fill(0.0);
        x.chunks(plan.channels).for_each(|x| y.iter_mut().zip(x).for_each(|(y, x)| *y += x));
        y.iter_mut().for_each(|y| *y /= pixels as f32);
    }
}

/// dX of the mean: every pixel gets the same share of dY.
pub fn mean_backward(plan: &Pool, dy: &[f32], dx: &mut [f32]) {
    let pixels = plan.height * plan.width;
    for (dx, dy) in dx.chunks_mut(pixels * plan.channels).zip(dy.chunks(plan.channels)) {
        for dx in dx.chunks_mut(plan.channels) {
            dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = dy / pixels as f32);
        }
    }
}
