//! Image classification. Every worker draws batches from its own part of a training set that is stored once on
//! the device.

use super::stacked::Stack;
use super::step::pass;
use super::{Columns, Evaluation};
use super::{Evaluator, Objective, Problem, SHOWN, Snapshot, Stacked};
use crate::error::{Error, Result};
use crate::problem::model::Net;
use crate::problem::params::{attach, burn_device, detach, initial_weights, layout_of, tensor, total};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorData};
use stagger_datasets::ImageData;
use stagger_datasets::partition::{self, Partition};
use stagger_kernels::device::Replica;
use stagger_kernels::gather::{Augment, Draw, ImageShape, Images, Part};
use stagger_kernels::graph::Recorded;
use stagger_kernels::layers::Precision;
use stagger_kernels::{Buffer, Device, Layout};
use std::sync::Arc;

/// Images per forward pass of an evaluation: enough to keep a GPU busy, and few enough for the CPU's caches.
fn evaluation_batch(device: &Device) -> usize {
    match device {
        Device::Cpu => 50,
        Device::Gpu(_) => 250,
    }
}

/// The settings of an image problem.
pub struct ImageOptions<'a> {
    /// Name of the model: `cnn`, `resnet18`, `mlp` or `logreg`.
    pub model: &'a str,
    /// Number of workers.
    pub workers: usize,
    /// How the training set is divided among workers.
    pub partition: &'a Partition,
    /// Samples per gradient; `None` for the worker's whole part.
    pub batch: Option<usize>,
    /// Random seed of the partition, the initial weights and the batches.
    pub seed: u64,
    /// Crops and flips.
    pub augment: Augment,
    /// How a step is launched.
    pub step: StepKind,
    /// Precision of the factors of a step's matrix products. An evaluation rounds nothing.
    pub precision: Precision,
}

/// Memory in bytes of one worker's step, and of an evaluation. `largest` is the number of samples of the largest part.
fn memory_of(net: &Net, device: &Device, data: &ImageData, options: &ImageOptions, largest: usize) -> (u64, u64) {
    let is_cpu = matches!(device, Device::Cpu);
    let (per_step, per_evaluation) = net.activations(data.channels, data.side, is_cpu);
    // The CPU makes rounded copies of the factors. For each product they are a part of what the step keeps.
    let copies = is_cpu && options.precision != Precision::F32;
    let per_step = per_step + if copies { per_step / 4 } else { 0 };
    // Only a GPU stores the patches of a convolution in memory.
    let patches = |batch| match device {
        Device::Cpu => 0,
        Device::Gpu(_) => {
            net.convolutions(batch, data.side).iter().map(|(_, conv, _)| conv.patches_together()).max().unwrap_or(0)
        }
    };
    let bytes = |batch: usize, per_image: usize| 4 * (batch * per_image + patches(batch)) as u64;
    // The memory of a stacked pass is divided among its workers.
    let together = if let StepKind::Stacked(most) = options.step { most.min(options.workers) } else { 1 };
    let step = bytes(together * options.batch.unwrap_or(largest), per_step) / together as u64;
    (step, bytes(evaluation_batch(device), per_evaluation))
}

