//! The layers on WGPU and CUDA: our kernels around Burn's matrix product.
//!
//! A convolution is the product of its patches, one row per output pixel, with the weights as they lie. The patches live for
//! a moment only and are gathered again for the weight gradient: one more launch, and no activation nine times as large to keep.
//! Every sum has a fixed order, so the same input gives the same bits.

use super::product::product;
use super::sums::sum_of_parts;
use super::{Conv, Layers, Norm, Pass, Pool, Precision, head, is_small};
use crate::launch::launch;
use crate::layout::ALIGNMENT;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use half::{bf16, f16};

/// Units of a cube that works on independent elements.
pub(super) const UNITS: u32 = 256;

/// Floats of patches at a time: 64 MiB, which WGPU can bind everywhere, and which a large GPU's cache nearly holds.
const PATCHES: usize = 1 << 24;

/// Floats of partial weight gradients at most.
const PARTS: usize = 1 << 22;

/// A new tensor beside `like`, to be overwritten whole.
pub(super) fn fresh(like: &CubeTensor, shape: &[usize]) -> CubeTensor {
    fresh_of(like, shape, Precision::F32)
}

fn fresh_of(like: &CubeTensor, shape: &[usize], precision: Precision) -> CubeTensor {
    let (size, dtype) = match precision {
        Precision::F32 => (4, DType::F32),
        Precision::Bf16 => (2, DType::BF16),
        Precision::F16 => (2, DType::F16),
    };
    let shape = Shape::from(shape.to_vec());
    let handle = like.client.empty(size * shape.num_elements());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}

/// A contiguous tensor under another shape.
pub(super) fn view(tensor: CubeTensor, shape: &[usize]) -> CubeTensor {
    CubeTensor::new_contiguous(tensor.client, tensor.device, Shape::from(shape.to_vec()), tensor.handle, tensor.dtype)
}

pub(super) fn len(tensor: &CubeTensor) -> usize {
    tensor.meta.shape().num_elements()
}

/// The whole buffer of a contiguous tensor. Safe to launch with as long as the kernel keeps to its length.
pub(super) fn arg(tensor: &CubeTensor) -> BufferArg {
    assert_eq!(tensor.dtype, DType::F32, "a kernel over f32");
    // SAFETY: the handle of a contiguous tensor covers exactly its elements.
    unsafe { BufferArg::from_raw_parts(tensor.handle.clone(), len(tensor)) }
}

/// Cubes for one unit per element. Two dimensions: one may hold only 65,535.
pub(super) fn cubes(elements: usize) -> CubeCount {
    let cubes = elements.div_ceil(UNITS as usize) as u32;
    let wide = cubes.min(32_768);
    CubeCount::Static(wide, cubes.div_ceil(wide), 1)
}

/// Some of what lies there along the first dimension: images of a batch, matrices of replicas.
fn images(x: &CubeTensor, first: usize, count: usize) -> CubeTensor {
    let mut shape = x.meta.shape().to_vec();
    let image = len(x) / shape[0];
    let behind = len(x) - (first + count) * image;
    shape[0] = count;
    let mut part = view(x.clone(), &shape);
    let size = x.dtype.size();
    part.handle = part.handle.offset_start((size * first * image) as u64).offset_end((size * behind) as u64);
    part
}

/// The shape of matrices that lie there for so many replicas, or of one matrix.
fn matrices(count: usize, rows: usize, columns: usize) -> Vec<usize> {
    if count == 1 { vec![rows, columns] } else { vec![count, rows, columns] }
}

/// [pixels, from · taps]: the patch of each output pixel, in the order of the weights, rounded.
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

/// The tensor as a factor of a product: times `by`, and rounded.
fn factor(x: CubeTensor, precision: Precision, by: f32) -> CubeTensor {
    if precision == Precision::F32 {
        return x;
    }
    let rounded = fresh_of(&x, x.meta.shape(), precision);
    let cubes = cubes(len(&x));
    // SAFETY: each unit reads and writes one element.
    unsafe {
        match precision {
            Precision::F16 => launch!(factor_kernel<f16>, &x.client, cubes, UNITS; x; rounded; by; precision),
            _ => launch!(factor_kernel<bf16>, &x.client, cubes, UNITS; x; rounded; by; precision),
        }
    }
    rounded
}

