//! The fused layers against Burn's own operations, forward and backward, on the CPU and on WGPU. Also stacked
//! passes and recorded steps against eager steps.

mod common;

use burn::tensor::activation::{log_softmax, relu};
use burn::tensor::module::{conv2d as burn_conv2d, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{Tensor, TensorData};
use libtest_mimic::{Arguments, Trial};
use rand_chacha::rand_core::RngCore;
use stagger::problem::model::Net;
use stagger::problem::params::{attach, burn_device, gradients, initial_weights, layout_of, tensor};
use stagger_datasets::keyed;
use stagger_kernels::Device;
use stagger_kernels::layers::Precision::{self, Bf16, F16, F32};
use stagger_kernels::layers::{
    Pass, conv2d, cross_entropies, cross_entropy, group_norm, group_norm_max_pool, linear, max_pool, mean_pool, sums,
};
use stagger_kernels::stack::{stack, unstack};

fn floats(len: usize, key: u64) -> Vec<f32> {
    let mut random = keyed([key, 7, 7, 7]);
    (0..len).map(|_| random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0).collect()
}

/// Runs a layer. Returns its output, and the gradients of a fixed weighted sum of the output with respect to
/// each input. With `poison`, all inputs are NaN.
fn pass<const O: usize>(
    device: &Device,
    shapes: &[&[usize]],
    poison: bool,
    layer: impl Fn(Vec<Tensor<1>>) -> Tensor<O>,
) -> Vec<Vec<f32>> {
    let burn = burn_device(device).autodiff();
    let inputs: Vec<Tensor<1>> = shapes
        .iter()
        .enumerate()
        .map(|(k, shape)| {
            let len = shape.iter().product();
            let values = if poison { vec![f32::NAN; len] } else { floats(len, k as u64 + 1) };
            Tensor::<1>::from_data(TensorData::new(values, [len]), &burn).require_grad()
        })
        .collect();
    let y = layer(inputs.clone());
    let len = y.shape().num_elements();
    let weights = Tensor::<1>::from_data(TensorData::new(floats(len, 99), [len]), &burn);
    let gradients = (y.clone().reshape([len]) * weights).sum().backward();
    let read = |t: Tensor<1>| t.into_data().try_to_vec::<f32>().unwrap();
    let mut found = vec![y.reshape([len]).into_data().try_to_vec::<f32>().unwrap()];
    found.extend(inputs.iter().map(|x| read(x.grad(&gradients).expect("a gradient"))));
    found
}

/// Compares our layer on `device` with Burn's on the CPU. Our layer runs on NaN first, which shows memory
/// that it reuses without writing it.
fn same<const A: usize, const B: usize>(
    device: &Device,
    shapes: &[&[usize]],
    ours: impl Fn(Vec<Tensor<1>>) -> Tensor<A>,
    burns: impl Fn(Vec<Tensor<1>>) -> Tensor<B>,
) {
    pass(device, shapes, true, &ours);
    let (ours, theirs) = (pass(device, shapes, false, ours), pass(&Device::Cpu, shapes, false, burns));
    for (k, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours.len(), theirs.len());
        let size = theirs.iter().fold(1f32, |m, x| m.max(x.abs()));
        for (a, b) in ours.iter().zip(theirs) {
            assert!(
                (a - b).abs() <= 2e-5 * size,
                "{} inputs, result {k}: {a} instead of {b} (largest {size})",
                shapes.len()
            );
        }
    }
}

/// Permutes to channels first, for Burn.
fn channels_first(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 3, 1, 2])
}

/// Permutes Burn's output back, so that the weighted sum is the same for both.
fn channels_last(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 2, 3, 1])
}