/// Builds the problem on `device`.
///
/// # Errors
///
/// If the model does not exist, the training set cannot be divided among so many workers, or stacked passes
/// have no fixed batch size.
pub fn images(device: &Device, data: ImageData, options: &ImageOptions) -> Result<Problem> {
    let ImageOptions { model, workers, partition, batch, seed, step, .. } = *options;
    let classes = data.classes.len();
    let parts = partition.deal(&data.train.labels, classes, workers, seed)?;
    let mut description = vec![format!(
        "{} training and {} test images of {}x{s}x{s}, partition {partition}:",
        data.train.labels.len(),
        data.test.labels.len(),
        data.channels,
        s = data.side
    )];
    let held = partition::held(&parts, &data.train.labels, classes);
    description.extend(partition::table(&held, &data.classes, SHOWN));

    let burn = burn_device(device);
    let net = Net::build(model, data.channels, data.side, classes, &burn).ok_or_else(|| {
        Error::usage(format!("--model {model} does not classify images; use cnn, resnet18, mlp or logreg"))
    })?;
    let layout = layout_of(&net);
    let zero = device.zeros(1);
    let net = detach(net, device, &layout, &zero);
    let initial = initial_weights(&layout, seed);
    let largest = parts.iter().map(Vec::len).max().unwrap_or(1);
    let samples = parts.iter().map(Vec::len).sum();
    let batches = parts.iter().map(|p| batch.unwrap_or(p.len())).collect();
    let (step_bytes, evaluation_bytes) = memory_of(&net, device, &data, options, largest);

    let shape = ImageShape { channels: data.channels, side: data.side, classes };
    let data_bytes = (data.train.pixels.len() + data.test.pixels.len()) as u64;
    let train = Images::new(device, shape, data.train.pixels, data.train.labels, data.mean, data.std);
    let test = Images::new(device, shape, data.test.pixels, data.test.labels, data.mean, data.std);
    let shared = Shared { device: device.clone(), layout: Arc::new(layout.clone()), net, zero, images: train };
    let (objectives, stacked) = shared.workers(parts, options)?;
    let Shared { layout: shared, net, zero, .. } = shared;
    Ok(Problem {
        evaluator: Box::new(TestSet { images: test, net: Some(net), zero, layout: shared, device: device.clone() }),
        layout,
        initial,
        objectives,
        stacked,
        held: Some((data.classes, held)),
        columns: Columns::Images,
        batches,
        samples,
        step_bytes,
        evaluation_bytes,
        data_bytes,
        cheap: false,
        recorded: matches!(step, StepKind::Captured | StepKind::Best),
        description,
    })
}

/// What all workers share.
struct Shared {
    device: Device,
    layout: Arc<Layout>,
    net: Net,
    zero: Buffer,
    images: Images,
}

/// One objective per worker, or all of them as one and the largest number of jobs in a pass.
type Workers = (Vec<Box<dyn Objective>>, Option<(Box<dyn Stacked>, usize)>);

impl Shared {
    /// The workers' objectives. `parts` are the rows of the training set that each worker holds.
    fn workers(&self, parts: Vec<Vec<u32>>, options: &ImageOptions) -> Result<Workers> {
        let ImageOptions { workers, batch, seed, augment, step, precision, .. } = *options;
        let parts = parts.into_iter().enumerate();
        if let StepKind::Stacked(most) = step {
            let batch = batch.ok_or_else(|| {
                Error::usage(
                    "--step stacked needs batches of the same size: give --batch a number (full parts differ in size)",
                )
            })?;
            let stack = Stack {
                images: self.images.clone(),
                parts: parts.map(|(i, rows)| Part::new(&self.device, rows, seed, i)).collect(),
                batch,
                augment,
                net: Some(self.net.clone()),
                zero: self.zero.clone(),
                layout: self.layout.clone(),
                device: self.device.clone(),
                precision,
            };
            return Ok((Vec::new(), Some((Box::new(stack), most.min(workers)))));
        }
        let objectives = parts.map(|(i, rows)| -> Box<dyn Objective> {
            Box::new(Classify {
                batch: batch.unwrap_or(rows.len()),
                part: Part::new(&self.device, rows, seed, i),
                images: self.images.clone(),
                augment,
                net: Some(self.net.clone()),
                attached: None,
                spare: self.net.clone(),
                zero: self.zero.clone(),
                replica: Replica::new(),
                layout: self.layout.clone(),
                device: self.device.clone(),
                step,
                precision,
                recorded: None,
            })
        });
        Ok((objectives.collect(), None))
    }
}

/// How a worker's step is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// One launch after another.
    Eager,
    /// Recorded once, then replayed with one launch per step.
    Captured,
    /// Recorded if the device supports it, otherwise eager. The fallback prints a note.
    Best,
    /// Stacked passes on the server's thread, with at most this many workers per pass.
    Stacked(usize),
}

