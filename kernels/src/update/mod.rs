//! The fused update: one launch folds a gradient into the server's state and, if the rule steps, computes new
//! weights.
//!
//! The arithmetic, per parameter, in f32 (g: gradient, s: sum, r: the worker's row, w: weights, x: the model
//! sent to the worker):
//!
//! ```text
//! direct       a = c g
//! sum          s' = s + c g                                  a = s'      (several gradients in turn, in one launch)
//! row          r' = r + m (g - r) ; s' = s + c (r' - r)      a = s'      (forget: r = 0; retired rows also leave s)
//! compensated  a = g + λ g² (w - x)                                 (adaptive: q' = m q + (1-m) g², λ/sqrt(q' + 1e-7))
//! local        s' = s + d                                    a = g + μ (w - x)   (a worker's own local step)
//! nothing      the gradient is dropped; only its loss is stored
//!
//! step         a *= f                                        (the rule's scale of this step's direction)
//!              a += b, b' = b + k (a - b)                    (with a base b: calibration)
//!              d = a + λ w                                   plain
//!              v' = β v + d ; d = v'                         heavy ball
//!              p' = p + d ; with turn: v' = β v + p', d += β v', p'' = 0         (delayed) Nesterov
//!              m' = β1 m + (1-β1) a ; u' = β2 u + (1-β2) a² ; d = (m'/c1) / (sqrt(max u'/c2) + ε) + λ w   Adam family
//!              w' = w - η d ; s'' = k s'
//! ```
//!
//! If the gradient is clipped, it is multiplied by a factor as it is read. Non-finite elements are left out
//! and flagged ([`Guard`]). Each byte is read once and written once.
//!
//! Invariant I2: new weights are written to a fresh buffer, so a published snapshot never changes. All other
//! state is updated in place, and only the server's stream uses it.

mod cpu;
mod gpu;

pub(crate) use cpu::{Block, clean, clipped};
pub(crate) use gpu::{finite, guarded};

use crate::device::{Buffer, Device, Fence};
use crate::layout::Layout;
use crate::row::Row;
use std::sync::atomic::{AtomicU64, Ordering};

/// The gradient that an update takes as input.
pub struct GradientInput<'a> {
    /// The position of each buffer in the flat weights: one segment per buffer.
    pub layout: &'a Layout,
    /// One buffer per segment.
    pub buffers: &'a [Buffer],
    /// One float by which the gradient is multiplied, if it is clipped.
    pub factor: Option<&'a Buffer>,
    /// The gradient's fence.
    pub fence: &'a Fence,
    /// The job's loss (one float), which the update copies to `losses`.
    pub loss: &'a Buffer,
    /// Ring of recent losses ([`ring`]), so that the host reads many at once. Its second half holds the
    /// flags: 1 at the positions of gradients with non-finite values (see [`Guard`]).
    pub losses: &'a mut Buffer,
    /// Position of the loss in the ring.
    pub slot: usize,
    /// What to do with non-finite values.
    pub guard: Guard,
}

/// What to do when a gradient contains NaN or Inf. The update detects non-finite values before it changes
/// weights or state.
///
/// An element that is left out counts as zero. In a fold into a table row it counts as the value that the row
/// holds. Non-finite values therefore never enter weights or state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Guard {
    /// No check. For a worker's local steps.
    Off,
    /// Leave out the non-finite elements.
    Elements,
    /// Leave out the non-finite elements, and the whole gradient if its loss is not finite.
    #[default]
    Whole,
}

/// A ring for the losses of `arrivals` gradients and their flags: 2 · `arrivals` zeros.
pub fn ring(device: &Device, arrivals: usize) -> Buffer {
    device.zeros(2 * arrivals)
}

/// The largest number of pending gradients that one launch folds before its own gradient.
pub const MOST_PENDING: usize = 3;

/// A gradient that waited in order to be folded in the same launch as the next one.
///
/// It has the layout and scale of the next gradient and is not clipped. Its loss goes into the ring position
/// directly before that of the next gradient.
pub struct PendingGradient<'a> {
    /// One buffer per segment.
    pub buffers: &'a [Buffer],
    /// The gradient's fence.
    pub fence: &'a Fence,
    /// The job's loss.
    pub loss: &'a Buffer,
}

/// How many pending gradients a launch on `device` can bind. Each needs at least three bindings: its loss,
/// its fence and one buffer. The rest of a plain step takes ten.
pub fn pending_bindable(device: &Device) -> usize {
    match device {
        Device::Cpu => MOST_PENDING,
        Device::Gpu(gpu) => MOST_PENDING.min(gpu.bindings().saturating_sub(10) / 3),
    }
}

/// How many pending gradients of this layout a launch on `device` can fold with the same bits as one launch
/// per gradient. On WGPU the number is 0, because the compilers of its drivers may add up products in another
/// order.
pub fn pending_foldable(device: &Device, layout: &Layout) -> usize {
    match device {
        Device::Cpu => MOST_PENDING,
        Device::Gpu(_) if !device.is_cuda() => 0,
        Device::Gpu(gpu) => (gpu::room(gpu) / (layout.segments().len() + 2)).clamp(1, MOST_PENDING + 1) - 1,
    }
}

