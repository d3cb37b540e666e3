//! Group normalisation with affine parameters, an optional residual, ReLU and 2×2 max pooling.

use super::buffers::{UNITS, fresh, len, sum_of_units, view};
use super::pool::largest;
use super::sums::sum_of_parts;
use crate::launch::launch;
use crate::layers::{Norm, Pool};
use crate::layout::ALIGNMENT;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// The layer's output, and the moments: mean and 1/σ of each group [B, groups, 2].
pub(super) fn forward(
    x: CubeTensor,
    gamma: CubeTensor,
    beta: CubeTensor,
    residual: CubeTensor,
    plan: Norm,
) -> (CubeTensor, CubeTensor) {
    let [x, gamma, beta, residual] = [x, gamma, beta, residual].map(into_contiguous);
    let y = fresh(&x, x.meta.shape());
    let moments = normalise(&x, &gamma, &beta, &residual, &y, plan.epsilon, plan.into());
    (y, moments)
}

/// The derivatives with respect to input, residual, γ and β.
pub(super) fn backward(
    x: CubeTensor,
    y: CubeTensor,
    moments: CubeTensor,
    gamma: CubeTensor,
    dy: CubeTensor,
    plan: Norm,
) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
    let [x, y, moments, gamma, dy] = [x, y, moments, gamma, dy].map(into_contiguous);
    // The part of dY that passes the ReLU is only written if the residual needs it.
    let passed = plan.residual && plan.relu;
    let through = if passed { fresh(&x, x.meta.shape()) } else { dy.clone() };
    let unwritten = if passed { through.clone() } else { moments.clone() };
    let beta = gamma.clone();
    let (dx, dgamma, dbeta) = normalise_backward([x, y, moments, gamma, beta, dy, unwritten], plan.into());
    (dx, through, dgamma, dbeta)
}

/// Normalisation, ReLU and 2×2 max pooling in one launch: the output, and the moments twice (as the values
/// for the backward pass, and as the moments).
pub(super) fn forward_pooled(
    x: CubeTensor,
    gamma: CubeTensor,
    beta: CubeTensor,
    plan: Norm,
    pool: Pool,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [x, gamma, beta] = [x, gamma, beta].map(into_contiguous);
    let y = fresh(&x, &[pool.batch, pool.height / 2, pool.width / 2, pool.channels]);
    let width = pool.width as u32;
    let moments = normalise(&x, &gamma, &beta, &x, &y, plan.epsilon, NormPlan { width, ..plan.into() });
    // The backward pass computes the values before the pooling again, so only the moments are kept.
    (y, moments.clone(), moments)
}

/// The derivatives of [`forward_pooled`] with respect to input, γ and β.
pub(super) fn backward_pooled(
    x: CubeTensor,
    moments: CubeTensor,
    gamma: CubeTensor,
    beta: CubeTensor,
    dy: CubeTensor,
    plan: Norm,
    pool: Pool,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [x, moments, gamma, beta, dy] = [x, moments, gamma, beta, dy].map(into_contiguous);
    let plan = NormPlan { width: pool.width as u32, ..plan.into() };
    normalise_backward([x.clone(), x, moments.clone(), gamma, beta, dy, moments], plan)
}

/// Units per cube of a normalisation: the same number for each channel of the group, so that a unit handles
/// one channel.
fn units(plan: &Norm) -> u32 {
    assert!(plan.group <= 1024, "a GPU normalises at most 1,024 channels together");
    (plan.group * (UNITS as usize / plan.group).max(1)) as u32
}

/// Writes `y` and returns the moments.
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
    // SAFETY: cube (g, b) only reads and writes group g of image b.
    unsafe {
        let cubes = CubeCount::Static(groups, batch as u32, 1);
        launch!(norm_kernel, &x.client, cubes, plan.units; x, gamma, beta, residual; y, moments; epsilon; plan)
    }
    moments
}

/// dX, dγ and dβ from x, y, moments, γ, β and dY. With a residual and a ReLU, the part of dY that passes the
/// ReLU is written to the last buffer.
fn normalise_backward(saved: [CubeTensor; 7], plan: NormPlan) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [x, y, moments, gamma, beta, dy, through] = saved;
    let (batch, channels) = (x.meta.shape()[0], plan.channels as usize);
    let dx = fresh(&x, x.meta.shape());
    // dβ of each image, then dγ of each image, which starts at an offset that every adapter can bind.
    let (length, half) = (batch * channels, (batch * channels).next_multiple_of(ALIGNMENT));
    let parts = fresh(&x, &[2 * half]);
    // SAFETY: cube (g, b) only reads and writes group g of image b. The last buffer is only written if
    // nothing else uses it.
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

/// The constants that a normalisation kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct NormPlan {
    pixels: u32,
    channels: u32,
    group: u32,
    units: u32,
    relu: bool,
    residual: bool,
    /// Columns of an image with 2×2 pooling; 0 without pooling.
    width: u32,
    /// Images per replica; 0 if there is only one replica.
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
    // A unit handles one channel and goes over its pixels.
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
    // For the pooling, as in the forward kernel.
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
    // Adds up the units of each channel: the image's part of dβ, then of dγ.
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

/// The position of a channel's γ and β, in the parameters of its image's replica.
#[cube]
fn parameter(image: u32, channel: u32, #[comptime] plan: NormPlan) -> usize {
    let mut place = channel;
    if comptime!(plan.images > 0) {
        place += image / comptime!(plan.images) * comptime!(plan.channels);
    }
    place as usize
}

/// The position of the first of the 2×2 pixels of pooled pixel `place`, in an image that starts at `start`.
#[cube]
fn corner(start: u32, place: u32, #[comptime] plan: NormPlan) -> usize {
    let half = comptime!(plan.width / 2);
    let pixel = place / half * comptime!(2 * plan.width) + place % half * 2u32;
    (start + pixel * comptime!(plan.channels)) as usize
}
