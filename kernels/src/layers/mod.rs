//! The layers of the convolutional networks: few, fused, channels last, each with its own backward pass.
//!
//! Images are [B, H, W, C]: the channels of a pixel lie together, which is what a patch of a convolution and a group of a
//! normalisation read. Weights keep Burn's shapes. Each layer is a backend extension of Burn: an ordinary differentiable tensor
//! operation to a model, plain loops under it on the CPU (`cpu`), kernels on WGPU and CUDA (`gpu`).
//!
//! | layer | forward | backward |
//! | --- | --- | --- |
//! | [`conv2d`] | y = x * w, no bias | dx, dw |
//! | [`linear`] | y = x w + b | dx, dw, db |
//! | [`group_norm`] | y = relu?(γ (x - μ)/σ + β + r?) in one pass over the device | dx, dr, dγ, dβ |
//! | [`group_norm_max_pool`] | the largest of 2×2 of relu(γ (x - μ)/σ + β), in the same pass | dx, dγ, dβ |
//! | [`max_pool`] | the largest of 2×2 | to the first of the largest |
//! | [`mean_pool`] | the mean over the pixels | spread evenly |
//! | [`cross_entropy`] | mean over the batch of -log softmax(s z) at the label | s (softmax - target) / B |

mod autodiff;
pub(crate) mod cpu;
mod flex;
mod gpu;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use cubecl::features::TypeUsage;
use cubecl::ir::{ElemType, FloatKind};
pub use gpu::{sums, tuning};

/// What the factors of the matrix products of convolutions and linear layers are rounded to. Products are added up in f32, and
/// everything else is f32: normalisation, losses, gradients, weights (mixed precision: Micikevicius et al., 2018).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Nothing is rounded by us. On NVIDIA cards with tensor cores for it, Burn's matrix product takes f32 factors as TF32 (11 bits of
    /// significand, the exponents of f32).
    #[default]
    F32,
    /// 8 bits of significand, the exponents of f32.
    Bf16,
    /// 11 bits of significand, largest value 65,504 (what is larger and finite is cut to it). Derivatives are multiplied by 1,024 before they are
    /// rounded, and products of them divided again, so that small ones do not vanish; one beyond 63.9 is cut.
    F16,
}

impl Precision {
    /// The factor of derivatives.
    pub(crate) fn derivatives(self) -> f32 {
        if self == Precision::F16 { 1024.0 } else { 1.0 }
    }

    /// Of a linear layer: small ones compute in f32 on every backend.
    pub(crate) fn of_linear(self, from: usize, to: usize) -> Self {
        if is_small(from, to) { Precision::F32 } else { self }
    }

    /// Whether `device` can store and multiply such numbers.
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

/// Whether a linear layer is so small that kernels of ours, which add the bias too, are worth their while: fewer launches.
fn is_small(from: usize, to: usize) -> bool {
    from * to <= 1 << 14
}

/// How a network computes.
///
/// It can compute for several replicas at once: the batch holds the images of one after those of another, as many for each, and every
/// parameter the values of one after those of another (its first dimension is so many times as long). No number of one replica enters
/// those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pass {
    /// Of the factors of products.
    pub precision: Precision,
    /// Replicas.
    pub replicas: usize,
}

impl From<Precision> for Pass {
    /// One replica.
    fn from(precision: Precision) -> Self {
        Pass { precision, replicas: 1 }
    }
}

/// A convolution of square patches without bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv {
    /// Images.
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
    /// Pixels from one patch to the next.
    pub stride: usize,
    /// Zeros around the image, less than `kernel`.
    pub pad: usize,
    /// Of the factors.
    pub precision: Precision,
    /// Replicas: so many times the weights, each for a share of the images.
    pub replicas: usize,
}

impl Conv {
    /// Images of a replica.
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

/// A group normalisation, with what is done in the same pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Images.
    pub batch: usize,
    /// Pixels of an image.
    pub pixels: usize,
    /// Channels of a pixel.
    pub channels: usize,
    /// Channels that are normalised together.
    pub group: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// Negative results become zero.
    pub relu: bool,
    /// Another tensor is added before that.
    pub residual: bool,
    /// Replicas: so many times γ and β, each for a share of the images.
    pub replicas: usize,
}

