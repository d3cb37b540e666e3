//! Winograd convolutions on the CPU, for 3×3 kernels and stride 1: the algorithm F(2×2, 3×3) of Lavin and
//! Gray, 2016. It needs 16 instead of 36 products for each 2×2 outputs.
//!
//! Let d be a 4×4 piece of an image, g a kernel, and e the gradients of the piece's 2×2 outputs. ⊙ multiplies
//! point by point. Each of the 16 points has its own sum, over the channels (for dg, over the pieces):
//!
//! y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A,  dg = Gᵀ [(A e Aᵀ) ⊙ (Bᵀ d B)] G,
//!
//! Bᵀ = (1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 -1 0 1),  G = (1 0 0; ½ ½ ½; ½ -½ ½; 0 0 1),  Aᵀ = (1 1 1 0; 0 1 -1 1),
//!
//! These are the paper's matrices, except for the sign of the last point. The input gradient is the
//! convolution of e with the rotated kernels.
//!
//! A tile is 2×2 outputs here. Tiles are ordered row by row over all images. The work is divided among the
//! threads by rows of tiles, by points or by outputs, never within a sum. So the result does not depend on
//! the number of threads.
//!
//! Vectors are computed in small functions that are always inlined, not in closures. Closures would not be
//! compiled for the same instruction set, and each addition would be a call.

use super::direct::{forward_piece, turn};
use super::{linear, parallel};
use crate::layers::Conv;
use crate::scratch::Scratch;
use crate::simd::{LANES, Lanes, Tile, for_each_instruction_set, outer_products, tile_size, zeros};
use std::ops::Range;

/// The points of a tile form 4 lines of 4.
const SIDE: usize = 4;
const POINTS: usize = SIDE * SIDE;

/// Minimum number of tiles that are multiplied at a time: enough to make good use of a loaded panel of
/// weights.
const TILES: usize = 64;

/// Pixels of a kernel.
const TAPS: usize = 9;

/// Minimum number of channels. With fewer, the transforms cost more than the saved products.
const MIN_CHANNELS: usize = 2 * LANES;

/// Whether this algorithm can compute a convolution (whole tiles, whole panels), and is faster than the
/// direct one.
pub fn fits(plan: &Conv) -> bool {
    let tiles = plan.height.is_multiple_of(2) && plan.width.is_multiple_of(2);
    let panels = plan.from.is_multiple_of(LANES) && plan.to.is_multiple_of(LANES);
    (plan.kernel, plan.stride, plan.pad) == (3, 1, 1) && tiles && panels && plan.from.min(plan.to) >= MIN_CHANNELS
}

/// Y [B, H, W, to] from X [B, H, W, from] and weights [to, from, 3, 3].
pub fn forward(plan: &Conv, x: &[f32], weights: &[f32], y: &mut [f32]) {
    let mut points = Scratch::take(POINTS * plan.from * plan.to);
    let panels = points.chunks_mut(POINTS * plan.from * LANES).zip(weights.chunks(LANES * plan.patch()));
    parallel(panels, |(points, weights)| {
        let mut taps = [0.0; TAPS * LANES];
        for ci in 0..plan.from {
            turn(&weights[ci * TAPS..], plan.patch(), TAPS, |tap| tap * LANES, &mut taps);
            kernel_points(&taps, plan.from * LANES, &mut points[ci * LANES..]);
        }
    });
    product(plan, x, &points, y);
}

/// dX from dY and the weights.
pub fn input_gradient(plan: &Conv, dy: &[f32], weights: &[f32], dx: &mut [f32]) {
    let mut points = Scratch::take(POINTS * plan.from * plan.to);
    parallel(points.chunks_mut(POINTS * plan.to * LANES).enumerate(), |(panel, points)| {
        let mut taps = [0.0; TAPS * LANES];
        for (to, weights) in weights.chunks(plan.patch()).enumerate() {
            let weights = &weights[panel * LANES * TAPS..][..LANES * TAPS];
            turn(weights, TAPS, TAPS, |tap| (TAPS - 1 - tap) * LANES, &mut taps);
            kernel_points(&taps, plan.to * LANES, &mut points[to * LANES..]);
        }
    });
    product(&Conv { from: plan.to, to: plan.from, ..*plan }, dy, &points, dx);
}

