//! The fused update: one launch folds one gradient into the server's state and, if the rule says so, makes new weights.
//!
//! The arithmetic, per parameter, in f32 (s: sum, r: row of the worker, v: velocity, w: weights):
//!
//! ```text
//! direct   a = c g                                          (no state)
//! sum      s' = s + c g                       a = s'
//! table    s' = s + c (g - r),  r' = g        a = s'
//! local    s' = s + g                         a = c g       (a worker's own local step)
//! nothing  the gradient is dropped; only its loss is noted
//! step     d = a + λ w ;  v' = β v + d, d = v'  (with momentum) ;  w' = w - η d ;  s'' = k s'
//! ```
//!
//! Invariant I2: new weights go to a fresh buffer, so a published snapshot is never written. Sum, rows and velocity are
//! touched by the server's stream alone and stay in place. Each byte is read once and written once.

use crate::device::{Buffer, Device, Gpu, Seal};
use crate::layout::Layout;
use cubecl::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a gradient enters the server's state. `scale` is c above.
pub enum Fold<'a> {
    /// It does not: the arrival was dropped.
    Nothing,
    /// Straight into the step.
    Direct {
        /// Factor of the gradient.
        scale: f32,
    },
    /// Into a sum.
    Sum {
        /// The sum, in place.
        sum: &'a mut Buffer,
        /// Factor of the gradient.
        scale: f32,
    },
    /// Into a table row, and the change of the row into the sum.
    Table {
        /// The sum, in place.
        sum: &'a mut Buffer,
        /// The worker's row, in place.
        row: &'a mut Buffer,
        /// Factor of the row's change.
        scale: f32,
    },
    /// Into a sum that is kept aside while the step uses the gradient alone: a local step.
    Local {
        /// The sum, in place.
        sum: &'a mut Buffer,
        /// Factor of the gradient in the step.
        scale: f32,
    },
}

/// The step after the fold.
pub struct Step<'a> {
    /// Receives the new weights.
    pub fresh: &'a mut Buffer,
    /// η.
    pub lr: f32,
    /// k: what remains of the sum (0 empties it, 1 keeps it).
    pub keep: f32,
    /// λ, of the current weights.
    pub weight_decay: f32,
    /// v and β.
    pub momentum: Option<(&'a mut Buffer, f32)>,
}

/// Everything that one update reads and writes.
pub struct Update<'a> {
    /// Where the gradient buffers belong in the flat weights, one segment a buffer.
    pub layout: &'a Layout,
    /// One buffer per segment.
    pub gradient: &'a [Buffer],
    /// The gradient's seal.
    pub seal: &'a Seal,
    /// The current weights.
    pub weights: &'a Buffer,
    /// How the gradient enters.
    pub fold: Fold<'a>,
    /// The step, if there is one.
    pub step: Option<Step<'a>>,
    /// The job's loss (one float), and where in `losses` it goes.
    pub loss: &'a Buffer,
    /// Ring of recent losses, so that the host reads many at once.
    pub losses: &'a mut Buffer,
    /// The loss's place in the ring.
    pub slot: usize,
}

static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// Update launches so far in this process (0 on the CPU, where nothing is launched).
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

/// Begins to count launches anew, after a warm-up.
pub fn forget_launches() {
    LAUNCHES.store(0, Ordering::Relaxed);
}

