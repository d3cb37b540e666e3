//! The last step of most parameters' gradients: the sum of parts that many cubes wrote, one launch for all layers of a backward pass.
//!
//! Invariant: inside [`together`] such a gradient has its place but not yet its values; nobody reads it before [`together`] returns.
//! A backward pass keeps to that as long as no parameter is used twice, for then Burn would add two of them up.

use super::buffers::{UNITS, arg, fresh, len, view};
use crate::launch;
use crate::layout::{ALIGNMENT, Layout};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use std::cell::RefCell;

/// Floats of parts that may wait: the launch that a longer sum costs is not worth the memory.
const MOST: usize = 5 << 17;

/// Cubes along a sum; longer ones take turns.
const WIDE: usize = 512;

/// The sums of a backward pass that are still to be made.
#[derive(Default)]
struct Pending {
    /// Floats of the buffer that all sums share.
    room: usize,
    buffer: Option<CubeTensor>,
    used: usize,
    parts: Vec<CubeTensor>,
    sums: Vec<Sum>,
}

/// Several rows, each the sum of its own parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sum {
    /// Its place in the launch's buffer, and its length, in floats.
    start: usize,
    length: usize,
    /// Floats of a row.
    row: usize,
    /// Parts of a row.
    count: usize,
}

/// What a launch is compiled for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Plan {
    sums: Vec<Sum>,
}

thread_local! {
    static PENDING: RefCell<Option<Pending>> = const { RefCell::new(None) };
}

/// Runs the backward pass of a model of this layout, and makes all its sums of parts with one launch at its end. On the CPU there is
/// nothing to make.
pub fn together<T>(layout: &Layout, pass: impl FnOnce() -> T) -> T {
    /// Puts an end to it even if the pass panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            PENDING.take();
        }
    }
    let end = End;
    // The gradient of a linear layer's weights has no parts, and others have many, so that long ones will not wait.
    let summed = layout.segments().iter().filter(|s| s.shape.len() != 2 && s.len <= MOST / 8);
    let room = summed.map(|s| s.len.next_multiple_of(ALIGNMENT)).sum();
    PENDING.set(Some(Pending { room, ..Pending::default() }));
    let result = pass();
    if let Some(pending) = PENDING.take() {
        pending.launch();
    }
    drop(end);
    result
}

/// The sum of `parts` [replicas, count, ..] over the second dimension, for a parameter of this shape.
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
    /// A place for a sum, if there is still room for one.
    fn place(&mut self, parts: &CubeTensor, sum: Sum, shape: &[usize]) -> Option<CubeTensor> {
        if len(parts) > MOST {
            return None;
        }
        let behind = self.room.checked_sub(self.used + sum.length)?;
        let room = self.room;
        let buffer = self.buffer.get_or_insert_with(|| fresh(parts, &[room]));
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
        // Some room for the sums' own buffer and for the runtime's.
        let most = bindings.saturating_sub(4).max(1);
        for (parts, sums) in self.parts.chunks(most).zip(self.sums.chunks(most)) {
            launch(parts, &buffer, Plan { sums: sums.to_vec() });
        }
    }
}

fn launch(parts: &[CubeTensor], sums: &CubeTensor, plan: Plan) {
    let longest = plan.sums.iter().map(|s| s.length).max().unwrap_or(1);
    let cubes = CubeCount::Static(longest.div_ceil(UNITS as usize).min(WIDE) as u32, plan.sums.len() as u32, 1);
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
    // SAFETY: every place lies in the buffer of sums, every row has as many parts of its length as its sum says.
    unsafe { launch::with(client, made, cubes, buffers, |_| ()) }
}

/// Row k of the cubes makes sum k.
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
