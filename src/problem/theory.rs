//! The theory problems: quadratics, and logistic regression on LIBSVM rows with a regulariser.
//!
//! Workers compute in f32 on the device, by explicit formulas. The evaluation computes the full objective and
//! its gradient in f64 on the host, from the data as it was read. It is therefore an independent check of the
//! workers.

use super::{Columns, Evaluation};
use super::{Evaluator, Objective, Problem, SHOWN, Snapshot};
use crate::error::{Error, Result};
use crate::problem::params::{buffer, tensor, total};
use burn::tensor::activation::{relu, sigmoid};
use burn::tensor::{Int, Tensor};
use stagger_datasets::libsvm::SparseRows;
use stagger_datasets::partition::{self, Partition};
use stagger_kernels::device::{Replica, gradient_on_host};
use stagger_kernels::gather::Part;
use stagger_kernels::{Buffer, Device, Layout};
use std::str::FromStr;
use std::sync::Arc;

/// A regulariser that is added to the objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Regularizer {
    /// No regulariser.
    None,
    /// λ/2 ‖x‖².
    L2(f64),
    /// λ Σ x²/(1+x²), gradient 2λ x/(1+x²)² (Islamov et al., 2024).
    Nonconvex(f64),
}

impl FromStr for Regularizer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::usage(format!(
                "--regularizer `{text}` is not none, l2:LAMBDA or nonconvex:LAMBDA with LAMBDA of at least 0"
            ))
        };
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        let lambda = || value.parse::<f64>().ok().filter(|l| l.is_finite() && *l >= 0.0).ok_or_else(wrong);
        match name {
            "none" if value.is_empty() => Ok(Regularizer::None),
            "l2" => Ok(Regularizer::L2(lambda()?)),
            "nonconvex" => Ok(Regularizer::Nonconvex(lambda()?)),
            _ => Err(wrong()),
        }
    }
}

impl Regularizer {
    /// Value and derivative at one coordinate x.
    fn at(&self, x: f64) -> (f64, f64) {
        match self {
            Regularizer::None => (0.0, 0.0),
            Regularizer::L2(l) => (0.5 * l * x * x, l * x),
            Regularizer::Nonconvex(l) => (l * x * x / (1.0 + x * x), 2.0 * l * x / (1.0 + x * x).powi(2)),
        }
    }

    /// Value (one float) and gradient [d] at weights x [d] on the device. `None` without a regulariser.
    fn on_device(&self, x: Tensor<1>) -> Option<(Tensor<1>, Tensor<1>)> {
        match *self {
            Regularizer::None => None,
            Regularizer::L2(l) => Some((total(x.clone().square()).mul_scalar(0.5 * l), x.mul_scalar(l))),
            Regularizer::Nonconvex(l) => {
                let square = x.clone().square();
                let below = square.clone().add_scalar(1.0);
                Some((total(square / below.clone()).mul_scalar(l), (x / below.square()).mul_scalar(2.0 * l)))
            }
        }
    }
}

/// The layout of a model that is one vector x.
fn vector_layout(dimension: usize) -> Layout {
    let mut layout = Layout::default();
    layout.push("x".into(), vec![dimension]);
    layout
}

/// Builds the quadratics f_i(x) = ½‖x - c_i‖² with exact gradients x - c_i. Worker i holds centre c_i. Every
/// weight starts at `init`.
///
/// # Panics
///
/// If `centres` is empty.
pub fn quadratic(device: &Device, centres: Vec<Vec<f64>>, init: f32) -> Problem {
    let dimension = centres[0].len();
    let layout = vector_layout(dimension);
    let objectives = centres
        .iter()
        .map(|c| -> Box<dyn Objective> {
            let centre: Vec<f32> = c.iter().map(|&x| x as f32).collect();
            match device {
                Device::Cpu => Box::new(HostDistance { centre }),
                Device::Gpu(_) => Box::new(Distance {
                    replica: Replica::new(),
                    centre: device.upload(centre),
                    dimension,
                    device: device.clone(),
                }),
            }
        })
        .collect();
    Problem {
        initial: vec![init; layout.total()],
        objectives,
        stacked: None,
        held: None,
        columns: Columns::Theory,
        batches: vec![1; centres.len()],
        samples: centres.len(),
        step_bytes: 16 * dimension as u64,
        evaluation_bytes: 0,
        data_bytes: (4 * centres.len() * dimension) as u64,
        cheap: dimension <= 1 << 14,
        recorded: false,
        description: vec![format!("{} quadratics of dimension {dimension}, one per worker", centres.len())],
        evaluator: Box::new(Distances { centres, device: device.clone() }),
        layout,
    }
}

