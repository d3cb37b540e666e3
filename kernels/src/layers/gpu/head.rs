//! Small linear layers in f32, such as the heads of classifiers. The forward pass, with the bias, is one
//! launch. The input gradient is one launch, and the gradients of weights and bias are one launch together.

use super::buffers::{UNITS, cubes, fresh, len};
use crate::launch::launch;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Y [B, out].
pub(super) fn forward(x: &CubeTensor, weights: &CubeTensor, bias: &CubeTensor, replicas: usize) -> CubeTensor {
    let (rows, to) = (x.meta.shape()[0], weights.meta.shape()[1]);
    let y = fresh(x, &[rows, to]);
    // SAFETY: each unit writes one element and reads its row and column.
    unsafe {
        let rows = (rows / replicas) as u32;
        launch!(forward_kernel, &y.client, cubes(len(&y)), UNITS; x, weights, bias; y; to as u32, rows;)
    }
    y
}

/// dX [B, in].
pub(super) fn input_gradient(dy: &CubeTensor, weights: &CubeTensor, replicas: usize) -> CubeTensor {
    let (rows, from, to) = (dy.meta.shape()[0], weights.meta.shape()[0] / replicas, weights.meta.shape()[1]);
    let dx = fresh(dy, &[rows, from]);
    // SAFETY: each unit writes one element and reads two rows.
    unsafe {
        let rows = (rows / replicas) as u32;
        launch!(input_kernel, &dx.client, cubes(len(&dx)), UNITS; dy, weights; dx; to as u32, rows;)
    }
    dx
}

/// dW [in, out] and db `[out]`.
pub(super) fn weight_gradient(x: &CubeTensor, dy: &CubeTensor, replicas: usize) -> (CubeTensor, CubeTensor) {
    let (rows, from, to) = (x.meta.shape()[0], x.meta.shape()[1], dy.meta.shape()[1]);
    let (dw, db) = (fresh(x, &[replicas * from, to]), fresh(x, &[replicas * to]));
    // SAFETY: each unit writes one element: the last `to` units of each replica one of db, the others one of
    // dw.
    unsafe {
        let (cubes, rows) = (cubes(len(&dw) + len(&db)), (rows / replicas) as u32);
        launch!(weights_kernel, &dw.client, cubes, UNITS; x, dy; dw, db; to as u32, rows;)
    }
    (dw, db)
}

// In these kernels, `rows` is the number of rows of one replica.
#[cube(launch_unchecked, create_dummy_kernel)]
fn forward_kernel(x: &[f32], weights: &[f32], bias: &[f32], y: &mut [f32], to: u32, rows: u32) {
    let to = to as usize;
    let from = x.len() / (y.len() / to);
    if ABSOLUTE_POS < y.len() {
        let (row, column) = (ABSOLUTE_POS / to, ABSOLUTE_POS % to);
        let replica = row / rows as usize;
        let first = replica * from * to + column;
        let mut sum = bias[replica * to + column];
        for k in 0..from {
            sum += x[row * from + k] * weights[first + k * to];
        }
        y[ABSOLUTE_POS] = sum;
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn input_kernel(dy: &[f32], weights: &[f32], dx: &mut [f32], to: u32, rows: u32) {
    let to = to as usize;
    let from = dx.len() / (dy.len() / to);
    if ABSOLUTE_POS < dx.len() {
        let (row, input) = (ABSOLUTE_POS / from, ABSOLUTE_POS % from);
        let first = (row / rows as usize * from + input) * to;
        let mut sum = 0.0f32;
        for k in 0..to {
            sum += dy[row * to + k] * weights[first + k];
        }
        dx[ABSOLUTE_POS] = sum;
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn weights_kernel(x: &[f32], dy: &[f32], dw: &mut [f32], db: &mut [f32], to: u32, rows: u32) {
    let to = to as usize;
    let rows = rows as usize;
    let from = dw.len() / db.len();
    let units = (from + 1) * to;
    let (replica, unit) = (ABSOLUTE_POS / units, ABSOLUTE_POS % units);
    let (input, output) = (unit / to, unit % to);
    let mut sum = 0.0f32;
    if ABSOLUTE_POS < dw.len() + db.len() {
        let first = replica * rows;
        if input < from {
            for row in first..first + rows {
                sum += x[row * from + input] * dy[row * to + output];
            }
            dw[replica * from * to + unit] = sum;
        } else {
            for row in first..first + rows {
                sum += dy[row * to + output];
            }
            db[replica * to + output] = sum;
        }
    }
}