fn convolutions(device: &Device) {
    // batch, height, width, from, to, kernel, stride, pad
    let cases: [[usize; 8]; 9] = [
        [3, 6, 5, 3, 16, 3, 1, 1],
        [2, 8, 8, 5, 10, 3, 2, 1],
        [2, 8, 8, 16, 32, 1, 2, 0],
        [3, 4, 4, 32, 48, 3, 1, 1],
        [1, 1, 1, 7, 3, 1, 1, 0],
        [5, 6, 6, 17, 33, 3, 1, 1],
        [2, 9, 7, 4, 8, 5, 2, 2],
        [2, 5, 6, 20, 64, 3, 1, 0],
        [1, 16, 16, 8, 8, 3, 1, 1],
    ];
    for [b, h, w, from, to, k, stride, pad] in cases {
        same(
            device,
            &[&[b, h, w, from], &[to, from, k, k]],
            |x| conv2d(x[0].clone().reshape([b, h, w, from]), x[1].clone().reshape([to, from, k, k]), stride, pad, F32),
            |x| {
                let options = ConvOptions::new([stride; 2], [pad; 2], [1; 2], 1);
                let image = channels_first(x[0].clone().reshape([b, h, w, from]));
                channels_last(burn_conv2d(image, x[1].clone().reshape([to, from, k, k]), None, options))
            },
        );
    }
}

fn norms(device: &Device) {
    // batch, pixels (a side), channels, group
    for [b, side, c, group] in [[2, 4, 8, 8], [3, 5, 12, 3], [2, 1, 128, 128], [1, 9, 64, 2], [2, 3, 6, 1]] {
        for (with_relu, with_residual) in [(true, false), (true, true), (false, false), (false, true)] {
            let shapes: [&[usize]; 4] = [&[b, side, side, c], &[c], &[c], &[b, side, side, c]];
            let shapes = &shapes[..3 + with_residual as usize];
            let image = |x: &[Tensor<1>], i: usize| x[i].clone().reshape([b, side, side, c]);
            same(
                device,
                shapes,
                |x| {
                    let residual = with_residual.then(|| image(&x, 3));
                    group_norm(image(&x, 0), x[1].clone(), x[2].clone(), group, residual, with_relu)
                },
                |x| {
                    // [B, groups, group · pixels], by the definition.
                    let grouped = channels_first(image(&x, 0)).reshape([b, c / group, group * side * side]);
                    let centred = grouped.clone() - grouped.mean_dim(2);
                    let variance = (centred.clone() * centred.clone()).mean_dim(2);
                    let normal = (centred / (variance + 1e-5).sqrt()).reshape([b, c, side, side]);
                    let spread = |p: &Tensor<1>| p.clone().reshape([1, c, 1, 1]);
                    let mut y = channels_last(normal * spread(&x[1]) + spread(&x[2]));
                    if with_residual {
                        y = y + image(&x, 3);
                    }
                    if with_relu { relu(y) } else { y }
                },
            );
        }
    }
}

/// Group norm, relu and max pooling in one pass.
fn pooled_norms(device: &Device) {
    for [b, h, w, c, group] in [[2, 4, 6, 8, 8], [3, 2, 2, 12, 3], [1, 16, 16, 32, 8], [2, 6, 2, 6, 1]] {
        let image = |x: &[Tensor<1>]| x[0].clone().reshape([b, h, w, c]);
        let shapes: [&[usize]; 3] = [&[b, h, w, c], &[c], &[c]];
        same(
            device,
            &shapes,
            |x| group_norm_max_pool(image(&x), x[1].clone(), x[2].clone(), group),
            |x| max_pool(group_norm(image(&x), x[1].clone(), x[2].clone(), group, None, true)),
        );
    }
}

fn pools(device: &Device) {
    for [b, h, w, c] in [[2, 4, 6, 5], [3, 2, 2, 32], [1, 8, 8, 16]] {
        let image = |x: &[Tensor<1>]| x[0].clone().reshape([b, h, w, c]);
        let shapes: [&[usize]; 1] = [&[b, h, w, c]];
        same(
            device,
            &shapes,
            |x| max_pool(image(&x)),
            |x| channels_last(max_pool2d(channels_first(image(&x)), MaxPoolOptions::new([2, 2]))),
        );
        same(device, &shapes, |x| mean_pool(image(&x)), |x| image(&x).mean_dim(1).mean_dim(2).reshape([b, c]));
    }
}