/// dW [to, from, 3, 3] from X and dY.
pub fn weight_gradient(plan: &Conv, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (rows, panels) = tile_size();
    let (columns, blocks) = (plan.to.div_ceil(panels * LANES), plan.from.div_ceil(rows));
    // The order of the sums is [columns of one part][point][column][block], one register tile after another.
    // The lines of points are divided among the threads. If there are more threads than lines, the columns
    // are divided into parts too. Images are transformed once per part, gradients only once.
    let threads = rayon::current_num_threads();
    let (lines, part) = (SIDE.div_ceil(threads.min(SIDE)), columns.div_ceil(threads.div_ceil(SIDE)));
    let column = blocks * rows * panels * LANES;
    let mut sums = Scratch::take(POINTS * columns * column);
    let parts = sums.chunks_mut(POINTS * part * column).enumerate();
    let pieces = parts.flat_map(|(index, sums)| {
        let outputs = index * part * panels * LANES..((index + 1) * part * panels * LANES).min(plan.to);
        let lines_of = lines * SIDE * (sums.len() / POINTS);
        let lines = move |k: usize| k * lines..((k + 1) * lines).min(SIDE);
        sums.chunks_mut(lines_of).enumerate().map(move |(k, sums)| (lines(k), outputs.clone(), sums))
    });
    parallel(pieces, |(lines, outputs, sums)| point_sums(plan, x, dy, lines, outputs, sums));
    let lanes = panels * LANES;
    parallel(dw.chunks_mut(lanes * plan.patch()).enumerate(), |(index, dw)| {
        let of_part = &sums[index / part * part * POINTS * column..];
        let columns_of_part = part.min(columns - index / part * part);
        kernels(plan, &of_part[index % part * column..], columns_of_part * column, dw);
    });
}

/// Y from X and the points of the kernels, [panel of 16 outputs][point][input][16].
fn product(plan: &Conv, x: &[f32], kernels: &[f32], y: &mut [f32]) {
    let across = plan.width / 2;
    let rows = TILES.div_ceil(across);
    parallel(y.chunks_mut(rows * across * 4 * plan.to).enumerate(), |(piece, y)| {
        let tiles = y.len() / (4 * plan.to);
        // The distance between points has one extra cache line. At multiples of a page, all points would
        // compete for a few places in the cache.
        let (image_pitch, output_pitch) = (tiles * plan.from + LANES, tiles * plan.to + LANES);
        let mut points = Scratch::take(POINTS * image_pitch);
        let mut products = Scratch::take(POINTS * output_pitch);
        let first = piece * rows;
        image_points(plan, x, first..first + tiles / across, 0..SIDE, plan.from, image_pitch, &mut points);
        let linear_plan = linear::plan(tiles, plan.from, plan.to);
        for (point, products) in products.chunks_exact_mut(output_pitch).enumerate() {
            let kernels = &kernels[point * plan.from * LANES..];
            let pitch = POINTS * plan.from * LANES;
            forward_piece(
                &linear_plan,
                &points[point * image_pitch..],
                kernels,
                pitch,
                &mut products[..tiles * plan.to],
            );
        }
        outputs(plan, &products, output_pitch, y);
    });
}

for_each_instruction_set! {
    fn kernel_points(taps: &[f32], pitch: usize, points: &mut [f32]) = kernel_points_of
}

