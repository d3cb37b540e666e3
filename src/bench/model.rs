//! The time of each part of a worker's step.

use super::{Bar, BenchOptions, Figure, Report, median_seconds};
use crate::error::{Error, Result};
use crate::host::backend::Backend;
use crate::problem::model::Net;
use crate::problem::params::{attach, burn_device, initial_weights, layout_of, tensor};
use crate::problem::{ImageOptions, Problem, Snapshot, StepKind, images};
use burn::module::Module;
use burn::tensor::Tensor;
use serde_json::json;
use stagger_datasets::{ImageData, synthetic};
use stagger_kernels::gather::Augment;
use stagger_kernels::layers::{Conv, Precision, conv2d, conv2d_input_gradient, conv2d_weight_gradient};
use stagger_kernels::update;
use stagger_kernels::{Buffer, Device, Fence, FoldOp, GradientInput, Layout, OptimizerStep, StepOp, Update};

/// Measures the parts of a step on one backend.
pub fn run(bench: &BenchOptions, backend: &Backend) -> Result<Report> {
    // On the CPU, a worker computes in a thread pool. A pool with one thread is the current thread.
    let threads = bench.threads_per_worker.unwrap_or_else(crate::host::backend::cores);
    match &backend.device {
        Device::Cpu => {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build();
            pool.map_err(|e| Error::failed(format!("cannot start {threads} threads: {e}")))?
                .install(|| measure(bench, &backend.device, format!(", {threads} threads")))
        }
        device => measure(bench, device, String::new()),
    }
}

/// The problem of a single worker that holds all of `set`.
pub fn one_worker(bench: &BenchOptions, device: &Device, set: ImageData, step: StepKind) -> Result<Problem> {
    if let StepKind::Stacked(_) = step {
        return Err(Error::usage(
            "--step stacked needs the virtual clock; use --step eager or --step captured for this \
                                 benchmark",
        ));
    }
    let options = ImageOptions {
        model: &bench.model,
        workers: 1,
        partition: &"iid".parse()?,
        batch: Some(bench.batch),
        seed: 1,
        augment: Augment { pad: 0, flip: false },
        step,
        precision: Precision::F32,
    };
    images(device, set, &options)
}

/// Measures the parts of a step. `place` describes the CPU threads in the title.
fn measure(bench: &BenchOptions, device: &Device, place: String) -> Result<Report> {
    let columns = ["part", "ms", "GFLOP/s", "samples/s"];
    let kind = StepKind::on(StepKind::parse(&bench.step)?, device)?;
    let title = format!("model: {}, batch {}{place}, step {kind:?}", bench.model, bench.batch);
    let mut report = Report::new(
        title.to_lowercase(),
        &columns,
        Figure::Bars("ms", vec![Bar { name: "", of: |row| row[1].as_f64() }]),
    );
    let set = synthetic::generate(1);
    let (channels, side, classes) = (set.channels, set.side, set.classes.len());
    let burn = burn_device(device);
    let net = Net::build(&bench.model, channels, side, classes, &burn)
        .ok_or_else(|| Error::usage(format!("--model {} is not one of cnn, resnet18, mlp, logreg", bench.model)))?;
    measure_convolutions(bench, device, &net, (channels, side), &mut report)?;
    let layout = layout_of(&net);
    let weights = device.upload(initial_weights(&layout, 1));
    let batch = bench.batch;
    let pixels = device.upload((0..batch * channels * side * side).map(|i| (i % 255) as f32 / 255.0).collect());
    let plain = attach(net, device, &layout, &weights).valid();
    let x = tensor::<4>(device, &pixels, [batch, side, side, channels]);
    let forward = median_seconds(bench.seconds / 4.0, || {
        drop(plain.forward(x.clone(), Precision::F32));
        Ok(device.sync()?)
    })?;
    report.row(vec![json!("whole network, forward"), json!(1e3 * forward), json!(null), json!(batch as f64 / forward)]);
    let problem = one_worker(bench, device, set, kind)?;
    measure_step(bench, device, problem, &layout, &weights, &mut report)?;
    Ok(report)
}

