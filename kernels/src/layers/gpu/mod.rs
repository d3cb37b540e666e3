//! The layers on WGPU and CUDA: this crate's kernels, and the matrix products of CubeK.
//!
//! Every sum has a fixed order, so the same input gives the same bits.

mod buffers;
mod conv;
mod head;
mod linear;
mod loss;
mod norm;
mod pool;
mod product;
mod routine;
pub mod sums;
pub mod tuning;

use super::{Conv, Layers, Norm, Pass, Pool};
use burn::backend::tensor::FloatTensor;
use burn_cubecl::CubeBackend;

impl Layers for CubeBackend {
    fn stagger_conv(x: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        conv::forward(x, weights, plan)
    }

    fn stagger_conv_input(dy: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        conv::input_gradient(dy, weights, plan)
    }

    fn stagger_conv_weights(x: FloatTensor<Self>, dy: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        conv::weight_gradient(x, dy, plan)
    }

    fn stagger_linear(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        pass: Pass,
    ) -> FloatTensor<Self> {
        linear::forward(x, weights, bias, pass)
    }

    fn stagger_linear_input(dy: FloatTensor<Self>, weights: FloatTensor<Self>, pass: Pass) -> FloatTensor<Self> {
        linear::input_gradient(dy, weights, pass)
    }

    fn stagger_linear_weights(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        pass: Pass,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        linear::weight_gradient(x, dy, pass)
    }

    fn stagger_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        plan: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        norm::forward(x, gamma, beta, residual, plan)
    }

    fn stagger_norm_backward(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        norm::backward(x, y, moments, gamma, dy, plan)
    }

    fn stagger_norm_pool(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        plan: Norm,
        pool: Pool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        norm::forward_pooled(x, gamma, beta, plan, pool)
    }

    fn stagger_norm_pool_backward(
        x: FloatTensor<Self>,
        _: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: Norm,
        pool: Pool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        norm::backward_pooled(x, moments, gamma, beta, dy, plan, pool)
    }

    fn stagger_max_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        pool::max_forward(x, plan)
    }

    fn stagger_max_pool_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        pool::max_backward(x, dy, plan)
    }

    fn stagger_mean_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        pool::mean_forward(x, plan)
    }

    fn stagger_mean_pool_backward(dy: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        pool::mean_backward(dy, plan)
    }

    fn stagger_cross_entropy(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        scale: f32,
        replicas: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        loss::cross_entropy(logits, targets, scale, replicas)
    }

    fn stagger_scale(gradient: FloatTensor<Self>, by: FloatTensor<Self>) -> FloatTensor<Self> {
        loss::scale(gradient, by)
    }
}
