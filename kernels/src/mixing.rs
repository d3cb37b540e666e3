//! The update of rules that mix models instead of stepping along a gradient. One launch computes all new
//! models of an arrival.
//!
//! The arithmetic, per parameter (w: the server's weights, x: the model at which the gradient g was computed,
//! or the worker's own model, p: a peer's own model, η: the learning rate, n: the number of workers):
//!
//! ```text
//! towards   w' = w + α (x - η g - w)                                                  FedAsync
//! elastic   y = x - η g ;  x' = y - α (y - w) ;  w' = w + α (y - w)                   EASGD
//! pair      a = (x + p)/2 ;  x' = a - η g ;  p' = a ;  w' = w - (η/n) g               AD-PSGD; w is the mean of all x
//! alone     x' = x - η g ;  w' = w - (η/n) g                                          AD-PSGD without a neighbour
//! ```
//!
//! Invariant I2: all new models are written to fresh buffers.

use crate::device::{Buffer, Device, Gpu};
use crate::simd::{Lanes, for_each_instruction_set};
use crate::update::{Block, GradientInput, Guard, clean, clipped, count_launch, guarded};
use cubecl::prelude::*;

/// Which models are mixed, and how. On the CPU, the loop uses slices (`B = [f32]`) instead of buffers.
pub enum Mixing<'a, B: ?Sized = Buffer> {
    /// The server's weights move towards the worker's model.
    Towards {
        /// x: the model that was sent to the worker.
        sent: &'a B,
        /// α: the mixing weight.
        alpha: f32,
    },
    /// The server's weights and the worker's model move towards each other.
    Elastic {
        /// x: the worker's own model.
        own: &'a B,
        /// Receives x', the worker's new model.
        fresh_own: &'a mut B,
        /// α: the mixing weight.
        alpha: f32,
    },
    /// Two workers average their models. The server's weights follow the mean of all models.
    Pair {
        /// x: the worker's own model.
        own: &'a B,
        /// Receives x', the worker's new model.
        fresh_own: &'a mut B,
        /// p, and the buffer that receives p', if there is a peer.
        peer: Option<(&'a B, &'a mut B)>,
        /// 1/n for n workers.
        share: f32,
    },
}

/// One exchange of models.
pub struct Exchange<'a> {
    /// The gradient, or the sum of a worker's local steps.
    pub gradient: GradientInput<'a>,
    /// w: the server's current weights.
    pub weights: &'a Buffer,
    /// Receives w', the server's new weights.
    pub fresh: &'a mut Buffer,
    /// η: the learning rate.
    pub lr: f32,
    /// The models to mix.
    pub mixing: Mixing<'a>,
}

impl<'a> Mixing<'a> {
    /// Turns buffers into slices once per exchange, as an update does.
    fn on_host(self) -> Mixing<'a, [f32]> {
        match self {
            Mixing::Towards { sent, alpha } => Mixing::Towards { sent: sent.host(), alpha },
            Mixing::Elastic { own, fresh_own, alpha } => {
                Mixing::Elastic { own: own.host(), fresh_own: fresh_own.host_mut(), alpha }
            }
            Mixing::Pair { own, fresh_own, peer, share } => {
                let peer = peer.map(|(peer, fresh)| (peer.host(), fresh.host_mut()));
                Mixing::Pair { own: own.host(), fresh_own: fresh_own.host_mut(), peer, share }
            }
        }
    }
}

for_each_instruction_set! {
    fn on_cpu(exchange: Exchange) = blocks
}

/// The plain loop: the CPU path and the reference of the kernel. All instruction sets give the same bits.
#[inline(always)]
fn blocks<L: Lanes, const P: usize, const N: usize>(exchange: Exchange) {
    let Exchange { mut gradient, weights, fresh, lr, mixing } = exchange;
    let (weights, fresh, mut mixing) = (weights.host(), fresh.host_mut(), mixing.on_host());
    let (factor, [mut room, mut cleaned]) = (gradient.note(), [Block::ZERO; 2]);
    let (guard, out, mut bad) = (gradient.guard, gradient.is_out(), false);
    for (at, g) in gradient.blocks() {
        let g = clean(clipped(g, factor, &mut room), (guard, out, 0.0), &mut bad, &mut cleaned);
        let there = at..at + g.len();
        let places = g.iter().zip(&weights[there.clone()]).zip(&mut fresh[there.clone()]);
        match &mut mixing {
            &mut Mixing::Towards { sent, alpha } => {
                places.zip(&sent[there]).for_each(|(((g, w), fresh), x)| *fresh = w + alpha * (x - lr * g - w));
            }
            Mixing::Elastic { own, fresh_own, alpha } => {
                let models = own[there.clone()].iter().zip(&mut fresh_own[there]);
                places.zip(models).for_each(|(((g, w), fresh), (x, new))| {
                    let y = x - lr * g;
                    let pull = *alpha * (y - w);
                    (*new, *fresh) = (y - pull, w + pull);
                });
            }
            Mixing::Pair { own, fresh_own, peer, share } => {
                let models = own[there.clone()].iter().zip(&mut fresh_own[there.clone()]);
                let places = places.zip(models);
                match peer {
                    None => places.for_each(|(((g, w), fresh), (x, new))| {
                        (*new, *fresh) = (x - lr * g, w - lr * *share * g);
                    }),
                    Some((peer, fresh_peer)) => {
                        let peer = peer[there.clone()].iter().zip(&mut fresh_peer[there]);
                        places.zip(peer).for_each(|((((g, w), fresh), (x, new)), (p, new_peer))| {
                            let mean = 0.5 * (x + p);
                            (*new_peer, *new, *fresh) = (mean, mean - lr * g, w - lr * *share * g);
                        });
                    }
                }
            }
        }
    }
    if bad {
        gradient.flag(0);
    }
}

