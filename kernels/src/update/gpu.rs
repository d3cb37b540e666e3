//! The update as one launch: what is bound, what the kernel is specialised for, and the kernel.

use super::{Adam, Earlier, Fold, Method, SQUARE_FLOOR, Update, count_launch, count_worker_launch};
use crate::device::{Buffer, Gpu, Slot};
use crate::row::{self, Row};
use cubecl::prelude::*;

impl Update<'_> {
    /// One launch, or as few as the device's limit on bound buffers allows.
    pub(super) fn on_gpu(self, gpu: &Gpu) {
        let Update { gradient: incoming, weights, fold, step } = self;
        let vector = incoming.layout.vector_size();
        let mut slots = Slots::new(gpu, incoming.layout.total() / vector);
        let mut numbers = Numbers::default();
        let mut plan = Plan { clipped: incoming.factor.is_some(), vector, ..Plan::default() };
        let mut retired: Vec<&Row> = Vec::new();
        let mut earlier: &[Earlier] = &[];
        let reads_weights = step.is_some() || matches!(fold, Fold::Compensated { .. } | Fold::Local { .. });
        match &fold {
            Fold::Nothing => {}
            Fold::Direct { scale } => (plan.kind, numbers.scale) = (Kind::Direct, *scale),
            Fold::Sum { sum, scale, earlier: waited } => {
                (plan.kind, numbers.scale) = (Kind::Sum, *scale);
                (earlier, plan.earlier) = (waited, waited.len());
                slots.sum = slots.all(sum);
            }
            Fold::Row { sum, row, mix, scale, forget, retired: gone } => {
                (plan.kind, plan.forget, plan.replaces) = (Kind::Row, *forget, *mix == 1.0);
                (numbers.scale, numbers.mix) = (*scale, *mix);
                slots.sum = slots.all(sum);
                plan.packed = row.packed();
                slots.row = row.bind(gpu, vector, false);
                slots.packed = row.bind(gpu, vector, true);
                retired.extend(gone);
            }
            Fold::Compensated { sent, lambda, square } => {
                (plan.kind, plan.adaptive, numbers.scale) = (Kind::Compensated, square.is_some(), *lambda);
                slots.sent = slots.all(sent);
                if let Some((q, m)) = square {
                    slots.row = slots.all(q);
                    numbers.mix = *m;
                }
            }
            Fold::Local { sum, proximal } => {
                (plan.kind, plan.proximal) = (Kind::Local, proximal.is_some());
                slots.sum = slots.all(sum);
                if let Some((x, mu)) = proximal {
                    slots.sent = slots.all(x);
                    numbers.scale = *mu;
                }
            }
        }
        if let Some(step) = &step {
            plan.steps = true;
            plan.keeps = match step.keep {
                0.0 => Keep::Nothing,
                1.0 => Keep::All,
                _ => Keep::Part,
            };
            plan.decays = step.weight_decay != 0.0;
            plan.scales = step.factor != 1.0;
            numbers.weight = step.factor;
            (numbers.lr, numbers.keep, numbers.decay) = (step.lr, step.keep, step.weight_decay);
            slots.fresh = slots.all(step.fresh);
            if let Some((base, k)) = &step.base {
                plan.based = true;
                (slots.base, numbers.follow) = (slots.all(base), *k);
            }
            match &step.method {
                Method::Plain => {}
                Method::HeavyBall { velocity, beta } => {
                    plan.method = Way::HeavyBall;
                    (slots.first, numbers.adam.beta1) = (slots.all(velocity), *beta);
                }
                Method::Nesterov { velocity, beta, pending, turn } => {
                    plan.method = if *turn { Way::NesterovTurn } else { Way::Nesterov };
                    (slots.first, numbers.adam.beta1) = (slots.all(velocity), *beta);
                    if let Some(pending) = pending {
                        plan.pends = true;
                        slots.second = slots.all(pending);
                    }
                }
                Method::Adam { first, second, largest, constants } => {
                    plan.method = Way::Adam;
                    (slots.first, slots.second, numbers.adam) = (slots.all(first), slots.all(second), *constants);
                    if let Some(largest) = largest {
                        plan.largest = true;
                        slots.largest = slots.all(largest);
                    }
                }
            }
        }
        if reads_weights {
            slots.weights = slots.all(weights);
        }
        let room = room(gpu);
        if retired.len() > room / 2 {
            let Fold::Row { sum, scale, .. } = &fold else { unreachable!("only rows retire") };
            row::add(gpu, vector, sum, &retired, -*scale, false);
            retired.clear();
        }
        // Padded to a power of two, so that few kernels serve every number of rows.
        numbers.retired = retired.len() as u32;
        if let Some(first) = retired.first().copied() {
            retired.resize(retired.len().next_power_of_two(), first);
        }
        plan.retired = retired.len();
        let plan_kind = plan.kind;
        let skip_gradient = plan_kind == Kind::Nothing;
        // Of each gradient that waited its loss and its seal, and beside each buffer of the gradient one of its own.
        let room =
            ((room - retired.len().min(room - 1)).saturating_sub(2 * earlier.len()) / (1 + earlier.len())).max(1);
        let segments = incoming.layout.segments();
        for (part, (segments, gradients)) in segments.chunks(room).zip(incoming.buffers.chunks(room)).enumerate() {
            let mut plan = plan.clone();
            plan.notes_loss = part == 0;
            let first = part * room;
            let waited = earlier.iter().flat_map(|e| &e.buffers[first..first + segments.len()]);
            if !skip_gradient {
                plan.places = segments.iter().map(|s| (s.start / vector, s.len / vector)).collect();
            }
            let longest = plan.places.iter().map(|p| p.1).max().unwrap_or(1);
            // SAFETY: every length is the bound buffer's own, counted in vectors; a slot that the plan does not touch is
            // bound to a small buffer that is long enough for its declared length.
            unsafe {
                let arg = |slot: &Slot| BufferArg::from_raw_parts(slot.0.clone(), slot.1);
                update_kernel::launch_unchecked(
                    &gpu.client,
                    CubeCount::Static(longest.div_ceil(256).clamp(1, 2048) as u32, 1, 1),
                    CubeDim::new_1d(256),
                    vector,
                    gradients
                        .iter()
                        .filter(|_| !skip_gradient)
                        .map(|g| BufferArg::from_raw_parts(g.handle(), g.len() / vector))
                        .collect(),
                    waited.map(|g| BufferArg::from_raw_parts(g.handle(), g.len() / vector)).collect(),
                    earlier.iter().map(|e| BufferArg::from_raw_parts(e.loss.handle(), 1)).collect(),
                    earlier.iter().map(|e| BufferArg::from_raw_parts(gpu.sealed(e.seal), 4)).collect(),
                    retired.iter().filter(|_| !plan.packed).map(|row| arg(&row.bind(gpu, vector, false))).collect(),
                    retired.iter().filter(|_| plan.packed).map(|row| arg(&row.bind(gpu, vector, true))).collect(),
                    arg(&slots.weights),
                    arg(&slots.fresh),
                    arg(&slots.sum),
                    arg(&slots.base),
                    arg(&slots.row),
                    arg(&slots.packed),
                    arg(&slots.sent),
                    arg(&slots.first),
                    arg(&slots.second),
                    arg(&slots.largest),
                    arg(&incoming.factor.map_or(slots.none(), |f| (f.handle(), 1))),
                    BufferArg::from_raw_parts(incoming.loss.handle(), 1),
                    BufferArg::from_raw_parts(incoming.losses.handle(), incoming.losses.len()),
                    BufferArg::from_raw_parts(gpu.sealed(incoming.seal), 4),
                    numbers.scale,
                    numbers.mix,
                    numbers.weight,
                    numbers.lr,
                    numbers.keep,
                    numbers.decay,
                    numbers.follow,
                    numbers.adam.beta1,
                    numbers.adam.beta2,
                    numbers.adam.epsilon,
                    numbers.adam.correction1,
                    numbers.adam.correction2,
                    numbers.retired,
                    incoming.slot as u32,
                    plan,
                )
            }
            if plan_kind == Kind::Local {
                count_worker_launch()
            } else {
                count_launch()
            }
            if skip_gradient {
                break;
            }
        }
    }
}