/// G g Gᵀ of 16 kernels with the taps [tap][16]. Each point has 16 floats, and the points are `pitch` floats
/// apart.
#[inline(always)]
fn kernel_points_of<L: Lanes, const P: usize, const N: usize>(taps: &[f32], pitch: usize, points: &mut [f32]) {
    let [a, b, c] = [kernel_column::<L>(taps, 0), kernel_column(taps, 1), kernel_column(taps, 2)];
    for row in 0..SIDE {
        let [a, b, c, d] = kernel_line([a[row], b[row], c[row]]);
        store(a, points, SIDE * row * pitch);
        store(b, points, (SIDE * row + 1) * pitch);
        store(c, points, (SIDE * row + 2) * pitch);
        store(d, points, (SIDE * row + 3) * pitch);
    }
}

/// G g for one column of taps.
#[inline(always)]
fn kernel_column<L: Lanes>(taps: &[f32], column: usize) -> [L; SIDE] {
    kernel_line([load(taps, column * LANES), load(taps, (3 + column) * LANES), load(taps, (6 + column) * LANES)])
}

/// G g for one vector of three taps.
#[inline(always)]
fn kernel_line<L: Lanes>([a, b, c]: [L; 3]) -> [L; SIDE] {
    let ends = a.add(c);
    [a, ends.add(b).half(), ends.sub(b).half(), c]
}

for_each_instruction_set! {
    fn image_points(
        plan: &Conv, x: &[f32], rows: Range<usize>, lines: Range<usize>, per_tile: usize, per_point: usize, points: &mut [f32],
    ) = image_points_of
}

/// Bᵀ d B for these rows of tiles and these lines of points: [point][tile][input]. Points are `per_point`
/// floats apart, tiles `per_tile` floats.
#[inline(always)]
fn image_points_of<L: Lanes, const P: usize, const N: usize>(
    plan: &Conv,
    x: &[f32],
    rows: Range<usize>,
    lines: Range<usize>,
    per_tile: usize,
    per_point: usize,
    points: &mut [f32],
) {
    let (down, across, row_of_tile) = (plan.height / 2, plan.width / 2, SIDE * plan.from);
    let zero_row = Scratch::zeros(plan.width * plan.from);
    let mut edge = Scratch::take(SIDE * row_of_tile);
    let mut index = 0;
    for row in rows {
        let image = &x[row / down * plan.in_image()..][..plan.in_image()];
        // The piece of a tile starts one pixel above the tile and one pixel to its left.
        let [a, b, c, d] = [0, 1, 2, 3].map(|line| match (row % down * 2 + line).wrapping_sub(1) {
            row if row < plan.height => &image[row * plan.width * plan.from..][..plan.width * plan.from],
            _ => &zero_row[..],
        });
        for column in 0..across {
            let inside = column > 0 && column + 1 < across;
            let piece = if inside {
                [a, b, c, d].map(|row| &row[(2 * column - 1) * plan.from..][..row_of_tile])
            } else {
                let (from, to) = ((2 * column).saturating_sub(1), (2 * column + SIDE - 1).min(plan.width));
                let (begin, end) = ((from + 1 - 2 * column) * plan.from, (to + 1 - 2 * column) * plan.from);
                for (edge, row) in edge.chunks_exact_mut(row_of_tile).zip([a, b, c, d]) {
                    edge[..begin].fill(0.0);
                    edge[begin..end].copy_from_slice(&row[from * plan.from..to * plan.from]);
                    edge[end..].fill(0.0);
                }
                [0, 1, 2, 3].map(|row| &edge[row * row_of_tile..][..row_of_tile])
            };
            for (place, line) in lines.clone().enumerate() {
                let points = &mut points[place * SIDE * per_point + index * per_tile..];
                match line {
                    0 => image_line::<L, false>(piece[0], piece[2], plan.from, per_point, points),
                    1 => image_line::<L, true>(piece[1], piece[2], plan.from, per_point, points),
                    2 => image_line::<L, false>(piece[2], piece[1], plan.from, per_point, points),
                    _ => image_line::<L, false>(piece[3], piece[1], plan.from, per_point, points),
                }
            }
            index += 1;
        }
    }
}

