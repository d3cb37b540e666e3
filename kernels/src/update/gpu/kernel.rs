//! The kernel of the update, and the dummy from which a plan's kernel is created.

use super::plan::{Keep, Kind, OptimizerKind, Plan, Scalars};
use super::{GROUPS, UNITS};
use crate::device::Gpu;
use crate::launch::{self, Bound};
use crate::row;
use crate::update::{Guard, SQUARE_FLOOR};
use cubecl::prelude::*;

impl Plan {
    /// The kernel of this plan, for launches with `counts` buffers in each group. `bound` and `scalars` are
    /// those of one launch: the kernel depends on their types only.
    pub(super) fn kernel(
        &self,
        gpu: &Gpu,
        bound: &[Bound],
        counts: [usize; GROUPS],
        scalars: &Scalars,
    ) -> impl CubeKernel + use<> {
        let mut all = bound.iter().map(launch::argument);
        fn some<S: FromIterator<BufferArg>>(all: &mut impl Iterator<Item = BufferArg>, count: usize) -> S {
            all.take(count).collect()
        }
        let [n0, n1, n2, n3, n4, n5, n6, n7, n8, n9] = counts;
        let [s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11] = scalars.floats();
        update_kernel::create_dummy_kernel(
            gpu.client.properties_shared(),
            gpu.client.target_properties_shared(),
            CubeCount::new_single(),
            CubeDim::new_1d(UNITS),
            self.vector,
            some(&mut all, n0),
            some(&mut all, n1),
            some(&mut all, n2),
            some(&mut all, n3),
            some(&mut all, n4),
            some(&mut all, n5),
            some(&mut all, n6),
            some(&mut all, n7),
            some(&mut all, n8),
            some(&mut all, n9),
            all.next().expect("the loss is bound"),
            all.next().expect("the ring of losses is bound"),
            all.next().expect("the fence is bound"),
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            s6,
            s7,
            s8,
            s9,
            s10,
            s11,
            0,
            0,
            self.clone(),
        )
    }
}

/// The vector `g` of a gradient with `instead` in place of each non-finite element. With [`Guard::Whole`] and
/// a non-finite loss, all elements are replaced. If an element was replaced, `flags[flag]` is set to 1.
#[cube]
pub(crate) fn guarded<N: Size>(
    g: Vector<f32, N>,
    instead: Vector<f32, N>,
    loss: f32,
    flags: &mut [f32],
    flag: usize,
    #[comptime] guard: Guard,
    #[comptime] vector: usize,
) -> Vector<f32, N> {
    let mut clean = g;
    if comptime!(guard != Guard::Off) {
        // By the bits, because a driver's compiler may assume that all values are finite.
        let mut out = 0u32;
        if comptime!(guard == Guard::Whole) {
            out = non_finite(loss);
        }
        let mut found = out;
        #[unroll]
        for lane in 0..vector {
            let here = out | non_finite(g.extract(lane));
            found |= here;
            clean.insert(lane, select(here == 1u32, instead.extract(lane), g.extract(lane)));
        }
        if found == 1u32 {
            flags[flag] = 1.0f32;
        }
    }
    clean
}

/// The vector with 0 in place of each non-finite element.
#[cube]
pub(crate) fn finite<N: Size>(g: Vector<f32, N>, #[comptime] vector: usize) -> Vector<f32, N> {
    let mut clean = g;
    #[unroll]
    for lane in 0..vector {
        clean.insert(lane, select(non_finite(g.extract(lane)) == 1u32, 0.0f32, g.extract(lane)));
    }
    clean
}

/// 1 for Inf and NaN, else 0.
#[cube]
fn non_finite(x: f32) -> u32 {
    select((u32::reinterpret(x) & 0x7f80_0000u32) == 0x7f80_0000u32, 1u32, 0u32)
}

/// Stores `value` at position `at`.
#[cube]
fn put<N: Size>(to: &mut [Vector<f32, N>], at: usize, value: Vector<f32, N>) {
    to[at] = value;
}

