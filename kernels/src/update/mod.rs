//! The fused update: one launch folds one gradient into the server's state and, if the rule says so, makes new weights.
//!
//! The arithmetic, per parameter, in f32 (s: sum, r: row of the worker, w: weights, x: the model the worker was sent):
//!
//! ```text
//! direct       a = c g
//! sum          s' = s + c g                                  a = s'      (of several gradients one after the other, in one launch)
//! row          r' = r + m (g - r) ; s' = s + c (r' - r)      a = s'      (forget: r counts as 0; s also loses retired rows)
//! compensated  a = g + λ g² (w - x)                                      (adaptive: q' = m q + (1-m) g², λ/sqrt(q' + 1e-7))
//! local        s' = s + d                                    a = g + μ (w - x)   (a worker's own local step)
//! nothing      the gradient is dropped; only its loss is noted
//!
//! step         a *= f                                        (the rule's factor of this step's direction)
//!              a += b, b' = b + k (a - b)                    (with a base b: calibration)
//!              d = a + λ w                                   plain
//!              v' = β v + d ; d = v'                         heavy ball
//!              p' = p + d ; on turn v' = β v + p', d += β v', p'' = 0            (delayed) Nesterov
//!              m' = β1 m + (1-β1) a ; u' = β2 u + (1-β2) a² ; d = (m'/c1) / (sqrt(max u'/c2) + ε) + λ w   Adam family
//!              w' = w - η d ; s'' = k s'
//! ```
//!
//! A gradient may carry a factor (clipping) with which it is multiplied as it is read. What is not finite in it is left out ([`Guard`]),
//! and flagged. Invariant I2: new weights go to a
//! fresh buffer, so a published snapshot is never written. All other state is touched by the server's stream alone and
//! stays in place. Each byte is read once and written once.

mod cpu;
mod gpu;

pub(crate) use cpu::{Block, clean, clipped};
pub(crate) use gpu::{finite, guarded};

use crate::device::{Buffer, Device, Fence};
use crate::layout::Layout;
use crate::row::Row;
use std::sync::atomic::{AtomicU64, Ordering};

/// A gradient on its way into an update.
pub struct GradientInput<'a> {
    /// Where the buffers belong in the flat weights, one segment a buffer.
    pub layout: &'a Layout,
    /// One buffer per segment.
    pub buffers: &'a [Buffer],
    /// One float with which it is multiplied, if it was clipped.
    pub factor: Option<&'a Buffer>,
    /// The gradient's fence.
    pub fence: &'a Fence,
    /// The job's loss (one float), and where in `losses` it goes.
    pub loss: &'a Buffer,
    /// Ring of recent losses, so that the host reads many at once; its second half holds 1 at the places of gradients that were not
    /// finite (see [`Guard`]).
    pub losses: &'a mut Buffer,
    /// The loss's place in the ring.
    pub slot: usize,
    /// What is done with numbers that are none.
    pub guard: Guard,
}

/// What is done with a gradient's elements that are not finite, before anything is changed. An element that is left out counts as zero,
/// and in a table's row as what the row holds; so none of them enters weights or state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Guard {
    /// Nothing: a worker's own steps.
    Off,
    /// These elements are left out.
    Elements,
    /// These elements are left out, and all of a gradient whose loss is not finite.
    #[default]
    Whole,
}

/// A ring of losses for so many arrivals, with its flags.
pub fn ring(device: &Device, arrivals: usize) -> Buffer {
    device.zeros(2 * arrivals)
}

/// Gradients that one launch folds before the one that it is for, at most.
pub const MOST_PENDING: usize = 3;

/// A gradient that waited to be folded with the next: it has that one's layout and scale, it is not clipped, and its loss belongs right
/// before the next one's in the ring.
pub struct PendingGradient<'a> {
    /// One buffer per segment.
    pub buffers: &'a [Buffer],
    /// The gradient's fence.
    pub fence: &'a Fence,
    /// The job's loss.
    pub loss: &'a Buffer,
}

/// How many gradients a launch on `device` can bind before the one that it is for: each comes with its loss, its fence and a buffer at
/// least, and ten others are there already in a plain step.
pub fn pending_bindable(device: &Device) -> usize {
    match device {
        Device::Cpu => MOST_PENDING,
        Device::Gpu(gpu) => MOST_PENDING.min(gpu.bindings().saturating_sub(10) / 3),
    }
}

/// How many gradients of this layout a launch on `device` can fold before the one that it is for, and leave the bits that a launch for
/// each would leave. On WGPU none: its drivers' compilers may add up products in another order.
pub fn pending_foldable(device: &Device, layout: &Layout) -> usize {
    match device {
        Device::Cpu => MOST_PENDING,
        Device::Gpu(_) if device.name() != "cuda" => 0,
        Device::Gpu(gpu) => (gpu::room(gpu) / (layout.segments().len() + 2)).clamp(1, MOST_PENDING + 1) - 1,
    }
}

