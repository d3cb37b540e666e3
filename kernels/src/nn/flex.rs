//! The layers on Burn's CPU backend: its tensors, our loops.

use super::cpu::{self, Scratch};
use super::{Conv, Layers, Norm, Pool, Precision};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_flex::{Flex, FlexTensor, Layout};
use half::{bf16, f16};

/// The floats of a tensor in row-major order; copied only if they lie otherwise.
struct Floats(FlexTensor);

impl Floats {
    fn of(tensor: FlexTensor) -> Self {
        // Asked here, for Burn's own copies a view that does not fill its buffer: every parameter is one.
        Floats(if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() })
    }

    /// The same, as factors of a product: each times `by`, rounded, and divided by it again.
    fn factors(tensor: FlexTensor, precision: Precision, by: f32) -> Self {
        let exact = Floats::of(tensor);
        let round: fn(f32) -> f32 = match precision {
            Precision::F32 => return exact,
            Precision::Bf16 => |x| bf16::from_f32(x).to_f32(),
            Precision::F16 => |x| f16::from_f32(if x.is_finite() { x.clamp(-65504.0, 65504.0) } else { x }).to_f32(),
        };
        let shape = exact.0.layout().shape().to_vec();
        Floats(made(&shape, |out| out.iter_mut().zip(exact.get()).for_each(|(out, x)| *out = round(x * by) / by)))
    }

    fn get(&self) -> &[f32] {
        self.0.as_slice().expect("just made contiguous")
    }
}

fn tensor(values: Scratch, shape: &[usize]) -> FlexTensor {
    FlexTensor::new(values.into(), Layout::contiguous(Shape::from(shape.to_vec())), DType::F32)
}

/// A tensor whose floats `fill` writes, every one.
fn made(shape: &[usize], fill: impl FnOnce(&mut [f32])) -> FlexTensor {
    let mut values = Scratch::take(shape.iter().product());
    fill(&mut values);
    tensor(values, shape)
}

impl Layers for Flex {
    fn stagger_conv(x: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        let (x, weights) = (Floats::factors(x, plan.precision, 1.0), Floats::factors(weights, plan.precision, 1.0));
        made(&[plan.batch, plan.out_height(), plan.out_width(), plan.to], |y| {
            cpu::conv::forward(&plan, x.get(), weights.get(), y)
        })
    }

    fn stagger_conv_input(dy: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        let dy = Floats::factors(dy, plan.precision, plan.precision.derivatives());
        let weights = Floats::factors(weights, plan.precision, 1.0);
        made(&[plan.batch, plan.height, plan.width, plan.from], |dx| {
            cpu::conv::input_gradient(&plan, dy.get(), weights.get(), dx)
        })
    }

    fn stagger_conv_weights(x: FloatTensor<Self>, dy: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        let x = Floats::factors(x, plan.precision, 1.0);
        let dy = Floats::factors(dy, plan.precision, plan.precision.derivatives());
        made(&[plan.to, plan.from, plan.kernel, plan.kernel], |dw| {
            cpu::conv::weight_gradient(&plan, x.get(), dy.get(), dw)
        })
    }

    fn stagger_linear(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let bias = Floats::of(bias);
        let to = bias.get().len();
        let precision = precision.of_linear(weights.layout().shape()[0], to);
        let (x, weights) = (Floats::factors(x, precision, 1.0), Floats::factors(weights, precision, 1.0));
        let batch = x.0.layout().shape()[0];
        made(&[batch, to], |y| cpu::linear::forward(x.get(), weights.get(), bias.get(), y))
    }

    fn stagger_linear_input(
        dy: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let (batch, from) = (dy.layout().shape()[0], weights.layout().shape()[0]);
        let precision = precision.of_linear(from, weights.layout().shape()[1]);
        let dy = Floats::factors(dy, precision, precision.derivatives());
        let weights = Floats::factors(weights, precision, 1.0);
        let to = weights.get().len() / from;
        made(&[batch, from], |dx| cpu::linear::input_gradient(dy.get(), weights.get(), to, dx))
    }

    fn stagger_linear_weights(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        precision: Precision,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (from, to) = (x.layout().shape()[1], dy.layout().shape()[1]);
        let precision = precision.of_linear(from, to);
        let batch = dy.layout().shape()[0];
        let exact = Floats::of(dy);
        // A plain sum: nothing is multiplied, so nothing is rounded.
        let db = made(&[to], |db| cpu::linear::bias_gradient(exact.get(), db));
        let x = Floats::factors(x, precision, 1.0);
        let dy = Floats::factors(exact.0, precision, precision.derivatives());
        let dw = made(&[from, to], |dw| cpu::linear::weight_gradient(x.get(), dy.get(), batch, dw));
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
        let y = made(&shape, |y| {
            let residual = residual.as_ref().map(Floats::get);
            cpu::norm::forward(&plan, x.get(), gamma.get(), beta.get(), residual, y, &mut moments)
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
        // What passes the relu is written only if somebody else is to have it.
        let passed = plan.residual && plan.relu;
        let mut through = passed.then(|| Scratch::take(x.get().len()));
        let (mut dgamma, mut dbeta) = (Scratch::take(plan.channels), Scratch::take(plan.channels));
        let given = Floats::of(dy);
        let dx = made(&shape, |dx| {
            let saved = cpu::norm::Saved { x: x.get(), y: y.get(), moments: moments.get(), gamma: gamma.get() };
            cpu::norm::backward(&plan, saved, given.get(), dx, through.as_deref_mut(), &mut dgamma, &mut dbeta)
        });
        let through = through.map_or(given.0, |values| tensor(values, &shape));
        (dx, through, tensor(dgamma, &[plan.channels]), tensor(dbeta, &[plan.channels]))
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
        made(&[plan.batch, plan.height / 2, plan.width / 2, plan.channels], |y| cpu::pool::max(&plan, x.get(), y))
    }

    fn stagger_max_pool_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        let (x, dy) = (Floats::of(x), Floats::of(dy));
        made(&[plan.batch, plan.height, plan.width, plan.channels], |dx| {
            cpu::pool::max_backward(&plan, x.get(), dy.get(), dx)
        })
    }

    fn stagger_mean_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        let x = Floats::of(x);
        made(&[plan.batch, plan.channels], |y| cpu::pool::mean(&plan, x.get(), y))
    }

    fn stagger_mean_pool_backward(dy: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        let dy = Floats::of(dy);
        made(&[plan.batch, plan.height, plan.width, plan.channels], |dx| cpu::pool::mean_backward(&plan, dy.get(), dx))
    }

    fn stagger_cross_entropy(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let shape = logits.layout().shape().to_vec();
        let (logits, targets) = (Floats::of(logits), Floats::of(targets));
        let mut loss = 0.0;
        let gradient =
            made(&shape, |d| loss = cpu::loss::cross_entropy(logits.get(), targets.get(), shape[1], scale, d));
        (made(&[1], |out| out[0] = loss), gradient)
    }

    fn stagger_scale(gradient: FloatTensor<Self>, by: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = gradient.layout().shape().to_vec();
        let (gradient, by) = (Floats::of(gradient), Floats::of(by));
        let by = by.get()[0];
        made(&shape, |out| out.iter_mut().zip(gradient.get()).for_each(|(o, g)| *o = g * by))
    }
}