/// A product with a derivative, which was multiplied before it was rounded.
fn unscaled(product: CubeTensor, precision: Precision) -> CubeTensor {
    if precision.derivatives() != 1.0 {
        // SAFETY: each unit reads and writes one element.
        unsafe {
            let by = precision.derivatives();
            launch!(unscale_kernel, &product.client, cubes(len(&product)), UNITS;; product; by;)
        }
    }
    product
}

fn transposed(matrix: CubeTensor) -> CubeTensor {
    let rank = matrix.meta.shape().num_dims();
    CubeBackend::float_swap_dims(matrix, rank - 2, rank - 1)
}

/// The batch in stretches whose patches are few enough: (first image, plan of the stretch). Each has images of one replica, or all
/// images of some.
fn stretches(plan: Conv) -> impl Iterator<Item = (usize, Conv)> {
    let length = plan.images_together();
    let replicas = (length / plan.images()).max(1);
    (0..plan.batch).step_by(length).map(move |first| (first, Conv { batch: length, replicas, ..plan }))
}

/// The weights of a stretch's replicas, out of those of all.
fn weights_of(weights: &CubeTensor, plan: Conv, first: usize, part: Conv) -> CubeTensor {
    let weights = match plan.replicas {
        1 => weights.clone(),
        _ => images(weights, first / plan.images() * plan.to, part.replicas * plan.to),
    };
    view(weights, &matrices(part.replicas, plan.to, plan.patch()))
}

impl Conv {
    /// Images whose patches lie there at a time: all stretches are of one length, so that each layer has one kernel.
    fn images_together(&self) -> usize {
        let most = (PATCHES / (self.out_pixels() * self.patch())).clamp(1, self.batch);
        let whole = |n: usize| n.is_multiple_of(self.images()) || self.images().is_multiple_of(n);
        (1..=most).rev().find(|n| self.batch.is_multiple_of(*n) && whole(*n)).expect("one divides everything")
    }

    /// Floats of patches that lie on a GPU at a time.
    pub fn patches_together(&self) -> usize {
        self.images_together() * self.out_pixels() * self.patch()
    }

    /// What a kernel that works on independent elements is compiled for: one kernel for batches of any size.
    fn of_kernel(self) -> Conv {
        Conv { batch: 1, replicas: 1, ..self }
    }
}

/// Into how many parts the pixels of a stretch's replica are split for the weight gradient: its result is small, so the sum must keep
/// the device busy.
fn splits(part: &Conv) -> usize {
    let (pixels, weights) = (part.images() * part.out_pixels(), part.to * part.patch());
    let most = (PARTS / weights).clamp(1, 64);
    (1..=most).rev().find(|s| pixels.is_multiple_of(*s) && pixels / s >= 64).unwrap_or(1)
}

impl Layers for CubeBackend {
    fn stagger_conv(x: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        let (x, weights) = (into_contiguous(x), into_contiguous(weights));
        let y = fresh(&x, &[plan.batch, plan.out_height(), plan.out_width(), plan.to]);
        let weights = factor(view(weights, &[plan.replicas * plan.to, plan.patch()]), plan.precision, 1.0);
        for (first, part) in stretches(plan) {
            let pixels = part.images() * part.out_pixels();
            let columns =
                view(patches(&images(&x, first, part.batch), part), &matrices(part.replicas, pixels, part.patch()));
            let y = view(images(&y, first, part.batch), &matrices(part.replicas, pixels, part.to));
            product(columns, transposed(weights_of(&weights, plan, first, part)), y);
        }
        y
    }

