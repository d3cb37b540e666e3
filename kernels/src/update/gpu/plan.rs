//! From an update to a plan: what the kernel is specialised for, and the scalars and buffers that it gets.

use super::room;
use crate::device::{Buffer, Gpu, Slot};
use crate::row::{self, Row};
use crate::update::{Adam, FoldOp, Guard, OptimizerStep, PendingGradient, StepOp, Update};

/// What the kernel is specialised for. Each distinct plan is compiled once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    /// How the gradient enters the state.
    pub(super) kind: Kind,
    /// What to do with non-finite values.
    pub(super) guard: Guard,
    /// Positions of the buffers.
    pub(super) at: Places,
    /// Floats per vector.
    pub(super) vector: usize,
    /// The gradient is multiplied by a clipping factor.
    pub(super) clipped: bool,
    /// The row counts as 0.
    pub(super) forget: bool,
    /// The gradient replaces the row (m = 1).
    pub(super) replaces: bool,
    /// Rows are in bf16.
    pub(super) packed: bool,
    /// Number of retired rows that are bound, including padding.
    pub(super) retired: usize,
    /// The compensation uses a running square (adaptive DC-ASGD).
    pub(super) adaptive: bool,
    /// The local step has a proximal term.
    pub(super) proximal: bool,
    /// A step follows the fold.
    pub(super) steps: bool,
    /// What remains of the sum after the step.
    pub(super) keeps: Keep,
    /// The step multiplies the direction by a scale other than 1.
    pub(super) scales: bool,
    /// The step has weight decay.
    pub(super) decays: bool,
    /// The step adds a base to the direction.
    pub(super) based: bool,
    /// How the direction becomes the step.
    pub(super) method: OptimizerKind,
    /// Nesterov momentum is delayed.
    pub(super) pends: bool,
    /// Adam keeps the largest second moment (AMSGrad).
    pub(super) largest: bool,
    /// This launch stores the losses.
    pub(super) notes_loss: bool,
    /// (start in the flat buffer, length) of each gradient buffer, in vectors.
    pub(super) places: Vec<(usize, usize)>,
    /// Number of pending gradients that are folded first.
    pub(super) pending: usize,
}

/// Positions of a launch's buffers among those that it reads (weights, sent) or writes (all others). The
/// position of a buffer that the plan does not use has no meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Places {
    /// w.
    pub(super) weights: usize,
    /// x.
    pub(super) sent: usize,
    /// w'.
    pub(super) fresh: usize,
    /// s.
    pub(super) sum: usize,
    /// b.
    pub(super) base: usize,
    /// r.
    pub(super) row: usize,
    /// q.
    pub(super) square: usize,
    /// v of momentum, or m of Adam.
    pub(super) first: usize,
    /// p of delayed Nesterov momentum, or u of Adam.
    pub(super) second: usize,
    /// The largest u (AMSGrad).
    pub(super) largest: usize,
}

/// The scalars of a launch. Their values do not require a new kernel.
#[derive(Default)]
pub(super) struct Scalars {
    /// The coefficient of the fold: c; λ of [`FoldOp::Compensated`]; μ of [`FoldOp::Local`].
    pub(super) fold_scale: f32,
    /// m: of the row, or of the running square.
    pub(super) mix: f32,
    /// f.
    pub(super) step_scale: f32,
    /// η.
    pub(super) lr: f32,
    /// k of the sum.
    pub(super) keep: f32,
    /// λ of the step.
    pub(super) decay: f32,
    /// k of the base.
    pub(super) follow: f32,
    /// Adam's constants. β of momentum is in the place of β1.
    pub(super) adam: Adam,
    /// Number of retired rows, without padding.
    pub(super) retired: u32,
}

impl Scalars {
    /// The f32 scalars in the order of the kernel's parameters.
    pub(super) fn floats(&self) -> [f32; 12] {
        let Scalars { fold_scale, mix, step_scale, lr, keep, decay, follow, adam, retired: _ } = *self;
        let Adam { beta1, beta2, epsilon, correction1, correction2 } = adam;
        [fold_scale, mix, step_scale, lr, keep, decay, follow, beta1, beta2, epsilon, correction1, correction2]
    }
}

/// The form of a [`FoldOp`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    #[default]
    Nothing,
    Direct,
    Sum,
    Row,
    Compensated,
    Local,
}

