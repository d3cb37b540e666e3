//! Direct convolutions on the CPU. They need no column matrix. They copy the images once, to add a border of
//! zeros.
//!
//! Images are channels last, so the patch of an output pixel consists of `kernel` runs of `kernel · from`
//! adjacent floats. A register tile reads those runs in place (`simd`). The work is divided among the threads
//! of the current pool by images or by columns of the result, never within a sum. So the result does not
//! depend on the number of threads.

use super::parallel;
use crate::layers::Conv;
use crate::scratch::Scratch;
use crate::simd::{LANES, Lanes, Tile, for_each_instruction_set, outer_products, rows_by_panels, tile_size, zeros};

/// Minimum number of output pixels of one piece of work: enough to make good use of a loaded panel of
/// weights.
const PIXELS: usize = 256;

/// Floats of a patch that are processed at a time. With two panels, their weights take 24 KiB.
const PATCH_BLOCK: usize = 192;

/// Output pixels that the weight gradient processes at a time. Everything that it reads of them stays in the
/// L1 cache for the next tile.
const STRIPE: usize = 64;

/// Number of images with at least `pixels` output pixels in total, at most the whole batch.
fn images_per_piece(plan: &Conv, pixels: usize) -> usize {
    pixels.div_ceil(plan.out_pixels()).clamp(1, plan.batch)
}

/// Y [B, H', W', to] from X [B, H, W, from] and weights [to, from, kernel, kernel].
pub fn forward(plan: &Conv, x: &[f32], weights: &[f32], y: &mut [f32]) {
    let mut panels = Scratch::take(plan.to.div_ceil(LANES) * plan.patch() * LANES);
    pack_by_output(plan, weights, &mut panels);
    let per_piece = images_per_piece(plan, PIXELS);
    let pieces = y.chunks_mut(per_piece * plan.out_pixels() * plan.to).zip(x.chunks(per_piece * plan.in_image()));
    parallel(pieces, |(y, x)| {
        let padded = pad(plan, x);
        forward_piece(plan, &padded, &panels, plan.patch() * LANES, y);
    });
}

/// dX from dY and the weights. With stride 1, it is the convolution of dY with the rotated weights. With
/// other strides, the products of each pixel of dY are added to the pixels of its patch.
pub fn input_gradient(plan: &Conv, dy: &[f32], weights: &[f32], dx: &mut [f32]) {
    let mut panels = Scratch::take(plan.from.div_ceil(LANES) * plan.taps() * plan.to * LANES);
    pack_by_input(plan, weights, plan.stride == 1, &mut panels);
    let per_piece = images_per_piece(plan, PIXELS);
    let pieces = dx.chunks_mut(per_piece * plan.in_image()).zip(dy.chunks(per_piece * plan.out_pixels() * plan.to));
    let rotated = Conv {
        height: plan.out_height(),
        width: plan.out_width(),
        from: plan.to,
        to: plan.from,
        pad: (plan.kernel - 1).wrapping_sub(plan.pad),
        ..*plan
    };
    parallel(pieces, |(dx, dy)| {
        if plan.stride == 1 {
            forward_piece(&rotated, &pad(&rotated, dy), &panels, rotated.patch() * LANES, dx);
        } else {
            let images = dx.len() / plan.in_image();
            let mut padded = Scratch::zeros(images * plan.padded_image() + LANES);
            scatter_piece(plan, dy, &panels, &mut padded);
            crop(plan, &padded, dx);
        }
    });
}

/// dW [to, from, kernel, kernel] from X and dY.
pub fn weight_gradient(plan: &Conv, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (sums, per_column) = weight_sums(plan, x, dy);
    unpack(plan, &sums, per_column, dw);
}

/// The weight gradient as tiles of sums, and the number of floats of a column of tiles.
pub(super) fn weight_sums(plan: &Conv, x: &[f32], dy: &[f32]) -> (Scratch, usize) {
    let (rows, panels) = tile_size();
    let columns = plan.to.div_ceil(panels * LANES);
    // The order of the tiles is [column][row of the kernel][block of the run]. Each thread takes a range of
    // tiles and goes over all images, so every sum has the same order for any number of threads.
    let tile = rows * panels * LANES;
    let blocks = plan.kernel * (plan.kernel * plan.from).div_ceil(rows);
    let tiles = columns * blocks;
    let mut sums = Scratch::take(tiles * tile);
    let tiles_per_thread = tiles.div_ceil(rayon::current_num_threads());
    parallel(sums.chunks_mut(tiles_per_thread * tile).enumerate(), |(index, sums)| {
        let per_piece = images_per_piece(plan, 2 * PIXELS);
        let pieces = x.chunks(per_piece * plan.in_image()).zip(dy.chunks(per_piece * plan.out_pixels() * plan.to));
        for (piece, (x, dy)) in pieces.enumerate() {
            weight_gradient_piece(plan, &pad(plan, x), dy, piece == 0, index * tiles_per_thread, sums);
        }
    });
    (sums, blocks * tile)
}

