//! The cross-entropy of class logits, and the scaling of its gradient.

use super::buffers::{UNITS, cubes, fresh, len, sum_of_units};
use crate::launch::launch;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// The mean loss of each replica, and the derivative with respect to the logits.
pub(super) fn cross_entropy(
    logits: CubeTensor,
    targets: CubeTensor,
    scale: f32,
    replicas: usize,
) -> (CubeTensor, CubeTensor) {
    let (logits, targets) = (into_contiguous(logits), into_contiguous(targets));
    let (loss, gradient) = (fresh(&logits, &[replicas]), fresh(&logits, logits.meta.shape()));
    let classes = logits.meta.shape()[1];
    // SAFETY: there is one cube per replica. Each unit writes whole rows of the gradient, and the first one
    // the loss.
    unsafe {
        let cubes = CubeCount::Static(replicas as u32, 1, 1);
        launch!(cross_entropy_kernel, &logits.client, cubes, UNITS; logits, targets; loss, gradient; scale, classes as u32;)
    }
    (loss, gradient)
}

/// `gradient` multiplied by `by`, which has one float per replica.
pub(super) fn scale(gradient: CubeTensor, by: CubeTensor) -> CubeTensor {
    let (gradient, by) = (into_contiguous(gradient), into_contiguous(by));
    let out = fresh(&gradient, gradient.meta.shape());
    // SAFETY: each unit writes one element.
    unsafe { launch!(scale_kernel, &out.client, cubes(len(&out)), UNITS; gradient, by; out;;) }
    out
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
fn scale_kernel(gradient: &[f32], by: &[f32], out: &mut [f32]) {
    if ABSOLUTE_POS < out.len() {
        out[ABSOLUTE_POS] = gradient[ABSOLUTE_POS] * by[ABSOLUTE_POS / (out.len() / by.len())];
    }
}
