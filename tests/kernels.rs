//! Every kernel against its plain CPU loop, on the WGPU adapter of this machine. A software adapter is enough.

mod common;

use libtest_mimic::{Arguments, Trial};
use rand_chacha::rand_core::RngCore;
use stagger_datasets::keyed;
use stagger_kernels::gather::{Augment, Draw, ImageShape, Images, Part};
use stagger_kernels::mixing::{Exchange, Mixing};
use stagger_kernels::update::Guard;
use stagger_kernels::{
    Adam, Buffer, Device, Dtype, Fence, FoldOp, GradientInput, Layout, Live, OptimizerStep, PendingGradient, Row,
    Segment, StepOp, Update, clip, row, update,
};

/// Random floats within ±1.
fn floats(len: usize, key: u64) -> Vec<f32> {
    let mut random = keyed([key, 0, 0, 0]);
    (0..len).map(|_| random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0).collect()
}

/// Sizes that are multiples of neither a vector nor a group.
fn odd_layout() -> Layout {
    let mut layout = Layout::default();
    for (k, len) in [1, 257, 10, 4099, 3].into_iter().enumerate() {
        layout.push(format!("p{k}"), vec![len]);
    }
    layout
}

/// Sizes that allow vectors of four.
fn even_layout() -> Layout {
    let mut layout = Layout::default();
    layout.push("a".into(), vec![128, 12]);
    layout.push("b".into(), vec![516]);
    layout
}

/// Sizes that allow vectors of two.
fn two_layout() -> Layout {
    let mut layout = Layout::default();
    layout.push("a".into(), vec![130]);
    layout.push("b".into(), vec![1026]);
    layout
}

/// One configuration of the update kernel.
#[derive(Clone, Copy)]
struct Case {
    /// Kind of fold.
    fold: &'static str,
    /// Optimizer.
    method: &'static str,
    /// Whether each arrival makes an update.
    step: bool,
    keep: f32,
    decay: f32,
    clipped: bool,
}

/// Runs four arrivals in a row. Returns the weights, all state and the losses.
fn updates(device: &Device, layout: &Layout, case: Case) -> Vec<Vec<f32>> {
    let total = layout.total();
    let up = |key| device.upload(floats(total, key));
    let (mut w, mut sum, mut base, sent) = (up(1), up(2), up(3), up(4));
    let (mut first, mut second, mut third) = (up(5), device.zeros(total), device.zeros(total));
    let mut square = device.zeros(total);
    let dtype = if case.fold.contains("bf16") { Dtype::Bf16 } else { Dtype::F32 };
    let mut rows: Vec<Row> = (0..5).map(|_| Row::zeros(device, layout, dtype)).collect();
    let mut losses = update::ring(device, 4);
    let factor = device.upload(vec![0.37]);
    for k in 0..4u64 {
        let gradient: Vec<Buffer> = layout
            .segments()
            .iter()
            .enumerate()
            .map(|(s, seg)| device.upload(floats(seg.len, 10 + 7 * k + s as u64)))
            .collect();
        // New weights start as NaN, which shows elements that a kernel does not write.
        let mut fresh = device.upload(vec![f32::NAN; total]);
        let (row, others) = rows.split_at_mut(1);
        let retired = if case.fold.contains("retire") { others[..k as usize].iter().collect() } else { vec![] };
        let mean = case.fold.contains("mean");
        let fold = match case.fold {
            "nothing" => FoldOp::Nothing,
            "direct" => FoldOp::Direct { scale: 0.5 },
            "sum" | "based" => FoldOp::Sum { sum: &mut sum, scale: 0.5, pending: vec![] },
            "compensated" => FoldOp::Compensated { sent: &sent, lambda: 0.3, square: None },
            "adaptive" => FoldOp::Compensated { sent: &sent, lambda: 0.3, square: Some((&mut square, 0.9)) },
            "local" => FoldOp::Local { sum: &mut sum, proximal: None },
            "proximal" => FoldOp::Local { sum: &mut sum, proximal: Some((&sent, 0.2)) },
            _ => FoldOp::Row {
                sum: &mut sum,
                row: &mut row[0],
                mix: if mean { 1.0 / (k + 1) as f32 } else { 1.0 },
                scale: 0.25,
                forget: mean && k == 0,
                retired,
            },
        };
        let constants = Adam { beta1: 0.9, beta2: 0.99, epsilon: 1e-3, correction1: 0.5, correction2: 0.25 };
        let method = match case.method {
            "plain" => OptimizerStep::Plain,
            "heavy ball" => OptimizerStep::HeavyBall { velocity: &mut first, beta: 0.9 },
            "nesterov" => OptimizerStep::Nesterov { velocity: &mut first, beta: 0.9, pending: None, turn: true },
            "delayed" => OptimizerStep::Nesterov {
                velocity: &mut first,
                beta: 0.9,
                pending: Some(&mut second),
                turn: k % 2 == 1,
            },
            "adam" => OptimizerStep::Adam { first: &mut first, second: &mut second, largest: None, constants },
            _ => OptimizerStep::Adam { first: &mut first, second: &mut second, largest: Some(&mut third), constants },
        };
        let based = (case.fold == "based").then_some((&mut base, 0.4));
        let factor_of_step = if case.clipped { 0.6 } else { 1.0 };
        let step = StepOp {
            fresh: &mut fresh,
            lr: 0.1,
            scale: factor_of_step,
            keep: case.keep,
            weight_decay: case.decay,
            base: based,
            method,
        };
        Update {
            gradient: GradientInput {
                layout,
                buffers: &gradient,
                factor: case.clipped.then_some(&factor),
                fence: &Fence::default(),
                loss: &device.upload(vec![k as f32 + 0.5]),
                losses: &mut losses,
                slot: k as usize,
                guard: Guard::Whole,
            },
            weights: &w,
            fold,
            step: case.step.then_some(step),
        }
        .run(device);
        if case.fold.contains("retire") {
            // Rotate the rows, so that rows that retire hold a gradient.
            rows.rotate_left(1);
        }
        if case.step {
            w = fresh;
        }
    }
    let all: Vec<&Row> = rows.iter().collect();
    let mut anew = device.upload(floats(total, 9));
    row::resum(device, layout, &mut anew, &all, 0.2);
    let down = |b: &Buffer| parameters(layout, device.download(b).unwrap());
    let mut state: Vec<Vec<f32>> = [&w, &sum, &base, &first, &second, &third, &square, &anew].map(down).to_vec();
    state.extend(rows.iter().map(|row| parameters(layout, row.download(device, layout).unwrap())));
    state.push(device.download(&losses).unwrap());
    state
}

