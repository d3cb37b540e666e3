//! The backward pass of each layer, for Burn's autodiff.

use super::{Conv, Layers, Norm, Pass, Pool};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend};

/// Panic message of the derivatives on the autodiff backend. It never appears, because nothing differentiates
/// a backward pass.
const NO_SECOND_DERIVATIVE: &str = "a layer's derivative has no derivative of its own";

#[derive(Debug)]
struct ConvBackward;

impl<B: Backend + Layers> Backward<B, 2> for ConvBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, Conv);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([x, weights], (x_value, weights_value, plan)) = (ops.parents, ops.state);
        let dy = grads.consume::<B>(&ops.node);
        if let Some(node) = weights {
            grads.register::<B>(node.id, B::stagger_conv_weights(x_value, dy.clone(), plan));
        }
        if let Some(node) = x {
            grads.register::<B>(node.id, B::stagger_conv_input(dy, weights_value, plan));
        }
    }
}

#[derive(Debug)]
struct LinearBackward;

impl<B: Backend + Layers> Backward<B, 3> for LinearBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, Pass);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([x, weights, bias], (x_value, weights_value, pass)) = (ops.parents, ops.state);
        let dy = grads.consume::<B>(&ops.node);
        if weights.is_some() || bias.is_some() {
            let (dw, db) = B::stagger_linear_weights(x_value, dy.clone(), pass);
            weights.into_iter().for_each(|node| grads.register::<B>(node.id, dw.clone()));
            bias.into_iter().for_each(|node| grads.register::<B>(node.id, db.clone()));
        }
        if let Some(node) = x {
            grads.register::<B>(node.id, B::stagger_linear_input(dy, weights_value, pass));
        }
    }
}

/// The backward pass for x, γ, β and, if N is 4, the residual.
#[derive(Debug)]
struct NormBackward;

impl<B: Backend + Layers, const N: usize> Backward<B, N> for NormBackward {
    type State = ([FloatTensor<B>; 4], Norm);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([x, y, moments, gamma], plan) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let (dx, residual, dgamma, dbeta) = B::stagger_norm_backward(x, y, moments, gamma, dy, plan);
        for (parent, gradient) in ops.parents.into_iter().zip([dx, dgamma, dbeta, residual]) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

/// The backward pass for x, γ and β.
#[derive(Debug)]
struct NormPoolBackward;

impl<B: Backend + Layers> Backward<B, 3> for NormPoolBackward {
    type State = ([FloatTensor<B>; 5], Norm, Pool);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([x, kept, moments, gamma, beta], plan, pool) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let (dx, dgamma, dbeta) = B::stagger_norm_pool_backward(x, kept, moments, gamma, beta, dy, plan, pool);
        for (parent, gradient) in ops.parents.into_iter().zip([dx, dgamma, dbeta]) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct MaxPoolBackward;

impl<B: Backend + Layers> Backward<B, 1> for MaxPoolBackward {
    type State = (FloatTensor<B>, Pool);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([parent], (x, plan)) = (ops.parents, ops.state);
        let dy = grads.consume::<B>(&ops.node);
        if let Some(node) = parent {
            grads.register::<B>(node.id, B::stagger_max_pool_backward(x, dy, plan));
        }
    }
}

#[derive(Debug)]
struct MeanPoolBackward;

impl<B: Backend + Layers> Backward<B, 1> for MeanPoolBackward {
    type State = Pool;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        if let Some(node) = parent {
            grads.register::<B>(node.id, B::stagger_mean_pool_backward(dy, ops.state));
        }
    }
}

#[derive(Debug)]
struct CrossEntropyBackward;

impl<B: Backend + Layers> Backward<B, 1> for CrossEntropyBackward {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        let by = grads.consume::<B>(&ops.node);
        if let Some(node) = parent {
            grads.register::<B>(node.id, B::stagger_scale(ops.state, by));
        }
    }
}

impl<B: Backend + Layers, C: CheckpointStrategy> Layers for Autodiff<B, C> {
    fn stagger_conv(x: FloatTensor<Self>, weights: FloatTensor<Self>, plan: Conv) -> FloatTensor<Self> {
        match ConvBackward.prepare::<C>([x.node(), weights.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::stagger_conv(x.primitive().clone(), weights.primitive().clone(), plan);
                prep.finish((x.into_primitive(), weights.into_primitive(), plan), y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::stagger_conv(x.into_primitive(), weights.into_primitive(), plan))
            }
        }
    }