/// Default number of workers per stacked pass. A larger pass hardly uses a device better, and every worker
/// takes memory.
const STACKED: usize = 16;

impl StepKind {
    /// Parses the value of `--step`; `None` means auto.
    pub fn parse(text: &str) -> Result<Option<StepKind>> {
        match text {
            "auto" => Ok(None),
            "eager" => Ok(Some(StepKind::Eager)),
            "captured" => Ok(Some(StepKind::Captured)),
            "stacked" => Ok(Some(StepKind::Stacked(STACKED))),
            _ => match text.strip_prefix("stacked:").map(str::parse) {
                Some(Ok(most)) if most > 0 => Ok(Some(StepKind::Stacked(most))),
                _ => Err(Error::usage(format!(
                    "--step `{text}` is not one of auto, eager, captured, stacked, stacked:N (at most N workers in one pass)"
                ))),
            },
        }
    }

    /// Resolves auto (`asked` is `None`) for `device`.
    ///
    /// # Errors
    ///
    /// If the device does not support what was asked for.
    pub fn on(asked: Option<StepKind>, device: &Device) -> Result<StepKind> {
        match (asked, device) {
            (Some(StepKind::Captured), Device::Cpu) => Err(Error::usage(
                "--step captured needs a GPU: the CPU has no launches to record; leave --step out or use --step eager",
            )),
            (Some(kind), _) => Ok(kind),
            (None, _) if device.is_cuda() => Ok(StepKind::Best),
            (None, _) => Ok(StepKind::Eager),
        }
    }
}

/// The objective f_i of one worker: mean cross-entropy over its part.
struct Classify {
    images: Images,
    part: Part,
    batch: usize,
    augment: Augment,
    /// `None` during a pass, because Burn maps a module by value, and after a failed pass.
    net: Option<Net>,
    /// The buffer that the parameters are views of. If the next job has the same buffer, as on CUDA, where it
    /// is the replica's own buffer, the network stays attached.
    attached: Option<Buffer>,
    /// A detached copy, to replace the network after a failed pass.
    spare: Net,
    /// One zero. On the CPU every parameter is a view of it between passes, so that the network does not keep
    /// old weights alive.
    zero: Buffer,
    replica: Replica,
    layout: Arc<Layout>,
    device: Device,
    step: StepKind,
    precision: Precision,
    /// Images, targets and the step that reads them.
    recorded: Option<(Buffer, Buffer, Recorded<Step>)>,
}

/// The result of a step: one gradient buffer per segment of the layout, and the batch loss.
type Step = (Arc<[Buffer]>, Buffer);

impl Classify {
    /// Runs the forward and backward pass at `weights` on images x and one-hot targets y [B, classes].
    fn step(&mut self, weights: &Buffer, x: &Buffer, y: &Buffer) -> Result<Step> {
        // After a failed pass there is no network. The job may be computed again.
        let net = match (self.net.take(), self.attached.take()) {
            (Some(net), Some(attached)) if attached.is(weights) => net,
            (net, _) => attach(net.unwrap_or_else(|| self.spare.clone()), &self.device, &self.layout, weights),
        };
        let batch = (self.images.shape(), x, y);
        let (buffers, loss) = pass(&net, &self.device, &self.layout, batch, self.precision.into())?;
        // On a GPU the network stays attached. Its weights are the replica's own (CUDA) or those of a recent
        // version (WGPU).
        (self.net, self.attached) = match self.device {
            Device::Cpu => (Some(detach(net, &self.device, &self.layout, &self.zero)), None),
            Device::Gpu(_) => (Some(net), Some(weights.clone())),
        };
        Ok((buffers.into(), loss))
    }

    /// Records the step on this thread's stream. A replay reads the replica's own buffer and the buffers of the
    /// batch, and always writes the same buffers. The draw of the batch is not recorded, because the training
    /// set belongs to another stream.
    fn record(&mut self, snapshot: &Snapshot) -> Result<(Buffer, Buffer, Recorded<Step>)> {
        let device = self.device.clone();
        let (x, y) = self.images.batch(&device, self.batch);
        let weights = self.replica.fixed(&device, snapshot.weights.len());
        let recorded = device.record(|| self.step(&weights, &x, &y))?.transpose()?;
        Ok((x, y, recorded))
    }
}