/// One line of Bᵀ d B, from the sum or the difference of two rows of pixels. Its points are `pitch` floats
/// apart.
#[inline(always)]
fn image_line<L: Lanes, const SUM: bool>(first: &[f32], second: &[f32], from: usize, pitch: usize, points: &mut [f32]) {
    let count = from / LANES;
    let (first, second) = (pixels(first, count), pixels(second, count));
    let (a, rest) = points.split_at_mut(pitch);
    let (b, rest) = rest.split_at_mut(pitch);
    let (c, d) = rest.split_at_mut(pitch);
    let [a, b, c, d] = [a, b, c, d].map(|point| &mut point.as_chunks_mut::<LANES>().0[..count]);
    for k in 0..count {
        let left = sum_or_difference::<L, SUM>(&first[0][k], &second[0][k]);
        let middle_left = sum_or_difference::<L, SUM>(&first[1][k], &second[1][k]);
        let middle_right = sum_or_difference::<L, SUM>(&first[2][k], &second[2][k]);
        let right = sum_or_difference::<L, SUM>(&first[3][k], &second[3][k]);
        a[k] = left.sub(middle_right).store();
        b[k] = middle_left.add(middle_right).store();
        c[k] = middle_right.sub(middle_left).store();
        d[k] = right.sub(middle_left).store();
    }
}

/// The sum if `SUM` is set, otherwise the difference.
#[inline(always)]
fn sum_or_difference<L: Lanes, const SUM: bool>(first: &[f32; LANES], second: &[f32; LANES]) -> L {
    let (first, second) = (L::load(first), L::load(second));
    if SUM { first.add(second) } else { first.sub(second) }
}

/// The four pixels of one row of a piece. Each has `count` times 16 channels.
#[inline(always)]
fn pixels(row: &[f32], count: usize) -> [&[[f32; LANES]]; SIDE] {
    let all = row.as_chunks::<LANES>().0;
    [0, 1, 2, 3].map(|pixel| &all[pixel * count..][..count])
}

for_each_instruction_set! {
    fn outputs(plan: &Conv, products: &[f32], per_point: usize, y: &mut [f32]) = outputs_of
}

/// Aᵀ m A of the products m [point][tile][output], as rows of tiles.
#[inline(always)]
fn outputs_of<L: Lanes, const P: usize, const N: usize>(
    plan: &Conv,
    products: &[f32],
    per_point: usize,
    y: &mut [f32],
) {
    let across = plan.width / 2;
    for (row, y) in y.chunks_exact_mut(2 * plan.width * plan.to).enumerate() {
        for column in 0..across {
            let tile = (row * across + column) * plan.to;
            for o in (0..plan.to).step_by(LANES) {
                let products = &products[tile + o..];
                let a = output_line(column_of::<L>(products, per_point, 0));
                let b = output_line(column_of::<L>(products, per_point, 1));
                let c = output_line(column_of::<L>(products, per_point, 2));
                let d = output_line(column_of::<L>(products, per_point, 3));
                for line in 0..2 {
                    let [left, right] = output_line([a[line], b[line], c[line], d[line]]);
                    let place = (line * plan.width + 2 * column) * plan.to + o;
                    store(left, y, place);
                    store(right, y, place + plan.to);
                }
            }
        }
    }
}

/// Aᵀ m for one vector of four points.
#[inline(always)]
fn output_line<L: Lanes>([a, b, c, d]: [L; SIDE]) -> [L; 2] {
    [a.add(b.add(c)), b.sub(c).add(d)]
}

