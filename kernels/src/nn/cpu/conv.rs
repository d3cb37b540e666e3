//! Convolutions on the CPU: no column matrix, no copy but a border of zeros.
//!
//! Images lie channels last, so the patch under an output pixel is `kernel` runs of `kernel · from` neighbouring floats.
//! A register tile reads those runs where they are (`tile`). Work is split among the threads of the current pool by images or by
//! columns of the result, never within a sum, so the result does not depend on how many threads there are.

use super::tile::{LANES, Tile, for_each_instruction_set, outer_products, rows_by_panels};
use super::{Scratch, parallel};
use crate::nn::Conv;

/// Output pixels at least of one piece of work: enough to use a panel of weights well.
const PIXELS: usize = 256;

/// Images per piece of work.
fn images_together(plan: &Conv) -> usize {
    PIXELS.div_ceil(plan.out_pixels()).clamp(1, plan.batch)
}

/// Y [B, H', W', to] of X [B, H, W, from] and weights [to, from, kernel, kernel].
pub fn forward(plan: &Conv, x: &[f32], weights: &[f32], y: &mut [f32]) {
    let mut panels = Scratch::take(plan.to.div_ceil(LANES) * plan.patch() * LANES);
    pack_by_output(plan, weights, &mut panels);
    let together = images_together(plan);
    let pieces = y.chunks_mut(together * plan.out_pixels() * plan.to).zip(x.chunks(together * plan.in_image()));
    parallel(pieces, |(y, x)| {
        let padded = pad(plan, x);
        forward_piece(plan, &padded, &panels, y);
    });
}

/// dX of dY and the weights. With stride 1 it is the convolution of dY with the weights turned round; else the pixels of dY are
/// scattered.
pub fn input_gradient(plan: &Conv, dy: &[f32], weights: &[f32], dx: &mut [f32]) {
    let mut panels = Scratch::take(plan.from.div_ceil(LANES) * plan.taps() * plan.to * LANES);
    pack_by_input(plan, weights, plan.stride == 1, &mut panels);
    let together = images_together(plan);
    let pieces = dx.chunks_mut(together * plan.in_image()).zip(dy.chunks(together * plan.out_pixels() * plan.to));
    let turned = Conv {
        height: plan.out_height(),
        width: plan.out_width(),
        from: plan.to,
        to: plan.from,
        pad: (plan.kernel - 1).wrapping_sub(plan.pad),
        ..*plan
    };
    parallel(pieces, |(dx, dy)| {
        if plan.stride == 1 {
            forward_piece(&turned, &pad(&turned, dy), &panels, dx);
        } else {
            let images = dx.len() / plan.in_image();
            let mut padded = Scratch::zeros(images * plan.padded_image() + LANES);
            scatter_piece(plan, dy, &panels, &mut padded);
            crop(plan, &padded, dx);
        }
    });
}

/// dW [to, from, kernel, kernel] of X and dY.
pub fn weight_gradient(plan: &Conv, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let columns = plan.to.next_multiple_of(LANES);
    // Rows of whole panels; only a width that is no multiple of 16 is copied.
    let wide = (columns != plan.to).then(|| {
        let mut wide = Scratch::zeros(dy.len() / plan.to * columns);
        wide.chunks_mut(columns).zip(dy.chunks(plan.to)).for_each(|(w, d)| w[..plan.to].copy_from_slice(d));
        wide
    });
    let dy = wide.as_deref().unwrap_or(dy);
    // One panel of sums per 16 outputs: [panel][patch][16]. A thread takes two panels and one row of the kernel.
    let mut sums = Scratch::zeros(columns / LANES * plan.patch() * LANES);
    let run = plan.kernel * plan.from;
    let split = rayon::current_num_threads() > 1;
    let pieces: Vec<Piece> = sums
        .chunks_mut(2 * plan.patch() * LANES)
        .enumerate()
        .flat_map(|(pair, sums)| {
            let mut rows: Vec<Piece> = (0..if split { plan.kernel } else { 1 })
                .map(|row| Piece { panel: 2 * pair, rows: if split { row..row + 1 } else { 0..plan.kernel }, sums: Vec::new() })
                .collect();
            for panel in sums.chunks_mut(plan.patch() * LANES) {
                let length = panel.len() / rows.len();
                rows.iter_mut().zip(panel.chunks_mut(length)).for_each(|(piece, part)| piece.sums.push(part));
            }
            rows
        })
        .collect();
    debug_assert_eq!(run * plan.kernel, plan.patch());
    parallel(pieces.into_iter(), |mut piece| {
        let together = images_together(plan);
        for (x, dy) in x.chunks(together * plan.in_image()).zip(dy.chunks(together * plan.out_pixels() * columns)) {
            let padded = pad(plan, x);
            weight_gradient_piece(plan, &padded, dy, columns, &mut piece);
        }
    });
    unpack_by_output(plan, &sums, dw);
}

