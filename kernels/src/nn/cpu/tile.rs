//! The register tile under every convolution: P rows times N panels of 16 lanes, kept in registers while k runs.
//!
//! Plain loops over arrays of fixed length. Compiled once per instruction set, they become 512-bit or 256-bit fused
//! multiply-adds; which one runs is asked of the processor, once.

/// Floats of a panel.
pub const LANES: usize = 16;

/// The accumulators of a tile.
pub type Tile<const P: usize, const N: usize> = [[[f32; LANES]; N]; P];

/// acc += a b.
#[inline(always)]
fn axpy<const FMA: bool>(acc: &mut [f32; LANES], a: f32, b: &[f32; LANES]) {
    for i in 0..LANES {
        acc[i] = if FMA { a.mul_add(b[i], acc[i]) } else { acc[i] + a * b[i] };
    }
}

/// Values of k whose places are looked up together: of each row and panel a piece of fixed length, inside which nothing is checked,
/// however well the compiler follows lengths around it.
const TOGETHER: usize = 4;

/// acc[p][n] += Σ_k rows[p][k] panels[n][k]: every row has the same length, every panel 16 floats per k.
#[inline(always)]
pub fn rows_by_panels<const P: usize, const N: usize, const FMA: bool>(
    rows: [&[f32]; P],
    panels: [&[f32]; N],
    acc: &mut Tile<P, N>,
) {
    let panels = panels.map(|panel| panel.as_chunks::<LANES>().0);
    let (pieces, rest) = (rows.map(|row| row.as_chunks::<TOGETHER>()), panels.map(|p| p.as_chunks::<TOGETHER>()));
    let mut sums = *acc;
    for piece in 0..pieces[0].0.len() {
        let rows: [&[f32; TOGETHER]; P] = std::array::from_fn(|p| &pieces[p].0[piece]);
        let panels: [&[[f32; LANES]; TOGETHER]; N] = std::array::from_fn(|n| &rest[n].0[piece]);
        for k in 0..TOGETHER {
            for p in 0..P {
                for n in 0..N {
                    axpy::<FMA>(&mut sums[p][n], rows[p][k], &panels[n][k]);
                }
            }
        }
    }
    for k in 0..pieces[0].1.len() {
        for p in 0..P {
            for n in 0..N {
                axpy::<FMA>(&mut sums[p][n], pieces[p].1[k], &rest[n].1[k]);
            }
        }
    }
    *acc = sums;
}

/// acc[p][n] += Σ_j a[starts[j] + p] b[j][n]: the sum over pixels of outer products.
#[inline(always)]
pub fn outer_products<const P: usize, const N: usize, const FMA: bool>(
    a: &[f32],
    starts: &[usize],
    b: &[f32],
    acc: &mut Tile<P, N>,
) {
    let mut sums = *acc;
    // The compiler is not to see that the P values are neighbours, or it makes vectors of them instead of the lanes.
    let len = a.len() - P;
    let rows: [&[f32]; P] = std::array::from_fn(|p| &std::hint::black_box(&a[p..])[..len]);
    let (panels, _) = b.as_chunks::<LANES>();
    for (&start, panels) in starts.iter().zip(panels.chunks_exact(N)) {
        for p in 0..P {
            for n in 0..N {
                axpy::<FMA>(&mut sums[p][n], rows[p][start], &panels[n]);
            }
        }
    }
    *acc = sums;
}

/// Which instructions this processor has.
#[derive(Clone, Copy, PartialEq)]
pub enum Instructions {
    /// 32 registers of 16 lanes.
    Avx512,
    /// 16 registers of 8 lanes.
    Avx2,
    /// Whatever the build assumes.
    Plain,
}

/// Asks the processor; the answer is kept by the standard library.
pub fn instructions() -> Instructions {
    #[cfg(target_arch = "x86_64")]
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
                    $body::<8, 2, true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) {
                    $body::<6, 1, true>($($arg),*)
                }
                use $crate::nn::cpu::tile::{Instructions, instructions};
                match instructions() {
                    // SAFETY: the processor has said that it knows these instructions.
                    Instructions::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Instructions::Avx2 => return unsafe { avx2($($arg),*) },
                    Instructions::Plain => {}
                }
            }
            $body::<4, 1, { cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use for_each_instruction_set;
