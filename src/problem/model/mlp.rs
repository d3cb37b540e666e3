//! Networks without convolutions.

use super::apply;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use stagger_kernels::layers::Pass;

/// A network with one hidden layer of 128 units and ReLU.
#[derive(Module, Debug)]
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    /// Builds the network for images with `values` values (channels · side²).
    pub fn new(values: usize, classes: usize, device: &Device) -> Self {
        Mlp { fc1: LinearConfig::new(values, 128).init(device), fc2: LinearConfig::new(128, classes).init(device) }
    }

    /// Returns the logits.
    pub fn forward(&self, x: Tensor<4>, pass: Pass) -> Tensor<2> {
        let x = relu(apply(&self.fc1, x.flatten::<2>(1, 3), pass)); // [B, 128]
        apply(&self.fc2, x, pass) // [B, classes]
    }
}

/// Multinomial logistic regression.
#[derive(Module, Debug)]
pub struct LogReg {
    fc: Linear,
}

impl LogReg {
    /// Builds the network for images with `values` values (channels · side²).
    pub fn new(values: usize, classes: usize, device: &Device) -> Self {
        LogReg { fc: LinearConfig::new(values, classes).init(device) }
    }

    /// Returns the logits.
    pub fn forward(&self, x: Tensor<4>, pass: Pass) -> Tensor<2> {
        apply(&self.fc, x.flatten::<2>(1, 3), pass) // [B, classes]
    }
}
