//! The last step of most parameter gradients: the sum of parts that many cubes wrote. One launch computes the
//! sums of all layers of a backward pass.
//!
//! Invariant: inside [`together`], such a gradient has its memory but not its values. Nothing reads it before
//! [`together`] returns. A backward pass satisfies this if it uses no parameter twice. For a parameter that
//! is used twice, Burn would add two gradients that have no values yet.

use super::buffers::{UNITS, arg, fresh, len, view};
use crate::launch;
use crate::layout::{ALIGNMENT, Layout};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use std::cell::RefCell;

/// Maximum number of floats of the parts of a waiting sum. For longer parts, one saved launch is not worth
/// the memory.
const MAX_PARTS: usize = 5 << 17;

/// Maximum number of cubes along a sum. In longer sums, each unit computes several elements.
const MAX_CUBES: usize = 512;

/// The sums of a backward pass that wait for the common launch.
#[derive(Default)]
struct Pending {
    /// Length of the buffer that all sums share, in floats.
    capacity: usize,
    buffer: Option<CubeTensor>,
    used: usize,
    parts: Vec<CubeTensor>,
    sums: Vec<Sum>,
}

/// One gradient: one row per replica, each the sum of its own parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sum {
    /// Start in the buffer of the launch, and length, in floats.
    start: usize,
    length: usize,
    /// Length of a row, in floats.
    row: usize,
    /// Number of parts per row.
    count: usize,
}

/// The constants that the kernel is compiled for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Plan {
    sums: Vec<Sum>,
}

thread_local! {
    static PENDING: RefCell<Option<Pending>> = const { RefCell::new(None) };
}

/// Runs the backward pass of a model with this layout, and computes all its sums of parts with one launch at
/// the end. On the CPU, there are no such sums.
pub fn together<T>(layout: &Layout, pass: impl FnOnce() -> T) -> T {
    /// Discards the waiting sums, even if the pass panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            PENDING.take();
        }
    }
    let end = End;
    // The gradients of linear weights (two dimensions) have no parts. Other gradients have many parts, so a
    // long gradient exceeds the limit and does not wait.
    let summed = layout.segments().iter().filter(|s| s.shape.len() != 2 && s.len <= MAX_PARTS / 8);
    let capacity = summed.map(|s| s.len.next_multiple_of(ALIGNMENT)).sum();
    PENDING.set(Some(Pending { capacity, ..Pending::default() }));
    let result = pass();
    if let Some(pending) = PENDING.take() {
        pending.launch();
    }
    drop(end);
    result
}

/// The sum of `parts` [replicas, count, ..] over the second dimension, as the gradient of a parameter of this
/// shape.
pub(super) fn sum_of_parts(parts: CubeTensor, count: usize, replicas: usize, shape: &[usize]) -> CubeTensor {
    let length: usize = shape.iter().product();
    let sum = Sum { start: 0, length, row: length / replicas, count };
    let later = PENDING.with_borrow_mut(|pending| pending.as_mut().and_then(|p| p.place(&parts, sum, shape)));
    later.unwrap_or_else(|| {
        let made = fresh(&parts, shape);
        launch(&[parts], &made, Plan { sums: vec![sum] });
        made
    })
}

impl Pending {
    /// Adds a sum to the common launch. Returns its place in the buffer, or `None` if it does not fit.
    fn place(&mut self, parts: &CubeTensor, sum: Sum, shape: &[usize]) -> Option<CubeTensor> {
        if len(parts) > MAX_PARTS {
            return None;
        }
        let behind = self.capacity.checked_sub(self.used + sum.length)?;
        let capacity = self.capacity;
        let buffer = self.buffer.get_or_insert_with(|| fresh(parts, &[capacity]));
        let mut made = view(buffer.clone(), shape);
        made.handle = made.handle.offset_start(4 * self.used as u64).offset_end(4 * behind as u64);
        self.parts.push(parts.clone());
        self.sums.push(Sum { start: self.used, ..sum });
        self.used = (self.used + sum.length).next_multiple_of(ALIGNMENT);
        Some(made)
    }

    fn launch(self) {
        let Some(buffer) = self.buffer else { return };
        let bindings = buffer.client.properties().hardware.max_bindings as usize;
        // Leaves bindings for the buffer of the sums and for the runtime's own buffers.
        let most = bindings.saturating_sub(4).max(1);
        for (parts, sums) in self.parts.chunks(most).zip(self.sums.chunks(most)) {
            launch(parts, &buffer, Plan { sums: sums.to_vec() });
        }
    }
}

fn launch(parts: &[CubeTensor], sums: &CubeTensor, plan: Plan) {
    let longest = plan.sums.iter().map(|s| s.length).max().unwrap_or(1);
    let cubes = CubeCount::Static(longest.div_ceil(UNITS as usize).min(MAX_CUBES) as u32, plan.sums.len() as u32, 1);
    let client = &sums.client;
    let made = launch::known(client, "sums", UNITS, &plan, || {
        sums_kernel::create_dummy_kernel(
            client.properties_shared(),
            client.target_properties_shared(),
            CubeCount::new_single(),
            CubeDim::new_1d(UNITS),
            parts.iter().map(arg).collect(),
            arg(sums),
            plan.clone(),
        )
    });
    let buffers = parts.iter().map(launch::read).chain([launch::written(sums, DType::F32)]);
    // SAFETY: every sum lies inside the buffer, and every row has as many parts of its length as its sum
    // says.
    unsafe { launch::with(client, made, cubes, buffers, |_| ()) }
}

/// The cubes with y position k compute sum k.
#[cube(launch_unchecked, create_dummy_kernel)]
fn sums_kernel(parts: &Sequence<Box<[f32]>>, sums: &mut [f32], #[comptime] plan: Plan) {
    let step = CUBE_DIM_X as usize * CUBE_COUNT_X as usize;
    #[unroll]
    for k in 0..comptime!(plan.sums.len()) {
        if CUBE_POS_Y as usize == k {
            let sum = comptime!(plan.sums[k]);
            let start = comptime!(sum.start);
            let length = comptime!(sum.length);
            let row = comptime!(sum.row);
            let count = comptime!(sum.count);
            let mut i = ABSOLUTE_POS_X as usize;
            while i < length {
                let first = i / row * count * row + i % row;
                let mut total = 0.0f32;
                for part in 0..count {
                    total += parts[k][first + part * row];
                }
                sums[start + i] = total;
                i += step;
            }
        }
    }
}
