//! The layers on Burn's CPU backend: Burn's tensors with the loops of `cpu`.

use super::cpu;
use super::{Conv, Layers, Norm, Pass, Pool, Precision};
use crate::scratch::Scratch;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_flex::{Flex, FlexTensor, Layout};
use half::{bf16, f16};

/// The floats of a tensor in row-major order. A tensor with another order is copied.
struct Floats(FlexTensor);

impl Floats {
    fn of(tensor: FlexTensor) -> Self {
        // Burn's `to_contiguous` also copies a contiguous view that does not fill its buffer, and every
        // parameter is such a view.
        Floats(if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() })
    }

    /// The floats as factors of a product: multiplied by `by`, rounded to the precision, and divided by `by`.
    fn factors(tensor: FlexTensor, precision: Precision, by: f32) -> Self {
        let exact = Floats::of(tensor);
        let round: fn(f32) -> f32 = match precision {
            Precision::F32 => return exact,
            Precision::Bf16 => |x| bf16::from_f32(x).to_f32(),
            Precision::F16 => |x| f16::from_f32(if x.is_finite() { x.clamp(-65504.0, 65504.0) } else { x }).to_f32(),
        };
        let shape = exact.0.layout().shape().to_vec();
        Floats(filled(&shape, |out| out.iter_mut().zip(exact.get()).for_each(|(out, x)| *out = round(x * by) / by)))
    }

    fn get(&self) -> &[f32] {
        self.0.as_slice().expect("a contiguous tensor of f32")
    }
}

fn tensor(values: Scratch, shape: &[usize]) -> FlexTensor {
    FlexTensor::new(values.into(), Layout::contiguous(Shape::from(shape.to_vec())), DType::F32)
}

/// A tensor of this shape. `fill` must write every float.
fn filled(shape: &[usize], fill: impl FnOnce(&mut [f32])) -> FlexTensor {
    let mut values = Scratch::take(shape.iter().product());
    fill(&mut values);
    tensor(values, shape)
}

/// The floats of replica `r` out of those of all replicas.
fn share(values: &[f32], replicas: usize, r: usize) -> &[f32] {
    let length = values.len() / replicas;
    &values[r * length..][..length]
}

/// The mutable version of [`share`].
fn share_mut(values: &mut [f32], replicas: usize, r: usize) -> &mut [f32] {
    let length = values.len() / replicas;
    &mut values[r * length..][..length]
}

impl Conv {
    /// The convolution of one replica.
    fn one_replica(&self) -> Conv {
        Conv { batch: self.images(), replicas: 1, ..*self }
    }
}

impl Norm {
    /// The normalisation of one replica.
    fn one_replica(&self) -> Norm {
        Norm { batch: self.batch / self.replicas, replicas: 1, ..*self }
    }
}

// The replicas are computed one after another. Each is a loop over images that the threads divide among
// themselves.
impl Layers for Flex {
    fn stagger_conv(x: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        let (x, weights) = (Floats::factors(x, plan.precision, 1.0), Floats::factors(weights, plan.precision, 1.0));
        filled(&[plan.batch, plan.out_height(), plan.out_width(), plan.to], |y| {
            for r in 0..plan.replicas {
                let (x, weights) = (share(x.get(), plan.replicas, r), share(weights.get(), plan.replicas, r));
                cpu::conv::forward(&plan.one_replica(), x, weights, share_mut(y, plan.replicas, r))
            }
        })
    }

    fn stagger_conv_input(dy: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        let dy = Floats::factors(dy, plan.precision, plan.precision.derivatives());
        let weights = Floats::factors(weights, plan.precision, 1.0);
        filled(&[plan.batch, plan.height, plan.width, plan.from], |dx| {
            for r in 0..plan.replicas {
                let (dy, weights) = (share(dy.get(), plan.replicas, r), share(weights.get(), plan.replicas, r));
                cpu::conv::input_gradient(&plan.one_replica(), dy, weights, share_mut(dx, plan.replicas, r))
            }
        })
    }