/// The values of the model's parameters, without the gaps between them.
fn parameters(layout: &Layout, values: Vec<f32>) -> Vec<f32> {
    layout.segments().iter().flat_map(|s| values[s.start..s.start + s.len].to_vec()).collect()
}

/// Runs each kind of exchange between models once. Returns the new models and the losses.
fn exchanges(device: &Device, layout: &Layout, clipped: bool) -> Vec<Vec<f32>> {
    let total = layout.total();
    let up = |key| device.upload(floats(total, key));
    let (weights, own, peer) = (up(1), up(2), up(3));
    let gradient: Vec<Buffer> =
        layout.segments().iter().enumerate().map(|(s, seg)| device.upload(floats(seg.len, 10 + s as u64))).collect();
    let factor = device.upload(vec![0.37]);
    let mut losses = update::ring(device, 4);
    let mut found = Vec::new();
    for (slot, kind) in ["towards", "elastic", "pair", "alone"].into_iter().enumerate() {
        let nan = || device.upload(vec![f32::NAN; total]);
        let (mut fresh, mut fresh_own, mut fresh_peer) = (nan(), nan(), nan());
        let mixing = match kind {
            "towards" => Mixing::Towards { sent: &own, alpha: 0.6 },
            "elastic" => Mixing::Elastic { own: &own, fresh_own: &mut fresh_own, alpha: 0.3 },
            "pair" => {
                Mixing::Pair { own: &own, fresh_own: &mut fresh_own, peer: Some((&peer, &mut fresh_peer)), share: 0.25 }
            }
            _ => Mixing::Pair { own: &own, fresh_own: &mut fresh_own, peer: None, share: 1.0 },
        };
        let incoming = GradientInput {
            layout,
            buffers: &gradient,
            factor: clipped.then_some(&factor),
            fence: &Fence::default(),
            loss: &device.upload(vec![slot as f32 + 0.5]),
            losses: &mut losses,
            slot,
            guard: Guard::Whole,
        };
        Exchange { gradient: incoming, weights: &weights, fresh: &mut fresh, lr: 0.1, mixing }.run(device);
        let down = |b: &Buffer| parameters(layout, device.download(b).unwrap());
        found.push(down(&fresh));
        if kind != "towards" {
            found.push(down(&fresh_own));
        }
        if kind == "pair" {
            found.push(down(&fresh_peer));
        }
    }
    found.push(device.download(&losses).unwrap());
    found
}

