//! Random vectors of dimension 20 in ten classes, for experiments on a small set without a file.
//!
//! Every class is a mixture of two normal clouds with standard deviation 1. Each coordinate of a cloud's centre
//! is drawn from N(0, SPREAD²). A vector is stored as a 6×6 image with one channel, whose last 16 pixels are
//! constant. The 8-bit values are steps of 1/24 of the standard deviation.

use crate::{ImageData, ImageSet, keyed};
use rand_distr::{Distribution, Normal};

/// Dimension of a vector.
pub const DIMENSION: usize = 20;
/// Number of training vectors.
pub const TRAIN: usize = 8_000;
/// Number of test vectors.
pub const TEST: usize = 2_000;
const SIDE: usize = 6;
const CLASSES: usize = 10;
/// Clouds per class.
const CLOUDS: usize = 2;
/// Standard deviation of the centres. Clouds overlap, so that no classifier reaches 100 %.
const SPREAD: f64 = 0.9;
/// Pixel value of 0.
const ZERO: f64 = 128.0;
/// Pixel steps per standard deviation.
const UNIT: f64 = 24.0;

/// Generates the set for `seed`. Labels repeat 0, 1, .., 9, so all classes have the same size.
pub fn generate(seed: u64) -> ImageData {
    ImageData {
        train: vectors(seed, 0, TRAIN),
        test: vectors(seed, 1, TEST),
        channels: 1,
        side: SIDE,
        classes: (0..CLASSES).map(|c| c.to_string()).collect(),
        mean: [(ZERO / 255.0) as f32; 3],
        std: [(UNIT / 255.0) as f32; 3],
    }
}

fn vectors(seed: u64, split: u64, count: usize) -> ImageSet {
    let normal = Normal::new(0.0, 1.0).expect("a positive deviation");
    let mut random = keyed([seed, 0x636c7573, 2, 0]);
    let centres: Vec<f64> = (0..CLASSES * CLOUDS * DIMENSION).map(|_| SPREAD * normal.sample(&mut random)).collect();
    let labels: Vec<u8> = (0..count).map(|i| (i % CLASSES) as u8).collect();
    let mut pixels = Vec::with_capacity(count * SIDE * SIDE);
    for (i, label) in labels.iter().enumerate() {
        let mut random = keyed([seed, 0x636c7573, split, i as u64]);
        let cloud = *label as usize * CLOUDS + i / CLASSES % CLOUDS;
        let vector = centres[cloud * DIMENSION..][..DIMENSION].iter().map(|c| c + normal.sample(&mut random));
        pixels.extend(vector.map(|x| (ZERO + UNIT * x).round().clamp(0.0, 255.0) as u8));
        pixels.extend([ZERO as u8; SIDE * SIDE - DIMENSION]);
    }
    ImageSet { pixels, labels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_centre_classifies_most_vectors_but_not_all() {
        let (train, test) = (vectors(1, 0, 4000), vectors(1, 1, 500));
        assert_eq!(train.pixels, vectors(1, 0, 4000).pixels);
        assert_ne!(train.pixels, vectors(2, 0, 4000).pixels);
        // The mean of each cloud, from the training vectors.
        let size = SIDE * SIDE;
        let mut means = vec![0.0; CLASSES * CLOUDS * size];
        for (i, x) in train.pixels.chunks_exact(size).enumerate() {
            let cloud = i % CLASSES * CLOUDS + i / CLASSES % CLOUDS;
            means[cloud * size..][..size].iter_mut().zip(x).for_each(|(m, x)| *m += *x as f64 / 200.0);
        }
        let right = test.pixels.chunks_exact(size).zip(&test.labels).filter(|(x, label)| {
            let far = |m: &[f64]| m.iter().zip(*x).map(|(m, x)| (m - *x as f64).powi(2)).sum::<f64>();
            let nearest = (0..CLASSES * CLOUDS)
                .min_by(|a, b| far(&means[a * size..][..size]).total_cmp(&far(&means[b * size..][..size])));
            nearest.unwrap() / CLOUDS == **label as usize
        });
        let share = right.count() as f64 / 500.0;
        assert!((0.5..0.99).contains(&share), "{share}");
    }
}
