//! The forward and backward pass of a network on one batch.

use crate::error::Result;
use crate::problem::model::Net;
use crate::problem::params::{buffer, gradients, tensor};
use burn::tensor::Tensor;
use stagger_kernels::gather::ImageShape;
use stagger_kernels::layers::{Pass, cross_entropies, sums};
use stagger_kernels::{Buffer, Device, Layout};

/// Runs the forward and backward pass of a network that is attached to weights of this layout. Returns one
/// gradient buffer per segment, and one loss per replica.
pub(super) fn pass(
    net: &Net,
    device: &Device,
    layout: &Layout,
    (shape, x, y): (ImageShape, &Buffer, &Buffer),
    how: Pass,
) -> Result<(Vec<Buffer>, Buffer)> {
    let batch = y.len() / shape.classes;
    let x = tensor::<4>(device, x, [batch, shape.side, shape.side, shape.channels]);
    let y = tensor::<2>(device, y, [batch, shape.classes]);
    let logits = net.forward(Tensor::from_inner(x), how);
    let losses = cross_entropies(logits, Tensor::from_inner(y), net.scale(), how.replicas);
    let mut found = sums::together(layout, || losses.backward());
    let buffers = gradients(net, device, layout, &mut found)?;
    Ok((buffers, buffer(device, losses.inner())?))
}
