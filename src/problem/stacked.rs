//! Stacked passes: computes the steps of several workers in one pass, as one network with one replica per job.
//!
//! Each launch serves all replicas. That lets one thread keep a large device busy with a small network. The
//! models are copied into one buffer before the pass, and the gradients are copied out of one buffer after it.
//! A gradient therefore costs two additional passes over the weights.

use super::step::pass;
use super::{Stacked, StackedJob};
use crate::error::Result;
use crate::problem::model::Net;
use crate::problem::params::{attach, detach};
use stagger_kernels::gather::{Augment, Draw, Images, Part};
use stagger_kernels::layers::{Pass, Precision};
use stagger_kernels::stack::{stack, unstack};
use stagger_kernels::{Buffer, Device, Layout};
use std::sync::Arc;

/// The objectives f_i of all workers on images.
pub struct Stack {
    /// The training set.
    pub images: Images,
    /// The part of each worker.
    pub parts: Vec<Part>,
    /// Samples per gradient, the same for every worker.
    pub batch: usize,
    /// Crops and flips.
    pub augment: Augment,
    /// `None` during a pass, because Burn maps a module by value, and after a failed pass.
    pub net: Option<Net>,
    /// One zero. Between passes every parameter of the network is a view of it.
    pub zero: Buffer,
    /// The layout of one replica.
    pub layout: Arc<Layout>,
    pub device: Device,
    /// Precision of the factors of matrix products.
    pub precision: Precision,
}

impl Stacked for Stack {
    fn gradients(&mut self, jobs: &[StackedJob]) -> Result<Vec<(Arc<[Buffer]>, Buffer)>> {
        let (device, replicas) = (&self.device, jobs.len());
        let models: Vec<&Buffer> = jobs.iter().map(|job| job.weights).collect();
        let draw =
            |job: &StackedJob| Draw::Batch { part: &self.parts[job.worker], job: job.job, augment: self.augment };
        let (x, y) = self.images.draw_together(device, jobs.iter().map(draw).collect(), self.batch);
        let (layout, weights) = (self.layout.stacked(replicas), stack(device, &self.layout, &models));
        let net = attach(self.net.take().expect("no pass failed before"), device, &layout, &weights);
        let batch = (self.images.shape(), &x, &y);
        let how = Pass { precision: self.precision, replicas };
        let (all, losses) = pass(&net, device, &layout, batch, how)?;
        self.net = Some(detach(net, device, &self.layout, &self.zero));
        // Frees memory for the separate gradients.
        drop(weights);
        let own = unstack(device, &self.layout, replicas, &all, &losses);
        Ok(own.into_iter().map(|(buffers, loss)| (buffers.into(), loss)).collect())
    }
}