fn linears_and_losses(device: &Device) {
    for [b, from, to] in [[4, 10, 7], [3, 128, 10], [33, 5, 64], [5, 515, 33]] {
        same(
            device,
            &[&[b, from], &[from, to], &[to]],
            |x| linear(x[0].clone().reshape([b, from]), x[1].clone().reshape([from, to]), x[2].clone(), F32),
            |x| {
                x[0].clone().reshape([b, from]).matmul(x[1].clone().reshape([from, to])) + x[2].clone().reshape([1, to])
            },
        );
        let hot = |like: &Tensor<1>| {
            let values = (0..b * to).map(|i| if i % to == i / to % to { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
            Tensor::<2>::from_data(TensorData::new(values, [b, to]), &like.device())
        };
        same(
            device,
            &[&[b, to]],
            |x| cross_entropy(x[0].clone().reshape([b, to]) * 9.0, hot(&x[0]), 0.25),
            |x| {
                let logs = log_softmax(x[0].clone().reshape([b, to]) * 9.0 * 0.25, 1);
                (logs * hot(&x[0])).sum() / -(b as f32)
            },
        );
    }
}

/// With factors rounded to a precision, the result on `device` equals the CPU's. It differs from the exact
/// result, by an amount that fits the precision. Gradients are tiny, as for a mean over many samples, and
/// must not underflow.
fn rounded(device: &Device, precision: Precision, unit: f32) {
    let conv = |precision| {
        move |x: Vec<Tensor<1>>| {
            let images = x[0].clone().reshape([3, 6, 6, 17]);
            conv2d(images, x[1].clone().reshape([20, 17, 3, 3]), 1, 1, precision).mul_scalar(1e-6)
        }
    };
    let dense = |precision| {
        move |x: Vec<Tensor<1>>| {
            let (x, weights, bias) = (x[0].clone().reshape([5, 515]), x[1].clone().reshape([515, 33]), x[2].clone());
            linear(x, weights, bias, precision).mul_scalar(1e-6)
        }
    };
    let shapes: [&[usize]; 3] = [&[5, 515], &[515, 33], &[33]];
    let images = &[&[3 * 36 * 17][..], &[20 * 17 * 9]];
    for (found, alike, exact) in [
        (
            pass(device, images, false, conv(precision)),
            pass(&Device::Cpu, images, false, conv(precision)),
            pass(&Device::Cpu, images, false, conv(F32)),
        ),
        (
            pass(device, &shapes, false, dense(precision)),
            pass(&Device::Cpu, &shapes, false, dense(precision)),
            pass(&Device::Cpu, &shapes, false, dense(F32)),
        ),
    ] {
        for (k, ((found, alike), exact)) in found.iter().zip(&alike).zip(&exact).enumerate() {
            let size = exact.iter().fold(0f32, |m, x| m.max(x.abs()));
            let far = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / size;
            assert!(far(found, alike) < 2e-5, "{precision:?}, result {k}: off by {} from the CPU", far(found, alike));
            let off = far(found, exact);
            // The gradient with respect to a bias is a sum without factors.
            assert!(
                off < 4.0 * unit && (k == 3 || off > unit / 100.0),
                "{precision:?}, result {k}: off by {off} from the exact result"
            );
        }
    }
}

/// One launch for the sums of all layers gives the same bytes as one launch for each sum.
fn summed_together(device: &Device) {
    let burn = burn_device(device);
    let net = Net::build("cnn", 3, 8, 10, &burn).expect("a net");
    let layout = layout_of(&net);
    let weights = device.upload(initial_weights(&layout, 5));
    let net = attach(net, device, &layout, &weights);
    let mut found = Vec::new();
    for together in [false, true, false] {
        let x = device.upload(floats(4 * 8 * 8 * 3, 1));
        let y = device.upload((0..40).map(|i| (i % 11 == 0) as u8 as f32).collect());
        let logits = net.forward(Tensor::from_inner(tensor::<4>(device, &x, [4, 8, 8, 3])), F32);
        let loss = cross_entropy(logits, Tensor::from_inner(tensor::<2>(device, &y, [4, 10])), net.scale());
        let mut gradients_found = if together { sums::together(&layout, || loss.backward()) } else { loss.backward() };
        let buffers = gradients(&net, device, &layout, &mut gradients_found).unwrap();
        found.push(buffers.iter().map(|b| device.download(b).unwrap()).collect::<Vec<_>>());
    }
    assert!(found[0].iter().all(|g| g.iter().any(|x| *x != 0.0)), "a gradient is zero");
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0], found[2]);
}

