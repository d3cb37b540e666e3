//! The update as a plain loop: the CPU path and the reference of the kernel.

use super::{FoldOp, GradientInput, Guard, MOST_PENDING, OptimizerStep, SQUARE_FLOOR, StepOp, Update};
use crate::row::Entries;
use crate::simd::{Lanes, for_each_instruction_set};

/// Floats per block of the loop. With blocks this small, the processor overlaps the passes over one block
/// with those over the next, and so reads all buffers at the same time. Blocks of 1,024 floats reach two
/// thirds of this speed.
pub(crate) const BLOCK: usize = 64;

/// A block that one pass writes and the next pass reads.
///
/// It is aligned to a cache line. A store across two lines cannot be forwarded to a load: the load waits
/// until the store and all earlier stores have reached the cache (a fifth of the samples of an update in a
/// profile on AMD Zen 4).
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Block(pub [f32; BLOCK]);

impl Block {
    pub const ZERO: Block = Block([0.0; BLOCK]);
}

impl GradientInput<'_> {
    /// Whether the whole gradient is left out.
    pub(crate) fn is_out(&self) -> bool {
        self.guard == Guard::Whole && !self.loss.host()[0].is_finite()
    }

    /// Flags a gradient as non-finite: the one that is `before` ring positions before this one (0 is this one).
    pub(crate) fn flag(&mut self, before: usize) {
        let flags = self.losses.len() / 2;
        self.losses.host_mut()[flags + self.slot - before] = 1.0;
    }

    /// Stores the loss in the ring. Returns the clipping factor, or `None` if it is 1 or the gradient is not
    /// clipped.
    pub(crate) fn note(&mut self) -> Option<f32> {
        self.losses.host_mut()[self.slot] = self.loss.host()[0];
        self.factor.map(|f| f.host()[0]).filter(|f| *f != 1.0)
    }

    /// The blocks of a gradient in host memory, each with its start in the flat weights. This is an iterator
    /// instead of a function that takes a closure, so that the body of the loop is compiled for the
    /// instruction set of the calling function.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.layout.segments().iter().zip(self.buffers).flat_map(|(segment, buffer)| {
            buffer.host().chunks(BLOCK).enumerate().map(|(k, g)| (segment.start + k * BLOCK, g))
        })
    }
}

/// The block multiplied by the factor, in `room`; the block itself without a factor.
#[inline(always)]
pub(crate) fn clipped<'a>(g: &'a [f32], factor: Option<f32>, room: &'a mut Block) -> &'a [f32] {
    let Some(factor) = factor else { return g };
    let room = &mut room.0[..g.len()];
    room.iter_mut().zip(g).for_each(|(c, g)| *c = factor * g);
    room
}

/// The block with `instead` in place of each non-finite element, or of all elements if the whole gradient is
/// left out (`out`). Sets `bad` if an element was replaced.
#[inline(always)]
pub(crate) fn clean<'a>(
    g: &'a [f32],
    (guard, out, instead): (Guard, bool, f32),
    bad: &mut bool,
    room: &'a mut Block,
) -> &'a [f32] {
    // One pass finds the largest exponent. It is enough for a block that is finite.
    let exponent = g.iter().fold(0, |most, g| most.max(g.to_bits() & EXPONENT));
    if guard == Guard::Off || (exponent != EXPONENT && !out) {
        return g;
    }
    *bad = true;
    let room = &mut room.0[..g.len()];
    room.iter_mut().zip(g).for_each(|(c, g)| *c = if out || !g.is_finite() { instead } else { *g });
    room
}

/// The exponent bits of an f32. All of them are 1 in Inf and NaN only.
const EXPONENT: u32 = 0x7f80_0000;

impl Update<'_> {
    pub(super) fn on_cpu(self) {
        on_cpu(self)
    }
}

