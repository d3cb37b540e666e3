//! Each fused update against a copy and against the same update in Burn's tensor operations, at the size of ResNet-18.

use super::{Bar, BenchOptions, Figure, Report, in_turn};
use crate::error::Result;
use crate::host::backend::{Backend, RunsOn};
use crate::problem::params::{tensor, total};
use burn::tensor::Tensor;
use serde_json::json;
use stagger_kernels::mixing::{Exchange, Mixing};
use stagger_kernels::update::{Guard, MOST_PENDING, pending_bindable};
use stagger_kernels::{
    Adam, Buffer, Device, Dtype, Fence, FoldOp, GradientInput, Layout, OptimizerStep, PendingGradient, Row, StepOp,
    Update,
};
use stagger_kernels::{clip, copy};

/// Number of parameters of ResNet-18, rounded to whole vectors.
const LENGTH: usize = 11_173_952;

/// Number of launches between two waits for the device. On a software adapter one launch takes much longer than a
/// wait, so one is enough.
fn launches_per_sync(backend: &Backend) -> usize {
    if backend.runs_on == RunsOn::Software { 1 } else { 8 }
}

/// The kinds of update that the rules and optimizers make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sgd,
    Momentum,
    Nesterov,
    AmsGrad,
    Sum,
    Sums,
    Row,
    NarrowRow,
    CalibratedRow,
    Compensated,
    Adaptive,
    Local,
    Towards,
    Elastic,
    Pair,
    Norm,
}

impl Kind {
    /// Every kind, its name, and the number of 4-byte words per parameter that it must move. Each buffer counts once
    /// if it is read and once if it is written. `Sums` moves one more word for each pending gradient.
    const ALL: [(Kind, &str, usize); 16] = [
        (Kind::Sgd, "sgd", 3),
        (Kind::Momentum, "momentum", 5),
        (Kind::Nesterov, "delayed nesterov, momentum step", 7),
        (Kind::AmsGrad, "amsgrad (fadas)", 9),
        (Kind::Sum, "sum and step", 5),
        (Kind::Sums, "sums and step", 5),
        (Kind::Row, "dude, f32 row", 7),
        (Kind::NarrowRow, "dude, bf16 row", 6),
        (Kind::CalibratedRow, "ca2fl, f32 row", 9),
        (Kind::Compensated, "dc-asgd", 4),
        (Kind::Adaptive, "dc-asgd, adaptive", 6),
        (Kind::Local, "a worker's local step", 5),
        (Kind::Towards, "fedasync", 4),
        (Kind::Elastic, "easgd", 5),
        (Kind::Pair, "ad-psgd, with a peer", 7),
        (Kind::Norm, "norm of a gradient (--clip)", 1),
    ];
}

/// The constants of AMSGrad.
const ADAM: Adam = Adam { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, correction1: 1.0, correction2: 1.0 };

/// The buffers that the updates read and write.
struct State {
    layout: Layout,
    gradient: [Buffer; 1],
    /// Pending gradients: as many as one launch on this device can bind.
    waited: Vec<[Buffer; 1]>,
    weights: Buffer,
    /// The model that was sent to the worker (or the worker's own model), and the model of a peer.
    models: [Buffer; 2],
    fresh: Buffer,
    fresh_models: [Buffer; 2],
    sum: Buffer,
    /// State of the optimizer and of calibration, such as the momentum.
    moments: [Buffer; 3],
    row: Row,
    narrow: Row,
    loss: Buffer,
    losses: Buffer,
}

impl State {
    fn new(device: &Device) -> Self {
        let mut layout = Layout::default();
        layout.push("all".into(), vec![LENGTH]);
        let values = |scale: f32| device.upload((0..LENGTH).map(|i| scale * (i % 97) as f32).collect());
        let zeros = || device.zeros(LENGTH);
        State {
            gradient: [values(1e-4)],
            waited: (0..pending_bindable(device)).map(|i| [values(1e-4 * (i + 2) as f32)]).collect(),
            weights: values(1e-2),
            models: [1.1e-2, 1.2e-2].map(values),
            fresh: zeros(),
            fresh_models: [zeros(), zeros()],
            sum: zeros(),
            moments: [zeros(), zeros(), zeros()],
            row: Row::zeros(device, &layout, Dtype::F32),
            narrow: Row::zeros(device, &layout, Dtype::Bf16),
            loss: device.zeros(1),
            losses: device.zeros(64),
            layout,
        }
    }