/// Two panels of outputs (or one, at the end) and some rows of the kernel.
struct Piece<'a> {
    panel: usize,
    rows: std::ops::Range<usize>,
    sums: Vec<&'a mut [f32]>,
}

for_each_instruction_set! {
    fn forward_piece(plan: &Conv, padded: &[f32], panels: &[f32], y: &mut [f32]) = forward_tiles
}

#[inline(always)]
fn forward_tiles<const P: usize, const N: usize, const FMA: bool>(plan: &Conv, padded: &[f32], panels: &[f32], y: &mut [f32]) {
    let pixels = y.len() / plan.to;
    let starts = starts(plan, pixels);
    let count = plan.to.div_ceil(LANES);
    let mut panel = 0;
    while panel < count {
        let wide = panel + N <= count;
        for first in (0..pixels).step_by(P) {
            if wide {
                forward_tile::<P, N, FMA>(plan, padded, &starts, first, panels, panel, y);
            } else {
                forward_tile::<P, 1, FMA>(plan, padded, &starts, first, panels, panel, y);
            }
        }
        panel += if wide { N } else { 1 };
    }
}

#[inline(always)]
fn forward_tile<const P: usize, const N: usize, const FMA: bool>(
    plan: &Conv,
    padded: &[f32],
    starts: &[usize],
    first: usize,
    panels: &[f32],
    panel: usize,
    y: &mut [f32],
) {
    let (run, pitch) = (plan.kernel * plan.from, plan.padded_width() * plan.from);
    // Beyond the last pixel the last one is computed again and not stored.
    let at: [usize; P] = std::array::from_fn(|p| starts[(first + p).min(starts.len() - 1)]);
    let mut acc: Tile<P, N> = [[[0.0; LANES]; N]; P];
    for row in 0..plan.kernel {
        let rows = at.map(|at| &padded[at + row * pitch..][..run]);
        let panels = std::array::from_fn(|n| &panels[((panel + n) * plan.patch() + row * run) * LANES..][..run * LANES]);
        rows_by_panels::<P, N, FMA>(rows, panels, &mut acc);
    }
    let (from, to) = (panel * LANES, ((panel + N) * LANES).min(plan.to));
    for (pixel, acc) in y.chunks_mut(plan.to).skip(first).zip(&acc) {
        pixel[from..to].copy_from_slice(&acc.as_flattened()[..to - from]);
    }
}

for_each_instruction_set! {
    fn scatter_piece(plan: &Conv, dy: &[f32], panels: &[f32], padded: &mut [f32]) = scatter_tiles
}

#[inline(always)]
fn scatter_tiles<const P: usize, const N: usize, const FMA: bool>(
    plan: &Conv,
    dy: &[f32],
    panels: &[f32],
    padded: &mut [f32],
) {
    let pixels = dy.len() / plan.to;
    let starts = starts(plan, pixels);
    let per_tap = plan.from.div_ceil(LANES);
    for tap in 0..plan.taps() {
        let offset = (tap / plan.kernel * plan.padded_width() + tap % plan.kernel) * plan.from;
        let mut panel = 0;
        while panel < per_tap {
            let wide = panel + N <= per_tap;
            let weights = &panels[(panel * plan.taps() + tap) * plan.to * LANES..];
            for first in (0..pixels).step_by(P) {
                let place = Place { starts: &starts, first, offset: offset + panel * LANES };
                if wide {
                    scatter_tile::<P, N, FMA>(plan, dy, weights, panel, place, padded);
                } else {
                    scatter_tile::<P, 1, FMA>(plan, dy, weights, panel, place, padded);
                }
            }
            panel += if wide { N } else { 1 };
        }
    }
}

