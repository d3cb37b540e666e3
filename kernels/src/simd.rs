//! Vector instructions of the CPU, and the register tile of every convolution: P rows times N panels of 16
//! lanes. The tile stays in registers during the loop over k.
//!
//! The code fixes which values are in registers, instead of leaving this to the compiler. From plain loops
//! over arrays, the compiler vectorised the lanes in one build and the rows in another. From intrinsics, it
//! loaded the factors so early that the sums no longer fitted into the registers. A change in another place
//! could cost half of the speed. So one block of assembly loads a factor and multiplies it. Nothing else is
//! assembly.

/// Lanes of a panel: a panel has this many floats for each k.
pub const LANES: usize = 16;

/// The 16 lanes of a panel, in registers.
///
/// There is one type per instruction set. Only [`for_each_instruction_set`] names these types. It uses a type
/// only after it has detected that the CPU supports the instructions.
pub trait Lanes: Copy {
    /// Loads 16 floats.
    fn load(lanes: &[f32; LANES]) -> Self;

    /// The lanes as 16 floats.
    fn store(self) -> [f32; LANES];

    /// The sum, lane by lane.
    fn add(self, other: Self) -> Self;

    /// The difference, lane by lane.
    fn sub(self, other: Self) -> Self;

    /// Half of each lane.
    fn half(self) -> Self;

    /// sums[n] += a · panels[n], where `a` is the float at `row + k`. Rounds once (fused) where the CPU can.
    ///
    /// # Safety
    /// The float at `row + k` must be readable.
    unsafe fn plus<const N: usize>(sums: &mut [Self; N], row: *const f32, k: usize, panels: &[Self; N]);
}

/// The lanes as an array, with the instructions that the build assumes.
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
        // SAFETY: guaranteed by the caller.
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

    /// Defines the block of assembly for one type of register: sum0 += a · b0 and sum1 += a · b1, where `a`
    /// is the float at `row + k`.
    macro_rules! two_products {
        ($name:ident, $features:literal, $vector:ty, $register:ident) => {
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn $name(row: *const f32, k: usize, [sum0, sum1]: [&mut $vector; 2], [b0, b1]: [$vector; 2]) {
                let _a: $vector;
                // SAFETY: reads one float, which the caller guarantees to be readable.
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
            // SAFETY: reads 16 floats from an array of 16. The CPU supports the instruction, see [`Lanes`].
            Avx512(unsafe { _mm512_loadu_ps(lanes.as_ptr()) })
        }

        #[inline(always)]
        fn store(self) -> [f32; LANES] {
            let mut lanes = [0.0; LANES];
            // SAFETY: writes 16 floats to an array of 16. The CPU supports the instruction, see [`Lanes`].
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), self.0) };
            lanes
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: the CPU supports the instruction, see [`Lanes`].
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
                    // SAFETY: guaranteed by the caller. The CPU supports the instructions, see [`Lanes`].
                    ([sum0, sum1], [b0, b1]) => unsafe { plus512(row, k, [&mut sum0.0, &mut sum1.0], [b0.0, b1.0]) },
                    ([sum], [b]) => unsafe { sum.0 = _mm512_fmadd_ps(_mm512_set1_ps(*row.add(k)), b.0, sum.0) },
                    _ => unreachable!("chunks(2) yields one or two elements"),
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
            // SAFETY: reads twice 8 floats from an array of 16. The CPU supports the instruction, see
            // [`Lanes`].
            Avx2(unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] })
        }

        #[inline(always)]
        fn store(self) -> [f32; LANES] {
            let mut lanes = [0.0; LANES];
            let at = lanes.as_mut_ptr();
            // SAFETY: writes twice 8 floats to an array of 16. The CPU supports the instruction, see
            // [`Lanes`].
            unsafe {
                _mm256_storeu_ps(at, self.0[0]);
                _mm256_storeu_ps(at.add(8), self.0[1]);
            }
            lanes
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: the CPU supports the instruction, see [`Lanes`].
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
                // SAFETY: guaranteed by the caller. The CPU supports the instructions, see [`Lanes`].
                unsafe { plus256(row, k, sum.0.each_mut(), b.0) }
            }
        }
    }
}
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// The sums of a register tile: P rows of N panels.
pub type Tile<L, const P: usize, const N: usize> = [[L; N]; P];

/// A tile of zeros.
#[inline(always)]
pub fn zeros<L: Lanes, const P: usize, const N: usize>() -> Tile<L, P, N> {
    [[L::load(&[0.0; LANES]); N]; P]
}

/// acc[p][n] += Σ_k rows[p][k] · panels[n][k]. All rows have the same length. Each panel has 16 floats per k.
#[inline(always)]
pub fn rows_by_panels<L: Lanes, const P: usize, const N: usize>(
    rows: [&[f32]; P],
    panels: [&[f32]; N],
    acc: &mut Tile<L, P, N>,
) {
    let length = rows[0].len();
    assert!(rows.iter().all(|row| row.len() == length), "all rows must have the same length");
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

/// acc[p][n] += Σ_j a[starts[j] + p] · b[j][n]: the sum of the outer products of all pixels.
#[inline(always)]
pub fn outer_products<L: Lanes, const P: usize, const N: usize>(
    a: &[f32],
    starts: &[usize],
    b: &[f32],
    acc: &mut Tile<L, P, N>,
) {
    let last = a.len().checked_sub(P).expect("`a` should have at least P floats");
    let rows: [*const f32; P] = std::array::from_fn(|p| a[p..].as_ptr());
    let (panels, _) = b.as_chunks::<LANES>();
    let mut sums = *acc;
    for (&start, panels) in starts.iter().zip(panels.chunks_exact(N)) {
        assert!(start <= last, "a column must lie inside the image");
        let panels: [L; N] = std::array::from_fn(|n| L::load(&panels[n]));
        for (sums, row) in sums.iter_mut().zip(rows) {
            // SAFETY: `start` is at most `last`, and P floats start at `last`. So row p has a float at
            // `start`.
            unsafe { L::plus(sums, row, start, &panels) }
        }
    }
    *acc = sums;
}

/// The instruction sets that the code distinguishes, from the widest to the narrowest.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum Instructions {
    /// 32 registers of 16 lanes.
    Avx512,
    /// 16 registers of 8 lanes.
    Avx2,
    /// The instructions that the build assumes.
    Plain,
}

#[cfg(test)]
thread_local! {
    /// The instruction set that a test on this thread uses. `None` stands for the widest.
    pub static ONLY: std::cell::Cell<Option<Instructions>> = const { std::cell::Cell::new(None) };
}

/// The instruction set to use: the widest, unless a test has set `ONLY`.
pub fn instructions() -> Instructions {
    #[cfg(test)]
    if let Some(only) = ONLY.get() {
        assert!(only >= widest(), "the CPU does not support {only:?}");
        return only;
    }
    widest()
}

/// The widest instruction set that the CPU supports. The standard library caches the result of the detection.
pub fn widest() -> Instructions {
    // Miri does not support inline assembly.
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

/// Rows and panels of the register tile that fits the registers of this CPU.
pub fn tile_size() -> (usize, usize) {
    match instructions() {
        Instructions::Avx512 => (8, 2),
        Instructions::Avx2 => (6, 1),
        Instructions::Plain => (4, 1),
    }
}

/// Defines a function whose body is compiled three times: for AVX-512, for AVX2 with FMA, and for the
/// instructions that the build assumes. Each version has its own register tile ([`tile_size`]). A call takes
/// the widest version that the CPU supports.
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
                    // SAFETY: `instructions` has detected that the CPU supports them.
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