    fn stagger_conv_weights(x: FloatTensor<Self>, dy: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        let x = Floats::factors(x, plan.precision, 1.0);
        let dy = Floats::factors(dy, plan.precision, plan.precision.derivatives());
        filled(&[plan.replicas * plan.to, plan.from, plan.kernel, plan.kernel], |dw| {
            for r in 0..plan.replicas {
                let (x, dy) = (share(x.get(), plan.replicas, r), share(dy.get(), plan.replicas, r));
                cpu::conv::weight_gradient(&plan.one_replica(), x, dy, share_mut(dw, plan.replicas, r))
            }
        })
    }

    fn stagger_linear(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        Pass { precision, replicas }: Pass,
    ) -> FloatTensor<Self> {
        let (batch, from) = (x.layout().shape()[0], x.layout().shape()[1]);
        let to = weights.layout().shape()[1];
        let precision = precision.of_linear(from, to);
        let (x, weights) = (Floats::factors(x, precision, 1.0), Floats::factors(weights, precision, 1.0));
        let bias = Floats::of(bias);
        filled(&[batch, to], |y| {
            for r in 0..replicas {
                let (x, weights) = (share(x.get(), replicas, r), share(weights.get(), replicas, r));
                cpu::linear::forward(x, weights, share(bias.get(), replicas, r), share_mut(y, replicas, r))
            }
        })
    }

    fn stagger_linear_input(
        dy: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        Pass { precision, replicas }: Pass,
    ) -> FloatTensor<Self> {
        let (batch, to) = (dy.layout().shape()[0], dy.layout().shape()[1]);
        let from = weights.layout().shape()[0] / replicas;
        let precision = precision.of_linear(from, to);
        let dy = Floats::factors(dy, precision, precision.derivatives());
        let weights = Floats::factors(weights, precision, 1.0);
        filled(&[batch, from], |dx| {
            for r in 0..replicas {
                let (dy, weights) = (share(dy.get(), replicas, r), share(weights.get(), replicas, r));
                cpu::linear::input_gradient(dy, weights, to, share_mut(dx, replicas, r))
            }
        })
    }

    fn stagger_linear_weights(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        Pass { precision, replicas }: Pass,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (from, to) = (x.layout().shape()[1], dy.layout().shape()[1]);
        let precision = precision.of_linear(from, to);
        let batch = dy.layout().shape()[0] / replicas;
        let exact = Floats::of(dy);
        // db is a sum without products, so it uses the unrounded floats.
        let db = filled(&[replicas * to], |db| {
            (0..replicas)
                .for_each(|r| cpu::linear::bias_gradient(share(exact.get(), replicas, r), share_mut(db, replicas, r)))
        });
        let x = Floats::factors(x, precision, 1.0);
        let dy = Floats::factors(exact.0, precision, precision.derivatives());
        let dw = filled(&[replicas * from, to], |dw| {
            for r in 0..replicas {
                let (x, dy) = (share(x.get(), replicas, r), share(dy.get(), replicas, r));
                cpu::linear::weight_gradient(x, dy, batch, share_mut(dw, replicas, r))
            }
        });
        (dw, db)
    }

