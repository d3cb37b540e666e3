//! The small CNN of the experiments: conv32-conv32-pool-conv64-conv64-pool-fc128-fc10 with GroupNorm.
//!
//! The hidden layer is normalised too. Its 4,096 inputs are all positive. Without normalisation a learning rate
//! of 0.05 drives every unit below zero within a few steps, and stale gradients make this worse.

use super::{affine, apply, normalised};
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use stagger_kernels::layers::{Pass, conv2d, group_norm_max_pool};

/// Channels per group of every normalisation.
const GROUP: usize = 8;

/// Factor of the logits. It divides the curvature of the last layer by sixteen, so that the default learning
/// rate stays stable when eight stale gradients add up. The last layer is the only one that no normalisation
/// makes invariant to its scale.
const LOGIT_SCALE: f32 = 0.25;

/// A 3×3 convolution without bias (the normalisation has one), GroupNorm and ReLU.
#[derive(Module, Debug)]
pub struct Block {
    conv: Conv2d,
    norm: GroupNorm,
}

impl Block {
    fn new(from: usize, to: usize, device: &Device) -> Self {
        Block {
            conv: Conv2dConfig::new([from, to], [3, 3]).with_bias(false).init(device),
            norm: GroupNormConfig::new(to / GROUP, to).init(device),
        }
    }

    fn forward(&self, x: Tensor<4>, pass: Pass) -> Tensor<4> {
        normalised(&self.norm, self.convolved(x, pass), None, true)
    }

    /// The same, followed by 2×2 max pooling.
    fn forward_and_pool(&self, x: Tensor<4>, pass: Pass) -> Tensor<4> {
        let (gamma, beta) = affine(&self.norm);
        group_norm_max_pool(self.convolved(x, pass), gamma, beta, GROUP)
    }

    fn convolved(&self, x: Tensor<4>, pass: Pass) -> Tensor<4> {
        conv2d(x, self.conv.weight.val(), 1, 1, pass)
    }
}

/// The small CNN. It has about 590,000 parameters for images of 32×32×3.
#[derive(Module, Debug)]
pub struct Cnn {
    block1: Block,
    block2: Block,
    block3: Block,
    block4: Block,
    fc1: Linear,
    norm: GroupNorm,
    fc2: Linear,
}

impl Cnn {
    /// Builds the network for images with `channels` colour planes of side `side` (a multiple of 4).
    pub fn new(channels: usize, side: usize, classes: usize, device: &Device) -> Self {
        Cnn {
            block1: Block::new(channels, 32, device),
            block2: Block::new(32, 32, device),
            block3: Block::new(32, 64, device),
            block4: Block::new(64, 64, device),
            fc1: LinearConfig::new(64 * (side / 4) * (side / 4), 128).init(device),
            norm: GroupNormConfig::new(1, 128).init(device),
            fc2: LinearConfig::new(128, classes).init(device),
        }
    }

    /// Returns the logits, not yet multiplied by [`Cnn::scale`].
    pub fn forward(&self, x: Tensor<4>, pass: Pass) -> Tensor<2> {
        let x = self.block1.forward(x, pass); // [B, 32, 32, 32]
        let x = self.block2.forward_and_pool(x, pass); // [B, 16, 16, 32]
        let x = self.block3.forward(x, pass); // [B, 16, 16, 64]
        let x = self.block4.forward_and_pool(x, pass); // [B, 8, 8, 64]
        let x = normalised(&self.norm, apply(&self.fc1, x.flatten::<2>(1, 3), pass), None, true); // [B, 128]
        apply(&self.fc2, x, pass) // [B, classes]
    }

    /// The factor of the logits.
    pub fn scale(&self) -> f32 {
        LOGIT_SCALE
    }
}