/// Where a tile's pixels add to.
struct Place<'a> {
    starts: &'a [usize],
    first: usize,
    offset: usize,
}

#[inline(always)]
fn scatter_tile<const P: usize, const N: usize, const FMA: bool>(
    plan: &Conv,
    dy: &[f32],
    weights: &[f32],
    panel: usize,
    place: Place,
    padded: &mut [f32],
) {
    let Place { starts, first, offset } = place;
    let rows = std::array::from_fn(|p| &dy[(first + p).min(starts.len() - 1) * plan.to..][..plan.to]);
    let panels = std::array::from_fn(|n| &weights[n * plan.taps() * plan.to * LANES..][..plan.to * LANES]);
    let mut acc: Tile<P, N> = [[[0.0; LANES]; N]; P];
    rows_by_panels::<P, N, FMA>(rows, panels, &mut acc);
    let length = (N * LANES).min(plan.from - panel * LANES);
    for (start, acc) in starts[first..].iter().zip(&acc) {
        let acc = acc.as_flattened();
        if length == N * LANES {
            let target = &mut padded[start + offset..][..N * LANES];
            target.iter_mut().zip(acc).for_each(|(t, a)| *t += a);
        } else {
            padded[start + offset..][..length].iter_mut().zip(acc).for_each(|(t, a)| *t += a);
        }
    }
}

for_each_instruction_set! {
    fn weight_gradient_piece(plan: &Conv, padded: &[f32], dy: &[f32], columns: usize, piece: &mut Piece) = weight_gradient_tiles
}

#[inline(always)]
fn weight_gradient_tiles<const P: usize, const N: usize, const FMA: bool>(
    plan: &Conv,
    padded: &[f32],
    dy: &[f32],
    columns: usize,
    piece: &mut Piece,
) {
    let pixels = dy.len() / columns;
    let starts = starts(plan, pixels);
    let (run, pitch) = (plan.kernel * plan.from, plan.padded_width() * plan.from);
    let mut panel = 0;
    while panel < piece.sums.len() {
        let wide = panel + N <= piece.sums.len();
        let dy = &dy[(piece.panel + panel) * LANES..];
        for (index, row) in piece.rows.clone().enumerate() {
            for block in (0..run).step_by(P) {
                let a = &padded[row * pitch + block..];
                // A run that is no multiple of P reads into what follows it; those sums are not stored.
                let (from, valid) = (index * run + block, P.min(run - block));
                if wide {
                    weight_gradient_tile::<P, N, FMA>(a, &starts, dy, columns, &mut piece.sums[panel..panel + N], from, valid);
                } else {
                    weight_gradient_tile::<P, 1, FMA>(a, &starts, dy, columns, &mut piece.sums[panel..panel + 1], from, valid);
                }
            }
        }
        panel += if wide { N } else { 1 };
    }
}

#[inline(always)]
fn weight_gradient_tile<const P: usize, const N: usize, const FMA: bool>(
    a: &[f32],
    starts: &[usize],
    dy: &[f32],
    columns: usize,
    sums: &mut [&mut [f32]],
    from: usize,
    valid: usize,
) {
    let mut acc: Tile<P, N> = [[[0.0; LANES]; N]; P];
    outer_products::<P, N, FMA>(a, starts, dy, columns, &mut acc);
    for (n, sums) in sums.iter_mut().enumerate() {
        for (target, acc) in sums[from * LANES..].chunks_mut(LANES).zip(&acc[..valid]) {
            target.iter_mut().zip(&acc[n]).for_each(|(t, a)| *t += a);
        }
    }
}

/// Where the patch of each output pixel begins in padded images.
fn starts(plan: &Conv, pixels: usize) -> Vec<usize> {
    let (width, height) = (plan.out_width(), plan.out_height());
    let place = |i: usize| {
        let (image, y, x) = (i / (width * height), i / width % height, i % width);
        image * plan.padded_image() + (y * plan.stride * plan.padded_width() + x * plan.stride) * plan.from
    };
    (0..pixels).map(place).collect()
}

