//! The gradient of every model against finite differences, and asynchronous SGD with one worker against
//! Burn's own optimizer.

mod common;

use burn::module::Module;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use stagger::problem::model::Net;
use stagger::problem::params::{attach, burn_device, layout_of, tensor};
use stagger::problem::{ImageOptions, Problem, Regularizer, Snapshot, StepKind, images, libsvm, quadratic};
use stagger_datasets::{ImageData, ImageSet, keyed, synthetic};
use stagger_kernels::gather::{Augment, Draw, ImageShape, Images, Part};
use stagger_kernels::layers::Precision;
use stagger_kernels::{Device, Layout};

/// The first images of the synthetic set.
fn few(count: usize) -> ImageData {
    let set = synthetic::generate(5);
    let cut = |s: &ImageSet| ImageSet { pixels: s.pixels[..count * 3072].to_vec(), labels: s.labels[..count].to_vec() };
    ImageData { train: cut(&set.train), test: cut(&set.test), ..set }
}

/// Compares directional derivatives with central differences, along one direction of each parameter. `step`
/// is the length of the move; `tolerance` is relative.
fn check(problem: &mut Problem, step: f32, tolerance: f64) {
    use rand_chacha::rand_core::RngCore;
    let layout = problem.layout.clone();
    let mut at = |weights: &[f32]| {
        let snapshot = Snapshot { weights: Device::Cpu.upload(weights.to_vec()), fence: Default::default() };
        problem.objectives[0].gradient(&snapshot, 3).unwrap()
    };
    let weights = problem.initial.clone();
    let (buffers, _) = at(&weights);
    for (segment, gradient) in layout.segments().iter().zip(buffers.iter()) {
        let mut random = keyed([segment.start as u64, 1, 2, 3]);
        let direction: Vec<f32> =
            (0..segment.len).map(|_| if random.next_u32().is_multiple_of(2) { 1.0 } else { -1.0 }).collect();
        // The derivative is largest along the signs of the gradient, so rounding matters least there.
        let direction: Vec<f32> = if gradient.host().iter().any(|g| *g != 0.0) {
            gradient.host().iter().zip(&direction).map(|(g, d)| if *g == 0.0 { *d } else { g.signum() }).collect()
        } else {
            direction
        };
        let scale = step / (segment.len as f32).sqrt();
        let mut moved = |sign: f32| {
            let mut w = weights.clone();
            w[segment.start..].iter_mut().zip(&direction).for_each(|(w, d)| *w += sign * scale * d);
            at(&w).1.host()[0] as f64
        };
        let numeric = (moved(1.0) - moved(-1.0)) / (2.0 * scale as f64);
        let exact: f64 = gradient.host().iter().zip(&direction).map(|(g, d)| (g * d) as f64).sum();
        assert!(
            (numeric - exact).abs() <= tolerance * (1e-3 + exact.abs()),
            "{}: finite difference {numeric}, gradient {exact}",
            segment.name
        );
    }
}

/// Checks a network on batches of four images.
fn network(model: &str) {
    let partition = "iid".parse().unwrap();
    let options = ImageOptions {
        model,
        workers: 1,
        partition: &partition,
        batch: Some(4),
        seed: 2,
        augment: Augment::NONE,
        step: StepKind::Eager,
        precision: Precision::F32,
    };
    let mut problem = images(&Device::Cpu, few(40), &options).unwrap();
    check(&mut problem, 0.01, 0.05);
}

#[test]
fn gradient_of_cnn_equals_finite_differences() {
    network("cnn");
}

#[test]
fn gradient_of_resnet18_equals_finite_differences() {
    network("resnet18");
}

#[test]
fn gradient_of_mlp_equals_finite_differences() {
    network("mlp");
}

#[test]
fn gradient_of_linear_classifier_equals_finite_differences() {
    network("logreg");
}

#[test]
fn gradient_of_quadratic_equals_finite_differences() {
    check(&mut quadratic(&Device::Cpu, vec![vec![0.5, -1.0, 3.0]], 2.0), 0.01, 1e-2);
}