/// Losses and gradients of several replicas in one stacked pass, against each replica alone.
fn stacked(device: &Device) {
    const REPLICAS: usize = 3;
    const BATCH: usize = 2;
    for (model, precision) in [("cnn", F32), ("cnn", F16), ("resnet18", F32), ("mlp", F32), ("logreg", F32)] {
        if !precision.is_supported(device) {
            continue;
        }
        let burn = burn_device(device);
        let net = Net::build(model, 3, 8, 10, &burn).expect("a net");
        let layout = layout_of(&net);
        let models: Vec<_> = (0..REPLICAS as u64).map(|r| device.upload(initial_weights(&layout, r))).collect();
        // All replicas start with equal scales and shifts; noise makes them differ.
        let nudge = |model: &stagger_kernels::Buffer, r: u64| {
            let noise = floats(model.len(), 50 + r);
            let values = device.download(model).unwrap();
            device.upload(values.iter().zip(noise).map(|(x, n)| x + 0.05 * n).collect())
        };
        let models: Vec<_> = models.iter().zip(0..).map(|(m, r)| nudge(m, r)).collect();
        let image = 8 * 8 * 3;
        let images = |replicas: usize, first: usize| {
            let all = floats(REPLICAS * BATCH * image, 1);
            let x = device.upload(all[first * BATCH * image..][..replicas * BATCH * image].to_vec());
            let y: Vec<f32> = (0..REPLICAS * BATCH * 10).map(|i| (i % 11 == 0) as u8 as f32).collect();
            let y = device.upload(y[first * BATCH * 10..][..replicas * BATCH * 10].to_vec());
            let batch = replicas * BATCH;
            (tensor::<4>(device, &x, [batch, 8, 8, 3]), tensor::<2>(device, &y, [batch, 10]))
        };
        let run = |replicas: usize, first: usize| {
            let layouts = layout.stacked(replicas);
            let chosen: Vec<_> = models[first..first + replicas].iter().collect();
            let weights = stack(device, &layout, &chosen);
            let net = attach(net.clone(), device, &layouts, &weights);
            let (x, y) = images(replicas, first);
            let logits = net.forward(Tensor::from_inner(x), Pass { precision, replicas });
            let losses = cross_entropies(logits, Tensor::from_inner(y), net.scale(), replicas);
            let mut found = sums::together(&layouts, || losses.backward());
            let all = gradients(&net, device, &layouts, &mut found).unwrap();
            let losses = stagger::problem::params::buffer(device, losses.inner()).unwrap();
            let read = |b: &stagger_kernels::Buffer| device.download(b).unwrap();
            let own = unstack(device, &layout, replicas, &all, &losses);
            own.iter().map(|(g, loss)| (g.iter().map(read).collect::<Vec<_>>(), read(loss))).collect::<Vec<_>>()
        };
        let together = run(REPLICAS, 0);
        for (r, (gradient, loss)) in together.iter().enumerate() {
            let (alone, loss_alone) = run(1, r).remove(0);
            assert!(
                (loss[0] - loss_alone[0]).abs() < 1e-6,
                "{model}: loss of replica {r}: {loss:?} instead of {loss_alone:?}"
            );
            for ((found, alone), segment) in gradient.iter().zip(&alone).zip(layout.segments()) {
                let largest = alone.iter().fold(0f32, |m, x| m.max(x.abs()));
                let off = found.iter().zip(alone).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(
                    largest > 0.0 && off <= 2e-5 * largest,
                    "{model} {}: off by {off}, largest {largest}",
                    segment.name
                );
            }
        }
    }
}

