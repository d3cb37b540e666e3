//! The fused update: one launch folds one gradient into the server's state and, if the rule says so, makes new weights.
//!
//! The arithmetic, per parameter, in f32 (s: sum, r: row of the worker, w: weights, x: the model the worker was sent):
//!
//! ```text
//! direct       a = c g
//! sum          s' = s + c g                                  a = s'
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
//! A gradient may carry a factor (clipping) with which it is multiplied as it is read. Invariant I2: new weights go to a
//! fresh buffer, so a published snapshot is never written. All other state is touched by the server's stream alone and
//! stays in place. Each byte is read once and written once.

use crate::device::{Buffer, Device, Gpu, Seal, Slot};
use crate::layout::Layout;
use crate::row::{self, Row};
use cubecl::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};

/// A gradient on its way into an update.
pub struct Incoming<'a> {
    /// Where the buffers belong in the flat weights, one segment a buffer.
    pub layout: &'a Layout,
    /// One buffer per segment.
    pub buffers: &'a [Buffer],
    /// One float with which it is multiplied, if it was clipped.
    pub factor: Option<&'a Buffer>,
    /// The gradient's seal.
    pub seal: &'a Seal,
    /// The job's loss (one float), and where in `losses` it goes.
    pub loss: &'a Buffer,
    /// Ring of recent losses, so that the host reads many at once.
    pub losses: &'a mut Buffer,
    /// The loss's place in the ring.
    pub slot: usize,
}