    fn stagger_conv_input(dy: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        let (dy, weights) = (into_contiguous(dy), into_contiguous(weights));
        let dx = fresh(&dy, &[plan.batch, plan.height, plan.width, plan.from]);
        let weights = factor(view(weights, &[plan.replicas * plan.to, plan.patch()]), plan.precision, 1.0);
        for (first, part) in stretches(plan) {
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

    fn stagger_conv_weights(x: FloatTensor<Self>, dy: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        let (x, dy) = (into_contiguous(x), into_contiguous(dy));
        let (count, splits) = stretches(plan).fold((0, 1), |(count, _), (_, part)| (count + 1, splits(&part)));
        // Of each replica: one after another, in the order of its images.
        let each = (count * splits).div_ceil(plan.replicas).max(splits);
        let shape = [plan.replicas * plan.to, plan.from, plan.kernel, plan.kernel];
        let parts = fresh(&x, &[plan.replicas * each, plan.to, plan.patch()]);
        for (index, (first, part)) in stretches(plan).enumerate() {
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

    fn stagger_linear(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        Pass { precision, replicas }: Pass,
    ) -> FloatTensor<Self> {
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

    fn stagger_linear_input(
        dy: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        Pass { precision, replicas }: Pass,
    ) -> FloatTensor<Self> {
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

    fn stagger_linear_weights(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        Pass { precision, replicas }: Pass,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
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

    fn stagger_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        plan: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gamma, beta, residual] = [x, gamma, beta, residual].map(into_contiguous);
        let y = fresh(&x, x.meta.shape());
        let moments = normalise(&x, &gamma, &beta, &residual, &y, plan.epsilon, plan.into());
        (y, moments)
    }

    fn stagger_norm_backward(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, y, moments, gamma, dy] = [x, y, moments, gamma, dy].map(into_contiguous);
        // What passes the relu is written only if somebody else is to have it.
        let passed = plan.residual && plan.relu;
        let through = if passed { fresh(&x, x.meta.shape()) } else { dy.clone() };
        let unwritten = if passed { through.clone() } else { moments.clone() };
        let beta = gamma.clone();
        let (dx, dgamma, dbeta) = normalise_backward([x, y, moments, gamma, beta, dy, unwritten], plan.into());
        (dx, through, dgamma, dbeta)
    }

    fn stagger_norm_pool(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        plan: Norm,
        pool: Pool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gamma, beta] = [x, gamma, beta].map(into_contiguous);
        let y = fresh(&x, &[pool.batch, pool.height / 2, pool.width / 2, pool.channels]);
        let width = pool.width as u32;
        let moments = normalise(&x, &gamma, &beta, &x, &y, plan.epsilon, NormPlan { width, ..plan.into() });
        // What was not the largest is computed again when its derivative is needed: nothing else is kept.
        (y, moments.clone(), moments)
    }

    fn stagger_norm_pool_backward(
        x: FloatTensor<Self>,
        _: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: Norm,
        pool: Pool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, moments, gamma, beta, dy] = [x, moments, gamma, beta, dy].map(into_contiguous);
        let plan = NormPlan { width: pool.width as u32, ..plan.into() };
        normalise_backward([x.clone(), x, moments.clone(), gamma, beta, dy, moments], plan)
    }

    fn stagger_max_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        let x = into_contiguous(x);
        let y = fresh(&x, &[plan.batch, plan.height / 2, plan.width / 2, plan.channels]);
        // SAFETY: each unit writes one element and reads its four.
        unsafe { launch!(max_pool_kernel, &x.client, cubes(len(&y)), UNITS; x; y;; plan) }
        y
    }

    fn stagger_max_pool_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        let (x, dy) = (into_contiguous(x), into_contiguous(dy));
        let dx = fresh(&x, x.meta.shape());
        // SAFETY: each unit writes the four elements of one window.
        unsafe { launch!(max_pool_backward_kernel, &x.client, cubes(len(&dy)), UNITS; x, dy; dx;; plan) }
        dx
    }

