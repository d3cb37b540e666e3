//! Generated images for machines without data: ten textures of 32×32×3.
//!
//! A class is one of five orientations and one of two wavelengths of a triangle wave. Phase, colour, contrast,
//! a small tilt and noise are drawn for every image. Because the phase is random, the mean of every class is
//! the same grey. A linear classifier therefore learns almost nothing, and a small convolutional network learns
//! the textures quickly. The class depends on the orientation, so images must not be flipped. Pixels are
//! computed with sums and products only, so the bytes depend only on the seed.

use crate::{ImageData, ImageSet, keyed};
use rand_distr::{Distribution, Normal, Uniform};

/// Number of training images.
pub const TRAIN: usize = 10_000;
/// Number of test images.
pub const TEST: usize = 2_000;
const SIDE: usize = 32;
/// Cosine and sine of the five orientations, 36 degrees apart.
const DIRECTIONS: [(f32, f32); 5] = [
    (1.0, 0.0),
    (0.809_017, 0.587_785_25),
    (0.309_017, 0.951_056_5),
    (-0.309_017, 0.951_056_5),
    (-0.809_017, 0.587_785_25),
];
/// Wavelengths in pixels.
const WAVELENGTHS: [f32; 2] = [4.5, 9.0];

/// Generates the set for `seed`. Labels repeat 0, 1, .., 9, so all classes have the same size.
pub fn generate(seed: u64) -> ImageData {
    ImageData {
        train: images(seed, 0, TRAIN),
        test: images(seed, 1, TEST),
        channels: 3,
        side: SIDE,
        classes: (0..10).map(|c| format!("{}° {}", 36 * (c / 2), ["fine", "wide"][c % 2])).collect(),
        mean: [0.5; 3],
        std: [0.25; 3],
    }
}

fn images(seed: u64, split: u64, count: usize) -> ImageSet {
    let mut pixels = Vec::with_capacity(count * 3 * SIDE * SIDE);
    let labels: Vec<u8> = (0..count).map(|i| (i % 10) as u8).collect();
    for (i, &label) in labels.iter().enumerate() {
        image(&mut pixels, label as usize, &mut keyed([seed, 0x73796e74, split, i as u64]));
    }
    ImageSet { pixels, labels }
}

/// Appends one image of class `label`.
fn image(pixels: &mut Vec<u8>, label: usize, random: &mut impl rand::Rng) {
    let unit = Uniform::new(0f32, 1.0).expect("a range");
    let mut draw = |low: f32, high: f32| low + (high - low) * unit.sample(random);
    let (cos, sin) = DIRECTIONS[label / 2];
    let tilt = draw(-0.12, 0.12);
    let (dx, dy) = (cos - tilt * sin, sin + tilt * cos);
    let wavelength = WAVELENGTHS[label % 2] * draw(0.9, 1.1);
    let phase = draw(0.0, 1.0);
    let contrast: [f32; 3] = [draw(0.3, 1.0), draw(0.3, 1.0), draw(0.3, 1.0)];
    let base: [f32; 3] = [draw(0.35, 0.65), draw(0.35, 0.65), draw(0.35, 0.65)];
    let noise = Normal::new(0f32, 0.12).expect("a positive deviation");
    for c in 0..3 {
        for y in 0..SIDE {
            for x in 0..SIDE {
                let turns = (dx * x as f32 + dy * y as f32) / wavelength + phase;
                let wave = 4.0 * (turns - turns.floor() - 0.5).abs() - 1.0;
                let value = base[c] + 0.3 * contrast[c] * wave + noise.sample(random);
                pixels.push((value * 255.0).clamp(0.0, 255.0) as u8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_depend_on_the_seed_and_the_split() {
        let set = |seed| images(seed, 0, 20).pixels;
        assert_eq!(set(3), set(3));
        assert_ne!(set(3), set(4));
        assert_ne!(images(3, 0, 20).pixels, images(3, 1, 20).pixels);
    }

    #[test]
    fn a_linear_classifier_stays_under_60_percent() {
        // Least squares on all pixels by SGD with one output per class: about the best that a linear classifier
        // reaches here.
        let (train, test) = (images(0, 0, 3000), images(0, 1, 500));
        let d = 3 * SIDE * SIDE;
        let value = |set: &ImageSet, i: usize, k: usize| set.pixels[i * d + k] as f32 / 127.5 - 1.0;
        let mut w = vec![0f32; 10 * d];
        for epoch in 0..6 {
            for i in 0..train.labels.len() {
                let x: Vec<f32> = (0..d).map(|k| value(&train, i, k)).collect();
                for (c, w) in w.chunks_exact_mut(d).enumerate() {
                    let y = w.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>();
                    let error = y - (train.labels[i] as usize == c) as u8 as f32;
                    let rate = 4e-4 / (1 + epoch) as f32;
                    w.iter_mut().zip(&x).for_each(|(w, x)| *w -= rate * error * x);
                }
            }
        }
        let right = (0..test.labels.len())
            .filter(|&i| {
                let score = |w: &[f32]| (0..d).map(|k| w[k] * value(&test, i, k)).sum::<f32>();
                let best = w.chunks_exact(d).map(score).enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
                best == test.labels[i] as usize
            })
            .count();
        let accuracy = right as f64 / test.labels.len() as f64;
        assert!(accuracy < 0.6, "{accuracy}");
    }
}