/// Returns the clipping factor, and the weights after two steps on live weights, which have no lock.
fn clip_and_live(device: &Device, layout: &Layout, limit: f32) -> Vec<Vec<f32>> {
    let gradient: Vec<Buffer> =
        layout.segments().iter().enumerate().map(|(s, seg)| device.upload(floats(seg.len, 10 + s as u64))).collect();
    let factor = clip::factor(device, layout, &gradient, limit);
    let live = Live::new(device, floats(layout.total(), 1));
    live.step(device, layout, &gradient, Some(&factor), 0.1, 0.01);
    live.step(device, layout, &gradient, None, 0.1, 0.0);
    let weights = parameters(layout, device.download(&live.read(device)).unwrap());
    vec![device.download(&factor).unwrap(), weights]
}

fn same(a: &[Vec<f32>], b: &[Vec<f32>]) {
    for (k, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.len(), b.len());
        for (i, (x, y)) in a.iter().zip(b).enumerate() {
            assert!((x - y).abs() <= 1e-6 * (1.0 + y.abs()), "output {k}, element {i}: {x} instead of {y}");
        }
    }
}

fn update_equals(case: Case) {
    let gpu = common::wgpu().unwrap();
    for layout in [odd_layout(), even_layout(), two_layout()] {
        same(&updates(&gpu, &layout, case), &updates(&Device::Cpu, &layout, case));
    }
}

/// Compares a table update with values computed by hand, which finds an error that loop and kernel share.
fn update_by_hand(device: &Device) {
    let mut layout = Layout::default();
    layout.push("x".into(), vec![2]);
    let pad = |a: f32, b: f32| {
        let mut values = vec![0.0; layout.total()];
        (values[0], values[1]) = (a, b);
        device.upload(values)
    };
    let (w, mut fresh, mut sum) = (pad(1.0, 2.0), pad(0.0, 0.0), pad(0.5, -0.5));
    let mut row = Row::zeros(device, &layout, Dtype::F32);
    for (gradient, scale, steps) in [([1.0, 1.0], 0.0, false), ([3.0, -1.0], 0.25, true)] {
        let method = OptimizerStep::Plain;
        let step = StepOp { fresh: &mut fresh, lr: 0.5, scale: 1.0, keep: 1.0, weight_decay: 0.0, base: None, method };
        Update {
            gradient: GradientInput {
                layout: &layout,
                buffers: &[device.upload(gradient.to_vec())],
                factor: None,
                fence: &Fence::default(),
                loss: &device.upload(vec![7.0]),
                losses: &mut update::ring(device, 1),
                slot: 0,
                guard: Guard::Whole,
            },
            weights: &w,
            fold: FoldOp::Row { sum: &mut sum, row: &mut row, mix: 1.0, scale, forget: false, retired: vec![] },
            step: steps.then_some(step),
        }
        .run(device);
    }
    let read = |b: &Buffer| device.download(b).unwrap()[..2].to_vec();
    // d = (2, -2); s = (0.5 + 0.5, -0.5 - 0.5) = (1, -1); w = (1 - 0.5, 2 + 0.5).
    let row = row.download(device, &layout).unwrap()[..2].to_vec();
    assert_eq!((read(&sum), row, read(&fresh)), (vec![1.0, -1.0], vec![3.0, -1.0], vec![0.5, 2.5]));
}