    fn stagger_mean_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        let x = into_contiguous(x);
        let y = fresh(&x, &[plan.batch, plan.channels]);
        // SAFETY: each unit writes one element and reads the pixels of its image.
        unsafe { launch!(mean_pool_kernel, &x.client, cubes(len(&y)), UNITS; x; y;; plan) }
        y
    }

    fn stagger_mean_pool_backward(dy: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        let dy = into_contiguous(dy);
        let dx = fresh(&dy, &[plan.batch, plan.height, plan.width, plan.channels]);
        // SAFETY: each unit writes one element.
        unsafe { launch!(mean_pool_backward_kernel, &dy.client, cubes(len(&dx)), UNITS; dy; dx;; plan) }
        dx
    }

    fn stagger_cross_entropy(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        scale: f32,
        replicas: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (logits, targets) = (into_contiguous(logits), into_contiguous(targets));
        let (loss, gradient) = (fresh(&logits, &[replicas]), fresh(&logits, logits.meta.shape()));
        let classes = logits.meta.shape()[1];
        // SAFETY: one cube a replica; each unit writes whole rows of the gradient, the first the loss.
        unsafe {
            let cubes = CubeCount::Static(replicas as u32, 1, 1);
            launch!(cross_entropy_kernel, &logits.client, cubes, UNITS; logits, targets; loss, gradient; scale, classes as u32;)
        }
        (loss, gradient)
    }

    fn stagger_scale(gradient: FloatTensor<Self>, by: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gradient, by) = (into_contiguous(gradient), into_contiguous(by));
        let out = fresh(&gradient, gradient.meta.shape());
        // SAFETY: each unit writes one element.
        unsafe { launch!(scale_kernel, &out.client, cubes(len(&out)), UNITS; gradient, by; out;;) }
        out
    }
}

/// Units of a normalisation's cube: as many for each channel of the group, so that a unit keeps to one channel.
fn units(plan: &Norm) -> u32 {
    assert!(plan.group <= 1024, "a GPU normalises at most 1,024 channels together");
    (plan.group * (UNITS as usize / plan.group).max(1)) as u32
}

/// Writes `y` and gives the moments.
fn normalise(
    x: &CubeTensor,
    gamma: &CubeTensor,
    beta: &CubeTensor,
    residual: &CubeTensor,
    y: &CubeTensor,
    epsilon: f32,
    plan: NormPlan,
) -> CubeTensor {
    let groups = plan.channels / plan.group;
    let batch = x.meta.shape()[0];
    let moments = fresh(x, &[batch, groups as usize, 2]);
    // SAFETY: cube (g, b) reads and writes group g of image b alone.
    unsafe {
        let cubes = CubeCount::Static(groups, batch as u32, 1);
        launch!(norm_kernel, &x.client, cubes, plan.units; x, gamma, beta, residual; y, moments; epsilon; plan)
    }
    moments
}

/// dX, dγ and dβ of x, y, moments, γ, β and dy; what passes the relu goes to the last buffer, if there is a residual.
fn normalise_backward(saved: [CubeTensor; 7], plan: NormPlan) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [x, y, moments, gamma, beta, dy, through] = saved;
    let (batch, channels) = (x.meta.shape()[0], plan.channels as usize);
    let dx = fresh(&x, x.meta.shape());
    // dβ of each image, then dγ, which begins where every adapter can bind it.
    let (length, half) = (batch * channels, (batch * channels).next_multiple_of(ALIGNMENT));
    let parts = fresh(&x, &[2 * half]);
    // SAFETY: cube (g, b) reads and writes group g of image b alone; the last buffer is written only if it is its own.
    unsafe {
        let cubes = CubeCount::Static(plan.channels / plan.group, batch as u32, 1);
        launch!(norm_backward_kernel, &x.client, cubes, plan.units; x, y, moments, gamma, beta, dy; dx, parts, through; half as u32; plan)
    }
    let replicas = len(&gamma) / channels;
    let sum = |first: usize| {
        let mut parts = view(parts.clone(), &[length]);
        let behind = 2 * half - first - length;
        parts.handle = parts.handle.offset_start(4 * first as u64).offset_end(4 * behind as u64);
        sum_of_parts(parts, batch / replicas, replicas, &[replicas * channels])
    };
    let dbeta = sum(0);
    (dx, sum(half), dbeta)
}

