//! Several workers' steps in one pass: their replicas computed as one network of as many replicas.
//!
//! A launch then serves all of them, which is what a small network on a large device needs when one thread is to feed it. The models
//! are copied into one buffer first and the gradients out of one afterwards, so a gradient costs two passes over the weights more.

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

/// All workers' f_i on images.
pub struct Stack {
    pub images: Images,
    /// One per worker.
    pub parts: Vec<Part>,
    /// Of every worker.
    pub batch: usize,
    pub augment: Augment,
    /// Always there between calls; taken while Burn maps it.
    pub net: Option<Net>,
    /// What the net is attached to between calls.
    pub zero: Buffer,
    pub layout: Arc<Layout>,
    pub device: Device,
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
        let net = attach(self.net.take().expect("the replicas are there"), device, &layout, &weights);
        let batch = (self.images.shape(), &x, &y);
        let how = Pass { precision: self.precision, replicas };
        let (all, losses) = pass(&net, device, &layout, batch, how)?;
        self.net = Some(detach(net, device, &self.layout, &self.zero));
        // Room for the gradients one by one.
        drop(weights);
        let own = unstack(device, &self.layout, replicas, &all, &losses);
        Ok(own.into_iter().map(|(buffers, loss)| (buffers.into(), loss)).collect())
    }
}