/// Folding several gradients in one launch gives the result of one launch for each. The bits are the same on
/// devices whose runs do so.
fn several_in_one_launch(device: &Device) {
    // Three if a launch can bind more than 18 buffers, as with the drivers for Vulkan and CUDA.
    let most = update::pending_bindable(device);
    assert!(most > 0, "a launch binds fewer than 13 buffers");
    for layout in [odd_layout(), even_layout(), two_layout()] {
        let exact = update::pending_foldable(device, &layout) > 0;
        assert_eq!(exact, matches!(device, Device::Cpu));
        let total = layout.total();
        let gradient = |key: u64| -> Vec<Buffer> {
            let of = |(s, seg): (usize, &Segment)| device.upload(floats(seg.len, 10 * key + s as u64));
            layout.segments().iter().enumerate().map(of).collect()
        };
        let gradients: Vec<_> = (1..=most as u64 + 1).map(gradient).collect();
        let loss: Vec<_> = (0..=most).map(|k| device.upload(vec![k as f32 + 0.5])).collect();
        let no_fence = Fence::default();
        let run = |waiting: usize, steps: bool| {
            let w = device.upload(floats(total, 1));
            let (mut sum, mut losses) = (device.upload(floats(total, 2)), update::ring(device, 4));
            let mut fresh = device.upload(vec![f32::NAN; total]);
            for last in waiting..=most {
                let before = if last == waiting { 0..waiting } else { 0..0 };
                let pending =
                    before.map(|k| PendingGradient { buffers: &gradients[k], fence: &no_fence, loss: &loss[k] });
                let step = StepOp {
                    fresh: &mut fresh,
                    lr: 0.1,
                    scale: 1.0,
                    keep: 0.5,
                    weight_decay: 0.0,
                    base: None,
                    method: OptimizerStep::Plain,
                };
                Update {
                    gradient: GradientInput {
                        layout: &layout,
                        buffers: &gradients[last],
                        factor: None,
                        fence: &Fence::default(),
                        loss: &loss[last],
                        losses: &mut losses,
                        slot: last,
                        guard: Guard::Whole,
                    },
                    weights: &w,
                    fold: FoldOp::Sum { sum: &mut sum, scale: 0.3, pending: pending.collect() },
                    step: (steps && last == most).then_some(step),
                }
                .run(device);
            }
            let mut found: Vec<f32> = device.download(&losses).unwrap();
            let (sum, fresh) = (device.download(&sum).unwrap(), device.download(&fresh).unwrap());
            for s in layout.segments() {
                found.extend(&sum[s.start..s.start + s.len]);
                found.extend(if steps { &fresh[s.start..s.start + s.len] } else { &[] });
            }
            found
        };
        for steps in [false, true] {
            let one_by_one = run(0, steps);
            for waiting in 1..=most {
                let found = run(waiting, steps);
                let off = found.iter().zip(&one_by_one).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(
                    off <= if exact { 0.0 } else { 1e-6 },
                    "{waiting} pending gradients, step {steps}: off by {off}"
                );
                assert!(found.iter().all(|x| x.is_finite()));
            }
        }
    }
}