/// What a normalisation's kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct NormPlan {
    pixels: u32,
    channels: u32,
    group: u32,
    units: u32,
    relu: bool,
    residual: bool,
    /// Columns of an image whose 2×2 pixels are pooled; 0 for none.
    width: u32,
    /// Images of each of several replicas; 0 for one replica alone.
    images: u32,
}

impl From<Norm> for NormPlan {
    fn from(plan: Norm) -> Self {
        NormPlan {
            pixels: plan.pixels as u32,
            channels: plan.channels as u32,
            group: plan.group as u32,
            units: units(&plan),
            relu: plan.relu,
            residual: plan.residual,
            width: 0,
            images: if plan.replicas == 1 { 0 } else { (plan.batch / plan.replicas) as u32 },
        }
    }
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
        // A place before the image wraps to a large number.
        let row = pixel % out_pixels / out_width * stride + tap / kernel - pad;
        let column = pixel % out_width * stride + tap % kernel - pad;
        let mut value = 0.0f32;
        if row < height && column < width {
            value = x[(((image * height + row) * width + column) * from + channel) as usize];
        }
        columns[ABSOLUTE_POS] = E::cast_from(within(value, plan.precision));
    }
}

/// Cut to what the precision holds; what is infinite or not a number stays so, and is seen.
#[cube]
fn within(value: f32, #[comptime] precision: Precision) -> f32 {
    let mut value = value;
    if comptime!(precision == Precision::F16) {
        let cut = select(value > 65504.0f32, 65504.0f32, select(value < -65504.0f32, -65504.0f32, value));
        value = select(f32::abs(value) > 3.4028235e38f32, value, cut);
    }
    value
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn factor_kernel<E: Float>(x: &[f32], rounded: &mut [E], by: f32, #[comptime] precision: Precision) {
    if ABSOLUTE_POS < rounded.len() {
        rounded[ABSOLUTE_POS] = E::cast_from(within(x[ABSOLUTE_POS] * by, precision));
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn unscale_kernel(x: &mut [f32], by: f32) {
    if ABSOLUTE_POS < x.len() {
        x[ABSOLUTE_POS] /= by;
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
            // As above, wrapped numbers are out of range.
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

/// The sum of one value of each unit, in a fixed order; every unit gets it.
#[cube]
fn sum_of_units(value: f32, shared: &mut [f32], #[comptime] units: u32) -> f32 {
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    // Each of the first 16 units adds up a stripe, then every unit adds those.
    if UNIT_POS < 16u32 {
        let mut total = 0.0f32;
        let mut i = UNIT_POS;
        while i < units {
            total += shared[i as usize];
            i += 16u32;
        }
        shared[comptime!(units as usize) + unit] = total;
    }
    sync_cube();
    let mut total = 0.0f32;
    #[unroll]
    for stripe in 0..16usize {
        total += shared[comptime!(units as usize) + stripe];
    }
    sync_cube();
    total
}

#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked, create_dummy_kernel)]
fn norm_kernel(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    residual: &[f32],
    y: &mut [f32],
    moments: &mut [f32],
    epsilon: f32,
    #[comptime] plan: NormPlan,
) {
    let units = comptime!(plan.units);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(plan.units as usize + 16));
    let group = CUBE_POS_X;
    let image = CUBE_POS_Y;
    // A unit keeps to one channel and walks over the pixels.
    let channel = group * comptime!(plan.group) + UNIT_POS % comptime!(plan.group);
    let first = UNIT_POS / comptime!(plan.group);
    let step = comptime!(plan.units / plan.group);
    let start = image * comptime!(plan.pixels * plan.channels) + channel;
    let count = comptime!((plan.pixels * plan.group) as f32);

    let mut sum = 0.0f32;
    let mut pixel = first;
    while pixel < comptime!(plan.pixels) {
        sum += x[(start + pixel * comptime!(plan.channels)) as usize];
        pixel += step;
    }
    let mean = sum_of_units(sum, &mut shared, units) / count;
    let mut squares = 0.0f32;
    let mut pixel = first;
    while pixel < comptime!(plan.pixels) {
        let d = x[(start + pixel * comptime!(plan.channels)) as usize] - mean;
        squares += d * d;
        pixel += step;
    }
    let variance = sum_of_units(squares, &mut shared, units) / count;
    let inverse = 1.0f32 / f32::sqrt(variance + epsilon);
    if UNIT_POS == 0u32 {
        let place = ((image * comptime!(plan.channels / plan.group) + group) * 2u32) as usize;
        moments[place] = mean;
        moments[place + 1usize] = inverse;
    }
    let own = parameter(image, channel, plan);
    let factor = gamma[own] * inverse;
    let shift = beta[own] - mean * factor;
    if comptime!(plan.width > 0) {
        let start_y = image * comptime!(plan.pixels / 4 * plan.channels) + channel;
        let right = comptime!(plan.channels as usize);
        let below = comptime!((plan.width * plan.channels) as usize);
        let mut place = first;
        while place < comptime!(plan.pixels / 4) {
            let i = corner(start, place, plan);
            let top = x[largest(x, i, right, below, factor, shift)] * factor + shift;
            y[(start_y + place * comptime!(plan.channels)) as usize] = select(top < 0.0f32, 0.0f32, top);
            place += step;
        }
    } else {
        let mut pixel = first;
        while pixel < comptime!(plan.pixels) {
            let i = (start + pixel * comptime!(plan.channels)) as usize;
            let mut value = x[i] * factor + shift;
            if comptime!(plan.residual) {
                value += residual[i];
            }
            if comptime!(plan.relu) {
                value = select(value < 0.0f32, 0.0f32, value);
            }
            y[i] = value;
            pixel += step;
        }
    }
}

#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked, create_dummy_kernel)]
fn norm_backward_kernel(
    x: &[f32],
    y: &[f32],
    moments: &[f32],
    gamma: &[f32],
    beta: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    parts: &mut [f32],
    through: &mut [f32],
    half: u32,
    #[comptime] plan: NormPlan,
) {
    let units = comptime!(plan.units);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(plan.units as usize + 16));
    let group = CUBE_POS_X;
    let image = CUBE_POS_Y;
    let channel = group * comptime!(plan.group) + UNIT_POS % comptime!(plan.group);
    let first = UNIT_POS / comptime!(plan.group);
    let step = comptime!(plan.units / plan.group);
    let start = image * comptime!(plan.pixels * plan.channels) + channel;
    let count = comptime!((plan.pixels * plan.group) as f32);
    let place = ((image * comptime!(plan.channels / plan.group) + group) * 2u32) as usize;
    let mean = moments[place];
    let inverse = moments[place + 1usize];
    let own = parameter(image, channel, plan);
    let scale = gamma[own];

    let mut sum1 = 0.0f32;
    let mut sum2 = 0.0f32;
    // Of the pooling: as in the forward kernel.
    let factor = scale * inverse;
    let shift = beta[own] - mean * factor;
    let start_y = image * comptime!(plan.pixels / 4 * plan.channels) + channel;
    let right = comptime!(plan.channels as usize);
    let below = comptime!((plan.width * plan.channels) as usize);
    if comptime!(plan.width > 0) {
        let mut place = first;
        while place < comptime!(plan.pixels / 4) {
            let i = corner(start, place, plan);
            let top = largest(x, i, right, below, factor, shift);
            let dz = select(
                x[top] * factor + shift > 0.0f32,
                dy[(start_y + place * comptime!(plan.channels)) as usize],
                0.0f32,
            );
            sum1 += dz;
            sum2 += dz * (x[top] - mean) * inverse;
            place += step;
        }
    } else {
        let mut pixel = first;
        while pixel < comptime!(plan.pixels) {
            let i = (start + pixel * comptime!(plan.channels)) as usize;
            let mut dz = dy[i];
            if comptime!(plan.relu) {
                dz = select(y[i] > 0.0f32, dz, 0.0f32);
            }
            sum1 += dz;
            sum2 += dz * (x[i] - mean) * inverse;
            pixel += step;
        }
    }
    let mean1 = sum_of_units(sum1 * scale, &mut shared, units) / count;
    let mean2 = sum_of_units(sum2 * scale, &mut shared, units) / count;
    // The units of a channel together: its share of dβ and dγ.
    shared[UNIT_POS as usize] = sum1;
    sync_cube();
    let base = image * comptime!(plan.channels) + channel;
    if UNIT_POS < comptime!(plan.group) {
        let mut total = 0.0f32;
        for k in 0..step {
            total += shared[(k * comptime!(plan.group) + UNIT_POS) as usize];
        }
        parts[base as usize] = total;
    }
    sync_cube();
    shared[UNIT_POS as usize] = sum2;
    sync_cube();
    if UNIT_POS < comptime!(plan.group) {
        let mut total = 0.0f32;
        for k in 0..step {
            total += shared[(k * comptime!(plan.group) + UNIT_POS) as usize];
        }
        parts[(half + base) as usize] = total;
    }
    if comptime!(plan.width > 0) {
        let mut place = first;
        while place < comptime!(plan.pixels / 4) {
            let i = corner(start, place, plan);
            let top = largest(x, i, right, below, factor, shift);
            let dz = select(
                x[top] * factor + shift > 0.0f32,
                dy[(start_y + place * comptime!(plan.channels)) as usize],
                0.0f32,
            );
            #[unroll]
            for k in 0..4usize {
                let at = i + comptime!(k % 2) * right + comptime!(k / 2) * below;
                let dz = select(at == top, dz, 0.0f32);
                dx[at] = inverse * (scale * dz - mean1 - (x[at] - mean) * inverse * mean2);
            }
            place += step;
        }
    } else {
        let mut pixel = first;
        while pixel < comptime!(plan.pixels) {
            let i = (start + pixel * comptime!(plan.channels)) as usize;
            let mut dz = dy[i];
            if comptime!(plan.relu) {
                dz = select(y[i] > 0.0f32, dz, 0.0f32);
            }
            if comptime!(plan.relu && plan.residual) {
                through[i] = dz;
            }
            dx[i] = inverse * (scale * dz - mean1 - (x[i] - mean) * inverse * mean2);
            pixel += step;
        }
    }
}

/// The place of a channel's γ and β: those of its image's replica.
#[cube]
fn parameter(image: u32, channel: u32, #[comptime] plan: NormPlan) -> usize {
    let mut place = channel;
    if comptime!(plan.images > 0) {
        place += image / comptime!(plan.images) * comptime!(plan.channels);
    }
    place as usize
}

/// The first of the 2×2 pixels at `place` of a pooled image that begins at `start`.
#[cube]
fn corner(start: u32, place: u32, #[comptime] plan: NormPlan) -> usize {
    let half = comptime!(plan.width / 2);
    let pixel = place / half * comptime!(2 * plan.width) + place % half * 2u32;
    (start + pixel * comptime!(plan.channels)) as usize
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn max_pool_kernel(x: &[f32], y: &mut [f32], #[comptime] plan: Pool) {
    if ABSOLUTE_POS < y.len() {
        let first = window(ABSOLUTE_POS as u32, plan);
        let right = comptime!(plan.channels);
        let below = comptime!(plan.width * plan.channels);
        let above = larger(x[first], x[first + right]);
        y[ABSOLUTE_POS] = larger(above, larger(x[first + below], x[first + below + right]));
    }
}

/// The first element of the window of output element `i`.
#[cube]
fn window(i: u32, #[comptime] plan: Pool) -> usize {
    let channels = comptime!(plan.channels as u32);
    let half = comptime!(plan.width as u32 / 2);
    let column = i / channels % half;
    let row = i / comptime!(plan.channels as u32 * (plan.width as u32 / 2));
    ((row * 2u32 * comptime!(plan.width as u32) + column * 2u32) * channels + i % channels) as usize
}

/// Of the 2×2 pixels at `first`, the place of the largest after x * factor + shift: of several, the first.
#[cube]
fn largest(x: &[f32], first: usize, right: usize, below: usize, factor: f32, shift: f32) -> usize {
    let (a, b) = (x[first] * factor + shift, x[first + right] * factor + shift);
    let (c, d) = (x[first + below] * factor + shift, x[first + below + right] * factor + shift);
    let top = larger(larger(a, b), larger(c, d));
    select(a == top, first, select(b == top, first + right, select(c == top, first + below, first + below + right)))
}

#[cube]
fn larger(a: f32, b: f32) -> f32 {
    select(a >= b, a, b)
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn max_pool_backward_kernel(x: &[f32], dy: &[f32], dx: &mut [f32], #[comptime] plan: Pool) {
    if ABSOLUTE_POS < dy.len() {
        let first = window(ABSOLUTE_POS as u32, plan);
        let right = comptime!(plan.channels);
        let below = comptime!(plan.width * plan.channels);
        let top = largest(x, first, right, below, 1.0f32, 0.0f32);
        #[unroll]
        for k in 0..4usize {
            let at = first + comptime!(k % 2) * right + comptime!(k / 2) * below;
            dx[at] = select(at == top, dy[ABSOLUTE_POS], 0.0f32);
        }
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn mean_pool_kernel(x: &[f32], y: &mut [f32], #[comptime] plan: Pool) {
    let pixels = comptime!(plan.height * plan.width);
    let channels = comptime!(plan.channels);
    if ABSOLUTE_POS < y.len() {
        let start =
            ABSOLUTE_POS / channels * comptime!(plan.height * plan.width * plan.channels) + ABSOLUTE_POS % channels;
        let mut total = 0.0f32;
        for pixel in 0..pixels {
            total += x[start + pixel * channels];
        }
        y[ABSOLUTE_POS] = total / comptime!((plan.height * plan.width) as f32);
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn mean_pool_backward_kernel(dy: &[f32], dx: &mut [f32], #[comptime] plan: Pool) {
    let channels = comptime!(plan.channels);
    if ABSOLUTE_POS < dx.len() {
        let image = ABSOLUTE_POS / comptime!(plan.height * plan.width * plan.channels);
        let value = dy[image * channels + ABSOLUTE_POS % channels];
        dx[ABSOLUTE_POS] = value / comptime!((plan.height * plan.width) as f32);
    }
}

#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked, create_dummy_kernel)]
fn cross_entropy_kernel(
    logits: &[f32],
    targets: &[f32],
    loss: &mut [f32],
    gradient: &mut [f32],
    scale: f32,
    classes: u32,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime!(UNITS as usize + 16));
    let rows = logits.len() as u32 / classes / CUBE_COUNT_X;
    let batch = f32::cast_from(rows);
    let mut sum = 0.0f32;
    let mut row = UNIT_POS;
    while row < rows {
        let start = ((CUBE_POS_X * rows + row) * classes) as usize;
        let mut top = scale * logits[start];
        for k in 1..classes {
            top = max(top, scale * logits[start + k as usize]);
        }
        let mut total = 0.0f32;
        for k in 0..classes {
            total += f32::exp(scale * logits[start + k as usize] - top);
        }
        let log_total = f32::ln(total);
        for k in 0..classes {
            let i = start + k as usize;
            let log = scale * logits[i] - top - log_total;
            let target = targets[i];
            if target != 0.0f32 {
                sum -= target * log;
            }
            gradient[i] = scale * (f32::exp(log) - target) / batch;
        }
        row += comptime!(UNITS);
    }
    let total = sum_of_units(sum, &mut shared, UNITS);
    if UNIT_POS == 0u32 {
        loss[CUBE_POS_X as usize] = total / batch;
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn add_bias_kernel(bias: &[f32], y: &mut [f32], to: u32, rows: u32) {
    if ABSOLUTE_POS < y.len() {
        let i = ABSOLUTE_POS as u32;
        y[ABSOLUTE_POS] += bias[(i / (rows * to) * to + i % to) as usize];
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn scale_kernel(gradient: &[f32], by: &[f32], out: &mut [f32]) {
    if ABSOLUTE_POS < out.len() {
        out[ABSOLUTE_POS] = gradient[ABSOLUTE_POS] * by[ABSOLUTE_POS / (out.len() / by.len())];
    }
}
