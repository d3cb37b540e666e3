//! The update on a GPU: one kernel launch, specialised by a plan.
//!
//! `plan` turns an update into a plan with its scalars and buffers, `kernel` holds the kernel, and this
//! module binds the buffers and launches the kernel.

mod kernel;
mod plan;

pub(crate) use kernel::{finite, guarded};

use super::{GradientInput, Update, count_launch, count_worker_launch};
use crate::device::Gpu;
use crate::launch::{self, Bound};
use cubecl::prelude::*;
use cubecl::server::Handle;
use plan::{Kind, Plan, Prepared};
use std::ops::Range;

/// Units per cube.
const UNITS: u32 = 256;

/// Number of buffer sequences among the kernel's parameters: one per [`Group`].
const GROUPS: usize = 10;

/// A sequence of buffers among the kernel's parameters. The order is that of the parameters.
#[derive(Clone, Copy)]
enum Group {
    /// The gradient, one buffer per segment.
    Gradients,
    /// The pending gradients, one buffer per gradient and segment.
    Waited,
    /// The loss of each pending gradient.
    WaitedLosses,
    /// The fence of each pending gradient.
    WaitedFences,
    /// Retired rows in f32.
    Retired,
    /// Retired rows in bf16.
    RetiredPacked,
    /// Other buffers that are only read.
    Read,
    /// Buffers that are written.
    Written,
    /// The row in bf16, if there is one.
    Packed,
    /// The clipping factor, if there is one.
    Factor,
}

/// The buffers of a launch in the order of the kernel's parameters, and the number of buffers in each group.
struct Bindings {
    bound: Vec<Bound>,
    counts: [usize; GROUPS],
}

impl Bindings {
    /// Appends a buffer to `group`. Groups must be filled in their order. `size` is the number of bytes per
    /// element.
    fn push(&mut self, group: Group, handle: Handle, size: usize, written: bool) {
        self.bound.push((handle, size, written));
        self.counts[group as usize] += 1;
    }
}

impl Update<'_> {
    /// Runs the update as one launch, or as several if the device cannot bind all buffers in one.
    pub(super) fn on_gpu(self, gpu: &Gpu) {
        let prepared = Prepared::new(gpu, &self);
        let segments = self.gradient.layout.segments().len();
        let room = prepared.segments_per_launch(gpu);
        for first in (0..segments).step_by(room) {
            prepared.launch(gpu, &self.gradient, first..segments.min(first + room));
            if prepared.plan.kind == Kind::Nothing {
                // No gradient is read, so the first launch does all: it stores the loss.
                break;
            }
        }
    }
}

impl Prepared<'_> {
    /// Launches the kernel over the segments `part` of the gradient.
    fn launch(&self, gpu: &Gpu, incoming: &GradientInput, part: Range<usize>) {
        let plan = self.plan_part(incoming, part.clone());
        let kind = plan.kind;
        let longest = plan.places.iter().map(|p| p.1).max().unwrap_or(1);
        let Bindings { bound, counts } = self.bind(gpu, incoming, &plan, part);
        let key = (plan, counts);
        let made =
            launch::known(&gpu.client, "update", UNITS, &key, || key.0.kernel(gpu, &bound, counts, &self.scalars));
        let cubes = CubeCount::Static(longest.div_ceil(UNITS as usize).clamp(1, 2048) as u32, 1, 1);
        // SAFETY: every position that the plan uses lies inside a bound buffer.
        unsafe {
            launch::with(&gpu.client, made, cubes, bound, |all| {
                self.scalars.floats().into_iter().for_each(|scalar| all.push(scalar));
                all.push(self.scalars.retired);
                all.push(incoming.slot as u32);
            })
        }
        if kind == Kind::Local { count_worker_launch() } else { count_launch() }
    }

    /// The plan of the launch over the segments `part`.
    fn plan_part(&self, incoming: &GradientInput, part: Range<usize>) -> Plan {
        let mut plan = self.plan.clone();
        plan.notes_loss = part.start == 0;
        if plan.kind != Kind::Nothing {
            let vector = plan.vector;
            let segments = &incoming.layout.segments()[part];
            plan.places = segments.iter().map(|s| (s.start / vector, s.len / vector)).collect();
        }
        plan
    }

    /// Lists the buffers of the launch over the segments `part`, in the order of the kernel's parameters.
    fn bind(&self, gpu: &Gpu, incoming: &GradientInput, plan: &Plan, part: Range<usize>) -> Bindings {
        let mut bindings = Bindings { bound: Vec::with_capacity(32), counts: [0; GROUPS] };
        let (of_vector, of_float) = (4 * plan.vector, 4);
        if plan.kind != Kind::Nothing {
            for gradient in &incoming.buffers[part.clone()] {
                bindings.push(Group::Gradients, gradient.handle(), of_vector, false);
            }
        }
        for gradient in self.pending.iter().flat_map(|e| &e.buffers[part.clone()]) {
            bindings.push(Group::Waited, gradient.handle(), of_vector, false);
        }
        for e in self.pending {
            bindings.push(Group::WaitedLosses, e.loss.handle(), of_float, false);
        }
        for e in self.pending {
            bindings.push(Group::WaitedFences, gpu.fenced(e.fence), of_float, false);
        }
        let (group, of_row) = if plan.packed { (Group::RetiredPacked, of_float) } else { (Group::Retired, of_vector) };
        for row in &self.retired {
            bindings.push(group, row.bind(gpu, plan.vector, plan.packed).0, of_row, false);
        }
        for slot in self.slots.read.iter().flatten() {
            bindings.push(Group::Read, slot.0.clone(), of_vector, false);
        }
        for slot in self.slots.written.iter().flatten() {
            bindings.push(Group::Written, slot.0.clone(), of_vector, true);
        }
        if let Some(slot) = &self.packed {
            bindings.push(Group::Packed, slot.0.clone(), of_float, true);
        }
        if let Some(factor) = incoming.factor {
            bindings.push(Group::Factor, factor.handle(), of_float, false);
        }
        bindings.bound.push((incoming.loss.handle(), of_float, false));
        bindings.bound.push((incoming.losses.handle(), of_float, true));
        bindings.bound.push((gpu.fenced(incoming.fence), of_float, false));
        bindings
    }
}

/// How many gradient buffers and rows a launch can bind: the rest is for its other buffers and those of the
/// runtime.
pub(super) fn room(gpu: &Gpu) -> usize {
    gpu.bindings().saturating_sub(16).max(2)
}
