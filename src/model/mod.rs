//! The networks. Shapes are at the line ends; B is the batch.

mod cnn;
mod mlp;
mod resnet18;

pub use cnn::Cnn;
pub use mlp::{LogReg, Mlp};
pub use resnet18::ResNet18;

use burn::module::Module;
use burn::tensor::{Device, Tensor};

/// A network that classifies images [B, channels, side, side] into [B, classes] logits.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Net {
    /// The small GroupNorm CNN.
    Cnn(Cnn),
    /// ResNet-18 with a CIFAR stem and GroupNorm.
    ResNet18(ResNet18),
    /// Two layers.
    Mlp(Mlp),
    /// One layer: multinomial logistic regression.
    LogReg(LogReg),
}

impl Net {
    /// Builds the network of this name (`cnn`, `resnet18`, `mlp`, `logreg`), or says `None`.
    pub fn build(name: &str, channels: usize, side: usize, classes: usize, device: &Device) -> Option<Net> {
        Some(match name {
            "cnn" => Net::Cnn(Cnn::new(channels, side, classes, device)),
            "resnet18" => Net::ResNet18(ResNet18::new(channels, classes, device)),
            "mlp" => Net::Mlp(Mlp::new(channels * side * side, classes, device)),
            "logreg" => Net::LogReg(LogReg::new(channels * side * side, classes, device)),
            _ => return None,
        })
    }

    /// Logits.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        match self {
            Net::Cnn(net) => net.forward(x),
            Net::ResNet18(net) => net.forward(x),
            Net::Mlp(net) => net.forward(x),
            Net::LogReg(net) => net.forward(x),
        }
    }

    /// Floats of activations that forward and backward of one image keep, roughly (for the memory estimate).
    pub fn activations(&self, channels: usize, side: usize) -> usize {
        let pixels = side * side;
        match self {
            // Each of four blocks keeps about eight maps: the convolution, five of normalisation, relu, and its gradient.
            Net::Cnn(_) => 8 * (2 * 32 * pixels + 2 * 64 * pixels / 4),
            Net::ResNet18(_) => 8 * 5 * (64 + 32 + 16 + 8) * pixels,
            Net::Mlp(_) | Net::LogReg(_) => 2 * channels * pixels + 1024,
        }
    }
}