impl Update<'_> {
    /// Runs it on `device`.
    pub fn run(self, device: &Device) {
        assert_eq!(self.gradient.len(), self.layout.segments().len(), "one gradient buffer per segment");
        match device {
            Device::Cpu => self.on_cpu(),
            Device::Gpu(gpu) => self.on_gpu(gpu),
        }
    }

    /// The plain loop: the CPU path, and the reference of the kernel.
    fn on_cpu(mut self) {
        self.losses.host_mut()[self.slot] = self.loss.host()[0];
        // A block's direction stays in the first-level cache between the passes.
        let mut direction = [0f32; 1024];
        for (segment, gradient) in self.layout.segments().iter().zip(self.gradient) {
            let gradient = gradient.host();
            assert_eq!(gradient.len(), segment.len, "gradient of {}", segment.name);
            for first in (0..segment.len).step_by(direction.len()) {
                let len = direction.len().min(segment.len - first);
                let (at, g) = (segment.start + first, &gradient[first..first + len]);
                let direction = &mut direction[..len];
                match &mut self.fold {
                    Fold::Nothing => {}
                    Fold::Direct { scale } => {
                        for (d, g) in direction.iter_mut().zip(g) {
                            *d = *scale * g;
                        }
                    }
                    Fold::Sum { sum, scale } => {
                        for ((d, g), s) in direction.iter_mut().zip(g).zip(&mut sum.host_mut()[at..]) {
                            *s += *scale * g;
                            *d = *s;
                        }
                    }
                    Fold::Table { sum, row, scale } => {
                        let state = sum.host_mut()[at..].iter_mut().zip(&mut row.host_mut()[at..]);
                        for ((d, g), (s, r)) in direction.iter_mut().zip(g).zip(state) {
                            *s += *scale * (g - *r);
                            *r = *g;
                            *d = *s;
                        }
                    }
                    Fold::Local { sum, scale } => {
                        for ((d, g), s) in direction.iter_mut().zip(g).zip(&mut sum.host_mut()[at..]) {
                            *s += g;
                            *d = *scale * g;
                        }
                    }
                }
                let Some(step) = &mut self.step else { continue };
                let w = &self.weights.host()[at..at + len];
                if step.weight_decay != 0.0 {
                    for (d, w) in direction.iter_mut().zip(w) {
                        *d += step.weight_decay * w;
                    }
                }
                if let Some((velocity, beta)) = &mut step.momentum {
                    for (d, v) in direction.iter_mut().zip(&mut velocity.host_mut()[at..]) {
                        *v = *beta * *v + *d;
                        *d = *v;
                    }
                }
                for ((fresh, w), d) in step.fresh.host_mut()[at..].iter_mut().zip(w).zip(&*direction) {
                    *fresh = w - step.lr * d;
                }
                if let Fold::Sum { sum, .. } | Fold::Table { sum, .. } = &mut self.fold
                    && step.keep != 1.0
                {
                    // Emptied, not multiplied by zero: the product of zero and infinity is not zero.
                    for s in &mut sum.host_mut()[at..at + len] {
                        *s = if step.keep == 0.0 { 0.0 } else { *s * step.keep };
                    }
                }
            }
        }
    }

    /// One launch, or as few as the device's limit on bound buffers allows.
    fn on_gpu(self, gpu: &Gpu) {
        let vector = self.layout.vector_size();
        let total = self.layout.total() / vector;
        let none = || (gpu.unused(), 1);
        let all = |buffer: &Buffer| (buffer.handle(), total);
        let (kind, scale, sum, row) = match &self.fold {
            Fold::Nothing => (Kind::Nothing, 0.0, none(), none()),
            Fold::Direct { scale } => (Kind::Direct, *scale, none(), none()),
            Fold::Sum { sum, scale } => (Kind::Sum, *scale, all(sum), none()),
            Fold::Table { sum, row, scale } => (Kind::Table, *scale, all(sum), all(row)),
            Fold::Local { sum, scale } => (Kind::Local, *scale, all(sum), none()),
        };
        let (lr, keep, decay) = self.step.as_ref().map_or((0.0, 1.0, 0.0), |s| (s.lr, s.keep, s.weight_decay));
        let (fresh, momentum) = match &self.step {
            Some(step) => (all(step.fresh), step.momentum.as_ref().map(|(v, beta)| (all(v), *beta))),
            None => (none(), None),
        };
        let weights = if self.step.is_some() { all(self.weights) } else { none() };
        let steps = self.step.is_some();
        let keeps = match keep {
            0.0 => Keep::Nothing,
            1.0 => Keep::All,
            _ => Keep::Part,
        };
        let momentum_on = momentum.is_some();
        let (velocity, beta) = momentum.unwrap_or((none(), 0.0));

        // Eight buffers besides the gradients are bound: weights, fresh, sum, row, velocity, loss, losses, seal.
        let room = (gpu.client.properties().hardware.max_bindings as usize).saturating_sub(8 + 1).max(1);
        let segments = self.layout.segments();
        let skip_gradient = kind == Kind::Nothing;
        for (part, (segments, gradients)) in segments.chunks(room).zip(self.gradient.chunks(room)).enumerate() {
            let plan = Plan {
                kind,
                steps,
                keeps,
                decays: decay != 0.0,
                momentum: momentum_on,
                notes_loss: part == 0,
                places: if skip_gradient {
                    Vec::new()
                } else {
                    segments.iter().map(|s| (s.start / vector, s.len / vector)).collect()
                },
            };
            let longest = plan.places.iter().map(|p| p.1).max().unwrap_or(1);
            // SAFETY: every length is the bound buffer's own, counted in vectors; a slot that the plan does not touch is
            // bound to a small buffer that is long enough for its declared length.
            unsafe {
                let arg = |(handle, len): (cubecl::server::Handle, usize)| BufferArg::from_raw_parts(handle, len);
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
                    arg(weights.clone()),
                    arg(fresh.clone()),
                    arg(sum.clone()),
                    arg(row.clone()),
                    arg(velocity.clone()),
                    BufferArg::from_raw_parts(self.loss.handle(), 1),
                    BufferArg::from_raw_parts(self.losses.handle(), self.losses.len()),
                    BufferArg::from_raw_parts(gpu.sealed(self.seal), 4),
                    scale,
                    lr,
                    keep,
                    decay,
                    beta,
                    self.slot as u32,
                    plan,
                )
            }
            LAUNCHES.fetch_add(1, Ordering::Relaxed);
            if skip_gradient {
                break;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Nothing,
    Direct,
    Sum,
    Table,
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Keep {
    Nothing,
    Part,
    All,
}

/// What a launch is specialised for; each plan compiles once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Plan {
    kind: Kind,
    steps: bool,
    keeps: Keep,
    decays: bool,
    momentum: bool,
    notes_loss: bool,
    /// (start in the flat buffer, length) of each gradient, in vectors.
    places: Vec<(usize, usize)>,
}

// An `if` on the plan is decided when the kernel is compiled, one on a number when it runs: they cannot be one.
#[allow(clippy::too_many_arguments, clippy::collapsible_if)]
#[cube(launch_unchecked)]
fn update_kernel<N: Size>(
    gradients: &Sequence<Box<[Vector<f32, N>]>>,
    weights: &[Vector<f32, N>],
    fresh: &mut [Vector<f32, N>],
    sum: &mut [Vector<f32, N>],
    row: &mut [Vector<f32, N>],
    velocity: &mut [Vector<f32, N>],
    loss: &[f32],
    losses: &mut [f32],
    _seal: &[f32],
    scale: f32,
    lr: f32,
    keep: f32,
    decay: f32,
    beta: f32,
    slot: u32,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.notes_loss) {
        if ABSOLUTE_POS == 0 {
            losses[slot as usize] = loss[0];
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
            let g = gradients[k][i];
            let mut direction = g * Vector::new(scale);
            if comptime!(plan.kind == Kind::Sum) {
                direction += sum[at];
            }
            if comptime!(plan.kind == Kind::Table) {
                direction = sum[at] + (g - row[at]) * Vector::new(scale);
                row[at] = g;
            }
            if comptime!(plan.kind == Kind::Local) {
                sum[at] += g;
            }
            if comptime!(plan.kind == Kind::Sum || plan.kind == Kind::Table) {
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
                if comptime!(plan.decays) {
                    direction += w * Vector::new(decay);
                }
                if comptime!(plan.momentum) {
                    direction += velocity[at] * Vector::new(beta);
                    velocity[at] = direction;
                }
                fresh[at] = w - direction * Vector::new(lr);
            }
            i += stride;
        }
    }
}
