//! GPU tensors for the kernels: views, new tensors, and rounding to the precision of a product.

use crate::launch::launch;
use crate::layers::Precision;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use half::{bf16, f16};

/// Units per cube for kernels over independent elements.
pub(super) const UNITS: u32 = 256;

/// A new f32 tensor on the device of `like`. Its content is unspecified, so the caller must overwrite all of
/// it.
pub(super) fn fresh(like: &CubeTensor, shape: &[usize]) -> CubeTensor {
    fresh_of(like, shape, Precision::F32)
}

/// Like [`fresh`], with the number format of `precision`.
pub(super) fn fresh_of(like: &CubeTensor, shape: &[usize], precision: Precision) -> CubeTensor {
    let (size, dtype) = match precision {
        Precision::F32 => (4, DType::F32),
        Precision::Bf16 => (2, DType::BF16),
        Precision::F16 => (2, DType::F16),
    };
    let shape = Shape::from(shape.to_vec());
    let handle = like.client.empty(size * shape.num_elements());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}

/// A contiguous tensor with another shape and the same data.
pub(super) fn view(tensor: CubeTensor, shape: &[usize]) -> CubeTensor {
    CubeTensor::new_contiguous(tensor.client, tensor.device, Shape::from(shape.to_vec()), tensor.handle, tensor.dtype)
}

pub(super) fn len(tensor: &CubeTensor) -> usize {
    tensor.meta.shape().num_elements()
}

/// The buffer of a contiguous f32 tensor as a kernel argument. A launch is safe if the kernel stays within
/// its length.
pub(super) fn arg(tensor: &CubeTensor) -> BufferArg {
    assert_eq!(tensor.dtype, DType::F32, "the kernel needs f32");
    // SAFETY: the handle of a contiguous tensor covers exactly its elements.
    unsafe { BufferArg::from_raw_parts(tensor.handle.clone(), len(tensor)) }
}

/// The number of cubes for one unit per element. It has two dimensions, because one dimension is limited to
/// 65,535.
pub(super) fn cubes(elements: usize) -> CubeCount {
    let cubes = elements.div_ceil(UNITS as usize) as u32;
    let wide = cubes.min(32_768);
    CubeCount::Static(wide, cubes.div_ceil(wide), 1)
}

/// A view of `count` entries of the first dimension, from `first` on: images of a batch, or matrices of
/// replicas.
pub(super) fn images(x: &CubeTensor, first: usize, count: usize) -> CubeTensor {
    let mut shape = x.meta.shape().to_vec();
    let image = len(x) / shape[0];
    let behind = len(x) - (first + count) * image;
    shape[0] = count;
    let mut part = view(x.clone(), &shape);
    let size = x.dtype.size();
    part.handle = part.handle.offset_start((size * first * image) as u64).offset_end((size * behind) as u64);
    part
}

/// The shape of `count` matrices, one per replica. A single matrix has only two dimensions.
pub(super) fn matrices(count: usize, rows: usize, columns: usize) -> Vec<usize> {
    if count == 1 { vec![rows, columns] } else { vec![count, rows, columns] }
}

/// The tensor as a factor of a product: multiplied by `by` and rounded. In f32, it is returned unchanged.
pub(super) fn factor(x: CubeTensor, precision: Precision, by: f32) -> CubeTensor {
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

/// Divides a product by [`Precision::derivatives`], by which a derivative among its factors was multiplied.
pub(super) fn unscaled(product: CubeTensor, precision: Precision) -> CubeTensor {
    if precision.derivatives() != 1.0 {
        // SAFETY: each unit reads and writes one element.
        unsafe {
            let by = precision.derivatives();
            launch!(unscale_kernel, &product.client, cubes(len(&product)), UNITS;; product; by;)
        }
    }
    product
}

pub(super) fn transposed(matrix: CubeTensor) -> CubeTensor {
    let rank = matrix.meta.shape().num_dims();
    CubeBackend::float_swap_dims(matrix, rank - 2, rank - 1)
}

/// Clips a value to the range of the precision. Infinite values and NaN are not changed, so that they are
/// detected later.
#[cube]
pub(super) fn within(value: f32, #[comptime] precision: Precision) -> f32 {
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

/// The sum of one value per unit, in a fixed order. Every unit gets the sum.
#[cube]
pub(super) fn sum_of_units(value: f32, shared: &mut [f32], #[comptime] units: u32) -> f32 {
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    // Each of the first 16 units adds up one stripe. Then every unit adds up the 16 results.
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