    /// Launches one fused update of this kind.
    fn update(&mut self, device: &Device, kind: Kind) {
        let none = Fence::default();
        let gradient = GradientInput {
            layout: &self.layout,
            buffers: &self.gradient,
            factor: None,
            fence: &none,
            loss: &self.loss,
            losses: &mut self.losses,
            slot: MOST_PENDING,
            guard: if kind == Kind::Local { Guard::Off } else { Guard::Whole },
        };
        let (weights, [sent, peer], fresh) = (&self.weights, &self.models, &mut self.fresh);
        let ([first, second, third], sum) = (&mut self.moments, &mut self.sum);
        let [fresh_own, fresh_peer] = &mut self.fresh_models;
        let mixing = match kind {
            Kind::Norm => return drop(clip::factor(device, &self.layout, &self.gradient, 1.0)),
            Kind::Towards => Some(Mixing::Towards { sent, alpha: 0.5 }),
            Kind::Elastic => Some(Mixing::Elastic { own: sent, fresh_own, alpha: 0.1 }),
            Kind::Pair => Some(Mixing::Pair { own: sent, fresh_own, peer: Some((peer, fresh_peer)), share: 0.1 }),
            _ => None,
        };
        if let Some(mixing) = mixing {
            return Exchange { gradient, weights, fresh, lr: 0.01, mixing }.run(device);
        }
        let wait = |buffers| PendingGradient { buffers, fence: &none, loss: &self.loss };
        let pending = self.waited.iter().map(|g| wait(&g[..]));
        let mut base = None;
        let mut method = OptimizerStep::Plain;
        let fold = match kind {
            Kind::Sum => FoldOp::Sum { sum, scale: 0.1, pending: Vec::new() },
            Kind::Sums => FoldOp::Sum { sum, scale: 0.1, pending: pending.collect() },
            Kind::Row | Kind::NarrowRow | Kind::CalibratedRow => {
                base = (kind == Kind::CalibratedRow).then_some((first, 0.1));
                let row = if kind == Kind::NarrowRow { &mut self.narrow } else { &mut self.row };
                FoldOp::Row { sum, row, mix: 1.0, scale: 0.1, forget: false, retired: Vec::new() }
            }
            Kind::Compensated => FoldOp::Compensated { sent, lambda: 0.1, square: None },
            Kind::Adaptive => FoldOp::Compensated { sent, lambda: 0.1, square: Some((first, 0.9)) },
            Kind::Local => FoldOp::Local { sum, proximal: None },
            _ => {
                method = match kind {
                    Kind::Momentum => OptimizerStep::HeavyBall { velocity: first, beta: 0.9 },
                    Kind::Nesterov => {
                        OptimizerStep::Nesterov { velocity: first, beta: 0.9, pending: Some(second), turn: true }
                    }
                    Kind::AmsGrad => OptimizerStep::Adam { first, second, largest: Some(third), constants: ADAM },
                    _ => OptimizerStep::Plain,
                };
                FoldOp::Direct { scale: 1.0 }
            }
        };
        let step = StepOp { fresh, lr: 0.01, scale: 1.0, keep: 1.0, weight_decay: 0.0, base, method };
        Update { gradient, weights, fold, step: Some(step) }.run(device);
    }

