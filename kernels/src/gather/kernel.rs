//! The kernels that draw a batch.

use super::{Augment, ImageShape};
use crate::random::{device_mix, device_permute};
use cubecl::prelude::*;

/// What the kernel is specialised for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) shape: ImageShape,
    pub(super) shuffled: bool,
    pub(super) augment: Augment,
    pub(super) pulls: bool,
}

// An `if` on the plan is evaluated when the kernel is compiled, an `if` on a value when it runs, so they
// cannot be combined.
#[allow(clippy::too_many_arguments, clippy::collapsible_if)]
#[cube(launch_unchecked, create_dummy_kernel)]
pub(super) fn gather_kernel<N: Size>(
    pixels: &[u32],
    labels: &[u32],
    scale: &[f32],
    rows: &[u32],
    x: &mut [f32],
    target: &mut [f32],
    from: &[Vector<f32, N>],
    _fence: &[f32],
    to: &mut [Vector<f32, N>],
    order_key: u32,
    augment_key: u32,
    epoch: u32,
    position: u32,
    count: u32,
    half: u32,
    job_low: u32,
    job_high: u32,
    first: u32,
    size: u32,
    #[comptime] plan: Plan,
) {
    let side = comptime!(plan.shape.side as u32);
    let plane = comptime!((plan.shape.side * plan.shape.side) as u32);
    let values = comptime!(plan.shape.pixels() as u32);
    let channels = comptime!(plan.shape.channels as u32);
    let classes = comptime!(plan.shape.classes as u32);
    let pad = comptime!(plan.augment.pad as u32);
    let span = comptime!(2 * plan.augment.pad as u32 + 1);
    if comptime!(plan.pulls) {
        if ABSOLUTE_POS < to.len() {
            to[ABSOLUTE_POS] = from[ABSOLUTE_POS];
        }
    }
    let i = ABSOLUTE_POS as u32;
    if i < size * classes {
        let row = choose(rows, order_key, epoch, position, count, half, i / classes, plan.shuffled);
        let mut hot = 0.0f32;
        if labels[row as usize] == i % classes {
            hot = 1.0f32;
        }
        target[(first * classes + i) as usize] = hot;
    }
    if i < size * values {
        let j = i / values;
        let k = i % values;
        let row = choose(rows, order_key, epoch, position, count, half, j, plan.shuffled);
        let random = device_mix(device_mix(device_mix(augment_key, job_low), job_high), j);
        let c = k % channels;
        let mut column = k / channels % side;
        if comptime!(plan.augment.flip) {
            if random >> 31u32 == 1u32 {
                column = side - 1u32 - column;
            }
        }
        let row_in_image = k / (channels * side) + (((random & 0xfffu32) * span) >> 12u32) - pad;
        let column = column + ((((random >> 12u32) & 0xfffu32) * span) >> 12u32) - pad;
        let mut value = 0.0f32;
        if row_in_image < side && column < side {
            let at = row * values + c * plane + row_in_image * side + column;
            let word = pixels[(at / 4u32) as usize];
            let byte = (word >> (8u32 * (at % 4u32))) & 255u32;
            let level = f32::cast_from(byte) * (1.0f32 / 255.0f32);
            value = (level - scale[c as usize]) * scale[(c + 3u32) as usize];
        }
        x[(first * values + i) as usize] = value;
    }
}

#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
pub(super) fn draw_kernel(
    rows: &[u32],
    chosen: &mut [f32],
    order_key: u32,
    epoch: u32,
    position: u32,
    count: u32,
    half: u32,
) {
    if ABSOLUTE_POS < chosen.len() {
        let row = choose(rows, order_key, epoch, position, count, half, ABSOLUTE_POS as u32, true);
        chosen[ABSOLUTE_POS] = f32::cast_from(row);
    }
}

/// [`Place::row`] on the device.
#[allow(clippy::too_many_arguments)]
#[cube]
fn choose(
    rows: &[u32],
    order_key: u32,
    epoch: u32,
    position: u32,
    count: u32,
    half: u32,
    j: u32,
    #[comptime] shuffled: bool,
) -> u32 {
    let walked = position + j;
    if comptime!(shuffled) {
        let key = device_mix(order_key, epoch + walked / count);
        rows[device_permute(walked % count, count, key, half) as usize]
    } else {
        walked
    }
}
