//! The layers as plain loops: the CPU path, and the reference of the GPU kernels.

pub(super) mod conv;
pub(super) mod direct;
pub(super) mod linear;
pub(super) mod loss;
pub(super) mod norm;
pub(super) mod pool;
pub(super) mod winograd;

use rayon::prelude::*;

/// Runs `work` for all pieces on the threads of the current pool. If the pool has one thread, they run on the
/// calling thread.
pub(crate) fn parallel<T: Send>(pieces: impl Iterator<Item = T>, work: impl Fn(T) + Sync + Send) {
    if rayon::current_num_threads() == 1 {
        pieces.for_each(work);
    } else {
        pieces.collect::<Vec<T>>().into_par_iter().for_each(work);
    }
}

/// Tests of the `unsafe` code on the host, small enough for Miri:
/// `cargo +nightly miri test -p stagger-kernels --lib`.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd;

    /// Runs `check` with each instruction set of [`for_each_instruction_set`] that this CPU supports (under
    /// Miri only the plain one).
    fn with_each_instruction_set(check: impl Fn() + Sync) {
        use simd::Instructions::*;
        for only in [Plain, Avx2, Avx512].into_iter().filter(|only| *only >= simd::widest()) {
            // A new thread, which is the only thread of its pool.
            let alone = || {
                simd::ONLY.set(Some(only));
                rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().unwrap().install(&check)
            };
            let result = std::thread::scope(|scope| scope.spawn(alone).join());
            assert!(result.is_ok(), "the check fails with {only:?}");
        }
    }

    #[test]
    fn convolution_matches_float64_with_every_instruction_set() {
        use crate::layers::{Conv, Precision};
        // Sizes that no tile divides, a stride, a 1×1 kernel, and sizes for Winograd: several pieces of work
        // with an incomplete last one, half a column of the widest tile, many inputs.
        for (height, width, from, to, kernel, stride, pad) in [
            (7, 5, 3, 19, 3, 1, 1),
            (6, 7, 5, 33, 3, 2, 1),
            (4, 4, 9, 8, 1, 2, 0),
            (7, 9, 16, 32, 3, 1, 1),
            (18, 16, 32, 32, 3, 1, 1),
            (2, 6, 80, 48, 3, 1, 1),
        ] {
            // Miri gets sizes that take some minutes: an incomplete tile, an incomplete panel, and no
            // Winograd.
            let at_most = |most: usize, number: usize| if cfg!(miri) { number.min(most) } else { number };
            let [height, width, from, to] = [at_most(2, height), at_most(1, width), at_most(1, from), at_most(17, to)];
            let (batch, precision) = (2, Precision::F32);
            let plan = Conv { batch, height, width, from, to, kernel, stride, pad, precision, replicas: 1 };
            let value = |k: usize| ((k * 37 + 11) % 23) as f32 / 8.0 - 1.0;
            let filled = |len: usize| (0..len).map(value).collect::<Vec<f32>>();
            let (x, w, dy) =
                (filled(batch * plan.in_image()), filled(to * plan.patch()), filled(batch * plan.out_pixels() * to));
            let (mut y, mut dx, mut dw) = (vec![0f64; dy.len()], vec![0f64; x.len()], vec![0f64; w.len()]);
            let (out_height, out_width) = (plan.out_height(), plan.out_width());
            for at in 0..dy.len() * plan.patch() {
                let (o, patch) = (at / plan.patch(), at % plan.patch());
                let (pixel, out) = (o / to, o % to);
                let (channel, tap) = (patch / (kernel * kernel), patch % (kernel * kernel));
                let row = (pixel / out_width % out_height * stride + tap / kernel).wrapping_sub(pad);
                let column = (pixel % out_width * stride + tap % kernel).wrapping_sub(pad);
                if row < height && column < width {
                    let image = pixel / (out_height * out_width);
                    let (i, k) =
                        (((image * height + row) * width + column) * from + channel, out * plan.patch() + patch);
                    y[o] += x[i] as f64 * w[k] as f64;
                    dx[i] += dy[o] as f64 * w[k] as f64;
                    dw[k] += dy[o] as f64 * x[i] as f64;
                }
            }
            with_each_instruction_set(|| {
                let [mut a, mut b, mut c] = [y.len(), dx.len(), dw.len()].map(|len| vec![f32::NAN; len]);
                conv::forward(&plan, &x, &w, &mut a);
                conv::input_gradient(&plan, &dy, &w, &mut b);
                conv::weight_gradient(&plan, &x, &dy, &mut c);
                for (what, got, exact) in [("y", &a, &y), ("dx", &b, &dx), ("dw", &c, &dw)] {
                    let off = got.iter().zip(exact).position(|(got, exact)| (*got as f64 - exact).abs() > 1e-3);
                    assert_eq!(off, None, "{what} of {plan:?}");
                }
            });
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "slow, and the other tests cover the same unsafe code")]
    fn convolution_does_not_depend_on_the_number_of_threads() {
        use crate::layers::{Conv, Precision};
        for (side, from, to) in [(7, 16, 32), (18, 32, 32), (4, 48, 160)] {
            let (batch, kernel, stride, pad, precision) = (3, 3, 1, 1, Precision::F32);
            let plan = Conv { batch, height: side, width: side, from, to, kernel, stride, pad, precision, replicas: 1 };
            let filled = |len: usize| (0..len).map(|k| ((k * 37 + 11) % 23) as f32 / 7.0 - 1.5).collect::<Vec<f32>>();
            let (x, w, dy) =
                (filled(batch * plan.in_image()), filled(to * plan.patch()), filled(batch * plan.out_pixels() * to));
            let all = |threads| {
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                    let [mut a, mut b, mut c] = [dy.len(), x.len(), w.len()].map(|len| vec![f32::NAN; len]);
                    conv::forward(&plan, &x, &w, &mut a);
                    conv::input_gradient(&plan, &dy, &w, &mut b);
                    conv::weight_gradient(&plan, &x, &dy, &mut c);
                    [a, b, c].concat().into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                })
            };
            let alone = all(1);
            // Fewer threads than lines of points, as many, and so many more that the outputs are divided too.
            for threads in [2, 3, 4, 9] {
                assert!(all(threads) == alone, "{threads} threads, {plan:?}");
            }
        }
    }

    /// Root mean square of the errors of Y, divided by the root mean square of Y. An even `side` uses
    /// Winograd, an odd one the direct convolution.
    #[cfg(not(miri))]
    fn relative_error(side: usize) -> f64 {
        use crate::layers::{Conv, Precision};
        let (batch, from, to, kernel, stride, pad, precision) = (2, 64, 32, 3, 1, 1, Precision::F32);
        let plan = Conv { batch, height: side, width: side, from, to, kernel, stride, pad, precision, replicas: 1 };
        // Values without a pattern, which could make the sums more accurate. Images are positive, as after a
        // ReLU.
        let value = |k: usize| ((k as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32;
        let x: Vec<f32> = (0..batch * plan.in_image()).map(value).collect();
        let w: Vec<f32> = (0..to * plan.patch()).map(|k| value(k + 1_000_003) - 0.5).collect();
        let mut y = vec![f32::NAN; batch * plan.out_pixels() * to];
        conv::forward(&plan, &x, &w, &mut y);
        let (mut errors, mut squares) = (0.0, 0.0);
        for (o, y) in y.iter().enumerate() {
            let (pixel, out) = (o / to, o % to);
            let (image, row, column) = (pixel / (side * side), pixel / side % side, pixel % side);
            let mut exact = 0f64;
            for tap in 0..9 {
                let (row, column) = ((row + tap / 3).wrapping_sub(1), (column + tap % 3).wrapping_sub(1));
                if row < side && column < side {
                    let x = &x[((image * side + row) * side + column) * from..][..from];
                    let w = w[out * plan.patch()..][..plan.patch()].chunks_exact(9).map(|taps| taps[tap]);
                    exact += x.iter().zip(w).map(|(x, w)| *x as f64 * w as f64).sum::<f64>();
                }
            }
            errors += (*y as f64 - exact).powi(2);
            squares += exact.powi(2);
        }
        (errors / squares).sqrt()
    }

    #[test]
    #[cfg(not(miri))]
    fn winograd_loses_no_accuracy() {
        let (direct, winograd) = (relative_error(7), relative_error(8));
        eprintln!("direct {direct:.2e}, Winograd {winograd:.2e}");
        assert!(winograd < direct && direct < 1e-5, "direct {direct:.2e}, Winograd {winograd:.2e}");
    }

    #[test]
    fn linear_layer_matches_plain_sums_with_every_instruction_set() {
        with_each_instruction_set(products);
    }

    /// Compares the linear layer with plain sums, at a size that no tile divides.
    fn products() {
        let (batch, from, to) = (5, 7, 19);
        let value = |k: usize| ((k * 37 + 11) % 23) as f32 / 8.0 - 1.0;
        let [x, w, dy] = [batch * from, from * to, batch * to].map(|len| (0..len).map(value).collect::<Vec<f32>>());
        let bias = vec![0.5; to];
        let (mut y, mut dx, mut dw) =
            (vec![f32::NAN; batch * to], vec![f32::NAN; batch * from], vec![f32::NAN; from * to]);
        linear::forward(&x, &w, &bias, &mut y);
        linear::input_gradient(&dy, &w, to, &mut dx);
        linear::weight_gradient(&x, &dy, batch, &mut dw);
        for b in 0..batch {
            for o in 0..to {
                let exact: f32 = (0..from).map(|i| x[b * from + i] * w[i * to + o]).sum::<f32>() + 0.5;
                assert!((y[b * to + o] - exact).abs() < 1e-4, "y[{b}, {o}]");
            }
            for i in 0..from {
                let exact: f32 = (0..to).map(|o| dy[b * to + o] * w[i * to + o]).sum();
                assert!((dx[b * from + i] - exact).abs() < 1e-4, "dx[{b}, {i}]");
            }
        }
        for i in 0..from {
            for o in 0..to {
                let exact: f32 = (0..batch).map(|b| x[b * from + i] * dy[b * to + o]).sum();
                assert!((dw[i * to + o] - exact).abs() < 1e-4, "dw[{i}, {o}]");
            }
        }
    }

    /// Peak speed in floating-point operations per second: only the widest multiply-adds of the CPU, twelve
    /// independent ones at a time. They are fused, except on the plain path.
    #[cfg(target_arch = "x86_64")]
    fn peak_speed() -> f64 {
        use std::arch::x86_64::*;
        use std::hint::black_box;
        const ROUNDS: usize = 2_000;

        #[target_feature(enable = "avx512f")]
        fn avx512() {
            let (factor, mut sums) = (black_box(_mm512_set1_ps(0.5)), [_mm512_setzero_ps(); 12]);
            (0..ROUNDS).for_each(|_| sums = sums.map(|sum| _mm512_fmadd_ps(sum, factor, factor)));
            black_box(sums);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2() {
            let (factor, mut sums) = (black_box(_mm256_set1_ps(0.5)), [_mm256_setzero_ps(); 12]);
            (0..ROUNDS).for_each(|_| sums = sums.map(|sum| _mm256_fmadd_ps(sum, factor, factor)));
            black_box(sums);
        }
        #[target_feature(enable = "sse")]
        fn plain() {
            let (factor, mut sums) = (black_box(_mm_set1_ps(0.5)), [_mm_setzero_ps(); 12]);
            (0..ROUNDS).for_each(|_| sums = sums.map(|sum| _mm_add_ps(_mm_mul_ps(sum, factor), factor)));
            black_box(sums);
        }
        let began = std::time::Instant::now();
        let lanes = match simd::instructions() {
            // SAFETY: `instructions` has detected that the CPU supports them.
            simd::Instructions::Avx512 => unsafe {
                avx512();
                16
            },
            // SAFETY: as above.
            simd::Instructions::Avx2 => unsafe {
                avx2();
                8
            },
            // SAFETY: every x86-64 CPU supports SSE.
            simd::Instructions::Plain => unsafe {
                plain();
                4
            },
        };
        (ROUNDS * 12 * 2 * lanes) as f64 / began.elapsed().as_secs_f64()
    }

    /// Measures the convolution and the peak alternately, in pieces so short that other programs do not
    /// disturb every piece. Badly compiled code is slow in every piece.
    #[cfg(target_arch = "x86_64")]
    #[test]
    #[cfg_attr(any(miri, debug_assertions), ignore = "measures the speed of optimised code")]
    fn convolution_comes_close_to_peak_speed() {
        // An odd side (direct), and an even side (Winograd), which needs fewer products than `flops` counts.
        rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().unwrap().install(|| {
            check_speed(9, 32, [0.5, 0.5, 0.4]);
            check_speed(8, 64, [0.75, 0.75, 0.7]);
        });
    }

    /// Checks that forward, input gradient and weight gradient reach the shares `least` of the peak.
    ///
    /// Measured on a CPU with AVX-512: 0.74, 0.76 and 0.69 (direct), and 1.10, 1.11 and 1.04 (Winograd). The
    /// direct convolution reached half of that with AVX2 while the compiler chose the registers. Winograd
    /// reached half of it while the compiler did not inline its vector functions.
    #[cfg(target_arch = "x86_64")]
    fn check_speed(side: usize, from: usize, least: [f64; 3]) {
        use crate::layers::{Conv, Precision};
        use std::time::{Duration, Instant};
        const TIME_LIMIT: Duration = Duration::from_secs(20);

        let (batch, height, width, to, kernel, stride, pad, precision) = (16, side, side, 64, 3, 1, 1, Precision::F32);
        let plan = Conv { batch, height, width, from, to, kernel, stride, pad, precision, replicas: 1 };
        let value = |k: usize| (k % 31) as f32 * 0.01 - 0.15;
        let filled = |len: usize| (0..len).map(value).collect::<Vec<f32>>();
        let (x, w, dy) =
            (filled(batch * plan.in_image()), filled(to * plan.patch()), filled(batch * plan.out_pixels() * to));
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        let flops = 2.0 * (batch * plan.out_pixels() * to * plan.patch()) as f64;
        let rate = |work: &mut dyn FnMut()| {
            let began = Instant::now();
            work();
            flops / began.elapsed().as_secs_f64()
        };
        let (mut best, mut top) = ([0f64; 3], 0f64);
        let began = Instant::now();
        let enough = |best: [f64; 3], top: f64| best.iter().zip(least).all(|(best, least)| *best >= least * top);
        for round in 0.. {
            top = top.max(peak_speed());
            best[0] = best[0].max(rate(&mut || conv::forward(&plan, &x, &w, &mut y)));
            best[1] = best[1].max(rate(&mut || conv::input_gradient(&plan, &dy, &w, &mut dx)));
            best[2] = best[2].max(rate(&mut || conv::weight_gradient(&plan, &x, &dy, &mut dw)));
            if round > 1_000 && enough(best, top) || began.elapsed() > TIME_LIMIT {
                break;
            }
        }
        let shares = best.map(|best| best / top);
        eprintln!(
            "side {side}, peak {:.1} GFLOP/s; forward, input gradient, weight gradient: {shares:.2?} of the peak",
            top / 1e9
        );
        assert!(enough(best, top), "side {side}: {shares:.2?} of the peak of {:.1} GFLOP/s", top / 1e9);
    }
}