    /// Computes the new weights (and models) of the same update with Burn's tensor operations. Returns nothing for
    /// the bf16 row, because there is no bf16 tensor in Burn to compare with.
    fn in_tensors(&self, device: &Device, kind: Kind) -> Vec<Tensor<1>> {
        let t = |buffer: &Buffer| tensor::<1>(device, buffer, [LENGTH]);
        let (w, g, [x, p]) = (t(&self.weights), t(&self.gradient[0]), self.models.each_ref().map(t));
        let ([m, u, largest], sum) = (self.moments.each_ref().map(t), t(&self.sum));
        let step = |w: Tensor<1>, direction: Tensor<1>| vec![w - direction.mul_scalar(0.01)];
        match kind {
            Kind::NarrowRow => Vec::new(),
            Kind::Norm => vec![total(g.square())],
            Kind::Towards => vec![w.clone() + (x - g.mul_scalar(0.01) - w).mul_scalar(0.5)],
            Kind::Elastic => {
                let y = x - g.mul_scalar(0.01);
                let pull = (y.clone() - w.clone()).mul_scalar(0.1);
                vec![y - pull.clone(), w + pull]
            }
            Kind::Pair => {
                let mean = (x + p).mul_scalar(0.5);
                vec![mean - g.clone().mul_scalar(0.01), w - g.mul_scalar(0.001)]
            }
            Kind::Sgd => step(w, g),
            Kind::Momentum => step(w, m.mul_scalar(0.9) + g),
            Kind::Nesterov => step(w, g.clone() + (m.mul_scalar(0.9) + u + g).mul_scalar(0.9)),
            Kind::AmsGrad => {
                let square = u.mul_scalar(0.99) + g.clone().square().mul_scalar(0.01);
                let root = square.max_pair(largest).sqrt().add_scalar(1e-8);
                step(w, (m.mul_scalar(0.9) + g.mul_scalar(0.1)) / root)
            }
            Kind::Sum => step(w, sum + g.mul_scalar(0.1)),
            Kind::Sums => {
                let waited = self.waited.iter().map(|g| t(&g[0]).mul_scalar(0.1));
                step(w, waited.fold(sum, |sum, g| sum + g) + g.mul_scalar(0.1))
            }
            Kind::Row => step(w, sum + (g - m).mul_scalar(0.1)),
            Kind::CalibratedRow => step(w, sum + (g - m).mul_scalar(0.1) + u),
            Kind::Compensated => step(w.clone(), g.clone() + g.square().mul_scalar(0.1) * (w - x)),
            Kind::Adaptive => {
                let square = m.mul_scalar(0.9) + g.clone().square().mul_scalar(0.1);
                let lambda = square.add_scalar(1e-7).sqrt().recip().mul_scalar(0.1);
                step(w.clone(), g.clone() + lambda * g.square() * (w - x))
            }
            Kind::Local => [step(w, g.clone()), vec![sum + g]].concat(),
        }
    }
}

/// Measures every kind of update, and a copy.
pub fn run(bench: &BenchOptions, backend: &Backend) -> Result<Report> {
    let (device, launches) = (&backend.device, launches_per_sync(backend));
    let columns = ["update", "ms", "bytes moved", "GB/s", "of the copy [%]", "Burn's operations [ms]", "times faster"];
    // The bar of Burn's operations is the bytes of the fused update over the time of Burn's operations.
    let figure = Figure::Bars(
        "of the copy's bandwidth [%]",
        vec![
            Bar { name: "one fused launch", of: |row| row[4].as_f64() },
            Bar { name: "Burn's operations", of: |row| Some(row[4].as_f64()? / row[6].as_f64()?) },
        ],
    );
    let mut report = Report::new(format!("kernels: {LENGTH} parameters"), &columns, figure);
    let mut state = State::new(device);
    // Seconds of a copy, of the fused update and of Burn's operations. They take turns.
    let measured = |state: &mut State, kind: Kind| {
        in_turn(bench.seconds / 2.0, |which| {
            for _ in 0..launches {
                match which {
                    0 => copy(device, &state.weights, &mut state.fresh),
                    1 => state.update(device, kind),
                    _ => drop(state.in_tensors(device, kind)),
                }
            }
            Ok(device.sync()?)
        })
        .map(|times: [f64; 3]| times.map(|seconds| seconds / launches as f64))
    };
    let mut copies = Vec::new();
    for (kind, name, words) in Kind::ALL {
        let waited = if kind == Kind::Sums { state.waited.len() } else { 0 };
        let name = if waited > 0 { format!("{} {name}", waited + 1) } else { name.into() };
        let [copied, seconds, burns] = measured(&mut state, kind)?;
        let (bytes, roof) = (4 * (words + waited) * LENGTH, (8 * LENGTH) as f64 / copied);
        let (rate, burns) = (bytes as f64 / seconds, (kind != Kind::NarrowRow).then_some(burns));
        report.row(vec![
            json!(name),
            json!(1e3 * seconds),
            json!(bytes),
            json!(rate / 1e9),
            json!(100.0 * rate / roof),
            json!(burns.map(|s| 1e3 * s)),
            json!(burns.map(|s| s / seconds)),
        ]);
        copies.push(copied);
    }
    copies.sort_by(f64::total_cmp);
    let copied = copies[copies.len() / 2];
    let (bytes, rate) = (json!(8 * LENGTH), json!((8 * LENGTH) as f64 / copied / 1e9));
    report.row(vec![json!("copy"), json!(1e3 * copied), bytes, rate, json!(100.0), json!(null), json!(null)]);
    report.notes.push(
        "bytes moved: the bytes that the update must read and write, each counted once; of the copy: GB/s \
         relative to a copy that is measured in turn with the update; Burn's operations compute the new weights (and \
         models) and write no other state"
            .into(),
    );
    Ok(report)
}
