//! Table rows: a row holds one worker's latest gradient (or a mean of its gradients), in f32 or bf16.
//!
//! bf16 is the upper half of an f32, rounded to nearest, ties to even. A bf16 row takes half the memory: two
//! neighbouring values share a 32-bit word, the first in the lower half. If the tensors of a model are not
//! all of even size, each value takes a word of its own on a GPU.

use crate::device::{Buffer, Device, Gpu, Slot};
use crate::layout::Layout;
use cubecl::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// How the entries of a table are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits: the exponent range of f32, 8 bits of significand.
    Bf16,
}

/// One row of a table.
pub struct Row {
    values: Buffer,
    dtype: Dtype,
}

/// Rounds an f32 to bf16.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // NaN stays NaN: rounding up its bits could wrap around to zero.
    (if x.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

fn from_bf16(x: u16) -> f32 {
    f32::from_bits((x as u32) << 16)
}

impl Row {
    /// A row of zeros for a model of this layout.
    pub fn zeros(device: &Device, layout: &Layout, dtype: Dtype) -> Self {
        Row { values: device.zeros(Self::floats(layout, dtype)), dtype }
    }

    /// A flat f32 buffer as a row, without a copy.
    pub fn of(values: Buffer) -> Self {
        Row { values, dtype: Dtype::F32 }
    }

    /// The storage of the row, in 32-bit words.
    pub fn words(&mut self) -> &mut Buffer {
        &mut self.values
    }

    /// Number of 32-bit words of a row.
    pub fn floats(layout: &Layout, dtype: Dtype) -> usize {
        match dtype {
            Dtype::F32 => layout.total(),
            Dtype::Bf16 if layout.vector_size() == 1 => layout.total(),
            Dtype::Bf16 => layout.total() / 2,
        }
    }

    /// Copies the values to the host, for tests and debugging. The first `layout.total()` values are the row.
    /// On the CPU, unused words follow if the row is in bf16 and not all tensors are of even size.
    pub fn download(&self, device: &Device, layout: &Layout) -> Result<Vec<f32>, crate::DeviceError> {
        let words = device.download(&self.values)?;
        if !self.packed() {
            return Ok(words);
        }
        let apart = layout.vector_size() == 1 && matches!(device, Device::Gpu(_));
        let low = |w: &f32| f32::from_bits(w.to_bits() << 16);
        Ok(match apart {
            true => words.iter().map(low).collect(),
            false => words.iter().flat_map(|w| [low(w), f32::from_bits(w.to_bits() & 0xffff_0000)]).collect(),
        })
    }

    pub(crate) fn packed(&self) -> bool {
        self.dtype == Dtype::Bf16
    }

    /// Binds the row for a kernel: as 32-bit words (`words`, the form of a bf16 row), or as vectors of
    /// `vector` floats (the form of an f32 row). If the row does not have the requested form, a small unused
    /// buffer is bound instead.
    pub(crate) fn bind(&self, gpu: &Gpu, vector: usize, words: bool) -> Slot {
        match (words, self.packed()) {
            (false, false) => (self.values.handle(), self.values.len() / vector),
            (true, true) => (self.values.handle(), self.values.len()),
            _ => (gpu.unused(), 1),
        }
    }

    /// The entries of a row in host memory, for writing.
    pub(crate) fn entries(&mut self) -> Entries<'_> {
        match self.dtype {
            Dtype::F32 => Entries::F32(self.values.host_mut()),
            Dtype::Bf16 => Entries::Bf16(bytemuck::cast_slice_mut(self.values.host_mut())),
        }
    }

    /// Calls `read(k, value)` for the k-th entry of `there`, in f32.
    #[inline(always)]
    pub(crate) fn read_on_cpu(&self, there: Range<usize>, mut read: impl FnMut(usize, f32)) {
        match self.dtype {
            Dtype::F32 => self.values.host()[there].iter().enumerate().for_each(|(k, r)| read(k, *r)),
            Dtype::Bf16 => {
                let halves: &[u16] = bytemuck::cast_slice(self.values.host());
                halves[there].iter().enumerate().for_each(|(k, r)| read(k, from_bf16(*r)));
            }
        }
    }
}

/// The entries of a row in host memory, as they are stored.
pub(crate) enum Entries<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
}

impl Entries<'_> {
    /// Rewrites the entries of `there`, each paired with one item of `others`. `renew(old, other)` returns
    /// the new value. `changed(old, stored, other)` then gets the new value as it was stored, after rounding.
    #[inline(always)]
    pub(crate) fn renew<T>(
        &mut self,
        there: Range<usize>,
        others: impl Iterator<Item = T>,
        renew: impl Fn(f32, &T) -> f32,
        changed: impl Fn(f32, f32, T),
    ) {
        match self {
            Entries::F32(values) => values[there].iter_mut().zip(others).for_each(|(r, other)| {
                let old = *r;
                *r = renew(old, &other);
                changed(old, *r, other);
            }),
            Entries::Bf16(halves) => halves[there].iter_mut().zip(others).for_each(|(r, other)| {
                let old = from_bf16(*r);
                *r = to_bf16(renew(old, &other));
                changed(old, from_bf16(*r), other);
            }),
        }
    }
}

static RESUMS: AtomicU64 = AtomicU64::new(0);

/// Number of launches of this process that added up rows (0 on the CPU).
pub fn resums() -> u64 {
    RESUMS.load(Ordering::Relaxed)
}