/// A quadratic on a GPU.
struct Distance {
    replica: Replica,
    centre: Buffer,
    dimension: usize,
    device: Device,
}

impl Objective for Distance {
    fn gradient(&mut self, snapshot: &Snapshot, _job: u64) -> Result<(Arc<[Buffer]>, Buffer)> {
        let weights = self.replica.pull(&self.device, &snapshot.weights, &snapshot.fence);
        let x = tensor::<1>(&self.device, &weights.view(0, self.dimension), [self.dimension]);
        let gradient = x - tensor::<1>(&self.device, &self.centre, [self.dimension]);
        let loss = total(gradient.clone().square()).mul_scalar(0.5);
        Ok(([buffer(&self.device, gradient)?].into(), buffer(&self.device, loss)?))
    }
}

/// A quadratic on the CPU. It uses no tensors, because at a million gradients per second every allocation and
/// every cache miss counts.
struct HostDistance {
    centre: Vec<f32>,
}

impl Objective for HostDistance {
    fn gradient(&mut self, snapshot: &Snapshot, _job: u64) -> Result<(Arc<[Buffer]>, Buffer)> {
        let (x, centre) = (snapshot.weights.host(), &self.centre);
        Ok(gradient_on_host(centre.len(), |gradient| {
            gradient.iter_mut().zip(x).zip(centre).for_each(|((g, x), c)| *g = x - c);
            0.5 * gradient.iter().map(|g| g * g).sum::<f32>()
        }))
    }
}

/// The mean of all quadratics, in f64 on the host.
struct Distances {
    device: Device,
    centres: Vec<Vec<f64>>,
}

impl Evaluator for Distances {
    fn evaluate(&mut self, weights: &Buffer) -> Result<Evaluation> {
        let x = self.device.download(weights)?;
        let (mut loss, mut gradient) = (0.0, vec![0.0; self.centres[0].len()]);
        for centre in &self.centres {
            for ((g, c), x) in gradient.iter_mut().zip(centre).zip(&x) {
                let d = *x as f64 - c;
                *g += d / self.centres.len() as f64;
                loss += 0.5 * d * d / self.centres.len() as f64;
            }
        }
        Ok(full(loss, &gradient))
    }
}

/// The evaluation of a full objective with this loss and gradient.
fn full(loss: f64, gradient: &[f64]) -> Evaluation {
    let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
    Evaluation { train_loss: Some(loss), grad_norm: Some(norm), ..Evaluation::default() }
}

/// Builds logistic regression with f_i(x) = (1/m_i) Σ log(1 + exp(-b aᵀx)) + regulariser. The sum is over the
/// m_i rows a with labels b of worker i. The full objective f is the unweighted mean of the f_i.
///
/// `batch` is the number of rows per gradient; `None` uses all rows of the worker. Every weight starts at
/// `init`. `seed` determines the partition and the batches.
///
/// # Errors
///
/// If the rows cannot be divided among so many workers.
#[allow(clippy::too_many_arguments)]
pub fn libsvm(
    device: &Device,
    rows: SparseRows,
    workers: usize,
    partition: &Partition,
    batch: Option<usize>,
    regularizer: Regularizer,
    init: f32,
    seed: u64,
) -> Result<Problem> {
    let classes: Vec<u8> = rows.labels.iter().map(|&l| (l > 0.0) as u8).collect();
    let parts = partition.deal(&classes, 2, workers, seed)?;
    let names = vec!["-1".to_string(), "+1".to_string()];
    let mut description = vec![format!("{} rows of dimension {}, partition {partition}:", rows.len(), rows.dimension)];
    let held = partition::held(&parts, &classes, names.len());
    description.extend(partition::table(&held, &names, SHOWN));
    let d = rows.dimension;
    let layout = vector_layout(d);
    let largest = parts.iter().map(Vec::len).max().unwrap_or(1);
    let objectives = parts
        .iter()
        .enumerate()
        .map(|(i, part)| -> Box<dyn Objective> {
            let mut matrix = vec![0f32; part.len() * d];
            for (dense, &r) in matrix.chunks_exact_mut(d).zip(part) {
                rows.row(r as usize).for_each(|(c, v)| dense[c] = v as f32);
            }
            let labels = part.iter().map(|&r| rows.labels[r as usize] as f32).collect();
            Box::new(Logistic {
                replica: Replica::new(),
                matrix: device.upload(matrix),
                labels: device.upload(labels),
                part: Part::new(device, (0..part.len() as u32).collect(), seed, i),
                batch,
                d,
                regularizer,
                device: device.clone(),
            })
        })
        .collect();
    let samples = parts.iter().map(Vec::len).sum();
    Ok(Problem {
        initial: vec![init; layout.total()],
        layout,
        objectives,
        stacked: None,
        held: Some((names, held)),
        columns: Columns::Theory,
        batches: parts.iter().map(|p| batch.unwrap_or(p.len())).collect(),
        samples,
        evaluation_bytes: 0,
        step_bytes: (4 * batch.unwrap_or(0) * d + 32 * largest) as u64,
        data_bytes: (4 * samples * (d + 1)) as u64,
        cheap: false,
        recorded: false,
        evaluator: Box::new(LogisticWhole { rows, parts, regularizer, device: device.clone() }),
        description,
    })
}