/// What remains of the sum after a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Keep {
    Nothing,
    Part,
    #[default]
    All,
}

/// The form of an [`OptimizerStep`]. Nesterov momentum has two: with and without its momentum part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum OptimizerKind {
    #[default]
    Plain,
    HeavyBall,
    Nesterov,
    NesterovTurn,
    Adam,
}

/// An update that is ready to launch: the plan, scalars and buffers that its launches have in common.
pub(super) struct Prepared<'a> {
    /// The plan, without what depends on the launch (`notes_loss` and `places`).
    pub(super) plan: Plan,
    pub(super) scalars: Scalars,
    pub(super) slots: Slots,
    /// The row, if it is in bf16.
    pub(super) packed: Option<Slot>,
    /// Pending gradients, which are folded first.
    pub(super) pending: &'a [PendingGradient<'a>],
    /// Rows that leave the sum, padded to a power of two.
    pub(super) retired: Vec<&'a Row>,
}

impl<'a> Prepared<'a> {
    /// Decides what the launches of `update` are specialised for, and which scalars and buffers they get.
    pub(super) fn new(gpu: &Gpu, update: &'a Update<'a>) -> Self {
        let Update { gradient, weights, fold, step } = update;
        let vector = gradient.layout.vector_size();
        let mut prepared = Prepared {
            plan: Plan { clipped: gradient.factor.is_some(), guard: gradient.guard, vector, ..Plan::default() },
            scalars: Scalars::default(),
            slots: Slots::new(gradient.layout.total() / vector),
            packed: None,
            pending: &[],
            retired: Vec::new(),
        };
        prepared.plan_fold(gpu, fold);
        if let Some(step) = step {
            prepared.plan_step(step);
        }
        if step.is_some() || matches!(fold, FoldOp::Compensated { .. } | FoldOp::Local { .. }) {
            prepared.plan.at.weights = prepared.slots.read(weights);
        }
        prepared.plan_retired(gpu, fold);
        prepared
    }

    /// Plans how the gradient enters the state.
    fn plan_fold(&mut self, gpu: &Gpu, fold: &'a FoldOp<'a>) {
        match fold {
            FoldOp::Nothing => {}
            FoldOp::Direct { scale } => {
                self.plan.kind = Kind::Direct;
                self.scalars.fold_scale = *scale;
            }
            FoldOp::Sum { sum, scale, pending } => {
                self.plan.kind = Kind::Sum;
                self.plan.at.sum = self.slots.write(sum);
                self.plan.pending = pending.len();
                self.pending = pending;
                self.scalars.fold_scale = *scale;
            }
            FoldOp::Row { sum, row, mix, scale, forget, retired } => {
                self.plan.kind = Kind::Row;
                self.plan.forget = *forget;
                self.plan.replaces = *mix == 1.0;
                self.plan.packed = row.packed();
                self.plan.at.sum = self.slots.write(sum);
                let slot = row.bind(gpu, self.plan.vector, self.plan.packed);
                if self.plan.packed {
                    self.packed = Some(slot);
                } else {
                    self.plan.at.row = self.slots.write_slot(slot);
                }
                self.retired.extend(retired);
                self.scalars.fold_scale = *scale;
                self.scalars.mix = *mix;
            }
            FoldOp::Compensated { sent, lambda, square } => {
                self.plan.kind = Kind::Compensated;
                self.plan.adaptive = square.is_some();
                self.plan.at.sent = self.slots.read(sent);
                self.scalars.fold_scale = *lambda;
                if let Some((q, m)) = square {
                    self.plan.at.square = self.slots.write(q);
                    self.scalars.mix = *m;
                }
            }
            FoldOp::Local { sum, proximal } => {
                self.plan.kind = Kind::Local;
                self.plan.proximal = proximal.is_some();
                self.plan.at.sum = self.slots.write(sum);
                if let Some((x, mu)) = proximal {
                    self.plan.at.sent = self.slots.read(x);
                    self.scalars.fold_scale = *mu;
                }
            }
        }
    }

