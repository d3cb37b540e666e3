//! The layers as plain loops: the CPU path, and what the kernels are held against.

pub(super) mod conv;
pub(super) mod direct;
pub(super) mod linear;
pub(super) mod loss;
pub(super) mod norm;
pub(super) mod pool;
pub(super) mod winograd;

use rayon::prelude::*;

/// Does all pieces of work on the threads of the current pool; on this thread where the pool has no other.
pub(crate) fn parallel<T: Send>(pieces: impl Iterator<Item = T>, work: impl Fn(T) + Sync + Send) {
    if rayon::current_num_threads() == 1 {
        pieces.for_each(work);
    } else {
        pieces.collect::<Vec<T>>().into_par_iter().for_each(work);
    }
}

/// What is `unsafe` on the host, small enough for Miri: `cargo +nightly miri test -p stagger-kernels --lib`.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd;

    /// By every path of [`for_each_instruction_set`] that this processor can take (Miri: the plain one).
    fn by_each_set(check: impl Fn() + Sync) {
        use simd::Instructions::*;
        for only in [Plain, Avx2, Avx512].into_iter().filter(|only| *only >= simd::widest()) {
            // A thread of its own, which is the only one of its pool.
            let alone = || {
                simd::ONLY.set(Some(only));
                rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().unwrap().install(&check)
            };
            let result = std::thread::scope(|scope| scope.spawn(alone).join());
            assert!(result.is_ok(), "by {only:?}");
        }
    }

    #[test]
    fn a_convolution_is_the_same_by_every_set_of_instructions() {
        use crate::layers::{Conv, Precision};
        // Sizes that no tile divides, a stride, a pixel's own convolution, and those with fewer products: several pieces of work and one
        // that is not whole, half a column of the widest tile, many inputs.
        for (height, width, from, to, kernel, stride, pad) in [
            (7, 5, 3, 19, 3, 1, 1),
            (6, 7, 5, 33, 3, 2, 1),
            (4, 4, 9, 8, 1, 2, 0),
            (7, 9, 16, 32, 3, 1, 1),
            (18, 16, 32, 32, 3, 1, 1),
            (2, 6, 80, 48, 3, 1, 1),
        ] {
            // What Miri can do in some minutes: a tile and a panel that are not whole, and nothing that takes fewer products.
            let few = |most: usize, number: usize| if cfg!(miri) { number.min(most) } else { number };
            let [height, width, from, to] = [few(2, height), few(1, width), few(1, from), few(17, to)];
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
            by_each_set(|| {
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
    #[cfg_attr(miri, ignore = "nothing unsafe that the others lack, and slow there")]
    fn a_convolution_is_the_same_on_any_number_of_threads() {
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
            // Fewer than the lines of points, as many, and so many more that outputs are shared out too.
            for threads in [2, 3, 4, 9] {
                assert!(all(threads) == alone, "{threads} threads, {plan:?}");
            }
        }
    }

    /// Root mean square of the errors of Y, by that of Y, at a side that is whole tiles or not.
    #[cfg(not(miri))]
    fn error(side: usize) -> f64 {
        use crate::layers::{Conv, Precision};
        let (batch, from, to, kernel, stride, pad, precision) = (2, 64, 32, 3, 1, 1, Precision::F32);
        let plan = Conv { batch, height: side, width: side, from, to, kernel, stride, pad, precision, replicas: 1 };
        // Without a pattern that sums could profit from, images above zero as after a relu.
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
    fn fewer_products_lose_no_accuracy() {
        let (direct, fewer) = (error(7), error(8));
        eprintln!("direct {direct:.2e}, with fewer products {fewer:.2e}");
        assert!(fewer < direct && direct < 1e-5, "direct {direct:.2e}, with fewer products {fewer:.2e}");
    }

    #[test]
    fn a_product_in_tiles_is_the_product() {
        by_each_set(products);
    }

    /// At a size that no tile divides.
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

    /// Floating-point operations per second of the widest multiply-adds that the processor has (fused, but for the plain path), twelve at a time and nothing else.
    #[cfg(target_arch = "x86_64")]
    fn roof() -> f64 {
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
            // SAFETY: the processor has said that it knows these instructions.
            simd::Instructions::Avx512 => unsafe {
                avx512();
                16
            },
            // SAFETY: as above.
            simd::Instructions::Avx2 => unsafe {
                avx2();
                8
            },
            // SAFETY: every processor of this kind has them.
            simd::Instructions::Plain => unsafe {
                plain();
                4
            },
        };
        (ROUNDS * 12 * 2 * lanes) as f64 / began.elapsed().as_secs_f64()
    }

    /// Both are measured in turn, in pieces so short that both find the processor alone; what the compiler has spoilt is never fast.
    #[cfg(target_arch = "x86_64")]
    #[test]
    #[cfg_attr(any(miri, debug_assertions), ignore = "a speed, of the optimised program")]
    fn a_convolution_keeps_the_multipliers_busy() {
        // An odd number of pixels, and whole tiles, which need fewer products than are counted.
        rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().unwrap().install(|| {
            busy(9, 32, [0.5, 0.5, 0.4]);
            busy(8, 64, [0.75, 0.75, 0.7]);
        });
    }

    /// Of the roof. Measured on a processor with AVX-512: 0.74, 0.76 and 0.69, and with fewer products 1.10, 1.11 and 1.04. Half of the first
    /// came from AVX2 while the compiler chose the registers, and half of the second while it did not inline what is called for them.
    #[cfg(target_arch = "x86_64")]
    fn busy(side: usize, from: usize, least: [f64; 3]) {
        use crate::layers::{Conv, Precision};
        use std::time::{Duration, Instant};
        const PATIENCE: Duration = Duration::from_secs(20);

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
            top = top.max(roof());
            best[0] = best[0].max(rate(&mut || conv::forward(&plan, &x, &w, &mut y)));
            best[1] = best[1].max(rate(&mut || conv::input_gradient(&plan, &dy, &w, &mut dx)));
            best[2] = best[2].max(rate(&mut || conv::weight_gradient(&plan, &x, &dy, &mut dw)));
            if round > 1_000 && enough(best, top) || began.elapsed() > PATIENCE {
                break;
            }
        }
        let shares = best.map(|best| best / top);
        eprintln!("side {side}, roof {:.1} GFLOP/s; forward, data, weights: {shares:.2?} of it", top / 1e9);
        assert!(enough(best, top), "side {side}: {shares:.2?} of {:.1} GFLOP/s", top / 1e9);
    }
}