// An `if` on the plan is evaluated when the kernel is compiled, an `if` on a value when it runs, so they
// cannot be combined.
#[allow(clippy::too_many_arguments, clippy::collapsible_if)]
#[cube(launch_unchecked, create_dummy_kernel)]
fn update_kernel<N: Size>(
    gradients: &Sequence<Box<[Vector<f32, N>]>>,
    waited: &Sequence<Box<[Vector<f32, N>]>>,
    waited_losses: &Sequence<Box<[f32]>>,
    _waited_fences: &Sequence<Box<[f32]>>,
    retired: &Sequence<Box<[Vector<f32, N>]>>,
    retired_packed: &Sequence<Box<[u32]>>,
    read: &Sequence<Box<[Vector<f32, N>]>>,
    written: &mut Sequence<Box<[Vector<f32, N>]>>,
    packed: &mut Sequence<Box<[u32]>>,
    factor: &Sequence<Box<[f32]>>,
    loss: &[f32],
    losses: &mut [f32],
    _fence: &[f32],
    fold_scale: f32,
    mix: f32,
    step_scale: f32,
    lr: f32,
    keep: f32,
    decay: f32,
    follow: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    correction1: f32,
    correction2: f32,
    retired_count: u32,
    slot: u32,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.notes_loss) {
        if ABSOLUTE_POS == 0 {
            losses[slot as usize] = loss[0];
            #[unroll]
            for e in 0..comptime!(plan.pending) {
                let before = comptime!(plan.pending - e);
                losses[slot as usize - before] = waited_losses[e][0];
            }
        }
    }
    let places = comptime!(plan.at);
    let weights = comptime!(places.weights);
    let sent = comptime!(places.sent);
    let fresh = comptime!(places.fresh);
    let sum = comptime!(places.sum);
    let base = comptime!(places.base);
    let row = comptime!(places.row);
    let square = comptime!(places.square);
    let first = comptime!(places.first);
    let second = comptime!(places.second);
    let largest = comptime!(places.largest);
    let flag = losses.len() / 2 + slot as usize;
    let zero = Vector::<f32, N>::new(0.0f32);
    let stride = CUBE_DIM as usize * CUBE_COUNT;
    #[unroll]
    for k in 0..comptime!(plan.places.len()) {
        let place = comptime!(plan.places[k]);
        let start = comptime!(place.0);
        let len = comptime!(place.1);
        let mut i = ABSOLUTE_POS;
        while i < len {
            let at = start + i;
            let mut g = gradients[k][i];
            if comptime!(plan.clipped) {
                g *= Vector::new(factor[0][0]);
            }
            if comptime!(plan.kind != Kind::Row) {
                g = guarded::<N>(g, zero, loss[0], losses, flag, plan.guard, plan.vector);
            }
            let mut direction = g;
            if comptime!(plan.kind == Kind::Direct) {
                direction = g * Vector::new(fold_scale);
            }
            if comptime!(plan.kind == Kind::Sum) {
                // One fused multiply-add per gradient rounds as often as one launch per gradient.
                direction = written[sum][at];
                #[unroll]
                for e in 0..comptime!(plan.pending) {
                    let w = comptime!(e * plan.places.len() + k);
                    let before = comptime!(plan.pending - e);
                    let (of, at) = (waited_losses[e][0], flag - before);
                    let early = guarded::<N>(waited[w][i], zero, of, losses, at, plan.guard, plan.vector);
                    direction = fma(early, Vector::new(fold_scale), direction);
                }
                direction = fma(g, Vector::new(fold_scale), direction);
            }
            if comptime!(plan.kind == Kind::Row) {
                let mut old = Vector::<f32, N>::new(0.0f32);
                if comptime!(!plan.forget) {
                    if comptime!(plan.packed) {
                        old = row::unpack::<N>(&packed[0], at, plan.vector);
                    } else {
                        old = written[row][at];
                    }
                }
                g = guarded::<N>(g, old, loss[0], losses, flag, plan.guard, plan.vector);
                let mut new = g;
                if comptime!(!plan.replaces) {
                    new = old + (g - old) * Vector::new(mix);
                }
                if comptime!(plan.packed) {
                    new = row::pack::<N>(&mut packed[0], at, new, plan.vector);
                } else {
                    put::<N>(&mut written[row], at, new);
                }
                direction = written[sum][at] + (new - old) * Vector::new(fold_scale);
                #[unroll]
                for r in 0..comptime!(plan.retired) {
                    if (r as u32) < retired_count {
                        if comptime!(plan.packed) {
                            direction -=
                                row::unpack::<N>(&retired_packed[r], at, plan.vector) * Vector::new(fold_scale);
                        } else {
                            direction -= retired[r][at] * Vector::new(fold_scale);
                        }
                    }
                }
            }
            if comptime!(plan.kind == Kind::Compensated) {
                let mut lambda = Vector::<f32, N>::new(fold_scale);
                if comptime!(plan.adaptive) {
                    let q = written[square][at] * Vector::new(mix) + g * g * Vector::new(1.0f32 - mix);
                    put::<N>(&mut written[square], at, q);
                    lambda /= Vector::sqrt(q + Vector::new(SQUARE_FLOOR));
                }
                direction = g + lambda * g * g * (read[weights][at] - read[sent][at]);
            }
            if comptime!(plan.kind == Kind::Local && plan.proximal) {
                let mu = Vector::<f32, N>::new(fold_scale);
                direction += (read[weights][at] - read[sent][at]) * mu;
            }
            if comptime!(plan.kind == Kind::Sum || plan.kind == Kind::Row) {
                if comptime!(!plan.steps || plan.keeps == Keep::All) {
                    put::<N>(&mut written[sum], at, direction);
                } else if comptime!(plan.keeps == Keep::Nothing) {
                    put::<N>(&mut written[sum], at, Vector::new(0.0f32));
                } else {
                    put::<N>(&mut written[sum], at, direction * Vector::new(keep));
                }
            }
            if comptime!(plan.steps) {
                let w = read[weights][at];
                if comptime!(plan.scales) {
                    direction *= Vector::new(step_scale);
                }
                if comptime!(plan.based) {
                    let b = written[base][at];
                    put::<N>(&mut written[base], at, b + direction * Vector::new(follow));
                    direction += b;
                }
                if comptime!(plan.decays && plan.method != OptimizerKind::Adam) {
                    direction += w * Vector::new(decay);
                }
                if comptime!(plan.method == OptimizerKind::HeavyBall) {
                    direction += written[first][at] * Vector::new(beta1);
                    put::<N>(&mut written[first], at, direction);
                }
                if comptime!(plan.method == OptimizerKind::Nesterov || plan.method == OptimizerKind::NesterovTurn) {
                    let mut gathered = direction;
                    if comptime!(plan.pends) {
                        gathered += written[second][at];
                    }
                    if comptime!(plan.method == OptimizerKind::NesterovTurn) {
                        let velocity = written[first][at] * Vector::new(beta1) + gathered;
                        put::<N>(&mut written[first], at, velocity);
                        direction += velocity * Vector::new(beta1);
                        if comptime!(plan.pends) {
                            put::<N>(&mut written[second], at, Vector::new(0.0f32));
                        }
                    } else if comptime!(plan.pends) {
                        put::<N>(&mut written[second], at, gathered);
                    }
                }
                if comptime!(plan.method == OptimizerKind::Adam) {
                    let m = written[first][at] * Vector::new(beta1) + direction * Vector::new(1.0f32 - beta1);
                    let mut u =
                        written[second][at] * Vector::new(beta2) + direction * direction * Vector::new(1.0f32 - beta2);
                    put::<N>(&mut written[first], at, m);
                    put::<N>(&mut written[second], at, u);
                    if comptime!(plan.largest) {
                        u = max(written[largest][at], u);
                        put::<N>(&mut written[largest], at, u);
                    }
                    direction = m
                        / Vector::new(correction1)
                        / (Vector::sqrt(u / Vector::new(correction2)) + Vector::new(epsilon));
                    if comptime!(plan.decays) {
                        direction += w * Vector::new(decay);
                    }
                }
                put::<N>(&mut written[fresh], at, w - direction * Vector::new(lr));
                if comptime!(plan.kind == Kind::Local) {
                    let gathered = written[sum][at] + direction;
                    put::<N>(&mut written[sum], at, gathered);
                }
            }
            i += stride;
        }
    }
}
