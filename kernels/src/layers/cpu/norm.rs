//! Group normalisation on the CPU, with the residual and the ReLU in the same pass.
//!
//! With x̂ = (x - μ)/σ over the m values of a group and z = γ x̂ + β:
//! dx = (γ dz - mean(γ dz) - x̂ mean(γ dz x̂)) / σ, dγ = Σ dz x̂, dβ = Σ dz (Wu & He, 2018; the derivative is ours).
//!
//! Each channel has its own sum over the pixels, so that one instruction adds a vector of channels.

use super::parallel;
use crate::layers::Norm;
use crate::scratch::Scratch;
use crate::simd::{Lanes, for_each_instruction_set};

/// Pixels per partial sum. Partial sums are added to the total one by one, which keeps rounding errors small.
const RUN: usize = 64;

/// The values of the forward pass that the backward pass needs.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// Input of the layer.
    pub x: &'a [f32],
    /// Output of the layer. Only its sign is used, and only with a ReLU.
    pub y: &'a [f32],
    /// Mean and 1/σ of each group of each image.
    pub moments: &'a [f32],
    /// γ.
    pub gamma: &'a [f32],
}

/// Computes Y and the moments.
pub fn forward(
    plan: &Norm,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    residual: Option<&[f32]>,
    y: &mut [f32],
    moments: &mut [f32],
) {
    let size = plan.pixels * plan.channels;
    let images = x.chunks(size).zip(y.chunks_mut(size)).zip(moments.chunks_mut(2 * plan.groups())).enumerate();
    parallel(images, |(image, ((x, y), moments))| {
        let residual = residual.map(|r| &r[image * size..][..size]);
        forward_image(plan, x, gamma, beta, residual, y, moments)
    });
}

for_each_instruction_set! {
    fn forward_image(
        plan: &Norm, x: &[f32], gamma: &[f32], beta: &[f32], residual: Option<&[f32]>, y: &mut [f32], moments: &mut [f32],
    ) = forward_loops
}

#[inline(always)]
fn forward_loops<L: Lanes, const P: usize, const N: usize>(
    plan: &Norm,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    residual: Option<&[f32]>,
    y: &mut [f32],
    moments: &mut [f32],
) {
    let Norm { channels, group, .. } = *plan;
    let count = (plan.pixels * group) as f32;
    let mut scratch = Scratch::take(4 * channels);
    let (part, rest) = scratch.split_at_mut(channels);
    let (sums, rest) = rest.split_at_mut(channels);
    let (factor, shift) = rest.split_at_mut(channels);
    // First the means, then the squared distances from them. This avoids differences of large numbers.
    sum_by_channel(x, channels, part, sums, |part, x| {
        part.iter_mut().zip(x).for_each(|(p, x)| *p += x);
    });
    for (g, moments) in moments.chunks_mut(2).enumerate() {
        moments[0] = sums[g * group..][..group].iter().sum::<f32>() / count;
        shift[g * group..][..group].fill(moments[0]);
    }
    sum_by_channel(x, channels, part, sums, |part, x| {
        part.iter_mut().zip(x).zip(&*shift).for_each(|((p, x), m)| *p += (x - m) * (x - m));
    });
    for (g, moments) in moments.chunks_mut(2).enumerate() {
        let variance = sums[g * group..][..group].iter().sum::<f32>() / count;
        moments[1] = 1.0 / (variance + plan.epsilon).sqrt();
        for c in g * group..(g + 1) * group {
            factor[c] = gamma[c] * moments[1];
            shift[c] = beta[c] - moments[0] * factor[c];
        }
    }
    let floor = if plan.relu { 0.0 } else { f32::NEG_INFINITY };
    match residual {
        None => {
            for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                y.iter_mut()
                    .zip(x)
                    .zip(&*factor)
                    .zip(&*shift)
                    .for_each(|(((y, x), f), s)| *y = at_least(x * f + s, floor));
            }
        }
        Some(residual) => {
            let inputs = x.chunks_exact(channels).zip(residual.chunks_exact(channels));
            for (y, (x, r)) in y.chunks_exact_mut(channels).zip(inputs) {
                let values = x.iter().zip(r).zip(&*factor).zip(&*shift);
                y.iter_mut().zip(values).for_each(|(y, (((x, r), f), s))| *y = at_least(x * f + s + r, floor));
            }
        }
    }
}

/// The larger of the two values. NaN stays NaN, so that it is detected later.
#[inline(always)]
fn at_least(x: f32, floor: f32) -> f32 {
    if x < floor { floor } else { x }
}

/// Sums over all pixels, channel by channel. `add` adds one pixel to a partial sum.
#[inline(always)]
fn sum_by_channel(
    x: &[f32],
    channels: usize,
    part: &mut [f32],
    sums: &mut [f32],
    mut add: impl FnMut(&mut [f32], &[f32]),
) {
    sums.fill(0.0);
    for run in x.chunks(RUN * channels) {
        part.fill(0.0);
        run.chunks_exact(channels).for_each(|x| add(part, x));
        sums.iter_mut().zip(&*part).for_each(|(s, p)| *s += p);
    }
}

