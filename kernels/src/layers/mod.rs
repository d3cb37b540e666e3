//! The layers of the convolutional networks: fused, channels last, each with its own backward pass.
//!
//! Images are [B, H, W, C]. The channels of a pixel are adjacent, because a patch of a convolution and a
//! group of a normalisation read them together. Weights keep Burn's shapes. Each layer is a backend extension
//! of Burn. A model uses it like any differentiable tensor operation. It runs as plain loops on the CPU
//! (`cpu`) and as kernels on WGPU and CUDA (`gpu`).
//!
//! | layer | forward | backward |
//! | --- | --- | --- |
//! | [`conv2d`] | y = x * w, no bias | dx, dw |
//! | [`linear`] | y = x w + b | dx, dw, db |
//! | [`group_norm`] | y = relu?(γ (x - μ)/σ + β + r?) in one pass | dx, dr, dγ, dβ |
//! | [`group_norm_max_pool`] | 2×2 max pooling of relu(γ (x - μ)/σ + β), in one pass | dx, dγ, dβ |
//! | [`max_pool`] | the maximum of 2×2 pixels | the gradient goes to the first maximum |
//! | [`mean_pool`] | the mean over the pixels | every pixel gets the same share |
//! | [`cross_entropy`] | mean over the batch of -Σ target · log softmax(s z) | s (softmax - target) / B |

mod autodiff;
pub(crate) mod cpu;
mod flex;
mod gpu;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use cubecl::features::TypeUsage;
use cubecl::ir::{ElemType, FloatKind};
pub use gpu::{sums, tuning};

/// The number format of the factors in the matrix products of convolutions and linear layers. Sums of
/// products are f32, and so is everything else: normalisation, losses, gradients and weights (mixed
/// precision: Micikevicius et al., 2018).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// This crate rounds nothing. On NVIDIA GPUs whose tensor cores support it, Burn's matrix product reads
    /// f32 factors as TF32 (11 bits of significand, the exponents of f32).
    #[default]
    F32,
    /// 8 bits of significand, the exponents of f32.
    Bf16,
    /// 11 bits of significand. Finite values are clipped to ±65,504. Derivatives are multiplied by 1,024
    /// before they are rounded, and their products are divided by 1,024, so that small derivatives do not
    /// become zero. Derivatives beyond ±63.9 are clipped.
    F16,
}

impl Precision {
    /// The factor by which derivatives are multiplied before they are rounded.
    pub(crate) fn derivatives(self) -> f32 {
        if self == Precision::F16 { 1024.0 } else { 1.0 }
    }

    /// The precision of a linear layer. Small layers compute in f32 on every backend.
    pub(crate) fn of_linear(self, from: usize, to: usize) -> Self {
        if is_small(from, to) { Precision::F32 } else { self }
    }

    /// Whether `device` can store and multiply numbers of this precision.
    pub fn is_supported(self, device: &crate::Device) -> bool {
        let kind = match self {
            Precision::F32 => return true,
            Precision::Bf16 => FloatKind::BF16,
            Precision::F16 => FloatKind::F16,
        };
        match device {
            crate::Device::Cpu => true,
            crate::Device::Gpu(gpu) => {
                let needed = TypeUsage::Buffer | TypeUsage::Conversion | TypeUsage::Arithmetic;
                gpu.client.properties().type_usage(ElemType::Float(kind)).is_superset(needed)
            }
        }
    }
}

/// Whether a linear layer is so small that it uses this crate's own kernels on a GPU. They also add the bias,
/// which saves a launch.
fn is_small(from: usize, to: usize) -> bool {
    from * to <= 1 << 14
}

/// How a network computes: its precision and its number of replicas.
///
/// One pass can compute several replicas (a stacked pass). The batch holds the images of the first replica,
/// then those of the second, and so on, with the same number for each. Every parameter holds the values of
/// all replicas in the same order, so its first dimension is `replicas` times as long. The results of a
/// replica depend only on its own images and parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pass {
    /// Precision of the factors of products.
    pub precision: Precision,
    /// Number of replicas.
    pub replicas: usize,
}