    fn stagger_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        plan: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let shape = x.layout().shape().to_vec();
        let (x, gamma, beta) = (Floats::of(x), Floats::of(gamma), Floats::of(beta));
        let residual = plan.residual.then(|| Floats::of(residual));
        let mut moments = Scratch::take(2 * plan.batch * plan.groups());
        let y = filled(&shape, |y| {
            let all = plan.replicas;
            for r in 0..all {
                let residual = residual.as_ref().map(|residual| share(residual.get(), all, r));
                let (x, gamma, beta) = (share(x.get(), all, r), share(gamma.get(), all, r), share(beta.get(), all, r));
                let (y, moments) = (share_mut(y, all, r), share_mut(&mut moments, all, r));
                cpu::norm::forward(&plan.one_replica(), x, gamma, beta, residual, y, moments)
            }
        });
        (y, tensor(moments, &[plan.batch, plan.groups(), 2]))
    }

    fn stagger_norm_backward(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let shape = x.layout().shape().to_vec();
        let [x, y, moments, gamma] = [x, y, moments, gamma].map(Floats::of);
        // The part of dY that passes the ReLU is only written if the residual needs it.
        let passed = plan.residual && plan.relu;
        let mut through = passed.then(|| Scratch::take(x.get().len()));
        let all = plan.replicas;
        let (mut dgamma, mut dbeta) = (Scratch::take(all * plan.channels), Scratch::take(all * plan.channels));
        let dy_floats = Floats::of(dy);
        let dx = filled(&shape, |dx| {
            for r in 0..all {
                let [x, y, moments, gamma] = [&x, &y, &moments, &gamma].map(|saved| share(saved.get(), all, r));
                let saved = cpu::norm::Saved { x, y, moments, gamma };
                let through = through.as_deref_mut().map(|through| share_mut(through, all, r));
                let (dgamma, dbeta) = (share_mut(&mut dgamma, all, r), share_mut(&mut dbeta, all, r));
                let (dy, dx) = (share(dy_floats.get(), all, r), share_mut(dx, all, r));
                cpu::norm::backward(&plan.one_replica(), saved, dy, dx, through, dgamma, dbeta)
            }
        });
        let through = through.map_or(dy_floats.0, |values| tensor(values, &shape));
        let shape = [all * plan.channels];
        (dx, through, tensor(dgamma, &shape), tensor(dbeta, &shape))
    }

    fn stagger_norm_pool(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        plan: Norm,
        pool: Pool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (kept, moments) = Self::stagger_norm(x.clone(), gamma, beta, x, plan);
        (Self::stagger_max_pool(kept.clone(), pool), kept, moments)
    }

    fn stagger_norm_pool_backward(
        x: FloatTensor<Self>,
        kept: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        _: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: Norm,
        pool: Pool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let through = Self::stagger_max_pool_backward(kept.clone(), dy, pool);
        let (dx, _, dgamma, dbeta) = Self::stagger_norm_backward(x, kept, moments, gamma, through, plan);
        (dx, dgamma, dbeta)
    }

    fn stagger_max_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        let x = Floats::of(x);
        filled(&[plan.batch, plan.height / 2, plan.width / 2, plan.channels], |y| cpu::pool::max(&plan, x.get(), y))
    }

    fn stagger_max_pool_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        let (x, dy) = (Floats::of(x), Floats::of(dy));
        filled(&[plan.batch, plan.height, plan.width, plan.channels], |dx| {
            cpu::pool::max_backward(&plan, x.get(), dy.get(), dx)
        })
    }

    fn stagger_mean_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        let x = Floats::of(x);
        filled(&[plan.batch, plan.channels], |y| cpu::pool::mean(&plan, x.get(), y))
    }

    fn stagger_mean_pool_backward(dy: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        let dy = Floats::of(dy);
        filled(&[plan.batch, plan.height, plan.width, plan.channels], |dx| {
            cpu::pool::mean_backward(&plan, dy.get(), dx)
        })
    }

    fn stagger_cross_entropy(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        scale: f32,
        replicas: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let shape = logits.layout().shape().to_vec();
        let (logits, targets) = (Floats::of(logits), Floats::of(targets));
        let mut losses = Scratch::take(replicas);
        let gradient = filled(&shape, |d| {
            for (r, loss) in losses.iter_mut().enumerate() {
                let (logits, targets) = (share(logits.get(), replicas, r), share(targets.get(), replicas, r));
                *loss = cpu::loss::cross_entropy(logits, targets, shape[1], scale, share_mut(d, replicas, r))
            }
        });
        (tensor(losses, &[replicas]), gradient)
    }

    fn stagger_scale(gradient: FloatTensor<Self>, by: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = gradient.layout().shape().to_vec();
        let (gradient, by) = (Floats::of(gradient), Floats::of(by));
        let all = by.get();
        filled(&shape, |out| {
            for (r, by) in all.iter().enumerate() {
                let (out, gradient) = (share_mut(out, all.len(), r), share(gradient.get(), all.len(), r));
                out.iter_mut().zip(gradient).for_each(|(o, g)| *o = g * by)
            }
        })
    }
}
