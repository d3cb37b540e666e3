//! Small linear layers, such as the heads of classifiers: one launch forward, with the bias, and one for each derivative. In f32.

use super::gpu::{UNITS, arg, cubes, fresh, len};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

pub(super) fn forward(x: &CubeTensor, weights: &CubeTensor, bias: &CubeTensor) -> CubeTensor {
    let y = fresh(x, &[x.meta.shape()[0], len(bias)]);
    // SAFETY: each unit writes one element and reads its row and column.
    unsafe {
        forward_kernel::launch_unchecked(
            &y.client,
            cubes(len(&y)),
            CubeDim::new_1d(UNITS),
            arg(x),
            arg(weights),
            arg(bias),
            arg(&y),
        )
    }
    y
}

pub(super) fn input_gradient(dy: &CubeTensor, weights: &CubeTensor) -> CubeTensor {
    let (from, to) = (weights.meta.shape()[0], weights.meta.shape()[1]);
    let dx = fresh(dy, &[dy.meta.shape()[0], from]);
    // SAFETY: each unit writes one element and reads two rows.
    unsafe {
        input_kernel::launch_unchecked(
            &dx.client,
            cubes(len(&dx)),
            CubeDim::new_1d(UNITS),
            arg(dy),
            arg(weights),
            arg(&dx),
            to as u32,
        )
    }
    dx
}

/// dW and d bias.
pub(super) fn weight_gradient(x: &CubeTensor, dy: &CubeTensor) -> (CubeTensor, CubeTensor) {
    let (from, to) = (x.meta.shape()[1], dy.meta.shape()[1]);
    let (dw, db) = (fresh(x, &[from, to]), fresh(x, &[to]));
    // SAFETY: each unit writes one element of dw, the last `to` of them one of db.
    unsafe {
        weights_kernel::launch_unchecked(
            &dw.client,
            cubes(len(&dw) + to),
            CubeDim::new_1d(UNITS),
            arg(x),
            arg(dy),
            arg(&dw),
            arg(&db),
        )
    }
    (dw, db)
}

#[cube(launch_unchecked)]
fn forward_kernel(x: &[f32], weights: &[f32], bias: &[f32], y: &mut [f32]) {
    let to = bias.len();
    let from = weights.len() / to;
    if ABSOLUTE_POS < y.len() {
        let (row, column) = (ABSOLUTE_POS / to * from, ABSOLUTE_POS % to);
        let mut sum = bias[column];
        for k in 0..from {
            sum += x[row + k] * weights[k * to + column];
        }
        y[ABSOLUTE_POS] = sum;
    }
}

#[cube(launch_unchecked)]
fn input_kernel(dy: &[f32], weights: &[f32], dx: &mut [f32], to: u32) {
    let to = to as usize;
    let from = weights.len() / to;
    if ABSOLUTE_POS < dx.len() {
        let (row, column) = (ABSOLUTE_POS / from * to, ABSOLUTE_POS % from * to);
        let mut sum = 0.0f32;
        for k in 0..to {
            sum += dy[row + k] * weights[column + k];
        }
        dx[ABSOLUTE_POS] = sum;
    }
}

#[cube(launch_unchecked)]
fn weights_kernel(x: &[f32], dy: &[f32], dw: &mut [f32], db: &mut [f32]) {
    let to = db.len();
    let from = dw.len() / to;
    let rows = dy.len() / to;
    let (input, output) = (ABSOLUTE_POS / to, ABSOLUTE_POS % to);
    let mut sum = 0.0f32;
    if input < from {
        for row in 0..rows {
            sum += x[row * from + input] * dy[row * to + output];
        }
        dw[ABSOLUTE_POS] = sum;
    } else if input == from {
        for row in 0..rows {
            sum += dy[row * to + output];
        }
        db[output] = sum;
    }
}
