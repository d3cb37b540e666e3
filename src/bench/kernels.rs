//! The fused updates against a copy and against Burn's tensor operations, at the size of ResNet-18.

use super::{BenchOptions, Report, median_seconds};
use crate::backend::Backend;
use crate::error::Result;
use crate::params::tensor;
use burn::tensor::Tensor;
use serde_json::json;
use stagger_kernels::update::{EARLIER, Guard};
use stagger_kernels::{Buffer, Device, Dtype, Earlier, Fold, Incoming, Layout, Method, Row, Seal, Step, Update, copy};

/// Parameters of ResNet-18, rounded to whole vectors.
const LENGTH: usize = 11_173_952;

/// Launches between two waits for the device.
const TOGETHER: usize = 8;

/// One update of a kind; the bytes per parameter that it cannot avoid to move.
const KINDS: [(&str, usize); 6] = [
    ("sgd", 12),
    ("momentum", 20),
    ("sum and step", 20),
    ("four sums and step", 32),
    ("dude, f32 row", 28),
    ("dude, bf16 row", 24),
];

struct State {
    layout: Layout,
    gradient: [Buffer; 1],
    /// Those that waited.
    waited: [[Buffer; 1]; EARLIER],
    weights: Buffer,
    fresh: Buffer,
    sum: Buffer,
    velocity: Buffer,
    row: Row,
    narrow: Row,
    loss: Buffer,
    losses: Buffer,
}

impl State {
    fn new(device: &Device) -> Self {
        let mut layout = Layout::default();
        layout.push("w".into(), vec![LENGTH]);
        let values = |scale: f32| device.upload((0..LENGTH).map(|i| scale * (i % 97) as f32).collect());
        State {
            gradient: [values(1e-4)],
            waited: [2e-4, 3e-4, 4e-4].map(|scale| [values(scale)]),
            weights: values(1e-2),
            fresh: device.zeros(LENGTH),
            sum: device.zeros(LENGTH),
            velocity: device.zeros(LENGTH),
            row: Row::zeros(device, &layout, Dtype::F32),
            narrow: Row::zeros(device, &layout, Dtype::Bf16),
            loss: device.zeros(1),
            losses: device.zeros(64),
            layout,
        }
    }

    fn update(&mut self, device: &Device, kind: &str) {
        let row = |row, sum| Fold::Row { sum, row, mix: 1.0, scale: 0.1, forget: false, retired: Vec::new() };
        let none = Seal::default();
        let wait = |buffers| Earlier { buffers, seal: &none, loss: &self.loss };
        let earlier = self.waited.iter().map(|g| wait(&g[..])).collect();
        let fold = match kind {
            "sgd" | "momentum" => Fold::Direct { scale: 1.0 },
            "sum and step" => Fold::Sum { sum: &mut self.sum, scale: 0.1, earlier: Vec::new() },
            "four sums and step" => Fold::Sum { sum: &mut self.sum, scale: 0.1, earlier },
            "dude, f32 row" => row(&mut self.row, &mut self.sum),
            _ => row(&mut self.narrow, &mut self.sum),
        };
        let method = match kind {
            "momentum" => Method::HeavyBall { velocity: &mut self.velocity, beta: 0.9 },
            _ => Method::Plain,
        };
        Update {
            gradient: Incoming {
                layout: &self.layout,
                buffers: &self.gradient,
                factor: None,
                seal: &Seal::default(),
                loss: &self.loss,
                losses: &mut self.losses,
                slot: EARLIER,
                guard: Guard::Whole,
            },
            weights: &self.weights,
            fold,
            step: Some(Step {
                fresh: &mut self.fresh,
                lr: 0.01,
                factor: 1.0,
                keep: 1.0,
                weight_decay: 0.0,
                base: None,
                method,
            }),
        }
        .run(device);
    }
}

/// The same update in tensor operations; `None` where there is no bf16 tensor of Burn's to compare with.
fn in_tensors(device: &Device, state: &State, kind: &str) -> Option<()> {
    let t = |buffer: &Buffer| tensor::<1>(device, buffer, [LENGTH]);
    let (w, g): (Tensor<1>, Tensor<1>) = (t(&state.weights), t(&state.gradient[0]));
    let direction = match kind {
        "sgd" => g,
        "momentum" => t(&state.velocity).mul_scalar(0.9) + g,
        "sum and step" => t(&state.sum) + g.mul_scalar(0.1),
        "four sums and step" => {
            let waited = state.waited.iter().map(|g| t(&g[0]).mul_scalar(0.1));
            waited.fold(t(&state.sum), |sum, g| sum + g) + g.mul_scalar(0.1)
        }
        "dude, f32 row" => t(&state.sum) + (g.clone() - t(&state.velocity)).mul_scalar(0.1),
        _ => return None,
    };
    drop(w - direction.mul_scalar(0.01));
    Some(())
}

pub fn run(bench: &BenchOptions, backend: &Backend) -> Result<Report> {
    let device = &backend.device;
    let columns = ["update", "ms", "bytes moved", "GB/s", "of the copy [%]", "Burn's operations [ms]", "times faster"];
    let mut report = Report::new(format!("kernels: {LENGTH} parameters"), &columns);
    let mut state = State::new(device);
    let share = bench.seconds / 2.0;
    let repeat = |work: &mut dyn FnMut()| {
        let seconds = median_seconds(share, || {
            (0..TOGETHER).for_each(|_| work());
            Ok(device.sync()?)
        });
        seconds.map(|s| s / TOGETHER as f64)
    };
    let State { weights, fresh, .. } = &mut state;
    let seconds = repeat(&mut || copy(device, weights, fresh))?;
    let bandwidth = 8.0 * LENGTH as f64 / seconds;
    report.row(vec![
        json!("copy"),
        json!(1e3 * seconds),
        json!(8 * LENGTH),
        json!(bandwidth / 1e9),
        json!(100.0),
        json!(null),
        json!(null),
    ]);
    for (kind, bytes) in KINDS {
        let seconds = repeat(&mut || state.update(device, kind))?;
        let rate = (bytes * LENGTH) as f64 / seconds;
        let burns = match in_tensors(device, &state, kind) {
            Some(()) => Some(repeat(&mut || {
                in_tensors(device, &state, kind);
            })?),
            None => None,
        };
        report.row(vec![
            json!(kind),
            json!(1e3 * seconds),
            json!(bytes * LENGTH),
            json!(rate / 1e9),
            json!(100.0 * rate / bandwidth),
            json!(burns.map(|s| 1e3 * s)),
            json!(burns.map(|s| s / seconds)),
        ]);
    }
    report
        .notes
        .push("bytes moved: each byte that the update needs, once; Burn's operations leave the row unwritten".into());
    Ok(report)
}