/// How a gradient enters the server's state; see the arithmetic above.
pub enum Fold<'a> {
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
        sum: &'a mut Buffer,
        /// c.
        scale: f32,
    },
    /// Into a table row, and the change of the row into the sum.
    Row {
        /// s, in place.
        sum: &'a mut Buffer,
        /// r, in place.
        row: &'a mut Row,
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
        sent: &'a Buffer,
        /// λ.
        lambda: f32,
        /// q in place, and m, for the adaptive form.
        square: Option<(&'a mut Buffer, f32)>,
    },
    /// A worker's local step, whose direction is also gathered in a sum.
    Local {
        /// s, in place.
        sum: &'a mut Buffer,
        /// x and μ of a proximal term.
        proximal: Option<(&'a Buffer, f32)>,
    },
}

/// What turns a direction into a step.
pub enum Method<'a> {
    /// The direction itself.
    Plain,
    /// Heavy-ball momentum.
    HeavyBall {
        /// v, in place.
        velocity: &'a mut Buffer,
        /// β.
        beta: f32,
    },
    /// Nesterov momentum whose momentum part comes every few updates (with no `pending`: every update).
    Nesterov {
        /// v, in place.
        velocity: &'a mut Buffer,
        /// β.
        beta: f32,
        /// p, in place: directions since the last turn.
        pending: Option<&'a mut Buffer>,
        /// Whether the momentum part comes now.
        turn: bool,
    },
    /// The Adam family, with decoupled weight decay.
    Adam {
        /// m, in place.
        first: &'a mut Buffer,
        /// u, in place.
        second: &'a mut Buffer,
        /// The largest u so far, in place (AMSGrad).
        largest: Option<&'a mut Buffer>,
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
pub struct Step<'a> {
    /// Receives the new weights.
    pub fresh: &'a mut Buffer,
    /// η.
    pub lr: f32,
    /// f, of the direction: before weight decay and momentum.
    pub factor: f32,
    /// k: what remains of the sum (0 empties it, 1 keeps it).
    pub keep: f32,
    /// λ, of the current weights.
    pub weight_decay: f32,
    /// b in place and its k: added to the direction, and then moved by k times the direction without it.
    pub base: Option<(&'a mut Buffer, f32)>,
    /// From direction to step.
    pub method: Method<'a>,
}

/// Everything that one update reads and writes.
pub struct Update<'a> {
    /// The gradient.
    pub gradient: Incoming<'a>,
    /// The current weights.
    pub weights: &'a Buffer,
    /// How the gradient enters.
    pub fold: Fold<'a>,
    /// The step, if there is one.
    pub step: Option<Step<'a>>,
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
/// Floats per block of the CPU's loop: they stay in the first-level cache between the passes.
const BLOCK: usize = 1024;

impl Incoming<'_> {
    /// Panics unless there is one buffer per segment, as long as the segment: what a launch takes for granted.
    pub(crate) fn check(&self) {
        assert_eq!(self.buffers.len(), self.layout.segments().len(), "one gradient buffer per segment");
        for (segment, buffer) in self.layout.segments().iter().zip(self.buffers) {
            assert_eq!(buffer.len(), segment.len, "gradient of {}", segment.name);
        }
    }

    /// The plain loop: notes the loss, and calls `work(at, g)` with each block of the (clipped) gradient and its place.
    pub(crate) fn on_cpu(&mut self, mut work: impl FnMut(usize, &[f32])) {
        self.losses.host_mut()[self.slot] = self.loss.host()[0];
        let factor = self.factor.map(|f| f.host()[0]).filter(|f| *f != 1.0);
        let mut clipped = [0f32; BLOCK];
        for (segment, gradient) in self.layout.segments().iter().zip(self.buffers) {
            let gradient = gradient.host();
            for (k, g) in gradient.chunks(BLOCK).enumerate() {
                let at = segment.start + k * BLOCK;
                match factor {
                    None => work(at, g),
                    Some(factor) => {
                        clipped.iter_mut().zip(g).for_each(|(c, g)| *c = factor * g);
                        work(at, &clipped[..g.len()]);
                    }
                }
            }
        }
    }
}

impl Update<'_> {
    /// Runs it on `device`.
    pub fn run(self, device: &Device) {
        self.gradient.check();
        match device {
            Device::Cpu => self.on_cpu(),
            Device::Gpu(gpu) => self.on_gpu(gpu),
        }
    }

    /// The plain loop: the CPU path, and the reference of the kernel.
    fn on_cpu(self) {
        let Update { mut gradient, weights, mut fold, mut step } = self;
        let mut direction = [0f32; BLOCK];
        gradient.on_cpu(|at, g| {
            let (d, there) = (&mut direction[..g.len()], at..at + g.len());
            match &mut fold {
                Fold::Nothing => {}
                Fold::Direct { scale } => d.iter_mut().zip(g).for_each(|(d, g)| *d = *scale * g),
                Fold::Sum { sum, scale } => {
                    for ((d, g), s) in d.iter_mut().zip(g).zip(&mut sum.host_mut()[there.clone()]) {
                        *s += *scale * g;
                        *d = *s;
                    }
                }
                Fold::Row { sum, row, mix, scale, forget, retired } => {
                    let s = &mut sum.host_mut()[there.clone()];
                    row.on_cpu(
                        there.clone(),
                        |k, r| {
                            let old = if *forget { 0.0 } else { r };
                            // Stored first, so that the sum holds exactly what the row holds.
                            let new = if *mix == 1.0 { g[k] } else { old + *mix * (g[k] - old) };
                            (new, old)
                        },
                        |k, new, old| s[k] += *scale * (new - old),
                    );
                    for row in retired {
                        row.read_on_cpu(there.clone(), |k, r| s[k] -= *scale * r);
                    }
                    d.copy_from_slice(s);
                }
                Fold::Compensated { sent, lambda, square } => {
                    let (w, x) = (&weights.host()[there.clone()], &sent.host()[there.clone()]);
                    let mut q = square.as_mut().map(|(q, m)| (&mut q.host_mut()[there.clone()], *m));
                    for k in 0..g.len() {
                        let lambda = match &mut q {
                            None => *lambda,
                            Some((q, m)) => {
                                q[k] = *m * q[k] + (1.0 - *m) * g[k] * g[k];
                                *lambda / (q[k] + SQUARE_FLOOR).sqrt()
                            }
                        };
                        d[k] = g[k] + lambda * g[k] * g[k] * (w[k] - x[k]);
                    }
                }
                Fold::Local { proximal, .. } => {
                    d.copy_from_slice(g);
                    if let Some((x, mu)) = proximal {
                        let (w, x) = (&weights.host()[there.clone()], &x.host()[there.clone()]);
                        d.iter_mut().zip(w).zip(x).for_each(|((d, w), x)| *d += *mu * (w - x));
                    }
                }
            }
            let Some(step) = &mut step else { return };
            let w = &weights.host()[there.clone()];
            if step.factor != 1.0 {
                d.iter_mut().for_each(|d| *d *= step.factor);
            }
            if let Some((base, k)) = &mut step.base {
                for (d, b) in d.iter_mut().zip(&mut base.host_mut()[there.clone()]) {
                    let own = *d;
                    *d += *b;
                    *b += *k * own;
                }
            }
            if step.weight_decay != 0.0 && !matches!(step.method, Method::Adam { .. }) {
                d.iter_mut().zip(w).for_each(|(d, w)| *d += step.weight_decay * w);
            }
            match &mut step.method {
                Method::Plain => {}
                Method::HeavyBall { velocity, beta } => {
                    for (d, v) in d.iter_mut().zip(&mut velocity.host_mut()[there.clone()]) {
                        *v = *beta * *v + *d;
                        *d = *v;
                    }
                }
                Method::Nesterov { velocity, beta, pending, turn } => {
                    let v = &mut velocity.host_mut()[there.clone()];
                    let mut p = pending.as_mut().map(|p| &mut p.host_mut()[there.clone()]);
                    for k in 0..g.len() {
                        let gathered = p.as_ref().map_or(0.0, |p| p[k]) + d[k];
                        if *turn {
                            v[k] = *beta * v[k] + gathered;
                            d[k] += *beta * v[k];
                        }
                        if let Some(p) = &mut p {
                            p[k] = if *turn { 0.0 } else { gathered };
                        }
                    }
                }
                Method::Adam { first, second, largest, constants: c } => {
                    let (m, u) = (&mut first.host_mut()[there.clone()], &mut second.host_mut()[there.clone()]);
                    let mut most = largest.as_mut().map(|l| &mut l.host_mut()[there.clone()]);
                    for k in 0..g.len() {
                        m[k] = c.beta1 * m[k] + (1.0 - c.beta1) * d[k];
                        u[k] = c.beta2 * u[k] + (1.0 - c.beta2) * d[k] * d[k];
                        let square = match &mut most {
                            None => u[k],
                            Some(most) => {
                                most[k] = most[k].max(u[k]);
                                most[k]
                            }
                        };
                        d[k] = m[k] / c.correction1 / ((square / c.correction2).sqrt() + c.epsilon)
                            + step.weight_decay * w[k];
                    }
                }
            }
            let fresh = &mut step.fresh.host_mut()[there.clone()];
            fresh.iter_mut().zip(w).zip(&*d).for_each(|((fresh, w), d)| *fresh = w - step.lr * d);
            match &mut fold {
                Fold::Local { sum, .. } => {
                    sum.host_mut()[there].iter_mut().zip(&*d).for_each(|(s, d)| *s += d);
                }
                Fold::Sum { sum, .. } | Fold::Row { sum, .. } if step.keep != 1.0 => {
                    // Emptied, not multiplied by zero: the product of zero and infinity is not zero.
                    for s in &mut sum.host_mut()[there] {
                        *s = if step.keep == 0.0 { 0.0 } else { *s * step.keep };
                    }
                }
                _ => {}
            }
        });
    }

    /// One launch, or as few as the device's limit on bound buffers allows.
    fn on_gpu(self, gpu: &Gpu) {
        let Update { gradient: incoming, weights, fold, step } = self;
        let vector = incoming.layout.vector_size();
        let mut slots = Slots::new(gpu, incoming.layout.total() / vector);
        let mut numbers = Numbers::default();
        let mut plan = Plan { clipped: incoming.factor.is_some(), vector, ..Plan::default() };
        let mut retired: Vec<&Row> = Vec::new();
        let reads_weights = step.is_some() || matches!(fold, Fold::Compensated { .. } | Fold::Local { .. });
        match &fold {
            Fold::Nothing => {}
            Fold::Direct { scale } => (plan.kind, numbers.scale) = (Kind::Direct, *scale),
            Fold::Sum { sum, scale } => {
                (plan.kind, numbers.scale) = (Kind::Sum, *scale);
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
        // The buffers that are bound besides gradients and retired rows, and some room for the runtime's own.
        let room = gpu.bindings().saturating_sub(16).max(2);
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
        let room = room - retired.len().min(room - 1);
        let segments = incoming.layout.segments();
        for (part, (segments, gradients)) in segments.chunks(room).zip(incoming.buffers.chunks(room)).enumerate() {
            let mut plan = plan.clone();
            plan.notes_loss = part == 0;
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
}

// An `if` on the plan is decided when the kernel is compiled, one on a number when it runs: they cannot be one.
#[allow(clippy::too_many_arguments, clippy::collapsible_if)]
#[cube(launch_unchecked)]
fn update_kernel<N: Size>(
    gradients: &Sequence<Box<[Vector<f32, N>]>>,
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
                direction = sum[at] + g * Vector::new(scale);
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
