//! Convolutions as a matrix product: the patches, one row per output pixel, times the weights in their stored
//! order.
//!
//! The patches are temporary, and the weight gradient gathers them again. This costs one more launch, but
//! avoids keeping an activation that is nine times as large.

use super::buffers::{
    UNITS, cubes, factor, fresh, fresh_of, images, len, matrices, transposed, unscaled, view, within,
};
use super::product::product;
use super::sums::sum_of_parts;
use crate::launch::launch;
use crate::layers::{Conv, Precision};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use half::{bf16, f16};

/// Maximum number of floats of patches at a time: 64 MiB. WGPU can bind this size on every device, and the
/// cache of a large GPU holds nearly all of it.
const PATCHES: usize = 1 << 24;

/// Maximum number of floats of partial weight gradients.
const PARTS: usize = 1 << 22;

/// The layer's output.
pub(super) fn forward(x: CubeTensor, weights: CubeTensor, plan: Conv) -> CubeTensor {
    let (x, weights) = (into_contiguous(x), into_contiguous(weights));
    let y = fresh(&x, &[plan.batch, plan.out_height(), plan.out_width(), plan.to]);
    let weights = factor(view(weights, &[plan.replicas * plan.to, plan.patch()]), plan.precision, 1.0);
    for (first, part) in chunks(plan) {
        let pixels = part.images() * part.out_pixels();
        let columns =
            view(patches(&images(&x, first, part.batch), part), &matrices(part.replicas, pixels, part.patch()));
        let y = view(images(&y, first, part.batch), &matrices(part.replicas, pixels, part.to));
        product(columns, transposed(weights_of(&weights, plan, first, part)), y);
    }
    y
}

/// The derivative with respect to the layer's input.
pub(super) fn input_gradient(dy: CubeTensor, weights: CubeTensor, plan: Conv) -> CubeTensor {
    let (dy, weights) = (into_contiguous(dy), into_contiguous(weights));
    let dx = fresh(&dy, &[plan.batch, plan.height, plan.width, plan.from]);
    let weights = factor(view(weights, &[plan.replicas * plan.to, plan.patch()]), plan.precision, 1.0);
    for (first, part) in chunks(plan) {
        let pixels = part.images() * part.out_pixels();
        let columns = fresh(&dy, &matrices(part.replicas, pixels, plan.patch()));
        let dy = view(images(&dy, first, part.batch), &matrices(part.replicas, pixels, plan.to));
        let dy = factor(dy, plan.precision, plan.precision.derivatives());
        product(dy, weights_of(&weights, plan, first, part), columns.clone());
        let dx = images(&dx, first, part.batch);
        // SAFETY: each unit writes one element and reads the patches that hold it.
        unsafe {
            let kernel = part.of_kernel();
            launch!(from_patches_kernel, &dx.client, cubes(len(&dx)), UNITS; columns; dx;; kernel)
        }
    }
    dx
}

/// The derivatives with respect to the weights.
pub(super) fn weight_gradient(x: CubeTensor, dy: CubeTensor, plan: Conv) -> CubeTensor {
    let (x, dy) = (into_contiguous(x), into_contiguous(dy));
    let (count, splits) = chunks(plan).fold((0, 1), |(count, _), (_, part)| (count + 1, splits(&part)));
    // Number of parts per replica. The parts of a replica are adjacent, in the order of its images.
    let each = (count * splits).div_ceil(plan.replicas).max(splits);
    let shape = [plan.replicas * plan.to, plan.from, plan.kernel, plan.kernel];
    let parts = fresh(&x, &[plan.replicas * each, plan.to, plan.patch()]);
    for (index, (first, part)) in chunks(plan).enumerate() {
        let (together, pixels) = (part.replicas * splits, part.images() * part.out_pixels() / splits);
        let columns = patches(&images(&x, first, part.batch), part);
        let columns = view(columns, &[together, pixels, plan.patch()]);
        let dy = view(images(&dy, first, part.batch), &[together, pixels, plan.to]);
        let dy = transposed(factor(dy, plan.precision, plan.precision.derivatives()));
        product(dy, columns, images(&parts, index * together, together));
    }
    let parts = unscaled(parts, plan.precision);
    if each == 1 { view(parts, &shape) } else { sum_of_parts(parts, each, plan.replicas, &shape) }
}

/// The patches of all output pixels, in the order of the weights, rounded: [pixels, from · taps].
fn patches(x: &CubeTensor, plan: Conv) -> CubeTensor {
    let columns = fresh_of(x, &[plan.batch * plan.out_pixels(), plan.patch()], plan.precision);
    let (cubes, kernel) = (cubes(len(&columns)), plan.of_kernel());
    // SAFETY: each unit writes one element and reads inside the image.
    unsafe {
        match plan.precision {
            Precision::F32 => launch!(patches_kernel<f32>, &x.client, cubes, UNITS; x; columns;; kernel),
            Precision::Bf16 => launch!(patches_kernel<bf16>, &x.client, cubes, UNITS; x; columns;; kernel),
            Precision::F16 => launch!(patches_kernel<f16>, &x.client, cubes, UNITS; x; columns;; kernel),
        }
    }
    columns
}

