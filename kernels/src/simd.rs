//! The register tile under every convolution: P rows times N panels of 16 lanes, kept in registers while k runs.
//!
//! What lies in registers is written down here and not left to the compiler. Of plain loops over arrays it made vectors of the lanes in
//! one build and of the rows in another, and of intrinsics it read the factors ahead until the sums no longer fitted: half of the speed
//! went with a change somewhere else. So one factor is read and multiplied in one piece of assembly, and nothing else is.

/// Floats of a panel.
pub const LANES: usize = 16;

/// The 16 lanes of a panel, in registers. One type per instruction set; [`for_each_instruction_set`] alone names them, each where the
/// processor has said that it knows its instructions.
pub trait Lanes: Copy {
    /// Reads them.
    fn load(lanes: &[f32; LANES]) -> Self;

    /// Writes them.
    fn store(self) -> [f32; LANES];

    /// Of each lane the sum.
    fn add(self, other: Self) -> Self;

    /// Of each lane the difference.
    fn sub(self, other: Self) -> Self;

    /// Of each lane the half.
    fn half(self) -> Self;

    /// sums[n] += a panels[n] with `a` the float `k` places behind `row`, rounded once where the processor can.
    ///
    /// # Safety
    /// That float can be read.
    unsafe fn plus<const N: usize>(sums: &mut [Self; N], row: *const f32, k: usize, panels: &[Self; N]);
}

/// Whatever the build assumes.
#[derive(Clone, Copy)]
pub struct Plain([f32; LANES]);

impl Lanes for Plain {
    #[inline(always)]
    fn load(lanes: &[f32; LANES]) -> Self {
        Plain(*lanes)
    }