/// Stacked convolutions that are computed in parts, because not all patches fit at once: parts of several
/// whole replicas, and parts of one replica.
fn stacked_stretches(device: &Device) {
    let (side, from, to) = (32, 16, 2);
    for (replicas, batch) in [(4, 50), (2, 120)] {
        let (image, weight) = (side * side * from, to * from * 9);
        let layer = |replicas: usize, t: Vec<Tensor<1>>| {
            let x = t[0].clone().reshape([replicas * batch, side, side, from]);
            let weights = t[1].clone().reshape([replicas * to, from, 3, 3]);
            conv2d(x, weights, 1, 1, Pass { precision: F32, replicas })
        };
        let alone = |t: Vec<Tensor<1>>| {
            let of = |t: &Tensor<1>, r: usize, len: usize| t.clone().narrow(0, r * len, len);
            let own = |r| layer(1, vec![of(&t[0], r, batch * image), of(&t[1], r, weight)]);
            Tensor::cat((0..replicas).map(own).collect(), 0)
        };
        let shapes: [&[usize]; 2] = [&[replicas * batch * image], &[replicas * weight]];
        let (together, alone) =
            (pass(device, &shapes, false, |t| layer(replicas, t)), pass(device, &shapes, false, alone));
        for (k, (found, alone)) in together.iter().zip(&alone).enumerate() {
            let largest = alone.iter().fold(0f32, |m, x| m.max(x.abs()));
            let off = found.iter().zip(alone).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(
                largest > 0.0 && off <= 2e-5 * largest,
                "{replicas} x {batch}, result {k}: off by {off}, largest {largest}"
            );
        }
    }
}

/// A run with stacked passes gives the weights of a run with eager steps. On the CPU the bytes are the same.
fn stacked_run(backend: &str) {
    let runs = [("asgd --clip 0.5", "mlp"), ("kbatchsync:k=2", "logreg"), ("dude", "cnn")];
    // On a software adapter most of the time is compilation, once for each size of a pass.
    for (rule, model) in &runs[..if backend == "cpu" { 3 } else { 1 }] {
        let flags = format!(
            "--backend {backend} --dataset synthetic --model {model} --rule {rule} --workers 4 --batch 2 --updates 9 --eval-every 0 --test-samples 100 --seed 3 --clock virtual --delay fixed:1,2,3"
        );
        let of = |step: &str| common::weights(&common::train(&format!("{flags} --step {step}")));
        let (alone, together) = (of("eager"), of("stacked"));
        assert_eq!(together, of("stacked"), "{rule}: the second stacked run differs");
        let off = together.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(off <= if backend == "cpu" { 0.0 } else { 1e-5 }, "{rule} on {backend}: off by {off}");
    }
}

/// A second run reads the tuned kernels from the file and gives the same bytes. Up to rounding, they equal
/// those of the default kernels.
fn tuned() {
    let file = common::scratch("tuned").file("kernels.json");
    let flags = "--backend wgpu --dataset synthetic --model mlp --workers 2 --batch 2 --updates 6 --eval-every 0 --test-samples 100 --seed 3 --clock virtual";
    let with = format!("{flags} --tune-kernels {}", file.display());
    let first = common::weights(&common::train(&with));
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.matches("x128 * 128").count() + written.matches("x3072 * 3072").count() >= 2, "{written}");
    assert_eq!(common::weights(&common::train(&with)), first);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), written, "the second run measured again");
    let untuned = common::weights(&common::train(flags));
    let off = first.iter().zip(&untuned).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(off < 1e-4, "off by {off}");
}

/// A recorded step gives the same bytes as an eager step, for jobs of one step and of several.
fn recorded() {
    for (rule, model) in [("dude", "cnn"), ("shuffled", "mlp"), ("diloco:h=2", "mlp")] {
        let flags = format!(
            "--backend wgpu --dataset synthetic --model {model} --rule {rule} --workers 3 --batch 2 --updates 6 --eval-every 0 --test-samples 100 --seed 3 --clock virtual --delay fixed:1,2,3"
        );
        let weights = |step| common::weights(&common::train(&format!("{flags} --step {step}")));
        assert_eq!(weights("eager"), weights("captured"), "{rule}");
    }
}

