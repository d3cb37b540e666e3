//! Linear layers: a matrix product, then the bias. Small layers use the kernels of `head`.

use super::buffers::{UNITS, cubes, factor, fresh, len, matrices, transposed, unscaled, view};
use super::head;
use super::product::product;
use super::sums::sum_of_parts;
use crate::launch::launch;
use crate::layers::{Pass, is_small};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// The layer's output.
pub(super) fn forward(
    x: CubeTensor,
    weights: CubeTensor,
    bias: CubeTensor,
    Pass { precision, replicas }: Pass,
) -> CubeTensor {
    let [x, weights, bias] = [x, weights, bias].map(into_contiguous);
    let (batch, from, to) = (x.meta.shape()[0], x.meta.shape()[1], weights.meta.shape()[1]);
    if is_small(from, to) {
        return head::forward(&x, &weights, &bias, replicas);
    }
    let (y, rows) = (fresh(&x, &[batch, to]), batch / replicas);
    let x = view(factor(x, precision, 1.0), &matrices(replicas, rows, from));
    let weights = view(factor(weights, precision, 1.0), &matrices(replicas, from, to));
    product(x, weights, view(y.clone(), &matrices(replicas, rows, to)));
    let rows = rows as u32;
    // SAFETY: each unit reads and writes one element.
    unsafe { launch!(add_bias_kernel, &y.client, cubes(len(&y)), UNITS; bias; y; to as u32, rows;) }
    y
}

/// The derivative with respect to the layer's input.
pub(super) fn input_gradient(dy: CubeTensor, weights: CubeTensor, Pass { precision, replicas }: Pass) -> CubeTensor {
    let (dy, weights) = (into_contiguous(dy), into_contiguous(weights));
    let (batch, to, from) = (dy.meta.shape()[0], dy.meta.shape()[1], weights.meta.shape()[0] / replicas);
    if is_small(from, to) {
        return head::input_gradient(&dy, &weights, replicas);
    }
    let (dx, rows) = (fresh(&dy, &[batch, from]), batch / replicas);
    let dy = view(factor(dy, precision, precision.derivatives()), &matrices(replicas, rows, to));
    let weights = view(factor(weights, precision, 1.0), &matrices(replicas, from, to));
    product(dy, transposed(weights), view(dx.clone(), &matrices(replicas, rows, from)));
    unscaled(dx, precision)
}

/// The derivatives with respect to the weights and the bias.
pub(super) fn weight_gradient(
    x: CubeTensor,
    dy: CubeTensor,
    Pass { precision, replicas }: Pass,
) -> (CubeTensor, CubeTensor) {
    let (x, dy) = (into_contiguous(x), into_contiguous(dy));
    let (batch, from, to) = (x.meta.shape()[0], x.meta.shape()[1], dy.meta.shape()[1]);
    if is_small(from, to) {
        return head::weight_gradient(&x, &dy, replicas);
    }
    let (dw, rows) = (fresh(&x, &[replicas * from, to]), batch / replicas);
    let x = view(factor(x, precision, 1.0), &matrices(replicas, rows, from));
    let rounded = view(factor(dy.clone(), precision, precision.derivatives()), &matrices(replicas, rows, to));
    product(transposed(x), rounded, view(dw.clone(), &matrices(replicas, from, to)));
    (unscaled(dw, precision), sum_of_parts(dy, rows, replicas, &[replicas * to]))
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn add_bias_kernel(bias: &[f32], y: &mut [f32], to: u32, rows: u32) {
    if ABSOLUTE_POS < y.len() {
        let i = ABSOLUTE_POS as u32;
        y[ABSOLUTE_POS] += bias[(i / (rows * to) * to + i % to) as usize];
    }
}