/// A gradient with non-finite values is flagged. It leaves the same state as a gradient with zeros in their
/// place (in a table: with the values of the row). With [`Guard::Whole`], a non-finite loss leaves out the
/// whole gradient.
fn non_finite_values_are_left_out(device: &Device) {
    for layout in [odd_layout(), even_layout(), two_layout()] {
        let total = layout.total();
        let no_fence = Fence::default();
        let (good, bad_loss) = (device.upload(vec![0.5]), device.upload(vec![f32::NAN]));
        for kind in ["direct", "sum", "pending", "row", "bf16 row", "towards"] {
            for (guard, loss, whole) in
                [(Guard::Elements, &good, false), (Guard::Whole, &good, false), (Guard::Whole, &bad_loss, true)]
            {
                let hit = |k: usize, len: usize| whole || k == 0 || k + 1 == len;
                // Runs with the broken gradient, or with the gradient that counts in its place.
                let run = |broken: bool| {
                    let mut row =
                        Row::zeros(device, &layout, if kind == "bf16 row" { Dtype::Bf16 } else { Dtype::F32 });
                    let (w, x) = (device.upload(floats(total, 1)), device.upload(floats(total, 6)));
                    let (mut sum, mut losses) = (device.upload(floats(total, 2)), update::ring(device, 4));
                    let mut fresh = device.upload(vec![f32::NAN; total]);
                    let first: Vec<Buffer> =
                        layout.segments().iter().map(|s| device.upload(floats(s.len, s.start as u64 + 9))).collect();
                    let mut fill = |gradient: &[Buffer], row: &mut Row, loss, guard, slot, step| {
                        let is_row = kind.ends_with("row");
                        let fold = match kind {
                            "direct" => FoldOp::Direct { scale: 1.0 },
                            _ if is_row => {
                                FoldOp::Row { sum: &mut sum, row, mix: 1.0, scale: 0.3, forget: false, retired: vec![] }
                            }
                            _ => FoldOp::Sum { sum: &mut sum, scale: 0.3, pending: vec![] },
                        };
                        let step = step_to(&mut fresh, step);
                        let incoming = GradientInput {
                            layout: &layout,
                            buffers: gradient,
                            factor: None,
                            fence: &no_fence,
                            loss,
                            losses: &mut losses,
                            slot,
                            guard,
                        };
                        Update { gradient: incoming, weights: &w, fold, step }.run(device);
                    };
                    if kind.ends_with("row") {
                        fill(&first, &mut row, &good, Guard::Whole, 0, false);
                    }
                    let held = row.download(device, &layout).unwrap();
                    let second: Vec<Buffer> = layout
                        .segments()
                        .iter()
                        .map(|s| {
                            let mut g = floats(s.len, s.start as u64 + 3);
                            for (k, g) in g.iter_mut().enumerate().filter(|(k, _)| hit(*k, s.len)) {
                                let counts = if kind.ends_with("row") { held[s.start + k] } else { 0.0 };
                                let broke = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][k % 3];
                                *g = if broken { broke } else { counts };
                            }
                            device.upload(g)
                        })
                        .collect();
                    let loss = if broken { loss } else { &good };
                    match kind {
                        "towards" => Exchange {
                            gradient: GradientInput {
                                layout: &layout,
                                buffers: &second,
                                factor: None,
                                fence: &no_fence,
                                loss,
                                losses: &mut losses,
                                slot: 1,
                                guard,
                            },
                            weights: &w,
                            fresh: &mut fresh,
                            lr: 0.1,
                            mixing: Mixing::Towards { sent: &x, alpha: 0.3 },
                        }
                        .run(device),
                        // Only some devices fold a pending gradient together with the next one.
                        "pending" if update::pending_foldable(device, &layout) > 0 => Update {
                            gradient: GradientInput {
                                layout: &layout,
                                buffers: &first,
                                factor: None,
                                fence: &no_fence,
                                loss: &good,
                                losses: &mut losses,
                                slot: 2,
                                guard,
                            },
                            weights: &w,
                            fold: FoldOp::Sum {
                                sum: &mut sum,
                                scale: 0.3,
                                pending: vec![PendingGradient { buffers: &second, fence: &no_fence, loss }],
                            },
                            step: step_to(&mut fresh, true),
                        }
                        .run(device),
                        _ => fill(&second, &mut row, loss, guard, 1, true),
                    }
                    let flags = device.download(&losses).unwrap().split_off(4);
                    let all = [
                        device.download(&sum).unwrap(),
                        row.download(device, &layout).unwrap(),
                        device.download(&fresh).unwrap(),
                    ];
                    let of = |values: &Vec<f32>, s: &Segment| values[s.start..s.start + s.len].to_vec();
                    let all: Vec<f32> =
                        all.iter().flat_map(|v| layout.segments().iter().flat_map(move |s| of(v, s))).collect();
                    (flags, all)
                };
                let ((flags, found), (clear, expected)) = (run(true), run(false));
                assert_eq!((flags[1], clear.iter().sum::<f32>()), (1.0, 0.0), "{kind} {guard:?}: flags {flags:?}");
                assert_eq!(flags.iter().sum::<f32>(), 1.0, "{kind}: exactly one gradient is flagged");
                assert!(found.iter().all(|x| x.is_finite()), "{kind} {guard:?}: the state is not finite");
                let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(off <= 1e-6, "{kind} {guard:?} whole {whole}: off by {off}");
            }
        }
    }
}

/// A plain step if `steps` is true.
fn step_to(fresh: &mut Buffer, steps: bool) -> Option<StepOp<'_>> {
    steps.then_some(StepOp {
        fresh,
        lr: 0.1,
        scale: 1.0,
        keep: 0.5,
        weight_decay: 0.01,
        base: None,
        method: OptimizerStep::Plain,
    })
}

fn gather_equals() {
    let shape = ImageShape { channels: 3, side: 8, classes: 10 };
    let count = 53;
    let mut random = keyed([9, 0, 0, 0]);
    let pixels: Vec<u8> = (0..count * shape.pixels()).map(|_| random.next_u32() as u8).collect();
    let labels: Vec<u8> = (0..count).map(|i| (i % 10) as u8).collect();
    let draw = |device: &Device, job: u64, augment: Augment| {
        let images = Images::new(device, shape, pixels.clone(), labels.clone(), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]);
        let part = Part::new(device, (0..count as u32).step_by(2).collect(), 42, 3);
        let (x, y) = images.draw(device, Draw::Batch { part: &part, job, augment }, 5, None);
        let (a, b) = images.draw(device, Draw::InOrder { first: 7 }, 5, None);
        let rows = part.draw(device, job, 5);
        [x, y, a, b, rows].map(|buffer| device.download(&buffer).unwrap()).to_vec()
    };
    let gpu = common::wgpu().unwrap();
    for job in [0, 3, 5, 1 << 33] {
        for augment in [Augment::NONE, Augment { pad: 4, flip: true }, Augment { pad: 2, flip: false }] {
            same(&draw(&gpu, job, augment), &draw(&Device::Cpu, job, augment));
        }
    }
}