impl From<Precision> for Pass {
    /// A pass of one replica.
    fn from(precision: Precision) -> Self {
        Pass { precision, replicas: 1 }
    }
}

/// The shape of a convolution with square patches and no bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv {
    /// Images of all replicas.
    pub batch: usize,
    /// Rows of an input image.
    pub height: usize,
    /// Columns of an input image.
    pub width: usize,
    /// Input channels.
    pub from: usize,
    /// Output channels.
    pub to: usize,
    /// Rows and columns of a patch.
    pub kernel: usize,
    /// Distance from one patch to the next, in pixels.
    pub stride: usize,
    /// Width of the border of zeros around the image, in pixels. Less than `kernel`.
    pub pad: usize,
    /// Precision of the factors of products.
    pub precision: Precision,
    /// Number of replicas. Each has its own weights and an equal share of the images.
    pub replicas: usize,
}

impl Conv {
    /// Images of one replica.
    pub fn images(&self) -> usize {
        self.batch / self.replicas
    }

    /// Rows of an output image.
    pub fn out_height(&self) -> usize {
        (self.height + 2 * self.pad - self.kernel) / self.stride + 1
    }

    /// Columns of an output image.
    pub fn out_width(&self) -> usize {
        (self.width + 2 * self.pad - self.kernel) / self.stride + 1
    }

    /// Pixels of an output image.
    pub fn out_pixels(&self) -> usize {
        self.out_height() * self.out_width()
    }

    /// Floats of an input image.
    pub fn in_image(&self) -> usize {
        self.height * self.width * self.from
    }

    /// Columns of an input image with its border.
    pub fn padded_width(&self) -> usize {
        self.width + 2 * self.pad
    }

    /// Floats of an input image with its border.
    pub fn padded_image(&self) -> usize {
        (self.height + 2 * self.pad) * self.padded_width() * self.from
    }

    /// Pixels of a patch.
    pub fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Floats of a patch.
    pub fn patch(&self) -> usize {
        self.taps() * self.from
    }
}

/// The shape of a group normalisation, and the operations in the same pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Images of all replicas.
    pub batch: usize,
    /// Pixels of an image.
    pub pixels: usize,
    /// Channels of a pixel.
    pub channels: usize,
    /// Channels that are normalised together.
    pub group: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// Whether another tensor is added before the ReLU.
    pub residual: bool,
    /// Number of replicas. Each has its own γ and β and an equal share of the images.
    pub replicas: usize,
}

impl Norm {
    /// Groups of an image.
    pub fn groups(&self) -> usize {
        self.channels / self.group
    }
}

/// The shape of the images [B, H, W, C] that are pooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    /// Images.
    pub batch: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