/// Under the wall clock, an executor that computes on request takes the worker that replied longest ago. A
/// rule that cancels the other workers' jobs again and again still gets gradients from all workers.
fn no_worker_starves() {
    let folder = common::train(
        "--backend wgpu --dataset synthetic --model logreg --rule kbatchsync:k=1 --workers 4 --batch 2 --updates 12 --eval-every 0 --test-samples 100 --step captured",
    );
    let mut replies = [0; 4];
    common::events(&folder).iter().for_each(|e| replies[e.worker] += 1);
    assert_eq!(replies, [3; 4]);
}

fn main() {
    let arguments = Arguments::from_args();
    type Layer = (&'static str, fn(&Device));
    let layers: [Layer; 8] = [
        ("convolutions equal Burn's", convolutions),
        ("norms equal their definition", norms),
        ("fused norm and pooling equal separate layers", pooled_norms),
        ("sums in one launch equal sums in separate launches", summed_together),
        ("stacked replicas equal each replica alone", stacked),
        ("stacked convolutions in parts equal each replica alone", stacked_stretches),
        ("pooling equals Burn's", pools),
        ("linear layers and losses equal Burn's", linears_and_losses),
    ];
    let suffix = if common::has_wgpu() { "" } else { " (SKIPPED: no WGPU adapter)" };
    let skip = !suffix.is_empty();
    let mut trials = Vec::new();
    for (name, layer) in layers {
        trials.push(Trial::test(format!("{name} on cpu"), move || {
            layer(&Device::Cpu);
            Ok(())
        }));
        let on_threads = move || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build()?;
            pool.install(|| layer(&Device::Cpu));
            Ok(())
        };
        trials.push(Trial::test(format!("{name} on cpu, three threads"), on_threads));
        trials.push(
            Trial::test(format!("{name} on wgpu{suffix}"), move || {
                layer(&common::wgpu().expect("an adapter"));
                Ok(())
            })
            .with_ignored_flag(skip),
        );
    }
    for (precision, unit) in [(Bf16, 2f32.powi(-8)), (F16, 2f32.powi(-11))] {
        trials.push(Trial::test(format!("layers with {precision:?} factors on cpu"), move || {
            rounded(&Device::Cpu, precision, unit);
            Ok(())
        }));
        let device = common::wgpu().filter(|device| precision.is_supported(device));
        let suffix = if device.is_some() { "" } else { " (SKIPPED: the adapter does not support this precision)" };
        let skip = device.is_none();
        let trial = Trial::test(format!("layers with {precision:?} factors on wgpu{suffix}"), move || {
            rounded(&device.expect("an adapter"), precision, unit);
            Ok(())
        });
        trials.push(trial.with_ignored_flag(skip));
    }
    trials.push(Trial::test("a stacked run gives the bytes of an eager run on cpu", || {
        stacked_run("cpu");
        Ok(())
    }));
    trials.push(
        Trial::test(format!("a stacked run gives the weights of an eager run on wgpu{suffix}"), || {
            stacked_run("wgpu");
            Ok(())
        })
        .with_ignored_flag(skip),
    );
    trials.push(
        Trial::test(format!("a run with a file of tuned kernels repeats its bytes{suffix}"), || {
            tuned();
            Ok(())
        })
        .with_ignored_flag(skip),
    );
    trials.push(
        Trial::test(format!("a recorded step gives the bytes of an eager step{suffix}"), || {
            recorded();
            Ok(())
        })
        .with_ignored_flag(skip),
    );
    trials.push(
        Trial::test(format!("no worker starves when jobs are cancelled again and again{suffix}"), || {
            no_worker_starves();
            Ok(())
        })
        .with_ignored_flag(skip),
    );
    libtest_mimic::run(&arguments, trials).exit();
}
