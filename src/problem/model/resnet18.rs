//! ResNet-18 (He et al., 2016) for small images, with a 3×3 stem without pooling. It uses GroupNorm instead of
//! BatchNorm, because running statistics are not gradients and cannot be part of an asynchronous update.

use super::{apply, normalised};
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use stagger_kernels::layers::{Pass, conv2d, mean_pool};

/// Number of groups of every normalisation.
const GROUPS: usize = 32;

fn conv(from: usize, to: usize, kernel: usize, stride: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new([from, to], [kernel, kernel]).with_stride([stride, stride]).with_bias(false).init(device)
}

/// Applies a convolution, padded so that stride 1 keeps the size of the image.
fn convolved(conv: &Conv2d, x: Tensor<4>, pass: Pass) -> Tensor<4> {
    conv2d(x, conv.weight.val(), conv.stride[0], conv.kernel_size[0] / 2, pass)
}

fn norm(channels: usize, device: &Device) -> GroupNorm {
    GroupNormConfig::new(GROUPS, channels).init(device)
}

/// Two 3×3 convolutions with a shortcut.
#[derive(Module, Debug)]
pub struct BasicBlock {
    conv1: Conv2d,
    norm1: GroupNorm,
    conv2: Conv2d,
    norm2: GroupNorm,
    shortcut: Option<(Conv2d, GroupNorm)>,
}

impl BasicBlock {
    fn new(from: usize, to: usize, stride: usize, device: &Device) -> Self {
        BasicBlock {
            conv1: conv(from, to, 3, stride, device),
            norm1: norm(to, device),
            conv2: conv(to, to, 3, 1, device),
            norm2: norm(to, device),
            shortcut: (from != to || stride != 1).then(|| (conv(from, to, 1, stride, device), norm(to, device))),
        }
    }

    fn forward(&self, x: Tensor<4>, pass: Pass) -> Tensor<4> {
        let y = normalised(&self.norm1, convolved(&self.conv1, x.clone(), pass), None, true);
        let shortcut = match &self.shortcut {
            Some((conv, norm)) => normalised(norm, convolved(conv, x, pass), None, false),
            None => x,
        };
        normalised(&self.norm2, convolved(&self.conv2, y, pass), Some(shortcut), true)
    }
}

/// ResNet-18. It has about 11.2 million parameters.
#[derive(Module, Debug)]
pub struct ResNet18 {
    stem: Conv2d,
    norm: GroupNorm,
    blocks: Vec<BasicBlock>,
    fc: Linear,
}

impl ResNet18 {
    /// Builds the network for images with `channels` colour planes.
    pub fn new(channels: usize, classes: usize, device: &Device) -> Self {
        let widths = [
            (64, 64, 1),
            (64, 64, 1),
            (64, 128, 2),
            (128, 128, 1),
            (128, 256, 2),
            (256, 256, 1),
            (256, 512, 2),
            (512, 512, 1),
        ];
        ResNet18 {
            stem: conv(channels, 64, 3, 1, device),
            norm: norm(64, device),
            blocks: widths.iter().map(|&(from, to, stride)| BasicBlock::new(from, to, stride, device)).collect(),
            fc: LinearConfig::new(512, classes).init(device),
        }
    }

    /// Returns the logits.
    pub fn forward(&self, x: Tensor<4>, pass: Pass) -> Tensor<2> {
        let x = normalised(&self.norm, convolved(&self.stem, x, pass), None, true); // [B, 32, 32, 64]
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, pass)); // [B, 4, 4, 512]
        apply(&self.fc, mean_pool(x), pass) // [B, classes]
    }
}