impl Norm {
    /// Groups of an image.
    pub fn groups(&self) -> usize {
        self.channels / self.group
    }
}

/// Images [B, H, W, C] that are pooled.
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

/// The layers and their derivatives on a backend. The functions of this module call them.
#[backend_extension(Cube, Flex, Autodiff)]
pub trait Layers: Backend {
    /// Y [B, H', W', to].
    fn stagger_conv(x: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self>;
    /// dX.
    fn stagger_conv_input(dy: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self>;
    /// dW [to, from, kernel, kernel].
    fn stagger_conv_weights(x: FloatTensor<Self>, dy: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self>;
    /// Y [B, out] of X [B, in], weights [in, out] and bias `[out]`.
    fn stagger_linear(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        pass: Pass,
    ) -> FloatTensor<Self>;
    /// dX.
    fn stagger_linear_input(dy: FloatTensor<Self>, weights: FloatTensor<Self>, pass: Pass) -> FloatTensor<Self>;
    /// dW and d bias.
    fn stagger_linear_weights(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        pass: Pass,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// Y, and mean and 1/deviation of each group [B, groups, 2]. Without a residual `residual` is not read.
    fn stagger_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        plan: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// dX, d residual (what passes the relu; dY itself without one), dγ and dβ.
    fn stagger_norm_backward(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// The largest of each 2×2 pixels of such a normalisation with relu and without residual, [B, H/2, W/2, C]; what its derivative
    /// needs of the rest; and the moments.
    fn stagger_norm_pool(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        plan: Norm,
        pool: Pool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// dX, dγ and dβ.
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
    /// The largest of each 2×2 pixels.
    fn stagger_max_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self>;
    /// dX.
    fn stagger_max_pool_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self>;
    /// [B, C]: the mean over the pixels.
    fn stagger_mean_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self>;
    /// dX.
    fn stagger_mean_pool_backward(dy: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self>;
    /// The losses (one float for each replica), and their derivative by the logits [B, classes].
    fn stagger_cross_entropy(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        scale: f32,
        replicas: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// `gradient` times `by`: one float for each replica.
    fn stagger_scale(gradient: FloatTensor<Self>, by: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Convolution of images [B, H, W, from] with weights [to, from, kernel, kernel]: [B, H', W', to].
pub fn conv2d(x: Tensor<4>, weights: Tensor<4>, stride: usize, pad: usize, pass: impl Into<Pass>) -> Tensor<4> {
    let Pass { precision, replicas } = pass.into();
    let [batch, height, width, from] = x.dims();
    let [rows, inputs, kernel, columns] = weights.dims();
    assert!(inputs == from && columns == kernel && pad < kernel, "weights of another convolution");
    assert!(height.min(width) + 2 * pad >= kernel && stride > 0, "a patch lies inside the image and its border");
    assert!(batch.is_multiple_of(replicas) && rows.is_multiple_of(replicas), "{replicas} replicas share the batch");
    let plan = Conv { batch, height, width, from, to: rows / replicas, kernel, stride, pad, precision, replicas };
    Tensor::from_dispatch(Dispatch::stagger_conv(x.into_dispatch(), weights.into_dispatch(), plan))
}

/// dX of a convolution, as its backward pass computes it; for measurements.
pub fn conv2d_input_gradient(dy: Tensor<4>, weights: Tensor<4>, plan: Conv) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::stagger_conv_input(dy.into_dispatch(), weights.into_dispatch(), plan))
}

/// dW of a convolution, as its backward pass computes it; for measurements.
pub fn conv2d_weight_gradient(x: Tensor<4>, dy: Tensor<4>, plan: Conv) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::stagger_conv_weights(x.into_dispatch(), dy.into_dispatch(), plan))
}

/// A linear layer: [B, in] times weights [in, out] plus bias `[out]`.
pub fn linear(x: Tensor<2>, weights: Tensor<2>, bias: Tensor<1>, pass: impl Into<Pass>) -> Tensor<2> {
    let (pass, [batch, from], [rows, to]) = (pass.into(), x.dims(), weights.dims());
    assert!(rows == pass.replicas * from && bias.dims() == [pass.replicas * to], "weights of another layer");
    assert!(batch.is_multiple_of(pass.replicas), "{} replicas share the batch", pass.replicas);
    let (x, weights) = (x.into_dispatch(), weights.into_dispatch());
    Tensor::from_dispatch(Dispatch::stagger_linear(x, weights, bias.into_dispatch(), pass))
}

/// Group normalisation over groups of `group` neighbouring channels (the last dimension) of every image (the first), plus
/// `residual`, then relu if asked for.
pub fn group_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    group: usize,
    residual: Option<Tensor<D>>,
    relu: bool,
) -> Tensor<D> {
    assert!(residual.as_ref().is_none_or(|r| r.dims() == x.dims()), "a residual of the same shape");
    let plan = Norm { relu, residual: residual.is_some(), ..norm(&x, &gamma, &beta, group) };
    let x = x.into_dispatch();
    // A tensor must stand in the place of a residual that is not there; nothing reads it.
    let residual = residual.map_or_else(|| x.clone(), Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::stagger_norm(x, gamma.into_dispatch(), beta.into_dispatch(), residual, plan).0)
}

/// The plan of a plain normalisation of `x`, with as many replicas as there are scales for each channel.
fn norm<const D: usize>(x: &Tensor<D>, gamma: &Tensor<1>, beta: &Tensor<1>, group: usize) -> Norm {
    let dims = x.dims();
    let (batch, channels) = (dims[0], dims[D - 1]);
    assert!(channels.is_multiple_of(group), "groups of {group} do not divide {channels} channels");
    let replicas = gamma.dims()[0] / channels;
    assert!(gamma.dims() == [replicas * channels] && beta.dims() == gamma.dims(), "a scale and a shift per channel");
    assert!(replicas > 0 && batch.is_multiple_of(replicas), "{replicas} replicas share the batch");
    let pixels = dims[1..D - 1].iter().product();
    Norm { batch, pixels, channels, group, epsilon: 1e-5, relu: false, residual: false, replicas }
}

/// The largest of each 2×2 pixels of the group normalisation of [B, H, W, C] (even H and W) with relu: in one pass on a GPU.
pub fn group_norm_max_pool(x: Tensor<4>, gamma: Tensor<1>, beta: Tensor<1>, group: usize) -> Tensor<4> {
    let plan = Norm { relu: true, ..norm(&x, &gamma, &beta, group) };
    let pool = halved(&x);
    let (x, gamma, beta) = (x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch());
    Tensor::from_dispatch(Dispatch::stagger_norm_pool(x, gamma, beta, plan, pool).0)
}

/// The plan of a pooling of 2×2 pixels.
fn halved(x: &Tensor<4>) -> Pool {
    let plan = pool(x);
    assert!(plan.height.is_multiple_of(2) && plan.width.is_multiple_of(2), "2×2 pixels do not fill the image");
    plan
}

fn pool(x: &Tensor<4>) -> Pool {
    let [batch, height, width, channels] = x.dims();
    Pool { batch, height, width, channels }
}

/// The largest of each 2×2 pixels of [B, H, W, C] with even H and W.
pub fn max_pool(x: Tensor<4>) -> Tensor<4> {
    let plan = halved(&x);
    Tensor::from_dispatch(Dispatch::stagger_max_pool(x.into_dispatch(), plan))
}

/// The mean over the pixels of [B, H, W, C]: [B, C].
pub fn mean_pool(x: Tensor<4>) -> Tensor<2> {
    let plan = pool(&x);
    Tensor::from_dispatch(Dispatch::stagger_mean_pool(x.into_dispatch(), plan))
}

/// Mean cross-entropy of `scale` times the logits [B, classes] against targets [B, classes], rows that add up to one: one loss.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<2>, scale: f32) -> Tensor<1> {
    cross_entropies(logits, targets, scale, 1)
}

/// The same for each of several replicas, over its own images: `[replicas]`.
pub fn cross_entropies(logits: Tensor<2>, targets: Tensor<2>, scale: f32, replicas: usize) -> Tensor<1> {
    assert_eq!(logits.dims(), targets.dims(), "a target per logit");
    assert!(logits.dims()[0].is_multiple_of(replicas), "{replicas} replicas share the batch");
    let (logits, targets) = (logits.into_dispatch(), targets.into_dispatch());
    Tensor::from_dispatch(Dispatch::stagger_cross_entropy(logits, targets, scale, replicas).0)
}