/// Measures each convolution of the network in its three passes, and adds up each pass over the network.
fn measure_convolutions(
    bench: &BenchOptions,
    device: &Device,
    net: &Net,
    (channels, side): (usize, usize),
    report: &mut Report,
) -> Result<()> {
    let convolutions = net.convolutions(bench.batch, side);
    let share = bench.seconds / (2 + 3 * convolutions.len()) as f64;
    let time = |work: &mut dyn FnMut() -> Tensor<4>| {
        median_seconds(share, || {
            let result = work();
            device.sync()?;
            drop(result);
            Ok(())
        })
    };
    let mut sums = [0.0; 3];
    for (name, plan, times) in convolutions {
        let Conv { batch, height, width, from, to, kernel, .. } = plan;
        let filled = |len: usize| device.upload((0..len).map(|i| (i % 31) as f32 * 0.01 - 0.15).collect());
        let (x, w) = (filled(batch * plan.in_image()), filled(to * plan.patch()));
        let dy = filled(batch * plan.out_pixels() * to);
        let x = tensor::<4>(device, &x, [batch, height, width, from]);
        let w = tensor::<4>(device, &w, [to, from, kernel, kernel]);
        let dy = tensor::<4>(device, &dy, [batch, plan.out_height(), plan.out_width(), to]);
        let flops = 2.0 * (batch * plan.out_pixels() * to * plan.patch()) as f64;
        let passes: [(&str, f64); 3] = [
            ("forward", time(&mut || conv2d(x.clone(), w.clone(), plan.stride, plan.pad, plan.precision))?),
            ("data gradient", time(&mut || conv2d_input_gradient(dy.clone(), w.clone(), plan))?),
            ("weight gradient", time(&mut || conv2d_weight_gradient(x.clone(), dy.clone(), plan))?),
        ];
        for ((pass, seconds), sum) in passes.into_iter().zip(&mut sums) {
            // A training step does not compute the data gradient of the first layer, whose input is the images.
            if !(pass == "data gradient" && from == channels) {
                *sum += seconds * times as f64;
            }
            let part = format!("{name} (x{times}), {pass}");
            report.row(vec![json!(part), json!(1e3 * seconds), json!(flops / seconds / 1e9), json!(null)]);
        }
    }
    for (pass, seconds) in
        ["forward", "data gradient", "weight gradient"].iter().zip(sums).filter(|(_, sum)| *sum > 0.0)
    {
        report.row(vec![json!(format!("all convolutions, {pass}")), json!(1e3 * seconds), json!(null), json!(null)]);
    }
    Ok(())
}

/// Measures the gradient of a worker and the update of the server. Together they are one step.
fn measure_step(
    bench: &BenchOptions,
    device: &Device,
    mut problem: Problem,
    layout: &Layout,
    weights: &Buffer,
    report: &mut Report,
) -> Result<()> {
    let rate = |seconds: f64| json!(bench.batch as f64 / seconds);
    let snapshot = Snapshot { weights: weights.clone(), fence: Fence::default() };
    let mut job = 0;
    let gradient = median_seconds(bench.seconds, || {
        job += 1;
        problem.objectives[0].gradient(&snapshot, job)?;
        Ok(device.sync()?)
    })?;
    report.row(vec![json!("batch, forward, backward"), json!(1e3 * gradient), json!(null), rate(gradient)]);
    let (buffers, loss) = problem.objectives[0].gradient(&snapshot, 0)?;
    let (mut fresh, mut losses) = (device.zeros(layout.total()), update::ring(device, 1));
    let update = median_seconds(bench.seconds / 4.0, || {
        let (fence, factor) = (Fence::default(), None);
        let losses = &mut losses;
        let gradient = GradientInput {
            layout,
            buffers: &buffers,
            factor,
            fence: &fence,
            loss: &loss,
            losses,
            slot: 0,
            guard: update::Guard::Whole,
        };
        let step = StepOp {
            fresh: &mut fresh,
            lr: 0.01,
            scale: 1.0,
            keep: 1.0,
            weight_decay: 0.0,
            base: None,
            method: OptimizerStep::Plain,
        };
        Update { gradient, weights, fold: FoldOp::Direct { scale: 1.0 }, step: Some(step) }.run(device);
        Ok(device.sync()?)
    })?;
    report.row(vec![json!("update (asgd)"), json!(1e3 * update), json!(null), json!(null)]);
    let step = gradient + update;
    report.row(vec![json!("step (batch, forward, backward, update)"), json!(1e3 * step), json!(null), rate(step)]);
    Ok(())
}