/// Computes dX, dγ and dβ, and the part of dY that passes the ReLU if `through` is given.
pub fn backward(
    plan: &Norm,
    saved: Saved,
    dy: &[f32],
    dx: &mut [f32],
    through: Option<&mut [f32]>,
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    let (size, channels) = (plan.pixels * plan.channels, plan.channels);
    let mut parts = Scratch::take(2 * channels * plan.batch);
    let mut through: Vec<Option<&mut [f32]>> = match through {
        Some(all) => all.chunks_mut(size).map(Some).collect(),
        None => (0..plan.batch).map(|_| None).collect(),
    };
    let images = dx.chunks_mut(size).zip(parts.chunks_mut(2 * channels)).zip(&mut through).enumerate();
    parallel(images, |(image, ((dx, parts), through))| {
        let at = |all: &'_ [f32]| -> std::ops::Range<usize> {
            image * (all.len() / plan.batch)..(image + 1) * (all.len() / plan.batch)
        };
        let saved = Saved {
            x: &saved.x[at(saved.x)],
            y: &saved.y[at(saved.y)],
            moments: &saved.moments[at(saved.moments)],
            gamma: saved.gamma,
        };
        backward_image(plan, saved, &dy[at(dy)], dx, through.as_deref_mut(), parts)
    });
    dgamma.fill(0.0);
    dbeta.fill(0.0);
    // In the order of the images, whichever thread computed them.
    for parts in parts.chunks(2 * channels) {
        dbeta.iter_mut().zip(&parts[..channels]).for_each(|(d, p)| *d += p);
        dgamma.iter_mut().zip(&parts[channels..]).for_each(|(d, p)| *d += p);
    }
}

for_each_instruction_set! {
    fn backward_image(
        plan: &Norm, saved: Saved, dy: &[f32], dx: &mut [f32], through: Option<&mut [f32]>, parts: &mut [f32],
    ) = backward_loops
}

#[inline(always)]
fn backward_loops<L: Lanes, const P: usize, const N: usize>(
    plan: &Norm,
    saved: Saved,
    dy: &[f32],
    dx: &mut [f32],
    through: Option<&mut [f32]>,
    parts: &mut [f32],
) {
    let Norm { channels, group, .. } = *plan;
    let Saved { x, y, moments, gamma } = saved;
    let count = (plan.pixels * group) as f32;
    // Without a ReLU, all of dY passes.
    let floor = if plan.relu { 0.0 } else { f32::NEG_INFINITY };
    let mut scratch = Scratch::zeros(6 * channels);
    let mut slices = scratch.chunks_mut(channels);
    let mut next = || slices.next().expect("six slices");
    let (mean, part1, part2, p, q, r) = (next(), next(), next(), next(), next(), next());
    for (mean, m) in mean.chunks_mut(group).zip(moments.chunks(2)) {
        mean.fill(m[0]);
    }
    // `parts` holds Σ dz and Σ dz (x - μ). The latter becomes Σ dz x̂ below.
    parts.fill(0.0);
    let (sum1, sum2) = parts.split_at_mut(channels);
    let runs = x.chunks(RUN * channels).zip(y.chunks(RUN * channels)).zip(dy.chunks(RUN * channels));
    for ((x, y), dy) in runs {
        part1.fill(0.0);
        part2.fill(0.0);
        for ((x, y), dy) in x.chunks_exact(channels).zip(y.chunks_exact(channels)).zip(dy.chunks_exact(channels)) {
            let inputs = x.iter().zip(y).zip(dy).zip(&*mean);
            for ((((x, y), dy), m), (a, b)) in inputs.zip(part1.iter_mut().zip(part2.iter_mut())) {
                let dz = if *y > floor { *dy } else { 0.0 };
                *a += dz;
                *b += dz * (x - m);
            }
        }
        sum1.iter_mut().zip(&*part1).for_each(|(s, p)| *s += p);
        sum2.iter_mut().zip(&*part2).for_each(|(s, p)| *s += p);
    }
    for (g, m) in moments.chunks(2).enumerate() {
        let (mut mean1, mut mean2) = (0.0, 0.0);
        for c in g * group..(g + 1) * group {
            sum2[c] *= m[1];
            mean1 += gamma[c] * sum1[c] / count;
            mean2 += gamma[c] * sum2[c] / count;
        }
        for c in g * group..(g + 1) * group {
            p[c] = m[1] * gamma[c];
            q[c] = -m[1] * m[1] * mean2;
            r[c] = -m[1] * mean1;
        }
    }
    let pixels = x.chunks_exact(channels).zip(y.chunks_exact(channels)).zip(dy.chunks_exact(channels));
    for (dx, ((x, y), dy)) in dx.chunks_exact_mut(channels).zip(pixels) {
        let inputs = x.iter().zip(y).zip(dy).zip(&*mean);
        let factors = p.iter().zip(&*q).zip(&*r);
        for ((dx, (((x, y), dy), m)), ((p, q), r)) in dx.iter_mut().zip(inputs).zip(factors) {
            let dz = if *y > floor { *dy } else { 0.0 };
            *dx = dz * p + (x - m) * q + r;
        }
    }
    if let Some(through) = through {
        through.iter_mut().zip(y).zip(dy).for_each(|((t, y), dy)| *t = if *y > floor { *dy } else { 0.0 });
    }
}