#[test]
fn gradient_of_logistic_regression_equals_finite_differences() {
    let rows = stagger_datasets::libsvm::parse(b"1 1:0.5 2:-1\n-1 2:2 3:1\n1 1:-1 3:0.3\n-1 1:1\n").unwrap();
    for regularizer in ["none", "l2:0.3", "nonconvex:0.1"] {
        let regularizer: Regularizer = regularizer.parse().unwrap();
        for (init, batch) in [(0.0, None), (1.0, None), (0.7, Some(2))] {
            let blocks = "blocks".parse().unwrap();
            let mut problem = libsvm(&Device::Cpu, rows.clone(), 1, &blocks, batch, regularizer, init, 1).unwrap();
            check(&mut problem, 0.01, 1e-2);
        }
    }
}

/// Largest difference of a weight between `train` and Burn's module, optimizer and loss, after any of six
/// steps. Each of Burn's steps starts from the weights of `train`, so that both meet the same kinks of relu
/// and pooling.
fn difference_from_burns_own_optimizer(seed: u64) -> f32 {
    let (steps, batch, lr) = (6, 8, 0.05);
    // The same model, data and order.
    let set = synthetic::generate(seed);
    let rows =
        "iid".parse::<stagger_datasets::partition::Partition>().unwrap().deal(&set.train.labels, 10, 1, seed).unwrap();
    let device = Device::Cpu;
    let shape = ImageShape { channels: 3, side: 32, classes: 10 };
    let part = Part::new(&device, rows[0].clone(), seed, 0);
    let data = Images::new(&device, shape, set.train.pixels, set.train.labels, set.mean, set.std);
    let mut net = Net::build("cnn", 3, 32, 10, &burn_device(&device)).unwrap();
    let layout = layout_of(&net);
    let after = |updates: u64| {
        let folder = common::train(&format!(
            "--dataset synthetic --model cnn --rule asgd --workers 1 --batch {batch} --lr {lr} --seed {seed} --updates {updates} --eval-every 0 --test-samples 50 --backend cpu --augment crop-flip"
        ));
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let saved = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut flat = vec![0.0; layout.total()];
        for segment in layout.segments() {
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(saved.tensor(&segment.name).unwrap().data());
            flat[segment.start..][..segment.len].copy_from_slice(&values);
        }
        flat
    };
    struct Compare<'a> {
        layout: &'a Layout,
        ours: &'a [f32],
        next: usize,
        worst: f32,
    }
    impl burn::module::ModuleVisitor for Compare<'_> {
        fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
            let segment = &self.layout.segments()[self.next];
            self.next += 1;
            let theirs = param.val().into_data().try_to_vec::<f32>().unwrap();
            assert_eq!(theirs.len(), segment.len);
            let pairs = self.ours[segment.start..][..segment.len].iter().zip(&theirs);
            self.worst = pairs.fold(self.worst, |m, (a, b)| m.max((a - b).abs()));
        }
    }
    let (mut weights, mut worst) = (stagger::problem::params::initial_weights(&layout, seed), 0.0);
    for job in 0..steps {
        net = attach(net, &device, &layout, &device.upload(weights));
        let draw = Draw::Batch { part: &part, job, augment: Augment { pad: 4, flip: true } };
        let (x, y) = data.draw(&device, draw, batch, None);
        let logits = net.forward(Tensor::from_inner(tensor::<4>(&device, &x, [batch, 32, 32, 3])), Precision::F32);
        let targets = Tensor::from_inner(tensor::<2>(&device, &y, [batch, 10]));
        let loss = (log_softmax(logits.mul_scalar(net.scale()), 1) * targets).sum() / -(batch as f32);
        let gradients = GradientsParams::from_grads(loss.backward(), &net);
        net = SgdConfig::new().init().step(lr, net, gradients);
        weights = after(job + 1);
        let mut compare = Compare { layout: &layout, ours: &weights, next: 0, worst };
        net.visit(&mut compare);
        worst = compare.worst;
    }
    worst
}

#[test]
fn asgd_with_one_worker_equals_burns_sgd() {
    let differences: Vec<f32> = (1..=5).map(difference_from_burns_own_optimizer).collect();
    assert!(differences.iter().all(|d| *d < 1e-6), "the weights differ by {differences:?}");
}
