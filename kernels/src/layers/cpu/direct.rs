//! Direct convolutions on the CPU: no column matrix, no copy but a border of zeros.
//!
//! Images lie channels last, so the patch under an output pixel is `kernel` runs of `kernel · from` neighbouring floats.
//! A register tile reads those runs where they are (`simd`). Work is split among the threads of the current pool by images or by
//! columns of the result, never within a sum, so the result does not depend on how many threads there are.

use super::parallel;
use crate::layers::Conv;
use crate::scratch::Scratch;
use crate::simd::{LANES, Lanes, Tile, for_each_instruction_set, outer_products, rows_by_panels, tile_size, zeros};

/// Output pixels at least of one piece of work: enough to use a panel of weights well.
const PIXELS: usize = 256;

/// Floats of a patch that are gone through at a time: with two panels of weights 24 KiB.
const STRETCH: usize = 192;

/// Output pixels that the weights' gradient takes at a time: all that it reads of them stays in the nearest cache for the next tile.
const STRIPE: usize = 64;

/// Images of so many output pixels at least.
fn images(plan: &Conv, pixels: usize) -> usize {
    pixels.div_ceil(plan.out_pixels()).clamp(1, plan.batch)
}

/// Y [B, H', W', to] of X [B, H, W, from] and weights [to, from, kernel, kernel].
pub fn forward(plan: &Conv, x: &[f32], weights: &[f32], y: &mut [f32]) {
    let mut panels = Scratch::take(plan.to.div_ceil(LANES) * plan.patch() * LANES);
    pack_by_output(plan, weights, &mut panels);
    let together = images(plan, PIXELS);
    let pieces = y.chunks_mut(together * plan.out_pixels() * plan.to).zip(x.chunks(together * plan.in_image()));
    parallel(pieces, |(y, x)| {
        let padded = pad(plan, x);
        forward_piece(plan, &padded, &panels, plan.patch() * LANES, y);
    });
}

/// dX of dY and the weights. With stride 1 it is the convolution of dY with the weights turned round; else the pixels of dY are
/// scattered.
pub fn input_gradient(plan: &Conv, dy: &[f32], weights: &[f32], dx: &mut [f32]) {
    let mut panels = Scratch::take(plan.from.div_ceil(LANES) * plan.taps() * plan.to * LANES);
    pack_by_input(plan, weights, plan.stride == 1, &mut panels);
    let together = images(plan, PIXELS);
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
            forward_piece(&turned, &pad(&turned, dy), &panels, turned.patch() * LANES, dx);
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
    let (sums, per_column) = weight_sums(plan, x, dy);
    unpack(plan, &sums, per_column, dw);
}

/// The same as tiles of sums, and how many floats there are to a column of tiles.
pub(super) fn weight_sums(plan: &Conv, x: &[f32], dy: &[f32]) -> (Scratch, usize) {
    let (rows, panels) = tile_size();
    let columns = plan.to.div_ceil(panels * LANES);
    // One tile of sums after another: [columns][row of the kernel][block of the run]. Each thread takes a stretch of them and
    // walks over all images, so every sum is taken in the same order whatever the number of threads.
    let tile = rows * panels * LANES;
    let blocks = plan.kernel * (plan.kernel * plan.from).div_ceil(rows);
    let tiles = columns * blocks;
    let mut sums = Scratch::take(tiles * tile);
    let stretch = tiles.div_ceil(rayon::current_num_threads());
    parallel(sums.chunks_mut(stretch * tile).enumerate(), |(index, sums)| {
        let together = images(plan, 2 * PIXELS);
        let pieces = x.chunks(together * plan.in_image()).zip(dy.chunks(together * plan.out_pixels() * plan.to));
        for (piece, (x, dy)) in pieces.enumerate() {
            weight_gradient_piece(plan, &pad(plan, x), dy, piece == 0, index * stretch, sums);
        }
    });
    (sums, blocks * tile)
}