/// Turns buffers into slices once per update, because the check that a buffer has one owner is a memory
/// barrier.
impl<'a> FoldOp<'a> {
    fn on_host(self) -> FoldOp<'a, [f32], Entries<'a>> {
        match self {
            FoldOp::Nothing => FoldOp::Nothing,
            FoldOp::Direct { scale } => FoldOp::Direct { scale },
            FoldOp::Sum { sum, scale, pending } => FoldOp::Sum { sum: sum.host_mut(), scale, pending },
            FoldOp::Row { sum, row, mix, scale, forget, retired } => {
                FoldOp::Row { sum: sum.host_mut(), row: row.entries(), mix, scale, forget, retired }
            }
            FoldOp::Compensated { sent, lambda, square } => {
                FoldOp::Compensated { sent: sent.host(), lambda, square: square.map(|(q, m)| (q.host_mut(), m)) }
            }
            FoldOp::Local { sum, proximal } => {
                FoldOp::Local { sum: sum.host_mut(), proximal: proximal.map(|(x, mu)| (x.host(), mu)) }
            }
        }
    }
}

impl<'a> StepOp<'a> {
    fn on_host(self) -> StepOp<'a, [f32]> {
        let StepOp { fresh, lr, scale, keep, weight_decay, base, method } = self;
        let base = base.map(|(base, k)| (base.host_mut(), k));
        let method = match method {
            OptimizerStep::Plain => OptimizerStep::Plain,
            OptimizerStep::HeavyBall { velocity, beta } => {
                OptimizerStep::HeavyBall { velocity: velocity.host_mut(), beta }
            }
            OptimizerStep::Nesterov { velocity, beta, pending, turn } => {
                let pending = pending.map(|p| p.host_mut());
                OptimizerStep::Nesterov { velocity: velocity.host_mut(), beta, pending, turn }
            }
            OptimizerStep::Adam { first, second, largest, constants } => {
                let largest = largest.map(|l| l.host_mut());
                OptimizerStep::Adam { first: first.host_mut(), second: second.host_mut(), largest, constants }
            }
        };
        StepOp { fresh: fresh.host_mut(), lr, scale, keep, weight_decay, base, method }
    }
}

for_each_instruction_set! {
    fn on_cpu(update: Update) = blocks
}

/// Runs all passes on each block. All instruction sets give the same bits: no operation is contracted or
/// reordered.
#[inline(always)]
fn blocks<L: Lanes, const P: usize, const N: usize>(update: Update) {
    let Update { mut gradient, weights, fold, step } = update;
    let (mut fold, mut step, weights) = (fold.on_host(), step.map(StepOp::on_host), weights.host());
    let factor = gradient.note();
    if let FoldOp::Sum { pending, .. } = &fold {
        let first = gradient.slot - pending.len();
        let losses = &mut gradient.losses.host_mut()[first..];
        pending.iter().zip(losses).for_each(|(e, noted)| *noted = e.loss.host()[0]);
    }
    let [mut direction, mut room, mut cleaned] = [Block::ZERO; 3];
    let mut early = [Block::ZERO; MOST_PENDING];
    // Whether to leave out a gradient as a whole, and whether it had non-finite values: this one and the
    // pending ones.
    let guard = if matches!(fold, FoldOp::Nothing) { Guard::Off } else { gradient.guard };
    let (out, mut bad) = (gradient.is_out(), false);
    let (mut early_out, mut early_bad) = ([false; MOST_PENDING], [false; MOST_PENDING]);
    if let FoldOp::Sum { pending, .. } = &fold {
        let outs = pending.iter().map(|e| guard == Guard::Whole && !e.loss.host()[0].is_finite());
        early_out.iter_mut().zip(outs).for_each(|(out, is)| *out = is);
    }
    // A row keeps its value where the gradient is not finite: `block` looks for NaN.
    let instead = if matches!(fold, FoldOp::Row { .. }) { f32::NAN } else { 0.0 };
    for (k, (segment, buffer)) in gradient.layout.segments().iter().zip(gradient.buffers).enumerate() {
        // The pending gradients' buffers of this segment. The other entries stay empty.
        let mut waited: [&[f32]; MOST_PENDING] = [&[]; MOST_PENDING];
        let mut count = 0;
        if let FoldOp::Sum { pending, .. } = &fold {
            waited.iter_mut().zip(pending).for_each(|(w, e)| *w = e.buffers[k].host());
            count = pending.len();
        }
        for (b, g) in buffer.host().chunks(BLOCK).enumerate() {
            let (first, at) = (b * BLOCK, segment.start + b * BLOCK);
            let g = clean(clipped(g, factor, &mut room), (guard, out, instead), &mut bad, &mut cleaned);
            let mut own: [&[f32]; MOST_PENDING] = [&[]; MOST_PENDING];
            for (e, room) in early.iter_mut().enumerate().take(count) {
                own[e] = clean(&waited[e][first..first + g.len()], (guard, early_out[e], 0.0), &mut early_bad[e], room);
            }
            block(&mut fold, &mut step, weights, &mut direction.0[..g.len()], at, g, &own[..count]);
        }
    }
    let count = if let FoldOp::Sum { pending, .. } = &fold { pending.len() } else { 0 };
    let found = early_bad[..count].iter().enumerate().map(|(e, bad)| (count - e, *bad)).chain([(0, bad)]);
    found.filter(|(_, bad)| *bad).for_each(|(before, _)| gradient.flag(before));
}