/// The layers and their derivatives on one backend. The functions of this module call them.
#[backend_extension(Cube, Flex, Autodiff)]
pub trait Layers: Backend {
    /// Convolution: Y [B, H', W', to].
    fn stagger_conv(x: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self>;
    /// Convolution: dX [B, H, W, from].
    fn stagger_conv_input(dy: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self>;
    /// Convolution: dW [to, from, kernel, kernel].
    fn stagger_conv_weights(x: FloatTensor<Self>, dy: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self>;
    /// Linear layer: Y [B, out] from X [B, in], weights [in, out] and bias `[out]`.
    fn stagger_linear(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        pass: Pass,
    ) -> FloatTensor<Self>;
    /// Linear layer: dX [B, in].
    fn stagger_linear_input(dy: FloatTensor<Self>, weights: FloatTensor<Self>, pass: Pass) -> FloatTensor<Self>;
    /// Linear layer: dW [in, out] and db `[out]`.
    fn stagger_linear_weights(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        pass: Pass,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// Group normalisation: Y, and the moments: mean and 1/σ of each group [B, groups, 2]. `residual` is only
    /// read if `plan.residual` is set.
    fn stagger_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        plan: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// Group normalisation: dX, dR, dγ and dβ. With a residual and a ReLU, dR is the part of dY that passes
    /// the ReLU. Otherwise it is dY itself.
    fn stagger_norm_backward(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// Group normalisation with ReLU and without residual, then 2×2 max pooling: Y [B, H/2, W/2, C], the
    /// values that the backward pass of this backend needs (`kept`), and the moments.
    fn stagger_norm_pool(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        plan: Norm,
        pool: Pool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// Group normalisation with max pooling: dX, dγ and dβ.
    #[allow(clippy::too_many_arguments)]
    fn stagger_norm_pool_backward(
        x: FloatTensor<Self>,
        kept: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: Norm,
        pool: Pool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// 2×2 max pooling: Y [B, H/2, W/2, C].
    fn stagger_max_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self>;
    /// 2×2 max pooling: dX [B, H, W, C].
    fn stagger_max_pool_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self>;
    /// The mean over the pixels: Y [B, C].
    fn stagger_mean_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self>;
    /// The mean over the pixels: dX [B, H, W, C].
    fn stagger_mean_pool_backward(dy: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self>;
    /// Cross-entropy: the loss of each replica `[replicas]`, and the derivative with respect to the logits
    /// [B, classes].
    fn stagger_cross_entropy(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        scale: f32,
        replicas: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// `gradient` multiplied by `by`, which has one float per replica.
    fn stagger_scale(gradient: FloatTensor<Self>, by: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Convolves images [B, H, W, from] with weights [to, from, kernel, kernel]. Returns [B, H', W', to].
pub fn conv2d(x: Tensor<4>, weights: Tensor<4>, stride: usize, pad: usize, pass: impl Into<Pass>) -> Tensor<4> {
    let Pass { precision, replicas } = pass.into();
    let [batch, height, width, from] = x.dims();
    let [rows, inputs, kernel, columns] = weights.dims();
    assert!(
        inputs == from && columns == kernel && pad < kernel,
        "the weights need {from} input channels and a square kernel larger than pad {pad}"
    );
    assert!(
        height.min(width) + 2 * pad >= kernel && stride > 0,
        "the kernel must fit into the padded image, and the stride must not be 0"
    );
    assert!(
        batch.is_multiple_of(replicas) && rows.is_multiple_of(replicas),
        "{replicas} replicas must divide the batch and the weights"
    );
    let plan = Conv { batch, height, width, from, to: rows / replicas, kernel, stride, pad, precision, replicas };
    Tensor::from_dispatch(Dispatch::stagger_conv(x.into_dispatch(), weights.into_dispatch(), plan))
}

/// dX of a convolution, as the backward pass computes it. For benchmarks.
pub fn conv2d_input_gradient(dy: Tensor<4>, weights: Tensor<4>, plan: Conv) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::stagger_conv_input(dy.into_dispatch(), weights.into_dispatch(), plan))
}

/// dW of a convolution, as the backward pass computes it. For benchmarks.
pub fn conv2d_weight_gradient(x: Tensor<4>, dy: Tensor<4>, plan: Conv) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::stagger_conv_weights(x.into_dispatch(), dy.into_dispatch(), plan))
}

/// A linear layer: `x` [B, in] times weights [in, out] plus bias `[out]`. Returns [B, out].
pub fn linear(x: Tensor<2>, weights: Tensor<2>, bias: Tensor<1>, pass: impl Into<Pass>) -> Tensor<2> {
    let (pass, [batch, from], [rows, to]) = (pass.into(), x.dims(), weights.dims());
    assert!(
        rows == pass.replicas * from && bias.dims() == [pass.replicas * to],
        "the weights and the bias must fit {from} inputs"
    );
    assert!(batch.is_multiple_of(pass.replicas), "{} replicas must divide the batch", pass.replicas);
    let (x, weights) = (x.into_dispatch(), weights.into_dispatch());
    Tensor::from_dispatch(Dispatch::stagger_linear(x, weights, bias.into_dispatch(), pass))
}

/// Group normalisation of each image (first dimension) over groups of `group` adjacent channels
/// (last dimension). Then adds `residual`, and applies a ReLU if `relu` is set.
pub fn group_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    group: usize,
    residual: Option<Tensor<D>>,
    relu: bool,
) -> Tensor<D> {
    assert!(residual.as_ref().is_none_or(|r| r.dims() == x.dims()), "the residual must have the shape of the input");
    let plan = Norm { relu, residual: residual.is_some(), ..norm(&x, &gamma, &beta, group) };
    let x = x.into_dispatch();
    // The call needs a tensor even if there is no residual. Nothing reads it.
    let residual = residual.map_or_else(|| x.clone(), Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::stagger_norm(x, gamma.into_dispatch(), beta.into_dispatch(), residual, plan).0)
}

/// The shape of a normalisation of `x` without residual and ReLU. The length of `gamma` gives the number of
/// replicas.
fn norm<const D: usize>(x: &Tensor<D>, gamma: &Tensor<1>, beta: &Tensor<1>, group: usize) -> Norm {
    let dims = x.dims();
    let (batch, channels) = (dims[0], dims[D - 1]);
    assert!(channels.is_multiple_of(group), "groups of {group} do not divide {channels} channels");
    let replicas = gamma.dims()[0] / channels;
    assert!(
        gamma.dims() == [replicas * channels] && beta.dims() == gamma.dims(),
        "gamma and beta need one value per channel and replica"
    );
    assert!(replicas > 0 && batch.is_multiple_of(replicas), "{replicas} replicas must divide the batch");
    let pixels = dims[1..D - 1].iter().product();
    Norm { batch, pixels, channels, group, epsilon: 1e-5, relu: false, residual: false, replicas }
}

/// Group normalisation with ReLU of [B, H, W, C] (even H and W), then 2×2 max pooling. One launch on a GPU.
/// Returns [B, H/2, W/2, C].
pub fn group_norm_max_pool(x: Tensor<4>, gamma: Tensor<1>, beta: Tensor<1>, group: usize) -> Tensor<4> {
    let plan = Norm { relu: true, ..norm(&x, &gamma, &beta, group) };
    let pool = pool_2x2(&x);
    let (x, gamma, beta) = (x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch());
    Tensor::from_dispatch(Dispatch::stagger_norm_pool(x, gamma, beta, plan, pool).0)
}

/// The shape of a 2×2 pooling of `x`.
fn pool_2x2(x: &Tensor<4>) -> Pool {
    let plan = pool(x);
    assert!(
        plan.height.is_multiple_of(2) && plan.width.is_multiple_of(2),
        "2×2 pooling needs an even height and an even width"
    );
    plan
}

fn pool(x: &Tensor<4>) -> Pool {
    let [batch, height, width, channels] = x.dims();
    Pool { batch, height, width, channels }
}

/// 2×2 max pooling of [B, H, W, C] with even H and W. Returns [B, H/2, W/2, C].
pub fn max_pool(x: Tensor<4>) -> Tensor<4> {
    let plan = pool_2x2(&x);
    Tensor::from_dispatch(Dispatch::stagger_max_pool(x.into_dispatch(), plan))
}

/// The mean over the pixels of [B, H, W, C]. Returns [B, C].
pub fn mean_pool(x: Tensor<4>) -> Tensor<2> {
    let plan = pool(&x);
    Tensor::from_dispatch(Dispatch::stagger_mean_pool(x.into_dispatch(), plan))
}

/// Mean cross-entropy of `scale` times the logits [B, classes] against targets [B, classes]. Each row of the
/// targets adds up to 1. Returns one loss.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<2>, scale: f32) -> Tensor<1> {
    cross_entropies(logits, targets, scale, 1)
}

/// [`cross_entropy`] of several replicas, each over its own images. Returns one loss per replica:
/// `[replicas]`.
pub fn cross_entropies(logits: Tensor<2>, targets: Tensor<2>, scale: f32, replicas: usize) -> Tensor<1> {
    assert_eq!(logits.dims(), targets.dims(), "the targets must have the shape of the logits");
    assert!(logits.dims()[0].is_multiple_of(replicas), "{replicas} replicas must divide the batch");
    let (logits, targets) = (logits.into_dispatch(), targets.into_dispatch());
    Tensor::from_dispatch(Dispatch::stagger_cross_entropy(logits, targets, scale, replicas).0)
}
