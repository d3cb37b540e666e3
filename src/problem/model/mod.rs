//! The networks. Comments at the ends of lines give shapes; B is the batch size. Images are stored channels
//! last; see [`stagger_kernels::layers`].

mod cnn;
mod mlp;
mod resnet18;

pub use cnn::Cnn;
pub use mlp::{LogReg, Mlp};
pub use resnet18::ResNet18;

use burn::module::Module;
use burn::nn::{GroupNorm, Linear};
use burn::tensor::{Device, Tensor};
use stagger_kernels::layers::{Conv, Pass, Precision, group_norm, linear};

/// A network that classifies images [B, side, side, channels] into [B, classes] logits.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Net {
    /// The small GroupNorm CNN.
    Cnn(Cnn),
    /// ResNet-18 with a CIFAR stem and GroupNorm.
    ResNet18(ResNet18),
    /// Two linear layers.
    Mlp(Mlp),
    /// One linear layer: multinomial logistic regression.
    LogReg(LogReg),
}

impl Net {
    /// Builds the network `name` (`cnn`, `resnet18`, `mlp` or `logreg`) for square images of `side` pixels.
    /// `None` if there is no such network.
    pub fn build(name: &str, channels: usize, side: usize, classes: usize, device: &Device) -> Option<Net> {
        Some(match name {
            "cnn" => Net::Cnn(Cnn::new(channels, side, classes, device)),
            "resnet18" => Net::ResNet18(ResNet18::new(channels, classes, device)),
            "mlp" => Net::Mlp(Mlp::new(channels * side * side, classes, device)),
            "logreg" => Net::LogReg(LogReg::new(channels * side * side, classes, device)),
            _ => return None,
        })
    }

    /// Returns the logits [B, classes] of images [B, side, side, channels], for one replica or for several in
    /// one pass. They are not yet multiplied by [`Net::scale`].
    pub fn forward(&self, x: Tensor<4>, pass: impl Into<Pass>) -> Tensor<2> {
        let pass = pass.into();
        match self {
            Net::Cnn(net) => net.forward(x, pass),
            Net::ResNet18(net) => net.forward(x, pass),
            Net::Mlp(net) => net.forward(x, pass),
            Net::LogReg(net) => net.forward(x, pass),
        }
    }

    /// The convolutions for `batch` RGB images of side `side`: name, shape, and number of convolutions of this
    /// shape.
    pub fn convolutions(&self, batch: usize, side: usize) -> Vec<(String, Conv, usize)> {
        let conv = |from, to, kernel, stride, side, times| {
            let plan = Conv {
                batch,
                height: side,
                width: side,
                from,
                to,
                kernel,
                stride,
                pad: kernel / 2,
                precision: Precision::F32,
                replicas: 1,
            };
            (format!("{from}->{to} {kernel}x{kernel}/{stride} on {side}x{side}"), plan, times)
        };
        match self {
            Net::Cnn(_) => vec![
                conv(3, 32, 3, 1, side, 1),
                conv(32, 32, 3, 1, side, 1),
                conv(32, 64, 3, 1, side / 2, 1),
                conv(64, 64, 3, 1, side / 2, 1),
            ],
            Net::ResNet18(_) => {
                let mut all = vec![conv(3, 64, 3, 1, side, 1), conv(64, 64, 3, 1, side, 4)];
                for (from, side) in [(64, side), (128, side / 2), (256, side / 4)] {
                    all.push(conv(from, 2 * from, 3, 2, side, 1));
                    all.push(conv(from, 2 * from, 1, 2, side, 1));
                    all.push(conv(2 * from, 2 * from, 3, 1, side / 2, 3));
                }
                all
            }
            Net::Mlp(_) | Net::LogReg(_) => Vec::new(),
        }
    }

    /// The factor by which the loss and the evaluation multiply the logits.
    pub fn scale(&self) -> f32 {
        match self {
            Net::Cnn(net) => net.scale(),
            _ => 1.0,
        }
    }

    /// Number of floats that a step and an evaluation keep per image, on the CPU or on a GPU, without the
    /// patches of convolutions. The numbers were measured in runs. Used by the memory estimate.
    pub fn activations(&self, channels: usize, side: usize, on_cpu: bool) -> (usize, usize) {
        let pixels = side * side;
        let (step, evaluation) = match (self, on_cpu) {
            (Net::Cnn(_), true) => (300, 115),
            (Net::Cnn(_), false) => (280, 107),
            (Net::ResNet18(_), true) => (1650, 380),
            (Net::ResNet18(_), false) => (1100, 235),
            (Net::Mlp(_) | Net::LogReg(_), _) => (2 * channels + 1, 2 * channels + 1),
        };
        (step * pixels, evaluation * pixels)
    }
}

/// Returns relu?(norm(x) + residual?), computed in one pass.
fn normalised<const D: usize>(norm: &GroupNorm, x: Tensor<D>, residual: Option<Tensor<D>>, relu: bool) -> Tensor<D> {
    let (gamma, beta) = affine(norm);
    group_norm(x, gamma, beta, norm.num_channels / norm.num_groups, residual, relu)
}

/// The parameters γ and β of a normalisation.
fn affine(norm: &GroupNorm) -> (Tensor<1>, Tensor<1>) {
    let parameter = |p: &Option<burn::module::Param<Tensor<1>>>| p.as_ref().expect("the normalisation is affine").val();
    (parameter(&norm.gamma), parameter(&norm.beta))
}

/// Applies a linear layer.
fn apply(layer: &Linear, x: Tensor<2>, pass: Pass) -> Tensor<2> {
    linear(x, layer.weight.val(), layer.bias.as_ref().expect("the layer has a bias").val(), pass)
}