/// Images with a border of zeros, and room behind the last for a block that reads over its end.
fn pad(plan: &Conv, x: &[f32]) -> Scratch {
    let images = x.len() / plan.in_image();
    let (row, pitch) = (plan.width * plan.from, plan.padded_width() * plan.from);
    let mut padded = Scratch::take(images * plan.padded_image() + LANES);
    for (padded, x) in padded.chunks_exact_mut(plan.padded_image()).zip(x.chunks(plan.in_image())) {
        let (above, rest) = padded.split_at_mut(plan.pad * pitch);
        above.fill(0.0);
        let (middle, below) = rest.split_at_mut(plan.height * pitch);
        below.fill(0.0);
        for (line, x) in middle.chunks_mut(pitch).zip(x.chunks(row)) {
            let (left, rest) = line.split_at_mut(plan.pad * plan.from);
            let (inside, right) = rest.split_at_mut(row);
            left.fill(0.0);
            inside.copy_from_slice(x);
            right.fill(0.0);
        }
    }
    padded[images * plan.padded_image()..].fill(0.0);
    padded
}

/// The inverse of [`pad`].
fn crop(plan: &Conv, padded: &[f32], x: &mut [f32]) {
    let (row, pitch) = (plan.width * plan.from, plan.padded_width() * plan.from);
    for (padded, x) in padded.chunks(plan.padded_image()).zip(x.chunks_mut(plan.in_image())) {
        for (line, x) in padded[plan.pad * pitch..].chunks(pitch).zip(x.chunks_mut(row)) {
            x.copy_from_slice(&line[plan.pad * plan.from..][..row]);
        }
    }
}

/// Weights [to, from, taps] as panels of 16 outputs: [panel][tap][from][16], zero beyond the last output.
fn pack_by_output(plan: &Conv, weights: &[f32], panels: &mut [f32]) {
    let (taps, from) = (plan.taps(), plan.from);
    parallel(panels.chunks_mut(plan.patch() * LANES).zip(weights.chunks(LANES * plan.patch())), |(panel, weights)| {
        let outputs = weights.len() / plan.patch();
        if outputs < LANES {
            panel.fill(0.0);
        }
        for ci in 0..from {
            for lane in 0..outputs {
                let w = &weights[(lane * from + ci) * taps..][..taps];
                w.iter().enumerate().for_each(|(tap, w)| panel[(tap * from + ci) * LANES + lane] = *w);
            }
        }
    });
}

/// The inverse of [`pack_by_output`].
fn unpack_by_output(plan: &Conv, panels: &[f32], weights: &mut [f32]) {
    let (taps, from) = (plan.taps(), plan.from);
    parallel(panels.chunks(plan.patch() * LANES).zip(weights.chunks_mut(LANES * plan.patch())), |(panel, weights)| {
        let outputs = weights.len() / plan.patch();
        for ci in 0..from {
            for lane in 0..outputs {
                let w = &mut weights[(lane * from + ci) * taps..][..taps];
                w.iter_mut().enumerate().for_each(|(tap, w)| *w = panel[(tap * from + ci) * LANES + lane]);
            }
        }
    });
}

/// Weights as panels of 16 inputs: [panel][tap][to][16], zero beyond the last input; `turned` from the last tap to the first.
fn pack_by_input(plan: &Conv, weights: &[f32], turned: bool, panels: &mut [f32]) {
    let taps = plan.taps();
    parallel(panels.chunks_mut(taps * plan.to * LANES).enumerate(), |(index, panel)| {
        let lanes = LANES.min(plan.from - index * LANES);
        if lanes < LANES {
            panel.fill(0.0);
        }
        for (to, weights) in weights.chunks(plan.patch()).enumerate() {
            let weights = &weights[index * LANES * taps..][..lanes * taps];
            for (lane, weights) in weights.chunks(taps).enumerate() {
                for (tap, w) in weights.iter().enumerate() {
                    let tap = if turned { taps - 1 - tap } else { tap };
                    panel[(tap * plan.to + to) * LANES + lane] = *w;
                }
            }
        }
    });
}