/// Σ (A e Aᵀ) ⊙ (Bᵀ d B) for these lines of points and these outputs, as register tiles: [point][column of
/// outputs][block of inputs].
fn point_sums(plan: &Conv, x: &[f32], dy: &[f32], lines: Range<usize>, outputs: Range<usize>, sums: &mut [f32]) {
    let (across, all) = (plan.width / 2, plan.batch * plan.height / 2);
    let lanes = tile_size().1 * LANES;
    // The more inputs there are, the more tiles are taken at a time. So reading the sums again costs little
    // compared with reading the points.
    let rows_at_a_time = TILES.max(plan.from).div_ceil(across).min(all);
    // The distance between tiles has one extra cache line, so that a block's inputs in all tiles have
    // different places in the cache. An incomplete block reads into the extra line, and the resulting sums
    // are never used.
    let per_tile = plan.from + LANES;
    let starts: Vec<usize> = (0..rows_at_a_time * across).map(|tile| tile * per_tile).collect();
    let (per_point, columns) = (starts.len() * per_tile, outputs.len().div_ceil(lanes));
    let per_column = starts.len() * lanes;
    let points = lines.len() * SIDE;
    let mut images = Scratch::take(points * per_point);
    let mut gradients = Scratch::take(points * columns * per_column);
    let each = sums.len() / (points * columns);
    for first in (0..all).step_by(rows_at_a_time) {
        let rows = first..(first + rows_at_a_time).min(all);
        let starts = &starts[..rows.len() * across];
        image_points(plan, x, rows.clone(), lines.clone(), per_tile, per_point, &mut images);
        gradient_points(plan, dy, rows, lines.clone(), outputs.clone(), per_column, &mut gradients);
        let columns_of = sums.chunks_exact_mut(each * columns).zip(gradients.chunks_exact(per_column * columns));
        for ((sums, gradients), images) in columns_of.zip(images.chunks_exact(per_point)) {
            for (sums, gradients) in sums.chunks_exact_mut(each).zip(gradients.chunks_exact(per_column)) {
                add_products(images, gradients, starts, first == 0, sums);
            }
        }
    }
}

for_each_instruction_set! {
    fn add_products(images: &[f32], gradients: &[f32], starts: &[usize], fresh: bool, sums: &mut [f32]) = add_products_of
}

/// Adds a column's products at one point to its register tiles. If `fresh` is set, the old content of the
/// tiles is ignored.
#[inline(always)]
fn add_products_of<L: Lanes, const P: usize, const N: usize>(
    images: &[f32],
    gradients: &[f32],
    starts: &[usize],
    fresh: bool,
    sums: &mut [f32],
) {
    for (stripe, (starts, gradients)) in starts.chunks(TILES).zip(gradients.chunks(TILES * N * LANES)).enumerate() {
        for (block, sums) in sums.chunks_exact_mut(P * N * LANES).enumerate() {
            let mut acc: Tile<L, P, N> = zeros();
            outer_products::<L, P, N>(&images[block * P..], starts, gradients, &mut acc);
            for (place, acc) in acc.as_flattened().iter().enumerate() {
                let sum = if fresh && stripe == 0 { *acc } else { load::<L>(sums, place * LANES).add(*acc) };
                store(sum, sums, place * LANES);
            }
        }
    }
}

for_each_instruction_set! {
    fn gradient_points(
        plan: &Conv, dy: &[f32], rows: Range<usize>, lines: Range<usize>, outputs: Range<usize>, per_column: usize, points: &mut [f32],
    ) = gradient_points_of
}

/// A e Aᵀ for these rows of tiles, lines of points and outputs: [point][column][tile][N · 16], with zeros
/// beyond the last output.
#[inline(always)]
fn gradient_points_of<L: Lanes, const P: usize, const N: usize>(
    plan: &Conv,
    dy: &[f32],
    rows: Range<usize>,
    lines: Range<usize>,
    outputs: Range<usize>,
    per_column: usize,
    points: &mut [f32],
) {
    let (across, lanes) = (plan.width / 2, N * LANES);
    let (columns, pitch) = (outputs.len().div_ceil(lanes), plan.width * plan.to);
    let per_point = columns * per_column;
    for (index, tile) in rows.flat_map(|row| (0..across).map(move |column| (row, column))).enumerate() {
        let place = (tile.0 * 2 * plan.width + tile.1 * 2) * plan.to;
        for (place_of_line, line) in lines.clone().enumerate() {
            for o in (0..columns * lanes).step_by(LANES) {
                let at = outputs.start + o;
                let (a, b): (L, L) = if at < outputs.end {
                    let left = place + at;
                    (gradient_line(line, dy, left, pitch), gradient_line(line, dy, left + plan.to, pitch))
                } else {
                    (L::load(&[0.0; LANES]), L::load(&[0.0; LANES]))
                };
                let points = &mut points
                    [place_of_line * SIDE * per_point + o / lanes * per_column + index * lanes + o % lanes..];
                store(a, points, 0);
                store(a.add(b), points, per_point);
                store(a.sub(b), points, 2 * per_point);
                store(b, points, 3 * per_point);
            }
        }
    }
}