/// Divides the batch into chunks, so that the patches of a chunk fit in [`PATCHES`]: (first image, plan of
/// the chunk). A chunk has images of one replica, or all images of several replicas.
fn chunks(plan: Conv) -> impl Iterator<Item = (usize, Conv)> {
    let length = plan.images_per_chunk();
    let replicas = (length / plan.images()).max(1);
    (0..plan.batch).step_by(length).map(move |first| (first, Conv { batch: length, replicas, ..plan }))
}

/// The weights of the replicas of a chunk, out of those of all replicas.
fn weights_of(weights: &CubeTensor, plan: Conv, first: usize, part: Conv) -> CubeTensor {
    let weights = match plan.replicas {
        1 => weights.clone(),
        _ => images(weights, first / plan.images() * plan.to, part.replicas * plan.to),
    };
    view(weights, &matrices(part.replicas, plan.to, plan.patch()))
}

impl Conv {
    /// Images per chunk, whose patches exist at the same time. All chunks have the same length, so that a
    /// layer needs only one kernel.
    fn images_per_chunk(&self) -> usize {
        let most = (PATCHES / (self.out_pixels() * self.patch())).clamp(1, self.batch);
        let whole = |n: usize| n.is_multiple_of(self.images()) || self.images().is_multiple_of(n);
        (1..=most).rev().find(|n| self.batch.is_multiple_of(*n) && whole(*n)).expect("1 divides every batch")
    }

    /// Floats of patches that are on a GPU at a time.
    pub fn patches_together(&self) -> usize {
        self.images_per_chunk() * self.out_pixels() * self.patch()
    }

    /// The plan that a kernel over independent elements is compiled for. It is the same for all batch sizes.
    fn of_kernel(self) -> Conv {
        Conv { batch: 1, replicas: 1, ..self }
    }
}

/// Number of parts into which the weight gradient splits the pixels of each replica in a chunk. The result is
/// small, so only a split sum keeps the device busy.
fn splits(part: &Conv) -> usize {
    let (pixels, weights) = (part.images() * part.out_pixels(), part.to * part.patch());
    let most = (PARTS / weights).clamp(1, 64);
    (1..=most).rev().find(|s| pixels.is_multiple_of(*s) && pixels / s >= 64).unwrap_or(1)
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn patches_kernel<E: Float>(x: &[f32], columns: &mut [E], #[comptime] plan: Conv) {
    let taps = comptime!(plan.taps() as u32);
    let kernel = comptime!(plan.kernel as u32);
    let from = comptime!(plan.from as u32);
    let patch = comptime!(plan.patch() as u32);
    let out_width = comptime!(plan.out_width() as u32);
    let out_pixels = comptime!(plan.out_pixels() as u32);
    let (height, width) = (comptime!(plan.height as u32), comptime!(plan.width as u32));
    let (stride, pad) = (comptime!(plan.stride as u32), comptime!(plan.pad as u32));
    if ABSOLUTE_POS < columns.len() {
        let i = ABSOLUTE_POS as u32;
        let pixel = i / patch;
        let channel = i % patch / taps;
        let tap = i % taps;
        let image = pixel / out_pixels;
        // A position before the image wraps to a large number.
        let row = pixel % out_pixels / out_width * stride + tap / kernel - pad;
        let column = pixel % out_width * stride + tap % kernel - pad;
        let mut value = 0.0f32;
        if row < height && column < width {
            value = x[(((image * height + row) * width + column) * from + channel) as usize];
        }
        columns[ABSOLUTE_POS] = E::cast_from(within(value, plan.precision));
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn from_patches_kernel(columns: &[f32], dx: &mut [f32], #[comptime] plan: Conv) {
    let taps = comptime!(plan.taps() as u32);
    let kernel = comptime!(plan.kernel as u32);
    let from = comptime!(plan.from as u32);
    let patch = comptime!(plan.patch() as u32);
    let (out_width, out_height) = (comptime!(plan.out_width() as u32), comptime!(plan.out_height() as u32));
    let (height, width) = (comptime!(plan.height as u32), comptime!(plan.width as u32));
    let (stride, pad) = (comptime!(plan.stride as u32), comptime!(plan.pad as u32));
    if ABSOLUTE_POS < dx.len() {
        let i = ABSOLUTE_POS as u32;
        let channel = i % from;
        let place = i / from;
        let column = place % width;
        let row = place / width % height;
        let image = place / (width * height);
        let mut sum = 0.0f32;
        for tap in 0..taps {
            // A negative position wraps to a large number, which is out of range.
            let y = row + pad - tap / kernel;
            let x = column + pad - tap % kernel;
            let (over, beside) = (y / stride, x / stride);
            if over * stride == y && beside * stride == x && over < out_height && beside < out_width {
                let pixel = (image * out_height + over) * out_width + beside;
                sum += columns[(pixel * patch + channel * taps + tap) as usize];
            }
        }
        dx[ABSOLUTE_POS] = sum / comptime!(plan.precision.derivatives());
    }
}