impl Exchange<'_> {
    /// Runs the exchange on `device`.
    pub fn run(self, device: &Device) {
        self.gradient.check();
        match device {
            Device::Cpu => on_cpu(self),
            Device::Gpu(gpu) => self.on_gpu(gpu),
        }
    }

    fn on_gpu(self, gpu: &Gpu) {
        let Exchange { gradient: input, weights, fresh, lr, mixing } = self;
        let vector = input.layout.vector_size();
        let total = input.layout.total() / vector;
        let (none, all) = (|| (gpu.unused(), 1), |buffer: &Buffer| (buffer.handle(), total));
        let (way, own, fresh_own, peer, fresh_peer, alpha) = match &mixing {
            Mixing::Towards { sent, alpha } => (MixingKind::Towards, all(sent), none(), none(), none(), *alpha),
            Mixing::Elastic { own, fresh_own, alpha } => {
                (MixingKind::Elastic, all(own), all(fresh_own), none(), none(), *alpha)
            }
            Mixing::Pair { own, fresh_own, peer: Some((peer, fresh_peer)), share } => {
                (MixingKind::Pair, all(own), all(fresh_own), all(peer), all(fresh_peer), *share)
            }
            Mixing::Pair { own, fresh_own, peer: None, share } => {
                (MixingKind::Alone, all(own), all(fresh_own), none(), none(), *share)
            }
        };
        let room = gpu.bindings().saturating_sub(10).max(1);
        let segments = input.layout.segments();
        for (part, (segments, gradients)) in segments.chunks(room).zip(input.buffers.chunks(room)).enumerate() {
            let plan = Plan {
                way,
                clipped: input.factor.is_some(),
                guard: input.guard,
                vector,
                notes_loss: part == 0,
                places: segments.iter().map(|s| (s.start / vector, s.len / vector)).collect(),
            };
            let longest = plan.places.iter().map(|p| p.1).max().unwrap_or(1);
            // SAFETY: every length is that of the bound buffer, in vectors. A parameter that the plan does
            // not use gets a small buffer, which covers its declared length.
            unsafe {
                let arg = |slot: &(cubecl::server::Handle, usize)| BufferArg::from_raw_parts(slot.0.clone(), slot.1);
                mixing_kernel::launch_unchecked(
                    &gpu.client,
                    CubeCount::Static(longest.div_ceil(256).clamp(1, 2048) as u32, 1, 1),
                    CubeDim::new_1d(256),
                    vector,
                    gradients.iter().map(|g| BufferArg::from_raw_parts(g.handle(), g.len() / vector)).collect(),
                    arg(&all(weights)),
                    arg(&all(fresh)),
                    arg(&own),
                    arg(&fresh_own),
                    arg(&peer),
                    arg(&fresh_peer),
                    arg(&input.factor.map_or(none(), |f| (f.handle(), 1))),
                    BufferArg::from_raw_parts(input.loss.handle(), 1),
                    BufferArg::from_raw_parts(input.losses.handle(), input.losses.len()),
                    BufferArg::from_raw_parts(gpu.fenced(input.fence), 4),
                    lr,
                    alpha,
                    input.slot as u32,
                    plan,
                )
            }
            count_launch();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum MixingKind {
    Towards,
    Elastic,
    Pair,
    Alone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Plan {
    way: MixingKind,
    clipped: bool,
    guard: Guard,
    vector: usize,
    notes_loss: bool,
    /// (start in the flat buffer, length) of each gradient, in vectors.
    places: Vec<(usize, usize)>,
}

#[allow(clippy::too_many_arguments, clippy::collapsible_if)]
#[cube(launch_unchecked)]
fn mixing_kernel<N: Size>(
    gradients: &Sequence<Box<[Vector<f32, N>]>>,
    weights: &[Vector<f32, N>],
    fresh: &mut [Vector<f32, N>],
    own: &[Vector<f32, N>],
    fresh_own: &mut [Vector<f32, N>],
    peer: &[Vector<f32, N>],
    fresh_peer: &mut [Vector<f32, N>],
    factor: &[f32],
    loss: &[f32],
    losses: &mut [f32],
    _fence: &[f32],
    lr: f32,
    alpha: f32,
    slot: u32,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.notes_loss) {
        if ABSOLUTE_POS == 0 {
            losses[slot as usize] = loss[0];
        }
    }
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
                g *= Vector::new(factor[0]);
            }
            g = guarded::<N>(g, zero, loss[0], losses, flag, plan.guard, plan.vector);
            let move_by = g * Vector::new(lr);
            let w = weights[at];
            let x = own[at];
            if comptime!(plan.way == MixingKind::Towards) {
                fresh[at] = w + (x - move_by - w) * Vector::new(alpha);
            }
            if comptime!(plan.way == MixingKind::Elastic) {
                let y = x - move_by;
                let pull = (y - w) * Vector::new(alpha);
                fresh_own[at] = y - pull;
                fresh[at] = w + pull;
            }
            if comptime!(plan.way == MixingKind::Pair) {
                let mean = (x + peer[at]) * Vector::new(0.5f32);
                fresh_peer[at] = mean;
                fresh_own[at] = mean - move_by;
            }
            if comptime!(plan.way == MixingKind::Alone) {
                fresh_own[at] = x - move_by;
            }
            if comptime!(plan.way == MixingKind::Pair || plan.way == MixingKind::Alone) {
                fresh[at] = w - move_by * Vector::new(alpha);
            }
            i += stride;
        }
    }
}