for_each_instruction_set! {
    // Y of padded images and panels of weights, which begin `pitch` floats apart.
    pub(super) fn forward_piece(plan: &Conv, padded: &[f32], panels: &[f32], pitch: usize, y: &mut [f32]) = forward_tiles
}

#[inline(always)]
fn forward_tiles<L: Lanes, const P: usize, const N: usize>(
    plan: &Conv,
    padded: &[f32],
    panels: &[f32],
    pitch: usize,
    y: &mut [f32],
) {
    let starts = starts(plan, y.len() / plan.to);
    let count = plan.to.div_ceil(LANES);
    let mut panel = 0;
    while panel < count {
        if panel + N <= count {
            forward_panels::<L, P, N>(plan, padded, &starts, &panels[panel * pitch..], pitch, panel, y);
            panel += N;
        } else {
            forward_panels::<L, P, 1>(plan, padded, &starts, &panels[panel * pitch..], pitch, panel, y);
            panel += 1;
        }
    }
}

/// N panels of outputs for all pixels: a stretch of the patch at a time, whose weights stay in the nearest cache meanwhile.
#[inline(always)]
fn forward_panels<L: Lanes, const P: usize, const N: usize>(
    plan: &Conv,
    padded: &[f32],
    starts: &[usize],
    panels: &[f32],
    per_panel: usize,
    panel: usize,
    y: &mut [f32],
) {
    let (run, pitch) = (plan.kernel * plan.from, plan.padded_width() * plan.from);
    let (from, to) = (panel * LANES, ((panel + N) * LANES).min(plan.to));
    // Rows of the kernel at a time, or parts of one.
    let (together, length) = ((STRETCH / run).max(1), run.min(STRETCH));
    for first in (0..plan.kernel).step_by(together) {
        let lines = first..(first + together).min(plan.kernel);
        for block in (0..run).step_by(length) {
            let length = length.min(run - block);
            for (tile, pixels) in y.chunks_mut(P * plan.to).enumerate() {
                // Beyond the last pixel the last one is computed again and not stored.
                let starts: [usize; P] = std::array::from_fn(|p| starts[(tile * P + p).min(starts.len() - 1)]);
                let place = |p| p * plan.to + from..p * plan.to + to;
                let mut acc: Tile<L, P, N> = zeros();
                if first + block > 0 {
                    for (p, acc) in acc.iter_mut().enumerate() {
                        if let Some(pixel) = pixels.get(place(p)) {
                            *acc = load(pixel);
                        }
                    }
                }
                for line in lines.clone() {
                    let rows = std::array::from_fn(|p| &padded[starts[p] + line * pitch + block..][..length]);
                    let weights = std::array::from_fn(|n| {
                        &panels[n * per_panel + (line * run + block) * LANES..][..length * LANES]
                    });
                    rows_by_panels::<L, P, N>(rows, weights, &mut acc);
                }
                for (p, acc) in acc.iter().enumerate() {
                    if let Some(pixel) = pixels.get_mut(place(p)) {
                        store(acc, pixel);
                    }
                }
            }
        }
    }
}

/// Reads a tile's row; lanes beyond the last output are zero.
#[inline(always)]
fn load<L: Lanes, const N: usize>(pixel: &[f32]) -> [L; N] {
    let mut room = [[0.0; LANES]; N];
    let panels: &[[f32; LANES]; N] = match pixel.as_chunks() {
        // Of fixed length, so that the row goes to registers at once.
        (panels, []) => panels.first_chunk().expect("a row of the tile"),
        _ => {
            room.as_flattened_mut()[..pixel.len()].copy_from_slice(pixel);
            &room
        }
    };
    panels.each_ref().map(L::load)
}

/// The inverse of [`load`].
#[inline(always)]
fn store<L: Lanes, const N: usize>(acc: &[L; N], pixel: &mut [f32]) {
    let panels = acc.map(L::store);
    let length = pixel.len();
    match pixel.as_chunks_mut() {
        (all, []) => *all.first_chunk_mut().expect("a row of the tile") = panels,
        _ => pixel.copy_from_slice(&panels.as_flattened()[..length]),
    }
}