    fn stagger_linear(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        pass: Pass,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weights.node(), bias.node()];
        let (x, weights) = (x.into_primitive(), weights.into_primitive());
        let y = B::stagger_linear(x.clone(), weights.clone(), bias.into_primitive(), pass);
        match LinearBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, weights, pass), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn stagger_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        plan: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let extra = residual.node();
        let (y, moments) = B::stagger_norm(
            x.primitive().clone(),
            gamma.primitive().clone(),
            beta.into_primitive(),
            residual.into_primitive(),
            plan,
        );
        let state = ([x.into_primitive(), y.clone(), moments.clone(), gamma.into_primitive()], plan);
        let y = if plan.residual {
            let [x, gamma, beta] = nodes;
            match Backward::<B, 4>::prepare::<C>(NormBackward, [x, gamma, beta, extra]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(state, y),
                OpsKind::UnTracked(prep) => prep.finish(y),
            }
        } else {
            match Backward::<B, 3>::prepare::<C>(NormBackward, nodes).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(state, y),
                OpsKind::UnTracked(prep) => prep.finish(y),
            }
        };
        (y, Self::from_inner(moments))
    }

    fn stagger_norm_pool(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        plan: Norm,
        pool: Pool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let (x, gamma, beta) = (x.into_primitive(), gamma.into_primitive(), beta.into_primitive());
        let (y, kept, moments) = B::stagger_norm_pool(x.clone(), gamma.clone(), beta.clone(), plan, pool);
        let state = ([x, kept.clone(), moments.clone(), gamma, beta], plan, pool);
        let y = match NormPoolBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        (y, Self::from_inner(kept), Self::from_inner(moments))
    }

    fn stagger_max_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        match MaxPoolBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::stagger_max_pool(x.primitive().clone(), plan);
                prep.finish((x.into_primitive(), plan), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::stagger_max_pool(x.into_primitive(), plan)),
        }
    }

    fn stagger_mean_pool(x: FloatTensor<Self>, plan: Pool) -> FloatTensor<Self> {
        match MeanPoolBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(plan, B::stagger_mean_pool(x.into_primitive(), plan)),
            OpsKind::UnTracked(prep) => prep.finish(B::stagger_mean_pool(x.into_primitive(), plan)),
        }
    }

    fn stagger_cross_entropy(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        scale: f32,
        replicas: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let node = logits.node();
        let (logits, targets) = (logits.into_primitive(), targets.into_primitive());
        let (loss, gradient) = B::stagger_cross_entropy(logits, targets, scale, replicas);
        let loss = match CrossEntropyBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(gradient.clone(), loss),
            OpsKind::UnTracked(prep) => prep.finish(loss),
        };
        (loss, Self::from_inner(gradient))
    }

    fn stagger_conv_input(_: FloatTensor<Self>, _: FloatTensor<Self>, _: Conv) -> FloatTensor<Self> {
        unreachable!("{NO_SECOND_DERIVATIVE}")
    }

    fn stagger_conv_weights(_: FloatTensor<Self>, _: FloatTensor<Self>, _: Conv) -> FloatTensor<Self> {
        unreachable!("{NO_SECOND_DERIVATIVE}")
    }

    fn stagger_linear_input(_: FloatTensor<Self>, _: FloatTensor<Self>, _: Pass) -> FloatTensor<Self> {
        unreachable!("{NO_SECOND_DERIVATIVE}")
    }

    fn stagger_linear_weights(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Pass,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{NO_SECOND_DERIVATIVE}")
    }

    fn stagger_norm_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{NO_SECOND_DERIVATIVE}")
    }

    fn stagger_norm_pool_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Norm,
        _: Pool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{NO_SECOND_DERIVATIVE}")
    }

    fn stagger_max_pool_backward(_: FloatTensor<Self>, _: FloatTensor<Self>, _: Pool) -> FloatTensor<Self> {
        unreachable!("{NO_SECOND_DERIVATIVE}")
    }

    fn stagger_mean_pool_backward(_: FloatTensor<Self>, _: Pool) -> FloatTensor<Self> {
        unreachable!("{NO_SECOND_DERIVATIVE}")
    }

    fn stagger_scale(_: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("{NO_SECOND_DERIVATIVE}")
    }
}