/// How a gradient enters the server's state. The module documentation gives the arithmetic.
///
/// On the CPU, the loop uses slices (`B = [f32]`) instead of buffers.
pub enum FoldOp<'a, B: ?Sized = Buffer, R = &'a mut Row> {
    /// The gradient is dropped.
    Nothing,
    /// The gradient goes directly into the step.
    Direct {
        /// c.
        scale: f32,
    },
    /// The gradient is added to a sum.
    Sum {
        /// s, in place.
        sum: &'a mut B,
        /// c.
        scale: f32,
        /// Pending gradients in the order of their arrival, at most [`MOST_PENDING`]. They are folded first.
        pending: Vec<PendingGradient<'a>>,
    },
    /// The gradient goes into a table row, and the change of the row is added to the sum.
    Row {
        /// s, in place.
        sum: &'a mut B,
        /// r, in place.
        row: R,
        /// m: 1 replaces the row; 1/b for the b-th gradient (b = 1, 2, ...) makes the row the mean of the
        /// gradients.
        mix: f32,
        /// c.
        scale: f32,
        /// The row counts as 0, because the sum does not contain its old content.
        forget: bool,
        /// Rows that leave the sum with this update: c times each is subtracted from s'.
        retired: Vec<&'a Row>,
    },
    /// The gradient, corrected for its delay, goes directly into the step (DC-ASGD).
    Compensated {
        /// x.
        sent: &'a B,
        /// λ.
        lambda: f32,
        /// For the adaptive form: the running square q, in place, and its decay m.
        square: Option<(&'a mut B, f32)>,
    },
    /// A worker's local step, whose direction is also added to a sum.
    Local {
        /// s, in place.
        sum: &'a mut B,
        /// x and μ of the proximal term, if there is one.
        proximal: Option<(&'a B, f32)>,
    },
}

/// How the optimizer turns a direction into a step.
pub enum OptimizerStep<'a, B: ?Sized = Buffer> {
    /// The step is the direction (SGD).
    Plain,
    /// Heavy-ball momentum.
    HeavyBall {
        /// v, in place.
        velocity: &'a mut B,
        /// β.
        beta: f32,
    },
    /// Nesterov momentum. With `pending` it is delayed: the momentum part is applied every few updates only,
    /// at each `turn`.
    Nesterov {
        /// v, in place.
        velocity: &'a mut B,
        /// β.
        beta: f32,
        /// p, in place: the sum of the directions since the last turn.
        pending: Option<&'a mut B>,
        /// Whether this update applies the momentum part.
        turn: bool,
    },
    /// The Adam family, with decoupled weight decay as in AdamW.
    Adam {
        /// m, the first moment, in place.
        first: &'a mut B,
        /// u, the second moment, in place.
        second: &'a mut B,
        /// The element-wise largest u so far, in place (AMSGrad).
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
    /// c2, the bias correction of the second moment; 1 for none.
    pub correction2: f32,
}

/// The step that follows the fold.
pub struct StepOp<'a, B: ?Sized = Buffer> {
    /// Receives the new weights.
    pub fresh: &'a mut B,
    /// η, the learning rate.
    pub lr: f32,
    /// f, the rule's scale of the direction, applied before weight decay and momentum.
    pub scale: f32,
    /// k, the part of the sum that remains after the step: 0 empties the sum, 1 keeps it.
    pub keep: f32,
    /// λ, the weight decay, applied to the current weights.
    pub weight_decay: f32,
    /// b, in place, and its k. The base b is added to the direction a, and then moves by k times a (without b).
    pub base: Option<(&'a mut B, f32)>,
    /// How the direction becomes the step.
    pub method: OptimizerStep<'a, B>,
}

/// Everything that one update reads and writes.
pub struct Update<'a> {
    /// The gradient.
    pub gradient: GradientInput<'a>,
    /// The current weights.
    pub weights: &'a Buffer,
    /// How the gradient enters the state.
    pub fold: FoldOp<'a>,
    /// The step, if there is one.
    pub step: Option<StepOp<'a>>,
}

static LAUNCHES: AtomicU64 = AtomicU64::new(0);
static WORKER_LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// Number of the server's update launches in this process (0 on the CPU, where nothing is launched).
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

/// Number of the workers' update launches in this process: local steps, and steps on shared weights without a
/// lock ([`crate::Live`]).
pub fn worker_launches() -> u64 {
    WORKER_LAUNCHES.load(Ordering::Relaxed)
}

/// Resets both launch counters, after a warm-up.
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

/// Added to DC-ASGD's running square q under the square root.
const SQUARE_FLOOR: f32 = 1e-7;

impl GradientInput<'_> {
    /// Panics unless there is one buffer per segment, of the segment's length. Launches rely on this.
    pub(crate) fn check(&self) {
        check(self.layout, self.buffers);
    }
}

fn check(layout: &Layout, buffers: &[Buffer]) {
    assert_eq!(buffers.len(), layout.segments().len(), "one gradient buffer per segment");
    for (segment, buffer) in layout.segments().iter().zip(buffers) {
        assert_eq!(buffer.len(), segment.len, "length of the gradient of {}", segment.name);
    }
}

impl Update<'_> {
    /// Runs the update on `device`.
    pub fn run(self, device: &Device) {
        self.gradient.check();
        if let FoldOp::Sum { pending, .. } = &self.fold {
            assert!(
                pending.len() <= pending_bindable(device).min(self.gradient.slot),
                "too many pending gradients for one launch, or for the ring positions before this loss"
            );
            pending.iter().for_each(|e| check(self.gradient.layout, e.buffers));
        }
        match device {
            Device::Cpu => self.on_cpu(),
            Device::Gpu(gpu) => self.on_gpu(gpu),
        }
    }
}