    #[inline(always)]
    fn store(self) -> [f32; LANES] {
        self.0
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Plain(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Plain(std::array::from_fn(|lane| self.0[lane] - other.0[lane]))
    }

    #[inline(always)]
    fn half(self) -> Self {
        Plain(self.0.map(|lane| 0.5 * lane))
    }

    #[inline(always)]
    unsafe fn plus<const N: usize>(sums: &mut [Self; N], row: *const f32, k: usize, panels: &[Self; N]) {
        // SAFETY: the caller's.
        let a = unsafe { *row.add(k) };
        for (sum, b) in sums.iter_mut().zip(panels) {
            for (sum, b) in sum.0.iter_mut().zip(b.0) {
                *sum = if cfg!(target_arch = "aarch64") { a.mul_add(b, *sum) } else { *sum + a * b };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Lanes};
    use std::arch::asm;
    use std::arch::x86_64::*;

    /// Defines the piece of assembly for registers of one kind: sum0 += a b0 and sum1 += a b1, with `a` the float `k` places behind `row`.
    macro_rules! two_products {
        ($name:ident, $features:literal, $vector:ty, $register:ident) => {
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn $name(row: *const f32, k: usize, [sum0, sum1]: [&mut $vector; 2], [b0, b1]: [$vector; 2]) {
                let _a: $vector;
                // SAFETY: reads the float that the caller has promised.
                unsafe {
                    asm!(
                        "vbroadcastss {a}, dword ptr [{row} + 4*{k}]",
                        "vfmadd231ps {sum0}, {a}, {b0}",
                        "vfmadd231ps {sum1}, {a}, {b1}",
                        row = in(reg) row, k = in(reg) k, a = out($register) _a,
                        sum0 = inout($register) *sum0, sum1 = inout($register) *sum1, b0 = in($register) b0, b1 = in($register) b1,
                        options(pure, readonly, nostack, preserves_flags),
                    )
                }
            }
        };
    }
    two_products!(plus512, "avx512f,avx512vl,avx512dq,fma", __m512, zmm_reg);
    two_products!(plus256, "avx2,fma", __m256, ymm_reg);

    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    impl Lanes for Avx512 {
        #[inline(always)]
        fn load(lanes: &[f32; LANES]) -> Self {
            // SAFETY: 16 floats are read where 16 lie; the processor knows the instruction, as [`Lanes`] says.
            Avx512(unsafe { _mm512_loadu_ps(lanes.as_ptr()) })
        }

        #[inline(always)]
        fn store(self) -> [f32; LANES] {
            let mut lanes = [0.0; LANES];
            // SAFETY: 16 floats are written where 16 lie; the processor knows the instruction, as [`Lanes`] says.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), self.0) };
            lanes
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: the processor knows the instruction, as [`Lanes`] says.
            Avx512(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: as above.
            Avx512(unsafe { _mm512_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn half(self) -> Self {
            // SAFETY: as above.
            Avx512(unsafe { _mm512_mul_ps(self.0, _mm512_set1_ps(0.5)) })
        }

        #[inline(always)]
        unsafe fn plus<const N: usize>(sums: &mut [Self; N], row: *const f32, k: usize, panels: &[Self; N]) {
            for (sums, panels) in sums.chunks_mut(2).zip(panels.chunks(2)) {
                match (sums, panels) {
                    // SAFETY: the caller's; the processor knows the instructions, as [`Lanes`] says.
                    ([sum0, sum1], [b0, b1]) => unsafe { plus512(row, k, [&mut sum0.0, &mut sum1.0], [b0.0, b1.0]) },
                    ([sum], [b]) => unsafe { sum.0 = _mm512_fmadd_ps(_mm512_set1_ps(*row.add(k)), b.0, sum.0) },
                    _ => unreachable!("chunks of one or two"),
                }
            }
        }
    }

    #[derive(Clone, Copy)]
    pub struct Avx2([__m256; 2]);

    impl Lanes for Avx2 {
        #[inline(always)]
        fn load(lanes: &[f32; LANES]) -> Self {
            let at = lanes.as_ptr();
            // SAFETY: twice 8 floats are read where 16 lie; the processor knows the instruction, as [`Lanes`] says.
            Avx2(unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] })
        }

        #[inline(always)]
        fn store(self) -> [f32; LANES] {
            let mut lanes = [0.0; LANES];
            let at = lanes.as_mut_ptr();
            // SAFETY: twice 8 floats are written where 16 lie; the processor knows the instruction, as [`Lanes`] says.
            unsafe {
                _mm256_storeu_ps(at, self.0[0]);
                _mm256_storeu_ps(at.add(8), self.0[1]);
            }
            lanes
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: the processor knows the instruction, as [`Lanes`] says.
            Avx2(unsafe { [_mm256_add_ps(self.0[0], other.0[0]), _mm256_add_ps(self.0[1], other.0[1])] })
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: as above.
            Avx2(unsafe { [_mm256_sub_ps(self.0[0], other.0[0]), _mm256_sub_ps(self.0[1], other.0[1])] })
        }

        #[inline(always)]
        fn half(self) -> Self {
            // SAFETY: as above.
            Avx2(unsafe {
                [_mm256_mul_ps(self.0[0], _mm256_set1_ps(0.5)), _mm256_mul_ps(self.0[1], _mm256_set1_ps(0.5))]
            })
        }

        #[inline(always)]
        unsafe fn plus<const N: usize>(sums: &mut [Self; N], row: *const f32, k: usize, panels: &[Self; N]) {
            for (sum, b) in sums.iter_mut().zip(panels) {
                // SAFETY: the caller's; the processor knows the instructions, as [`Lanes`] says.
                unsafe { plus256(row, k, sum.0.each_mut(), b.0) }
            }
        }
    }
}
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// The accumulators of a tile.
pub type Tile<L, const P: usize, const N: usize> = [[L; N]; P];

/// A tile of zeros.
#[inline(always)]
pub fn zeros<L: Lanes, const P: usize, const N: usize>() -> Tile<L, P, N> {
    [[L::load(&[0.0; LANES]); N]; P]
}

/// acc[p][n] += Σ_k rows[p][k] panels[n][k]: every row has the same length, every panel 16 floats per k.
#[inline(always)]
pub fn rows_by_panels<L: Lanes, const P: usize, const N: usize>(
    rows: [&[f32]; P],
    panels: [&[f32]; N],
    acc: &mut Tile<L, P, N>,
) {
    let length = rows[0].len();
    assert!(rows.iter().all(|row| row.len() == length), "rows of one length");
    let rows = rows.map(|row| row.as_ptr());
    let panels = panels.map(|panel| &panel.as_chunks::<LANES>().0[..length]);
    let mut sums = *acc;
    for k in 0..length {
        let panels: [L; N] = std::array::from_fn(|n| L::load(&panels[n][k]));
        for (sums, row) in sums.iter_mut().zip(rows) {
            // SAFETY: every row has `length` floats.
            unsafe { L::plus(sums, row, k, &panels) }
        }
    }
    *acc = sums;
}

/// acc[p][n] += Σ_j a[starts[j] + p] b[j][n]: the sum over pixels of outer products.
#[inline(always)]
pub fn outer_products<L: Lanes, const P: usize, const N: usize>(
    a: &[f32],
    starts: &[usize],
    b: &[f32],
    acc: &mut Tile<L, P, N>,
) {
    let last = a.len().checked_sub(P).expect("room for a column");
    let rows: [*const f32; P] = std::array::from_fn(|p| a[p..].as_ptr());
    let (panels, _) = b.as_chunks::<LANES>();
    let mut sums = *acc;
    for (&start, panels) in starts.iter().zip(panels.chunks_exact(N)) {
        assert!(start <= last, "a column inside the image");
        let panels: [L; N] = std::array::from_fn(|n| L::load(&panels[n]));
        for (sums, row) in sums.iter_mut().zip(rows) {
            // SAFETY: P floats lie from `last` on, so row p has one at `start`.
            unsafe { L::plus(sums, row, start, &panels) }
        }
    }
    *acc = sums;
}

/// Which instructions this processor has, the widest first.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum Instructions {
    /// 32 registers of 16 lanes.
    Avx512,
    /// 16 registers of 8 lanes.
    Avx2,
    /// Whatever the build assumes.
    Plain,
}

#[cfg(test)]
thread_local! {
    /// What this thread's test is to run, if not the widest.
    pub static ONLY: std::cell::Cell<Option<Instructions>> = const { std::cell::Cell::new(None) };
}

/// What the processor is given to do.
pub fn instructions() -> Instructions {
    #[cfg(test)]
    if let Some(only) = ONLY.get() {
        assert!(only >= widest(), "the processor does not know {only:?}");
        return only;
    }
    widest()
}

/// Asks the processor; the answer is kept by the standard library.
pub fn widest() -> Instructions {
    // Miri knows no assembly.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512vl") && has!("avx512dq") && has!("fma") {
            return Instructions::Avx512;
        }
        if has!("avx2") && has!("fma") {
            return Instructions::Avx2;
        }
    }
    Instructions::Plain
}

/// Rows and panels of the tile that fits this processor's registers.
pub fn tile_size() -> (usize, usize) {
    match instructions() {
        Instructions::Avx512 => (8, 2),
        Instructions::Avx2 => (6, 1),
        Instructions::Plain => (4, 1),
    }
}

/// Defines a function whose body is compiled for AVX-512, for AVX2 with FMA, and plainly, each with its tile ([`tile_size`]).
macro_rules! for_each_instruction_set {
    ($visible:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:ident) => {
        #[allow(clippy::too_many_arguments)]
        $visible fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,fma")]
                fn avx512($($arg: $type),*) {
                    $body::<$crate::simd::Avx512, 8, 2>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) {
                    $body::<$crate::simd::Avx2, 6, 1>($($arg),*)
                }
                use $crate::simd::{Instructions, instructions};
                match instructions() {
                    // SAFETY: the processor has said that it knows these instructions.
                    Instructions::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Instructions::Avx2 => return unsafe { avx2($($arg),*) },
                    Instructions::Plain => {}
                }
            }
            $body::<$crate::simd::Plain, 4, 1>($($arg),*)
        }
    };
}
pub(crate) use for_each_instruction_set;