/// Gradients and rows that a launch can bind: besides them it binds others, and the runtime its own.
pub(super) fn room(gpu: &Gpu) -> usize {
    gpu.bindings().saturating_sub(16).max(2)
}

/// What is bound where; a slot that a plan does not touch holds a stand-in.
struct Slots {
    vectors: usize,
    stand_in: cubecl::server::Handle,
    weights: Slot,
    fresh: Slot,
    sum: Slot,
    base: Slot,
    row: Slot,
    packed: Slot,
    sent: Slot,
    first: Slot,
    second: Slot,
    largest: Slot,
}

impl Slots {
    fn new(gpu: &Gpu, vectors: usize) -> Self {
        let none = || (gpu.unused(), 1);
        Slots {
            vectors,
            stand_in: gpu.unused(),
            weights: none(),
            fresh: none(),
            sum: none(),
            base: none(),
            row: none(),
            packed: none(),
            sent: none(),
            first: none(),
            second: none(),
            largest: none(),
        }
    }

    fn all(&self, buffer: &Buffer) -> Slot {
        (buffer.handle(), self.vectors)
    }

    fn none(&self) -> Slot {
        (self.stand_in.clone(), 1)
    }
}

/// The numbers of a launch: they do not make a new kernel.
#[derive(Default)]
struct Numbers {
    scale: f32,
    mix: f32,
    weight: f32,
    lr: f32,
    keep: f32,
    decay: f32,
    follow: f32,
    adam: Adam,
    retired: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Kind {
    #[default]
    Nothing,
    Direct,
    Sum,
    Row,
    Compensated,
    Local,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Keep {
    Nothing,
    Part,
    #[default]
    All,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Way {
    #[default]
    Plain,
    HeavyBall,
    Nesterov,
    NesterovTurn,
    Adam,
}

/// What a launch is specialised for; each plan compiles once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Plan {
    kind: Kind,
    vector: usize,
    clipped: bool,
    forget: bool,
    replaces: bool,
    packed: bool,
    retired: usize,
    adaptive: bool,
    proximal: bool,
    steps: bool,
    keeps: Keep,
    scales: bool,
    decays: bool,
    based: bool,
    method: Way,
    pends: bool,
    largest: bool,
    notes_loss: bool,
    /// (start in the flat buffer, length) of each gradient, in vectors.
    places: Vec<(usize, usize)>,
    /// Gradients that waited.
    earlier: usize,
}

// An `if` on the plan is decided when the kernel is compiled, one on a number when it runs: they cannot be one.
#[allow(clippy::too_many_arguments, clippy::collapsible_if)]
#[cube(launch_unchecked)]
fn update_kernel<N: Size>(
    gradients: &Sequence<Box<[Vector<f32, N>]>>,
    waited: &Sequence<Box<[Vector<f32, N>]>>,
    waited_losses: &Sequence<Box<[f32]>>,
    _waited_seals: &Sequence<Box<[f32]>>,
    retired: &Sequence<Box<[Vector<f32, N>]>>,
    retired_packed: &Sequence<Box<[u32]>>,
    weights: &[Vector<f32, N>],
    fresh: &mut [Vector<f32, N>],
    sum: &mut [Vector<f32, N>],
    base: &mut [Vector<f32, N>],
    row: &mut [Vector<f32, N>],
    packed: &mut [u32],
    sent: &[Vector<f32, N>],
    first: &mut [Vector<f32, N>],
    second: &mut [Vector<f32, N>],
    largest: &mut [Vector<f32, N>],
    factor: &[f32],
    loss: &[f32],
    losses: &mut [f32],
    _seal: &[f32],
    scale: f32,
    mix: f32,
    weight: f32,
    lr: f32,
    keep: f32,
    decay: f32,
    follow: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    correction1: f32,
    correction2: f32,
    live: u32,
    slot: u32,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.notes_loss) {
        if ABSOLUTE_POS == 0 {
            losses[slot as usize] = loss[0];
            #[unroll]
            for e in 0..comptime!(plan.earlier) {
                let before = comptime!(plan.earlier - e);
                losses[slot as usize - before] = waited_losses[e][0];
            }
        }
    }
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
                g *= Vector::new(factor[0]);
            }
            let mut direction = g;
            if comptime!(plan.kind == Kind::Direct) {
                direction = g * Vector::new(scale);
            }
            if comptime!(plan.kind == Kind::Sum) {
                // One operation each, so that as many roundings are made as by a launch for each.
                direction = sum[at];
                #[unroll]
                for e in 0..comptime!(plan.earlier) {
                    let w = comptime!(e * plan.places.len() + k);
                    direction = fma(waited[w][i], Vector::new(scale), direction);
                }
                direction = fma(g, Vector::new(scale), direction);
            }
            if comptime!(plan.kind == Kind::Row) {
                let mut old = Vector::<f32, N>::new(0.0f32);
                if comptime!(!plan.forget) {
                    if comptime!(plan.packed) {
                        old = row::unpack::<N>(&*packed, at, plan.vector);
                    } else {
                        old = row[at];
                    }
                }
                let mut new = g;
                if comptime!(!plan.replaces) {
                    new = old + (g - old) * Vector::new(mix);
                }
                if comptime!(plan.packed) {
                    new = row::pack::<N>(packed, at, new, plan.vector);
                } else {
                    row[at] = new;
                }
                direction = sum[at] + (new - old) * Vector::new(scale);
                #[unroll]
                for r in 0..comptime!(plan.retired) {
                    if (r as u32) < live {
                        if comptime!(plan.packed) {
                            direction -= row::unpack::<N>(&retired_packed[r], at, plan.vector) * Vector::new(scale);
                        } else {
                            direction -= retired[r][at] * Vector::new(scale);
                        }
                    }
                }
            }
            if comptime!(plan.kind == Kind::Compensated) {
                let mut lambda = Vector::<f32, N>::new(scale);
                if comptime!(plan.adaptive) {
                    let square = row[at] * Vector::new(mix) + g * g * Vector::new(1.0f32 - mix);
                    row[at] = square;
                    lambda /= Vector::sqrt(square + Vector::new(SQUARE_FLOOR));
                }
                direction = g + lambda * g * g * (weights[at] - sent[at]);
            }
            if comptime!(plan.kind == Kind::Local && plan.proximal) {
                direction += (weights[at] - sent[at]) * Vector::new(scale);
            }
            if comptime!(plan.kind == Kind::Sum || plan.kind == Kind::Row) {
                if comptime!(!plan.steps || plan.keeps == Keep::All) {
                    sum[at] = direction;
                } else if comptime!(plan.keeps == Keep::Nothing) {
                    sum[at] = Vector::new(0.0f32);
                } else {
                    sum[at] = direction * Vector::new(keep);
                }
            }
            if comptime!(plan.steps) {
                let w = weights[at];
                if comptime!(plan.scales) {
                    direction *= Vector::new(weight);
                }
                if comptime!(plan.based) {
                    let b = base[at];
                    base[at] = b + direction * Vector::new(follow);
                    direction += b;
                }
                if comptime!(plan.decays && plan.method != Way::Adam) {
                    direction += w * Vector::new(decay);
                }
                if comptime!(plan.method == Way::HeavyBall) {
                    direction += first[at] * Vector::new(beta1);
                    first[at] = direction;
                }
                if comptime!(plan.method == Way::Nesterov || plan.method == Way::NesterovTurn) {
                    let mut gathered = direction;
                    if comptime!(plan.pends) {
                        gathered += second[at];
                    }
                    if comptime!(plan.method == Way::NesterovTurn) {
                        let velocity = first[at] * Vector::new(beta1) + gathered;
                        first[at] = velocity;
                        direction += velocity * Vector::new(beta1);
                        if comptime!(plan.pends) {
                            second[at] = Vector::new(0.0f32);
                        }
                    } else if comptime!(plan.pends) {
                        second[at] = gathered;
                    }
                }
                if comptime!(plan.method == Way::Adam) {
                    let m = first[at] * Vector::new(beta1) + direction * Vector::new(1.0f32 - beta1);
                    let mut u = second[at] * Vector::new(beta2) + direction * direction * Vector::new(1.0f32 - beta2);
                    first[at] = m;
                    second[at] = u;
                    if comptime!(plan.largest) {
                        u = max(largest[at], u);
                        largest[at] = u;
                    }
                    direction = m
                        / Vector::new(correction1)
                        / (Vector::sqrt(u / Vector::new(correction2)) + Vector::new(epsilon));
                    if comptime!(plan.decays) {
                        direction += w * Vector::new(decay);
                    }
                }
                fresh[at] = w - direction * Vector::new(lr);
                if comptime!(plan.kind == Kind::Local) {
                    sum[at] += direction;
                }
            }
            i += stride;
        }
    }
}