fn main() {
    let arguments = Arguments::from_args();
    let suffix = if common::has_wgpu() { "" } else { " (SKIPPED: no WGPU adapter)" };
    let skip = !suffix.is_empty();
    let mut trials = vec![
        Trial::test("update: a table step equals the hand computation on cpu", || {
            update_by_hand(&Device::Cpu);
            Ok(())
        }),
        Trial::test(format!("update: a table step equals the hand computation on wgpu{suffix}"), || {
            update_by_hand(&common::wgpu().unwrap());
            Ok(())
        })
        .with_ignored_flag(skip),
        Trial::test("update: non-finite values are left out on cpu", || {
            non_finite_values_are_left_out(&Device::Cpu);
            Ok(())
        }),
        Trial::test(format!("update: non-finite values are left out on wgpu{suffix}"), || {
            non_finite_values_are_left_out(&common::wgpu().unwrap());
            Ok(())
        })
        .with_ignored_flag(skip),
        Trial::test("update: several gradients in one launch equal one launch each on cpu", || {
            several_in_one_launch(&Device::Cpu);
            Ok(())
        }),
        Trial::test(format!("update: several gradients in one launch equal one launch each on wgpu{suffix}"), || {
            several_in_one_launch(&common::wgpu().unwrap());
            Ok(())
        })
        .with_ignored_flag(skip),
        Trial::test(format!("gather: batches equal the plain loop{suffix}"), || {
            gather_equals();
            Ok(())
        })
        .with_ignored_flag(skip),
    ];
    let mut add = |name: String, test: Box<dyn FnOnce() + Send>| {
        trials.push(
            Trial::test(name + suffix, move || {
                test();
                Ok(())
            })
            .with_ignored_flag(skip),
        );
    };
    let folds = [
        "nothing",
        "direct",
        "sum",
        "based",
        "row",
        "row mean",
        "row retire",
        "row bf16",
        "row bf16 mean",
        "row bf16 retire",
        "compensated",
        "adaptive",
        "local",
        "proximal",
    ];
    for fold in folds {
        for (step, keep, decay, clipped) in
            [(false, 1.0, 0.0, false), (true, 1.0, 0.0, true), (true, 0.0, 0.0, false), (true, 0.5, 0.01, false)]
        {
            let own_step = ["local", "proximal", "based"].contains(&fold);
            if fold == "nothing" && step || own_step && !step {
                continue;
            }
            let case = Case { fold, method: "plain", step, keep, decay, clipped };
            add(
                format!(
                    "update: {fold}, step {step}, keep {keep}, decay {decay}, clipped {clipped} equals the plain loop"
                ),
                Box::new(move || update_equals(case)),
            );
        }
    }
    for method in ["heavy ball", "nesterov", "delayed", "adam", "amsgrad"] {
        for fold in ["direct", "sum", "row"] {
            let case = Case { fold, method, step: true, keep: 1.0, decay: 0.01, clipped: false };
            add(format!("update: {method} on {fold} equals the plain loop"), Box::new(move || update_equals(case)));
        }
    }
    add(
        "mixing: every exchange equals the plain loop".into(),
        Box::new(|| {
            let gpu = common::wgpu().unwrap();
            for layout in [odd_layout(), even_layout(), two_layout()] {
                for clipped in [false, true] {
                    same(&exchanges(&gpu, &layout, clipped), &exchanges(&Device::Cpu, &layout, clipped));
                }
            }
        }),
    );
    add(
        "clip and live: both equal the plain loop".into(),
        Box::new(|| {
            let gpu = common::wgpu().unwrap();
            for layout in [odd_layout(), even_layout(), two_layout()] {
                for limit in [0.5, 1e6] {
                    same(&clip_and_live(&gpu, &layout, limit), &clip_and_live(&Device::Cpu, &layout, limit));
                }
            }
        }),
    );
    libtest_mimic::run(&arguments, trials).exit();
}