/// sum = scale · Σ rows. Removes the rounding errors that a sum collects when it is updated by increments.
pub fn resum(device: &Device, layout: &Layout, sum: &mut Buffer, rows: &[&Row], scale: f32) {
    match device {
        Device::Cpu => {
            let s = sum.host_mut();
            s.fill(0.0);
            rows.iter().for_each(|row| row.read_on_cpu(0..s.len(), |k, r| s[k] += r));
            s.iter_mut().for_each(|s| *s *= scale);
        }
        Device::Gpu(gpu) => add(gpu, layout.vector_size(), sum, rows, scale, true),
    }
}

/// sum = scale · Σ rows with `anew`, else sum += scale · Σ rows. Each launch adds as many rows as the device
/// can bind.
pub(crate) fn add(gpu: &Gpu, vector: usize, sum: &Buffer, rows: &[&Row], scale: f32, anew: bool) {
    let vectors = sum.len() / vector;
    let room = gpu.bindings().saturating_sub(8).max(1);
    for (part, rows) in rows.chunks(room).enumerate() {
        let packed = rows[0].packed();
        let plan = Adding { rows: rows.len(), packed, anew: anew && part == 0, vector };
        // SAFETY: every length is that of the bound buffer, in vectors (in words for packed rows).
        unsafe {
            let arg = |slot: Slot| BufferArg::from_raw_parts(slot.0, slot.1);
            add_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static(vectors.div_ceil(256).clamp(1, 2048) as u32, 1, 1),
                CubeDim::new_1d(256),
                vector,
                rows.iter().filter(|_| !packed).map(|r| arg(r.bind(gpu, vector, false))).collect(),
                rows.iter().filter(|_| packed).map(|r| arg(r.bind(gpu, vector, true))).collect(),
                BufferArg::from_raw_parts(sum.handle(), vectors),
                scale,
                plan,
            )
        }
        RESUMS.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Adding {
    rows: usize,
    packed: bool,
    anew: bool,
    vector: usize,
}

#[cube(launch_unchecked)]
fn add_kernel<N: Size>(
    rows: &Sequence<Box<[Vector<f32, N>]>>,
    packed: &Sequence<Box<[u32]>>,
    sum: &mut [Vector<f32, N>],
    scale: f32,
    #[comptime] plan: Adding,
) {
    let stride = CUBE_DIM as usize * CUBE_COUNT;
    let mut at = ABSOLUTE_POS;
    while at < sum.len() {
        let mut total = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for r in 0..comptime!(plan.rows) {
            if comptime!(plan.packed) {
                total += unpack::<N>(&packed[r], at, plan.vector);
            } else {
                total += rows[r][at];
            }
        }
        let mut new = total * Vector::new(scale);
        if comptime!(!plan.anew) {
            new += sum[at];
        }
        sum[at] = new;
        at += stride;
    }
}

/// Reads the vector of `size` floats at position `at` of a packed row.
#[cube]
pub(crate) fn unpack<N: Size>(words: &[u32], at: usize, #[comptime] size: usize) -> Vector<f32, N> {
    let mut values = Vector::<f32, N>::new(0.0f32);
    if comptime!(size == 1) {
        values.insert(0usize, f32::reinterpret(words[at] << 16u32));
    } else {
        #[unroll]
        for pair in 0..comptime!(size / 2) {
            let word = words[at * comptime!(size / 2) + pair];
            values.insert(comptime!(2 * pair), f32::reinterpret(word << 16u32));
            values.insert(comptime!(2 * pair + 1), f32::reinterpret(word & 0xffff_0000u32));
        }
    }
    values
}

/// Stores a vector of `size` floats at position `at` of a packed row, and returns the stored values after
/// rounding.
#[cube]
pub(crate) fn pack<N: Size>(
    words: &mut [u32],
    at: usize,
    values: Vector<f32, N>,
    #[comptime] size: usize,
) -> Vector<f32, N> {
    let mut stored = Vector::<f32, N>::new(0.0f32);
    if comptime!(size == 1) {
        let low = round(values.extract(0usize));
        words[at] = low;
        stored.insert(0usize, f32::reinterpret(low << 16u32));
    } else {
        #[unroll]
        for pair in 0..comptime!(size / 2) {
            let low = round(values.extract(comptime!(2 * pair)));
            let high = round(values.extract(comptime!(2 * pair + 1)));
            words[at * comptime!(size / 2) + pair] = low | (high << 16u32);
            stored.insert(comptime!(2 * pair), f32::reinterpret(low << 16u32));
            stored.insert(comptime!(2 * pair + 1), f32::reinterpret(high << 16u32));
        }
    }
    stored
}

/// The upper half of an f32, rounded to nearest, ties to even.
#[cube]
fn round(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let rounded = (bits + 0x7fffu32 + ((bits >> 16u32) & 1u32)) >> 16u32;
    // NaN stays NaN: rounding up its bits could wrap around to zero.
    select((bits & 0x7fff_ffffu32) > 0x7f80_0000u32, (bits >> 16u32) | 0x40u32, rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_and_ties_to_even() {
        for (x, bits) in [
            (1.0, 0x3f80),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (-2.5, 0xc020),
            (f32::INFINITY, 0x7f80),
        ] {
            assert_eq!(to_bf16(x), bits, "{x}");
        }
        assert!(from_bf16(to_bf16(f32::NAN)).is_nan());
        assert_eq!(from_bf16(to_bf16(0.15625)), 0.15625);
    }
}