/// The logistic regression f_i of one worker.
struct Logistic {
    replica: Replica,
    matrix: Buffer,
    labels: Buffer,
    part: Part,
    batch: Option<usize>,
    d: usize,
    regularizer: Regularizer,
    device: Device,
}

impl Objective for Logistic {
    fn gradient(&mut self, snapshot: &Snapshot, job: u64) -> Result<(Arc<[Buffer]>, Buffer)> {
        let weights = self.replica.pull(&self.device, &snapshot.weights, &snapshot.fence);
        let rows = self.part.len();
        let mut a = tensor::<2>(&self.device, &self.matrix, [rows, self.d]);
        let mut b = tensor::<2>(&self.device, &self.labels, [rows, 1]);
        if let Some(batch) = self.batch {
            // Row indices below 2^24 are exact in f32.
            let chosen = tensor::<1>(&self.device, &self.part.draw(&self.device, job, batch), [batch]);
            let chosen: Tensor<1, Int> = chosen.int();
            a = a.select(0, chosen.clone());
            b = b.select(0, chosen);
        }
        let m = b.dims()[0] as f64;
        let x = tensor::<1>(&self.device, &weights.view(0, self.d), [self.d]);
        let margin = a.clone().matmul(x.clone().unsqueeze_dim(1)) * b.clone(); // [m, 1]
        // log(1 + exp(-z)) = max(-z, 0) + log(1 + exp(-|z|)), which does not overflow.
        let losses = relu(margin.clone().neg()) + margin.clone().abs().neg().exp().log1p();
        let mut loss = total(losses).div_scalar(m);
        let factors = b * sigmoid(margin.neg()); // [m, 1]
        let mut gradient = factors.transpose().matmul(a).mul_scalar(-1.0 / m).reshape([self.d]);
        if let Some((value, slope)) = self.regularizer.on_device(x) {
            loss = loss + value;
            gradient = gradient + slope;
        }
        Ok(([buffer(&self.device, gradient)?].into(), buffer(&self.device, loss)?))
    }
}

/// The full objective of logistic regression, in f64 on the host.
struct LogisticWhole {
    device: Device,
    rows: SparseRows,
    parts: Vec<Vec<u32>>,
    regularizer: Regularizer,
}

impl Evaluator for LogisticWhole {
    fn evaluate(&mut self, weights: &Buffer) -> Result<Evaluation> {
        let x: Vec<f64> = self.device.download(weights)?[..self.rows.dimension].iter().map(|&w| w as f64).collect();
        let (mut loss, mut gradient) = (0.0, vec![0.0; x.len()]);
        for part in &self.parts {
            let weight = 1.0 / (self.parts.len() * part.len()) as f64;
            for &r in part {
                let (r, b) = (r as usize, self.rows.labels[r as usize]);
                let z = b * self.rows.row(r).map(|(c, v)| v * x[c]).sum::<f64>();
                loss += weight * ((-z).max(0.0) + (-z.abs()).exp().ln_1p());
                let factor = -weight * b / (1.0 + z.exp());
                self.rows.row(r).for_each(|(c, v)| gradient[c] += factor * v);
            }
        }
        for (x, g) in x.iter().zip(&mut gradient) {
            let (value, slope) = self.regularizer.at(*x);
            loss += value;
            *g += slope;
        }
        Ok(full(loss, &gradient))
    }
}