/// One line of A e, for one column of the tile.
#[inline(always)]
fn gradient_line<L: Lanes>(line: usize, dy: &[f32], place: usize, pitch: usize) -> L {
    match line {
        0 => load(dy, place),
        1 => load::<L>(dy, place).add(load(dy, place + pitch)),
        2 => load::<L>(dy, place).sub(load(dy, place + pitch)),
        _ => load(dy, place + pitch),
    }
}

for_each_instruction_set! {
    fn kernels(plan: &Conv, sums: &[f32], per_point: usize, dw: &mut [f32]) = kernels_of
}

/// Gᵀ u G of a column's sums u, register tiles [point][block of inputs], as weights [output, input, 3, 3].
#[inline(always)]
fn kernels_of<L: Lanes, const P: usize, const N: usize>(plan: &Conv, sums: &[f32], per_point: usize, dw: &mut [f32]) {
    // Few inputs at a time, so that they stay in the L1 cache for the next output.
    let mut taps = [[[0.0; LANES]; TAPS]; LANES];
    for (n, dw) in dw.chunks_mut(LANES * plan.patch()).enumerate() {
        for first in (0..plan.from).step_by(LANES) {
            for (input, taps) in taps.iter_mut().enumerate() {
                let (block, row) = ((first + input) / P, (first + input) % P);
                let place = ((block * P + row) * N + n) * LANES;
                let sums = &sums[place..];
                let a = tap_line(column_of::<L>(sums, per_point, 0));
                let b = tap_line(column_of::<L>(sums, per_point, 1));
                let c = tap_line(column_of::<L>(sums, per_point, 2));
                let d = tap_line(column_of::<L>(sums, per_point, 3));
                for row in 0..3 {
                    let [a, b, c] = tap_line([a[row], b[row], c[row], d[row]]);
                    taps[3 * row] = a.store();
                    taps[3 * row + 1] = b.store();
                    taps[3 * row + 2] = c.store();
                }
            }
            for (lane, dw) in dw.chunks_exact_mut(plan.patch()).enumerate() {
                for (dw, taps) in dw[first * TAPS..].chunks_exact_mut(TAPS).zip(&taps) {
                    for (dw, tap) in dw.iter_mut().zip(taps) {
                        *dw = tap[lane];
                    }
                }
            }
        }
    }
}

/// Gᵀ u for one vector of four points.
#[inline(always)]
fn tap_line<L: Lanes>([a, b, c, d]: [L; SIDE]) -> [L; 3] {
    let middle = b.add(c).half();
    [a.add(middle), b.sub(c).half(), middle.add(d)]
}

/// One column of points, which are `pitch` floats apart.
#[inline(always)]
fn column_of<L: Lanes>(points: &[f32], pitch: usize, column: usize) -> [L; SIDE] {
    [
        load(points, column * pitch),
        load(points, (SIDE + column) * pitch),
        load(points, (2 * SIDE + column) * pitch),
        load(points, (3 * SIDE + column) * pitch),
    ]
}

/// Loads 16 floats, starting at `place`.
#[inline(always)]
fn load<L: Lanes>(from: &[f32], place: usize) -> L {
    L::load(from[place..].first_chunk().expect("16 floats from `place` on"))
}

/// Stores 16 floats, starting at `place`.
#[inline(always)]
fn store<L: Lanes>(lanes: L, to: &mut [f32], place: usize) {
    *to[place..].first_chunk_mut().expect("16 floats from `place` on") = lanes.store();
}
