//! Convolutions on the CPU: by Winograd's algorithm where it fits ([`winograd::fits`]), all others directly.
//!
//! Shapes: x [B, H, W, from], weights [to, from, kernel, kernel], y and dy [B, H', W', to]. Images are
//! channels last.

use super::{direct, winograd};
use crate::layers::Conv;

/// Computes y from x and the weights.
pub fn forward(plan: &Conv, x: &[f32], weights: &[f32], y: &mut [f32]) {
    if winograd::fits(plan) { winograd::forward(plan, x, weights, y) } else { direct::forward(plan, x, weights, y) }
}

/// Computes dx from dy and the weights.
pub fn input_gradient(plan: &Conv, dy: &[f32], weights: &[f32], dx: &mut [f32]) {
    if winograd::fits(plan) {
        winograd::input_gradient(plan, dy, weights, dx)
    } else {
        direct::input_gradient(plan, dy, weights, dx)
    }
}

/// Computes dw from x and dy.
pub fn weight_gradient(plan: &Conv, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    if winograd::fits(plan) {
        winograd::weight_gradient(plan, x, dy, dw)
    } else {
        direct::weight_gradient(plan, x, dy, dw)
    }
}