/// How a gradient enters the server's state; see the arithmetic above. The plain loop holds it with slices in the place of buffers.
pub enum FoldOp<'a, B: ?Sized = Buffer, R = &'a mut Row> {
    /// It does not: the arrival was dropped.
    Nothing,
    /// Straight into the step.
    Direct {
        /// c.
        scale: f32,
    },
    /// Into a sum.
    Sum {
        /// s, in place.
        sum: &'a mut B,
        /// c.
        scale: f32,
        /// Gradients that came before and waited, in their order, at most [`MOST_PENDING`]: they are folded first.
        earlier: Vec<PendingGradient<'a>>,
    },
    /// Into a table row, and the change of the row into the sum.
    Row {
        /// s, in place.
        sum: &'a mut B,
        /// r, in place.
        row: R,
        /// m: 1 replaces the row, 1/B makes it the mean of B gradients.
        mix: f32,
        /// c.
        scale: f32,
        /// What the row held is not in the sum.
        forget: bool,
        /// Rows that leave the sum with this update: s' loses c times each.
        retired: Vec<&'a Row>,
    },
    /// Straight into the step, corrected for its delay.
    Compensated {
        /// x.
        sent: &'a B,
        /// λ.
        lambda: f32,
        /// q in place, and m, for the adaptive form.
        square: Option<(&'a mut B, f32)>,
    },
    /// A worker's local step, whose direction is also gathered in a sum.
    Local {
        /// s, in place.
        sum: &'a mut B,
        /// x and μ of a proximal term.
        proximal: Option<(&'a B, f32)>,
    },
}

/// What turns a direction into a step.
pub enum OptimizerStep<'a, B: ?Sized = Buffer> {
    /// The direction itself.
    Plain,
    /// Heavy-ball momentum.
    HeavyBall {
        /// v, in place.
        velocity: &'a mut B,
        /// β.
        beta: f32,
    },
    /// Nesterov momentum whose momentum part comes every few updates (with no `pending`: every update).
    Nesterov {
        /// v, in place.
        velocity: &'a mut B,
        /// β.
        beta: f32,
        /// p, in place: directions since the last turn.
        pending: Option<&'a mut B>,
        /// Whether the momentum part comes now.
        turn: bool,
    },
    /// The Adam family, with decoupled weight decay.
    Adam {
        /// m, in place.
        first: &'a mut B,
        /// u, in place.
        second: &'a mut B,
        /// The largest u so far, in place (AMSGrad).
        largest: Option<&'a mut B>,
        /// The constants.
        constants: Adam,
    },
}

/// Constants of the Adam family.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Adam {
    /// β1.
    pub beta1: f32,
    /// β2.
    pub beta2: f32,
    /// ε.
    pub epsilon: f32,
    /// c1, the bias correction of the first moment; 1 for none.
    pub correction1: f32,
    /// c2, of the second.
    pub correction2: f32,
}

/// The step after the fold.
pub struct StepOp<'a, B: ?Sized = Buffer> {
    /// Receives the new weights.
    pub fresh: &'a mut B,
    /// η.
    pub lr: f32,
    /// f, of the direction: before weight decay and momentum.
    pub factor: f32,
    /// k: what remains of the sum (0 empties it, 1 keeps it).
    pub keep: f32,
    /// λ, of the current weights.
    pub weight_decay: f32,
    /// b in place and its k: added to the direction, and then moved by k times the direction without it.
    pub base: Option<(&'a mut B, f32)>,
    /// From direction to step.
    pub method: OptimizerStep<'a, B>,
}

/// Everything that one update reads and writes.
pub struct Update<'a> {
    /// The gradient.
    pub gradient: GradientInput<'a>,
    /// The current weights.
    pub weights: &'a Buffer,
    /// How the gradient enters.
    pub fold: FoldOp<'a>,
    /// The step, if there is one.
    pub step: Option<StepOp<'a>>,
}

static LAUNCHES: AtomicU64 = AtomicU64::new(0);
static WORKER_LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// The server's update launches so far in this process (0 on the CPU, where nothing is launched).
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

/// Likewise those of workers: local steps, and writes to weights that nobody guards.
pub fn worker_launches() -> u64 {
    WORKER_LAUNCHES.load(Ordering::Relaxed)
}

/// Begins to count launches anew, after a warm-up.
pub fn forget_launches() {
    LAUNCHES.store(0, Ordering::Relaxed);
    WORKER_LAUNCHES.store(0, Ordering::Relaxed);
}

pub(crate) fn count_worker_launch() {
    WORKER_LAUNCHES.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn count_launch() {
    LAUNCHES.fetch_add(1, Ordering::Relaxed);
}

/// Below the root of DC-ASGD's running square.
const SQUARE_FLOOR: f32 = 1e-7;

impl GradientInput<'_> {
    /// Panics unless there is one buffer per segment, as long as the segment: what a launch takes for granted.
    pub(crate) fn check(&self) {
        check(self.layout, self.buffers);
    }
}

fn check(layout: &Layout, buffers: &[Buffer]) {
    assert_eq!(buffers.len(), layout.segments().len(), "one gradient buffer per segment");
    for (segment, buffer) in layout.segments().iter().zip(buffers) {
        assert_eq!(buffer.len(), segment.len, "gradient of {}", segment.name);
    }
}

impl Update<'_> {
    /// Runs it on `device`.
    pub fn run(self, device: &Device) {
        self.gradient.check();
        if let FoldOp::Sum { earlier, .. } = &self.fold {
            assert!(
                earlier.len() <= pending_bindable(device).min(self.gradient.slot),
                "few enough, each with its place in the ring"
            );
            earlier.iter().for_each(|e| check(self.gradient.layout, e.buffers));
        }
        match device {
            Device::Cpu => self.on_cpu(),
            Device::Gpu(gpu) => self.on_gpu(gpu),
        }
    }
}