impl Objective for Classify {
    fn is_recorded(&self) -> bool {
        self.recorded.as_ref().is_some_and(|(_, _, recorded)| recorded.is_here())
    }

    fn gradient(&mut self, snapshot: &Snapshot, job: u64) -> Result<Step> {
        if matches!(self.step, StepKind::Captured | StepKind::Best) && !self.is_recorded() {
            self.recorded = match self.record(snapshot) {
                Ok(recorded) => Some(recorded),
                Err(error) if self.step == StepKind::Best => {
                    note!("NOTE       {error}; the kernels of a step are launched one by one (--step eager)");
                    self.step = StepKind::Eager;
                    None
                }
                Err(error) => return Err(error),
            };
        }
        let draw = Draw::Batch { part: &self.part, job, augment: self.augment };
        let fixed = self.recorded.is_some();
        let (weights, pull) = self.replica.copy_weights(&self.device, &snapshot.weights, &snapshot.fence, fixed);
        match &self.recorded {
            Some((x, y, recorded)) => {
                self.images.draw_into(&self.device, draw, self.batch, 0, x, y, pull);
                Ok(recorded.replay()?.clone())
            }
            None => {
                let (x, y) = self.images.draw(&self.device, draw, self.batch, pull);
                self.step(&weights, &x, &y)
            }
        }
    }
}

/// Evaluates a model on the whole test set.
struct TestSet {
    images: Images,
    /// `None` only during an evaluation, because Burn maps a module by value.
    net: Option<Net>,
    /// One zero. Between evaluations every parameter of the network is a view of it.
    zero: Buffer,
    layout: Arc<Layout>,
    device: Device,
}

impl Evaluator for TestSet {
    fn evaluate(&mut self, weights: &Buffer) -> Result<Evaluation> {
        let net = attach(self.net.take().expect("no evaluation failed before"), &self.device, &self.layout, weights);
        let shape = self.images.shape();
        let plain = burn::module::Module::valid(&net);
        // The sums stay on the device until the end, so there is one read in total.
        let mut sums: Option<Tensor<1>> = None;
        let batch = evaluation_batch(&self.device);
        for first in (0..self.images.len()).step_by(batch) {
            let size = batch.min(self.images.len() - first);
            let (x, y) = self.images.draw(&self.device, Draw::InOrder { first }, size, None);
            let x = tensor::<4>(&self.device, &x, [size, shape.side, shape.side, shape.channels]);
            let y = tensor::<2>(&self.device, &y, [size, shape.classes]);
            let logits = plain.forward(x, Precision::F32).mul_scalar(plain.scale());
            // 1 at every maximum. If k classes tie for the maximum, each one counts as 1/k of a correct answer.
            let top = logits.clone().greater_equal(logits.clone().max_dim(1)).float();
            let correct = total((top.clone() * y.clone()).sum_dim(1) / top.sum_dim(1).clamp_min(1.0));
            let loss = total(log_softmax(logits, 1) * y).neg();
            let pair = Tensor::cat(vec![loss, correct], 0);
            sums = Some(sums.map_or(pair.clone(), |sums| sums + pair));
        }
        self.net = Some(detach(net, &self.device, &self.layout, &self.zero));
        let data: TensorData = sums
            .expect("a test set is not empty")
            .try_into_data()
            .map_err(|e| stagger_kernels::DeviceError(e.to_string()))?;
        let values =
            data.try_to_vec::<f32>().map_err(|e| Error::failed(format!("cannot read the evaluation: {e:?}")))?;
        let count = self.images.len() as f64;
        Ok(Evaluation {
            test_loss: Some(values[0] as f64 / count),
            test_accuracy: Some(values[1] as f64 / count),
            ..Evaluation::default()
        })
    }
}