for_each_instruction_set! {
    // Y from padded images and panels of weights, which start `pitch` floats apart.
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

/// Computes N panels of outputs for all pixels. It takes one block of the patch at a time, whose weights stay
/// in the L1 cache meanwhile.
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
    // Takes several rows of the kernel at a time, or a part of one row.
    let (rows_at_a_time, length) = ((PATCH_BLOCK / run).max(1), run.min(PATCH_BLOCK));
    for first in (0..plan.kernel).step_by(rows_at_a_time) {
        let lines = first..(first + rows_at_a_time).min(plan.kernel);
        for block in (0..run).step_by(length) {
            let length = length.min(run - block);
            for (tile, pixels) in y.chunks_mut(P * plan.to).enumerate() {
                // A tile that goes beyond the last pixel computes the last pixel again and does not store it.
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

/// Loads a row of a tile. Lanes beyond the last output are zero.
#[inline(always)]
fn load<L: Lanes, const N: usize>(pixel: &[f32]) -> [L; N] {
    let mut room = [[0.0; LANES]; N];
    let panels: &[[f32; LANES]; N] = match pixel.as_chunks() {
        // The length is fixed, so the row is loaded directly into registers.
        (panels, []) => panels.first_chunk().expect("a row has N panels"),
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
        (all, []) => *all.first_chunk_mut().expect("a row has N panels") = panels,
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

/// The positions to which the pixels of a tile add their products.
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

/// Adds the part of these images to the tiles from `first` on. If `fresh` is set, the old content of the
/// tiles is ignored.
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
    // The outputs of the current column are packed. Spread over the pixels, they would compete for a few
    // places in the cache.
    let mut packed = Scratch::zeros(starts.len() * N * LANES);
    let (mut index, mut rest, mut packed_column) = (first, sums, usize::MAX);
    // Takes the tiles of one column and one row of the kernel at a time. They stay in the cache during the
    // loop over the pixels.
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
            // If the run is not a multiple of P, the last tile reads beyond the run. If the column has fewer
            // outputs, it reads those of the previous column. The resulting sums are never used.
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

/// Converts tiles of sums to weights [to, from, taps].
fn unpack(plan: &Conv, sums: &[f32], per_column: usize, weights: &mut [f32]) {
    let (rows, panels) = tile_size();
    let (lanes, run) = (panels * LANES, plan.kernel * plan.from);
    let per_run = run.div_ceil(rows) * rows;
    parallel(sums.chunks(per_column).zip(weights.chunks_mut(lanes * plan.patch())), |(sums, weights)| {
        let outputs = weights.len() / plan.patch();
        // Few inputs at a time, so that their sums stay in the L1 cache for the next output.
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

/// The start of the patch of each output pixel in padded images.
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

/// Copies images and adds a border of zeros. After the last image there is space for a block that reads
/// beyond its end.
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

/// The inverse of [`pad`]: removes the border.
fn crop(plan: &Conv, padded: &[f32], x: &mut [f32]) {
    let (row, pitch) = (plan.width * plan.from, plan.padded_width() * plan.from);
    for (padded, x) in padded.chunks(plan.padded_image()).zip(x.chunks_mut(plan.in_image())) {
        for (line, x) in padded[plan.pad * pitch..].chunks(pitch).zip(x.chunks_mut(row)) {
            x.copy_from_slice(&line[plan.pad * plan.from..][..row]);
        }
    }
}

/// Packs weights [to, from, taps] into panels of 16 outputs: [panel][tap][from][16], with zeros beyond the
/// last output.
fn pack_by_output(plan: &Conv, weights: &[f32], panels: &mut [f32]) {
    let (taps, patch) = (plan.taps(), plan.patch());
    parallel(panels.chunks_mut(patch * LANES).zip(weights.chunks(LANES * patch)), |(panel, weights)| {
        for ci in 0..plan.from {
            turn(&weights[ci * taps..], patch, taps, |tap| (tap * plan.from + ci) * LANES, panel);
        }
    });
}

/// Packs weights [to, from, taps] into panels of 16 inputs: [panel][tap][to][16], with zeros beyond the last
/// input. If `rotated` is set, the taps go from the last to the first.
fn pack_by_input(plan: &Conv, weights: &[f32], rotated: bool, panels: &mut [f32]) {
    let taps = plan.taps();
    parallel(panels.chunks_mut(taps * plan.to * LANES).enumerate(), |(index, panel)| {
        let lanes = index * LANES * taps..((index + 1) * LANES).min(plan.from) * taps;
        for (to, weights) in weights.chunks(plan.patch()).enumerate() {
            let place = |tap| if rotated { taps - 1 - tap } else { tap };
            turn(&weights[lanes.clone()], taps, taps, |tap| (place(tap) * plan.to + to) * LANES, panel);
        }
    });
}

/// Transposes up to 16 filters, which are `pitch` floats apart: writes tap `t` of all filters to the 16 lanes
/// at `place(t)`. Lanes without a filter become zero.
#[inline(always)]
pub(super) fn turn(filters: &[f32], pitch: usize, taps: usize, place: impl Fn(usize) -> usize, panel: &mut [f32]) {
    let mut lanes: [&[f32]; LANES] = [&[0.0; 64]; LANES];
    assert!(taps <= 64, "kernels may have at most 8×8 pixels");
    for (lane, filter) in lanes.iter_mut().zip(filters.chunks(pitch)) {
        *lane = filter;
    }
    let lanes = lanes.map(|lane| &lane[..taps]);
    for tap in 0..taps {
        let target: &mut [f32; LANES] =
            panel[place(tap)..].first_chunk_mut().expect("the panel has space for every tap");
        for lane in 0..LANES {
            target[lane] = lanes[lane][tap];
        }
    }
}
