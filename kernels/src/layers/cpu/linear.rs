//! Linear layers on the CPU. They are computed as convolutions of images of one pixel, but their weights have
//! the order [in, out].

use super::direct::{forward_piece, weight_sums};
use super::parallel;
use crate::layers::{Conv, Precision};
use crate::scratch::Scratch;
use crate::simd::{LANES, tile_size};

/// The convolution of images of one pixel that corresponds to a linear layer.
pub(super) fn plan(batch: usize, from: usize, to: usize) -> Conv {
    Conv { batch, height: 1, width: 1, from, to, kernel: 1, stride: 1, pad: 0, precision: Precision::F32, replicas: 1 }
}

/// Multiplies the rows of `x` by packed panels. The rows of `out` are divided among the threads.
fn product(from: usize, to: usize, x: &[f32], panels: &[f32], out: &mut [f32]) {
    let rows_per_thread = (out.len() / to).div_ceil(rayon::current_num_threads());
    parallel(out.chunks_mut(rows_per_thread * to).zip(x.chunks(rows_per_thread * from)), |(out, x)| {
        forward_piece(&plan(out.len() / to, from, to), x, panels, from * LANES, out);
    });
}

/// Y [B, out] = X [B, in] W [in, out] + b [out].
pub fn forward(x: &[f32], weights: &[f32], bias: &[f32], y: &mut [f32]) {
    let (from, to) = (weights.len() / bias.len(), bias.len());
    let mut panels = Scratch::take(to.div_ceil(LANES) * from * LANES);
    parallel(panels.chunks_mut(from * LANES).enumerate(), |(index, panel)| {
        let lanes = index * LANES..((index + 1) * LANES).min(to);
        for (panel, row) in panel.chunks_mut(LANES).zip(weights.chunks(to)) {
            panel.fill(0.0);
            panel[..lanes.len()].copy_from_slice(&row[lanes.clone()]);
        }
    });
    product(from, to, x, &panels, y);
    y.chunks_mut(to).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
}

/// dX [B, in] from dY [B, out].
pub fn input_gradient(dy: &[f32], weights: &[f32], to: usize, dx: &mut [f32]) {
    let from = weights.len() / to;
    let mut panels = Scratch::take(from.div_ceil(LANES) * to * LANES);
    parallel(panels.chunks_mut(to * LANES).zip(weights.chunks(LANES * to)), |(panel, rows)| {
        for (k, panel) in panel.chunks_mut(LANES).enumerate() {
            panel.fill(0.0);
            panel.iter_mut().zip(rows.chunks(to)).for_each(|(p, row)| *p = row[k]);
        }
    });
    product(to, from, dy, &panels, dx);
}

/// dW [in, out] from X [B, in] and dY [B, out].
pub fn weight_gradient(x: &[f32], dy: &[f32], batch: usize, dw: &mut [f32]) {
    let (from, to) = (x.len() / batch, dy.len() / batch);
    let (sums, per_column) = weight_sums(&plan(batch, from, to), x, dy);
    let (_, panels) = tile_size();
    let lanes = panels * LANES;
    for (column, sums) in sums.chunks(per_column).enumerate() {
        let places = column * lanes..((column + 1) * lanes).min(to);
        for (dw, sums) in dw.chunks_mut(to).zip(sums.chunks(lanes)) {
            dw[places.clone()].copy_from_slice(&sums[..places.len()]);
        }
    }
}

/// db `[out]`: the sum of the rows of dY.
pub fn bias_gradient(dy: &[f32], db: &mut [f32]) {
    db.fill(0.0);
    dy.chunks(db.len()).for_each(|dy| db.iter_mut().zip(dy).for_each(|(d, g)| *d += g));
}