    /// Plans the step that follows the fold.
    fn plan_step(&mut self, step: &StepOp) {
        self.plan.steps = true;
        self.plan.keeps = match step.keep {
            0.0 => Keep::Nothing,
            1.0 => Keep::All,
            _ => Keep::Part,
        };
        self.plan.decays = step.weight_decay != 0.0;
        self.plan.scales = step.scale != 1.0;
        self.scalars.step_scale = step.scale;
        self.scalars.lr = step.lr;
        self.scalars.keep = step.keep;
        self.scalars.decay = step.weight_decay;
        self.plan.at.fresh = self.slots.write(step.fresh);
        if let Some((base, k)) = &step.base {
            self.plan.based = true;
            self.plan.at.base = self.slots.write(base);
            self.scalars.follow = *k;
        }
        self.plan_method(&step.method);
    }

    /// Plans how the direction becomes the step.
    fn plan_method(&mut self, method: &OptimizerStep) {
        match method {
            OptimizerStep::Plain => {}
            OptimizerStep::HeavyBall { velocity, beta } => {
                self.plan.method = OptimizerKind::HeavyBall;
                self.plan.at.first = self.slots.write(velocity);
                self.scalars.adam.beta1 = *beta;
            }
            OptimizerStep::Nesterov { velocity, beta, pending, turn } => {
                self.plan.method = if *turn { OptimizerKind::NesterovTurn } else { OptimizerKind::Nesterov };
                self.plan.at.first = self.slots.write(velocity);
                self.scalars.adam.beta1 = *beta;
                if let Some(pending) = pending {
                    self.plan.pends = true;
                    self.plan.at.second = self.slots.write(pending);
                }
            }
            OptimizerStep::Adam { first, second, largest, constants } => {
                self.plan.method = OptimizerKind::Adam;
                self.plan.at.first = self.slots.write(first);
                self.plan.at.second = self.slots.write(second);
                self.scalars.adam = *constants;
                if let Some(largest) = largest {
                    self.plan.largest = true;
                    self.plan.at.largest = self.slots.write(largest);
                }
            }
        }
    }

    /// Plans the rows that leave the sum. If they are too many to bind, launches of their own subtract them
    /// first.
    fn plan_retired(&mut self, gpu: &Gpu, fold: &'a FoldOp<'a>) {
        if self.retired.len() > room(gpu) / 2 {
            let FoldOp::Row { sum, scale, .. } = fold else { unreachable!("only a fold into a row retires rows") };
            row::add(gpu, self.plan.vector, sum, &self.retired, -*scale, false);
            self.retired.clear();
        }
        self.scalars.retired = self.retired.len() as u32;
        // Padded to a power of two, so that few kernels serve every number of rows.
        if let Some(first) = self.retired.first().copied() {
            self.retired.resize(self.retired.len().next_power_of_two(), first);
        }
        self.plan.retired = self.retired.len();
    }

    /// How many segments one launch can bind. Each pending gradient needs a loss and a fence per launch, and
    /// one more buffer per segment.
    pub(super) fn segments_per_launch(&self, gpu: &Gpu) -> usize {
        let (room, pending) = (room(gpu), self.pending.len());
        let beside_rows = room - self.retired.len().min(room - 1);
        (beside_rows.saturating_sub(2 * pending) / (1 + pending)).max(1)
    }
}

/// The buffers that an update binds besides gradients, losses and retired rows. They are only those that the
/// plan needs, because every binding costs time on the host.
pub(super) struct Slots {
    /// Length of a flat buffer, in vectors.
    vectors: usize,
    pub(super) read: [Option<Slot>; 2],
    pub(super) written: [Option<Slot>; 7],
}

impl Slots {
    /// No buffers yet, for flat buffers of `vectors` vectors.
    fn new(vectors: usize) -> Self {
        Slots { vectors, read: Default::default(), written: Default::default() }
    }

    /// Adds a buffer that the kernel reads, and returns its position.
    fn read(&mut self, buffer: &Buffer) -> usize {
        place(&mut self.read, (buffer.handle(), self.vectors))
    }

    /// Adds a buffer that the kernel writes, and returns its position.
    fn write(&mut self, buffer: &Buffer) -> usize {
        self.write_slot((buffer.handle(), self.vectors))
    }

    fn write_slot(&mut self, slot: Slot) -> usize {
        place(&mut self.written, slot)
    }
}

/// Puts a slot into the first free position, and returns this position.
fn place(slots: &mut [Option<Slot>], slot: Slot) -> usize {
    let free = slots.iter().position(Option::is_none).expect("a plan needs no more slots than there are");
    slots[free] = Some(slot);
    free
}