for_each_instruction_set! {
    fn scatter_piece(plan: &Conv, dy: &[f32], panels: &[f32], padded: &mut [f32]) = scatter_tiles
}

#[inline(always)]
fn scatter_tiles<L: Lanes, const P: usize, const N: usize>(
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
                    scatter_tile::<L, P, N>(plan, dy, weights, panel, place, padded);
                } else {
                    scatter_tile::<L, P, 1>(plan, dy, weights, panel, place, padded);
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
fn scatter_tile<L: Lanes, const P: usize, const N: usize>(
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
    let length = (N * LANES).min(plan.from - panel * LANES);
    let mut acc: Tile<L, P, N> = zeros();
    let places = &starts[first..];
    for (start, acc) in places.iter().zip(&mut acc) {
        *acc = load(&padded[start + offset..][..length]);
    }
    rows_by_panels::<L, P, N>(rows, panels, &mut acc);
    for (start, acc) in places.iter().zip(&acc) {
        store(acc, &mut padded[start + offset..][..length]);
    }
}

for_each_instruction_set! {
    fn weight_gradient_piece(
        plan: &Conv, padded: &[f32], dy: &[f32], fresh: bool, first: usize, sums: &mut [f32],
    ) = weight_gradient_tiles
}

/// Adds these images' part to the tiles from `first` on, or writes it there if they are `fresh`.
#[inline(always)]
fn weight_gradient_tiles<L: Lanes, const P: usize, const N: usize>(
    plan: &Conv,
    padded: &[f32],
    dy: &[f32],
    fresh: bool,
    first: usize,
    sums: &mut [f32],
) {
    let starts = starts(plan, dy.len() / plan.to);
    let (run, pitch) = (plan.kernel * plan.from, plan.padded_width() * plan.from);
    let per_run = run.div_ceil(P);
    // The outputs of the column at hand lie together: spread out over the pixels they would share a few places of the cache.
    let mut packed = Scratch::zeros(starts.len() * N * LANES);
    let (mut index, mut rest, mut packed_column) = (first, sums, usize::MAX);
    // Tiles of one column and one row of the kernel: as many as stay in the cache while the pixels go by.
    while !rest.is_empty() {
        let (line, block) = (index / per_run, index % per_run);
        let (column, row) = (line / plan.kernel, line % plan.kernel);
        let count = (per_run - block).min(rest.len() / (P * N * LANES));
        let (tiles, others) = rest.split_at_mut(count * P * N * LANES);
        (index, rest) = (index + count, others);
        if column != packed_column {
            packed_column = column;
            let (from, to) = (column * N * LANES, ((column + 1) * N * LANES).min(plan.to));
            for (packed, dy) in packed.chunks_exact_mut(N * LANES).zip(dy.chunks_exact(plan.to)) {
                packed[..to - from].copy_from_slice(&dy[from..to]);
            }
        }
        for (stripe, (starts, packed)) in starts.chunks(STRIPE).zip(packed.chunks(STRIPE * N * LANES)).enumerate() {
            // A run that is no multiple of P reads into what follows it, and a column into the one before; those sums are never
            // looked at.
            for (tile, sums) in tiles.chunks_exact_mut(P * N * LANES).enumerate() {
                let a = &padded[row * pitch + (block + tile) * P..];
                let mut acc: Tile<L, P, N> = zeros();
                outer_products::<L, P, N>(a, starts, packed, &mut acc);
                let places = sums.as_chunks_mut::<LANES>().0.iter_mut().zip(acc.as_flattened());
                if fresh && stripe == 0 {
                    places.for_each(|(sums, acc)| *sums = acc.store());
                } else {
                    places.for_each(|(sums, acc)| sums.iter_mut().zip(acc.store()).for_each(|(sum, a)| *sum += a));
                }
            }
        }
    }
}

/// Tiles of sums as weights [to, from, taps].
fn unpack(plan: &Conv, sums: &[f32], per_column: usize, weights: &mut [f32]) {
    let (rows, panels) = tile_size();
    let (lanes, run) = (panels * LANES, plan.kernel * plan.from);
    let per_run = run.div_ceil(rows) * rows;
    parallel(sums.chunks(per_column).zip(weights.chunks_mut(lanes * plan.patch())), |(sums, weights)| {
        let outputs = weights.len() / plan.patch();
        // So few inputs at a time that their sums stay in the nearest cache for the next output.
        for first in (0..plan.from).step_by(LANES) {
            let inputs = first..(first + LANES).min(plan.from);
            for lane in 0..outputs {
                for ci in inputs.clone() {
                    let w = &mut weights[(lane * plan.from + ci) * plan.taps()..][..plan.taps()];
                    for (row, w) in w.chunks_exact_mut(plan.kernel).enumerate() {
                        for (column, w) in w.iter_mut().enumerate() {
                            *w = sums[(row * per_run + column * plan.from + ci) * lanes + lane];
                        }
                    }
                }
            }
        }
    });
}

/// Where the patch of each output pixel begins in padded images.
fn starts(plan: &Conv, pixels: usize) -> Vec<usize> {
    if (plan.kernel, plan.stride, plan.pad) == (1, 1, 0) {
        return (0..pixels).map(|pixel| pixel * plan.from).collect();
    }
    let (row, step) = (plan.stride * plan.padded_width() * plan.from, plan.stride * plan.from);
    let mut starts = Vec::with_capacity(pixels);
    for image in 0..pixels / plan.out_pixels() {
        for y in 0..plan.out_height() {
            let first = image * plan.padded_image() + y * row;
            starts.extend((0..plan.out_width()).map(|x| first + x * step));
        }
    }
    starts
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
    let (taps, patch) = (plan.taps(), plan.patch());
    parallel(panels.chunks_mut(patch * LANES).zip(weights.chunks(LANES * patch)), |(panel, weights)| {
        for ci in 0..plan.from {
            turn(&weights[ci * taps..], patch, taps, |tap| (tap * plan.from + ci) * LANES, panel);
        }
    });
}

/// Weights as panels of 16 inputs: [panel][tap][to][16], zero beyond the last input; `turned` from the last tap to the first.
fn pack_by_input(plan: &Conv, weights: &[f32], turned: bool, panels: &mut [f32]) {
    let taps = plan.taps();
    parallel(panels.chunks_mut(taps * plan.to * LANES).enumerate(), |(index, panel)| {
        let lanes = index * LANES * taps..((index + 1) * LANES).min(plan.from) * taps;
        for (to, weights) in weights.chunks(plan.patch()).enumerate() {
            let place = |tap| if turned { taps - 1 - tap } else { tap };
            turn(&weights[lanes.clone()], taps, taps, |tap| (place(tap) * plan.to + to) * LANES, panel);
        }
    });
}

/// Writes tap `t` of up to 16 filters, `pitch` floats apart, to 16 lanes at `place(t)`; lanes without a filter become zero.
#[inline(always)]
pub(super) fn turn(filters: &[f32], pitch: usize, taps: usize, place: impl Fn(usize) -> usize, panel: &mut [f32]) {
    let mut lanes: [&[f32]; LANES] = [&[0.0; 64]; LANES];
    assert!(taps <= 64, "kernels of at most 8×8");
    for (lane, filter) in lanes.iter_mut().zip(filters.chunks(pitch)) {
        *lane = filter;
    }
    let lanes = lanes.map(|lane| &lane[..taps]);
    for tap in 0..taps {
        let target: &mut [f32; LANES] = panel[place(tap)..].first_chunk_mut().expect("a panel holds every tap");
        for lane in 0..LANES {
            target[lane] = lanes[lane][tap];
        }
    }
}
