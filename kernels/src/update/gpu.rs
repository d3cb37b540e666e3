//! The update as one launch: what is bound, what the kernel is specialised for, and the kernel.

use super::{
    Adam, FoldOp, Guard, OptimizerStep, PendingGradient, SQUARE_FLOOR, Update, count_launch, count_worker_launch,
};
use crate::device::{Buffer, Gpu, Slot};
use crate::launch::{self, Bound};
use crate::row::{self, Row};
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: u32 = 256;

impl Update<'_> {
    /// One launch, or as few as the device's limit on bound buffers allows.
    pub(super) fn on_gpu(self, gpu: &Gpu) {
        let Update { gradient: incoming, weights, fold, step } = self;
        let vector = incoming.layout.vector_size();
        let mut slots = Slots::new(incoming.layout.total() / vector);
        let mut numbers = Numbers::default();
        let mut plan = Plan { clipped: incoming.factor.is_some(), guard: incoming.guard, vector, ..Plan::default() };
        let mut retired: Vec<&Row> = Vec::new();
        let mut earlier: &[PendingGradient] = &[];
        let mut packed: Option<Slot> = None;
        let reads_weights = step.is_some() || matches!(fold, FoldOp::Compensated { .. } | FoldOp::Local { .. });
        match &fold {
            FoldOp::Nothing => {}
            FoldOp::Direct { scale } => (plan.kind, numbers.scale) = (Kind::Direct, *scale),
            FoldOp::Sum { sum, scale, earlier: waited } => {
                (plan.kind, numbers.scale) = (Kind::Sum, *scale);
                (earlier, plan.earlier) = (waited, waited.len());
                plan.at.sum = slots.write(sum);
            }
            FoldOp::Row { sum, row, mix, scale, forget, retired: gone } => {
                (plan.kind, plan.forget, plan.replaces) = (Kind::Row, *forget, *mix == 1.0);
                (numbers.scale, numbers.mix) = (*scale, *mix);
                plan.at.sum = slots.write(sum);
                plan.packed = row.packed();
                match plan.packed {
                    true => packed = Some(row.bind(gpu, vector, true)),
                    false => plan.at.row = slots.write_slot(row.bind(gpu, vector, false)),
                }
                retired.extend(gone);
            }
            FoldOp::Compensated { sent, lambda, square } => {
                (plan.kind, plan.adaptive, numbers.scale) = (Kind::Compensated, square.is_some(), *lambda);
                plan.at.sent = slots.read(sent);
                if let Some((q, m)) = square {
                    plan.at.row = slots.write(q);
                    numbers.mix = *m;
                }
            }
            FoldOp::Local { sum, proximal } => {
                (plan.kind, plan.proximal) = (Kind::Local, proximal.is_some());
                plan.at.sum = slots.write(sum);
                if let Some((x, mu)) = proximal {
                    plan.at.sent = slots.read(x);
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
            plan.at.fresh = slots.write(step.fresh);
            if let Some((base, k)) = &step.base {
                plan.based = true;
                (plan.at.base, numbers.follow) = (slots.write(base), *k);
            }
            match &step.method {
                OptimizerStep::Plain => {}
                OptimizerStep::HeavyBall { velocity, beta } => {
                    plan.method = OptimizerKind::HeavyBall;
                    (plan.at.first, numbers.adam.beta1) = (slots.write(velocity), *beta);
                }
                OptimizerStep::Nesterov { velocity, beta, pending, turn } => {
                    plan.method = if *turn { OptimizerKind::NesterovTurn } else { OptimizerKind::Nesterov };
                    (plan.at.first, numbers.adam.beta1) = (slots.write(velocity), *beta);
                    if let Some(pending) = pending {
                        plan.pends = true;
                        plan.at.second = slots.write(pending);
                    }
                }
                OptimizerStep::Adam { first, second, largest, constants } => {
                    plan.method = OptimizerKind::Adam;
                    (plan.at.first, plan.at.second) = (slots.write(first), slots.write(second));
                    numbers.adam = *constants;
                    if let Some(largest) = largest {
                        plan.largest = true;
                        plan.at.largest = slots.write(largest);
                    }
                }
            }
        }
        if reads_weights {
            plan.at.weights = slots.read(weights);
        }
        let room = room(gpu);
        if retired.len() > room / 2 {
            let FoldOp::Row { sum, scale, .. } = &fold else { unreachable!("only rows retire") };
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
        // Of each gradient that waited its loss and its fence, and beside each buffer of the gradient one of its own.
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
            // What stands behind one another in the kernel's parameters: ten sequences and three buffers.
            let (mut bound, mut counts) = (Vec::with_capacity(32), [0; 10]);
            let mut bind = |sequence: usize, handle, size, written| {
                bound.push((handle, size, written));
                counts[sequence] += 1;
            };
            let (of_vector, of_float) = (4 * vector, 4);
            gradients.iter().filter(|_| !skip_gradient).for_each(|g| bind(0, g.handle(), of_vector, false));
            waited.for_each(|g| bind(1, g.handle(), of_vector, false));
            earlier.iter().for_each(|e| bind(2, e.loss.handle(), of_float, false));
            earlier.iter().for_each(|e| bind(3, gpu.fenced(e.fence), of_float, false));
            let (sequence, of_row) = if plan.packed { (5, of_float) } else { (4, of_vector) };
            retired.iter().for_each(|row| bind(sequence, row.bind(gpu, vector, plan.packed).0, of_row, false));
            slots.read.iter().flatten().for_each(|slot| bind(6, slot.0.clone(), of_vector, false));
            slots.written.iter().flatten().for_each(|slot| bind(7, slot.0.clone(), of_vector, true));
            packed.iter().for_each(|slot| bind(8, slot.0.clone(), of_float, true));
            incoming.factor.iter().for_each(|factor| bind(9, factor.handle(), of_float, false));
            bound.push((incoming.loss.handle(), of_float, false));
            bound.push((incoming.losses.handle(), of_float, true));
            bound.push((gpu.fenced(incoming.fence), of_float, false));
            let key = (plan, counts);
            let made = launch::known(&gpu.client, "update", UNITS, &key, || key.0.kernel(gpu, &bound, counts));
            let cubes = CubeCount::Static(longest.div_ceil(UNITS as usize).clamp(1, 2048) as u32, 1, 1);
            // SAFETY: every place that the plan touches is a bound buffer's.
            unsafe {
                launch::with(&gpu.client, made, cubes, bound, |all| {
                    let Numbers { scale, mix, weight, lr, keep, decay, follow, adam, retired } = &numbers;
                    [scale, mix, weight, lr, keep, decay, follow].into_iter().for_each(|number| all.push(*number));
                    let Adam { beta1, beta2, epsilon, correction1, correction2 } = adam;
                    [beta1, beta2, epsilon, correction1, correction2].into_iter().for_each(|number| all.push(*number));
                    all.push(*retired);
                    all.push(incoming.slot as u32);
                })
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

impl Plan {
    /// Its kernel, for sequences of so many of these buffers.
    fn kernel(&self, gpu: &Gpu, bound: &[Bound], counts: [usize; 10]) -> impl CubeKernel + use<> {
        let mut all = bound.iter().map(launch::argument);
        fn some<S: FromIterator<BufferArg>>(all: &mut impl Iterator<Item = BufferArg>, count: usize) -> S {
            all.take(count).collect()
        }
        let [n0, n1, n2, n3, n4, n5, n6, n7, n8, n9] = counts;
        let zero = 0.0;
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
            all.next().expect("the loss"),
            all.next().expect("the losses"),
            all.next().expect("the fence"),
            zero,
            zero,
            zero,
            zero,
            zero,
            zero,
            zero,
            zero,
            zero,
            zero,
            zero,
            zero,
            0,
            0,
            self.clone(),
        )
    }
}

/// Gradients and rows that a launch can bind: besides them it binds others, and the runtime its own.
pub(super) fn room(gpu: &Gpu) -> usize {
    gpu.bindings().saturating_sub(16).max(2)
}

/// What a launch binds besides gradients, rows that retire and losses: what its plan needs and nothing else, for every binding costs
/// the host.
struct Slots {
    vectors: usize,
    read: [Option<Slot>; 2],
    written: [Option<Slot>; 7],
}

impl Slots {
    fn new(vectors: usize) -> Self {
        Slots { vectors, read: Default::default(), written: Default::default() }
    }

    /// Binds a buffer that is read; gives its place.
    fn read(&mut self, buffer: &Buffer) -> usize {
        place(&mut self.read, (buffer.handle(), self.vectors))
    }

    /// Binds a buffer that is written; gives its place.
    fn write(&mut self, buffer: &Buffer) -> usize {
        self.write_slot((buffer.handle(), self.vectors))
    }

    fn write_slot(&mut self, slot: Slot) -> usize {
        place(&mut self.written, slot)
    }
}

/// Puts a slot behind the others.
fn place(slots: &mut [Option<Slot>], slot: Slot) -> usize {
    let free = slots.iter().position(Option::is_none).expect("there is room for all that a plan can need");
    slots[free] = Some(slot);
    free
}

/// Where a launch's buffers stand among those that it reads (weights, sent) or writes (all others). Of a buffer that the plan does not
/// touch the place means nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Places {
    weights: usize,
    sent: usize,
    fresh: usize,
    sum: usize,
    base: usize,
    row: usize,
    first: usize,
    second: usize,
    largest: usize,
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
enum OptimizerKind {
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
    guard: Guard,
    at: Places,
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
    method: OptimizerKind,
    pends: bool,
    largest: bool,
    notes_loss: bool,
    /// (start in the flat buffer, length) of each gradient, in vectors.
    places: Vec<(usize, usize)>,
    /// Gradients that waited.
    earlier: usize,
}

/// The vector `g` of a gradient with `instead` in the place of what is not finite, or of all where the loss is not; then a flag is set at
/// `flag`.
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
        // By the bits: a driver's compiler may take it that there are no other numbers.
        let mut out = 0u32;
        if comptime!(guard == Guard::Whole) {
            out = infinite(loss);
        }
        let mut found = out;
        #[unroll]
        for lane in 0..vector {
            let here = out | infinite(g.extract(lane));
            found |= here;
            clean.insert(lane, select(here == 1u32, instead.extract(lane), g.extract(lane)));
        }
        if found == 1u32 {
            flags[flag] = 1.0f32;
        }
    }
    clean
}

/// The vector with zeros in the place of what is not finite.
#[cube]
pub(crate) fn finite<N: Size>(g: Vector<f32, N>, #[comptime] vector: usize) -> Vector<f32, N> {
    let mut clean = g;
    #[unroll]
    for lane in 0..vector {
        clean.insert(lane, select(infinite(g.extract(lane)) == 1u32, 0.0f32, g.extract(lane)));
    }
    clean
}

/// 1 for an infinite number or none, else 0.
#[cube]
fn infinite(x: f32) -> u32 {
    select((u32::reinterpret(x) & 0x7f80_0000u32) == 0x7f80_0000u32, 1u32, 0u32)
}

/// Stores a vector.
#[cube]
fn put<N: Size>(to: &mut [Vector<f32, N>], at: usize, value: Vector<f32, N>) {
    to[at] = value;
}

// An `if` on the plan is decided when the kernel is compiled, one on a number when it runs: they cannot be one.
#[allow(clippy::too_many_arguments, clippy::collapsible_if)]
#[cube(launch_unchecked, create_dummy_kernel)]
fn update_kernel<N: Size>(
    gradients: &Sequence<Box<[Vector<f32, N>]>>,
    waited: &Sequence<Box<[Vector<f32, N>]>>,
    waited_losses: &Sequence<Box<[f32]>>,
    _waited_seals: &Sequence<Box<[f32]>>,
    retired: &Sequence<Box<[Vector<f32, N>]>>,
    retired_packed: &Sequence<Box<[u32]>>,
    read: &Sequence<Box<[Vector<f32, N>]>>,
    written: &mut Sequence<Box<[Vector<f32, N>]>>,
    packed: &mut Sequence<Box<[u32]>>,
    factor: &Sequence<Box<[f32]>>,
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
    let places = comptime!(plan.at);
    let weights = comptime!(places.weights);
    let sent = comptime!(places.sent);
    let fresh = comptime!(places.fresh);
    let sum = comptime!(places.sum);
    let base = comptime!(places.base);
    let row = comptime!(places.row);
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
                direction = g * Vector::new(scale);
            }
            if comptime!(plan.kind == Kind::Sum) {
                // One operation each, so that as many roundings are made as by a launch for each.
                direction = written[sum][at];
                #[unroll]
                for e in 0..comptime!(plan.earlier) {
                    let w = comptime!(e * plan.places.len() + k);
                    let before = comptime!(plan.earlier - e);
                    let (of, at) = (waited_losses[e][0], flag - before);
                    let early = guarded::<N>(waited[w][i], zero, of, losses, at, plan.guard, plan.vector);
                    direction = fma(early, Vector::new(scale), direction);
                }
                direction = fma(g, Vector::new(scale), direction);
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
                direction = written[sum][at] + (new - old) * Vector::new(scale);
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
                    let square = written[row][at] * Vector::new(mix) + g * g * Vector::new(1.0f32 - mix);
                    put::<N>(&mut written[row], at, square);
                    lambda /= Vector::sqrt(square + Vector::new(SQUARE_FLOOR));
                }
                direction = g + lambda * g * g * (read[weights][at] - read[sent][at]);
            }
            if comptime!(plan.kind == Kind::Local && plan.proximal) {
                direction += (read[weights][at] - read[sent][at]) * Vector::new(scale);
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
                    direction *= Vector::new(weight);
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