/// Runs all passes on one block, while it is in the cache. `at` is the start of the block in the flat weights.
#[inline(always)]
fn block(
    fold: &mut FoldOp<[f32], Entries>,
    step: &mut Option<StepOp<[f32]>>,
    weights: &[f32],
    d: &mut [f32],
    at: usize,
    g: &[f32],
    pending: &[&[f32]],
) {
    let there = at..at + g.len();
    match fold {
        FoldOp::Nothing => {}
        &mut FoldOp::Direct { scale } => d.iter_mut().zip(g).for_each(|(d, g)| *d = scale * g),
        FoldOp::Sum { sum, scale, .. } => {
            let scale = *scale;
            for e in pending {
                sum[there.clone()].iter_mut().zip(*e).for_each(|(s, g)| *s += scale * g);
            }
            for ((d, g), s) in d.iter_mut().zip(g).zip(&mut sum[there.clone()]) {
                *s += scale * g;
                *d = *s;
            }
        }
        FoldOp::Row { sum, row, mix, scale, forget, retired } => {
            let (mix, scale, forget) = (*mix, *scale, *forget);
            let places = g.iter().zip(&mut sum[there.clone()]).zip(&mut *d);
            row.renew(
                there.clone(),
                places,
                |r, ((g, _), _)| {
                    let old = if forget { 0.0 } else { r };
                    let g = if g.is_finite() { **g } else { old };
                    if mix == 1.0 { g } else { old + mix * (g - old) }
                },
                // The stored value, after rounding, so that the sum matches the row exactly.
                |r, new, ((_, s), d)| {
                    *s += scale * (new - if forget { 0.0 } else { r });
                    *d = *s;
                },
            );
            for row in &*retired {
                row.read_on_cpu(there.clone(), |k, r| d[k] -= scale * r);
            }
            if !retired.is_empty() {
                sum[there.clone()].copy_from_slice(d);
            }
        }
        FoldOp::Compensated { sent, lambda, square } => {
            let places = d.iter_mut().zip(g).zip(&weights[there.clone()]).zip(&sent[there.clone()]);
            match square {
                None => places.for_each(|(((d, g), w), x)| *d = g + *lambda * g * g * (w - x)),
                Some((q, m)) => places.zip(&mut q[there.clone()]).for_each(|((((d, g), w), x), q)| {
                    *q = *m * *q + (1.0 - *m) * g * g;
                    *d = g + *lambda / (*q + SQUARE_FLOOR).sqrt() * g * g * (w - x);
                }),
            }
        }
        FoldOp::Local { proximal, .. } => {
            d.copy_from_slice(g);
            if let Some((x, mu)) = proximal {
                let (w, x, mu) = (&weights[there.clone()], &x[there.clone()], *mu);
                d.iter_mut().zip(w).zip(x).for_each(|((d, w), x)| *d += mu * (w - x));
            }
        }
    }
    let Some(step) = step else { return };
    let w = &weights[there.clone()];
    let (scale, lr, decay, keep) = (step.scale, step.lr, step.weight_decay, step.keep);
    if scale != 1.0 {
        d.iter_mut().for_each(|d| *d *= scale);
    }
    if let Some((base, k)) = &mut step.base {
        let k = *k;
        for (d, b) in d.iter_mut().zip(&mut base[there.clone()]) {
            let own = *d;
            *d += *b;
            *b += k * own;
        }
    }
    if decay != 0.0 && !matches!(step.method, OptimizerStep::Adam { .. }) {
        d.iter_mut().zip(w).for_each(|(d, w)| *d += decay * w);
    }
    match &mut step.method {
        OptimizerStep::Plain => {}
        OptimizerStep::HeavyBall { velocity, beta } => {
            let beta = *beta;
            for (d, v) in d.iter_mut().zip(&mut velocity[there.clone()]) {
                *v = beta * *v + *d;
                *d = *v;
            }
        }
        OptimizerStep::Nesterov { velocity, beta, pending, turn } => {
            let (beta, places) = (*beta, d.iter_mut().zip(&mut velocity[there.clone()]));
            let turned = |d: &mut f32, v: &mut f32, gathered: f32| {
                *v = beta * *v + gathered;
                *d += beta * *v;
            };
            match (pending, turn) {
                (None, false) => {}
                (None, true) => places.for_each(|(d, v)| turned(d, v, *d)),
                (Some(p), false) => p[there.clone()].iter_mut().zip(&*d).for_each(|(p, d)| *p += d),
                (Some(p), true) => {
                    places.zip(&mut p[there.clone()]).for_each(|((d, v), p)| turned(d, v, std::mem::take(p) + *d))
                }
            }
        }
        OptimizerStep::Adam { first, second, largest, constants: c } => {
            let (m, u) = (&mut first[there.clone()], &mut second[there.clone()]);
            for ((m, u), d) in m.iter_mut().zip(&mut *u).zip(&*d) {
                *m = c.beta1 * *m + (1.0 - c.beta1) * d;
                *u = c.beta2 * *u + (1.0 - c.beta2) * d * d;
            }
            let square: &[f32] = match largest {
                None => u,
                Some(most) => {
                    let most = &mut most[there.clone()];
                    most.iter_mut().zip(&*u).for_each(|(most, u)| *most = most.max(*u));
                    most
                }
            };
            for (((d, m), square), w) in d.iter_mut().zip(&*m).zip(square).zip(w) {
                *d = *m / c.correction1 / ((square / c.correction2).sqrt() + c.epsilon) + decay * w;
            }
        }
    }
    let fresh = &mut step.fresh[there.clone()];
    fresh.iter_mut().zip(w).zip(&*d).for_each(|((fresh, w), d)| *fresh = w - lr * d);
    match fold {
        FoldOp::Local { sum, .. } => {
            sum[there].iter_mut().zip(&*d).for_each(|(s, d)| *s += d);
        }
        FoldOp::Sum { sum, .. } | FoldOp::Row { sum, .. } if keep != 1.0 => {
            // Set to zero instead of multiplied by zero, because 0 · Inf is NaN.
            for s in &mut sum[there] {
                *s = if keep == 0.0 { 0.0 } else { *s * keep };
            }
        }
        _ => {}
    }
}
