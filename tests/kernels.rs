//! Every kernel against its plain CPU loop, on the WGPU adapter of this machine (a software one will do).

mod common;

use libtest_mimic::{Arguments, Trial};
use rand_chacha::rand_core::RngCore;
use stagger_datasets::keyed;
use stagger_kernels::gather::{Augment, Draw, ImageShape, Images, Part};
use stagger_kernels::{Buffer, Device, Fold, Layout, Seal, Step, Update};

/// Random floats within ±1.
fn floats(len: usize, key: u64) -> Vec<f32> {
    let mut random = keyed([key, 0, 0, 0]);
    (0..len).map(|_| random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0).collect()
}

/// Sizes that no vector and no group divides.
fn odd_layout() -> Layout {
    let mut layout = Layout::default();
    for (k, len) in [1, 257, 10, 4099, 3].into_iter().enumerate() {
        layout.push(format!("p{k}"), vec![len]);
    }
    layout
}

/// Sizes that take vectors of four.
fn even_layout() -> Layout {
    let mut layout = Layout::default();
    layout.push("a".into(), vec![128, 12]);
    layout.push("b".into(), vec![516]);
    layout
}

#[derive(Clone, Copy)]
struct Case {
    fold: &'static str,
    step: bool,
    keep: f32,
    decay: f32,
    beta: f32,
}

/// Three updates in a row; returns weights, sum, row, velocity and losses.
fn updates(device: &Device, layout: &Layout, case: Case) -> Vec<Vec<f32>> {
    let total = layout.total();
    let up = |key| device.upload(floats(total, key));
    let (mut w, mut sum, mut row, mut velocity) = (up(1), up(2), up(3), up(4));
    // New weights start as NaN: whatever a kernel forgets to write shows.
    let mut losses = device.zeros(4);
    for k in 0..3u64 {
        let gradient: Vec<Buffer> = layout
            .segments()
            .iter()
            .enumerate()
            .map(|(s, seg)| device.upload(floats(seg.len, 10 + 7 * k + s as u64)))
            .collect();
        let mut fresh = device.upload(vec![f32::NAN; total]);
        let fold = match case.fold {
            "nothing" => Fold::Nothing,
            "direct" => Fold::Direct { scale: 0.5 },
            "sum" => Fold::Sum { sum: &mut sum, scale: 0.5 },
            "table" => Fold::Table { sum: &mut sum, row: &mut row, scale: 0.5 },
            _ => Fold::Local { sum: &mut sum, scale: 0.5 },
        };
        let momentum = (case.beta != 0.0).then_some((&mut velocity, case.beta));
        let step = Step { fresh: &mut fresh, lr: 0.1, keep: case.keep, weight_decay: case.decay, momentum };
        Update {
            layout,
            gradient: &gradient,
            seal: &Seal::default(),
            weights: &w,
            fold,
            step: case.step.then_some(step),
            loss: &device.upload(vec![k as f32 + 0.5]),
            losses: &mut losses,
            slot: k as usize,
        }
        .run(device);
        if case.step {
            w = fresh;
        }
    }
    let down = |b: &Buffer| device.download(b).unwrap();
    let parameters =
        |values: Vec<f32>| layout.segments().iter().flat_map(|s| values[s.start..s.start + s.len].to_vec()).collect();
    vec![
        parameters(down(&w)),
        parameters(down(&sum)),
        parameters(down(&row)),
        parameters(down(&velocity)),
        down(&losses),
    ]
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
    for layout in [odd_layout(), even_layout()] {
        same(&updates(&gpu, &layout, case), &updates(&Device::Cpu, &layout, case));
    }
}

/// One table update worked out by hand, so that loop and kernel cannot be wrong together.
fn update_by_hand(device: &Device) {
    let mut layout = Layout::default();
    layout.push("x".into(), vec![2]);
    let pad = |a: f32, b: f32| {
        let mut values = vec![0.0; layout.total()];
        (values[0], values[1]) = (a, b);
        device.upload(values)
    };
    let (w, mut fresh, mut sum, mut row) = (pad(1.0, 2.0), pad(0.0, 0.0), pad(0.5, -0.5), pad(1.0, 1.0));
    Update {
        layout: &layout,
        gradient: &[device.upload(vec![3.0, -1.0])],
        seal: &Seal::default(),
        weights: &w,
        fold: Fold::Table { sum: &mut sum, row: &mut row, scale: 0.25 },
        step: Some(Step { fresh: &mut fresh, lr: 0.5, keep: 1.0, weight_decay: 0.0, momentum: None }),
        loss: &device.upload(vec![7.0]),
        losses: &mut device.zeros(1),
        slot: 0,
    }
    .run(device);
    let read = |b: &Buffer| device.download(b).unwrap()[..2].to_vec();
    // d = (2, -2); s = (0.5 + 0.5, -0.5 - 0.5) = (1, -1); w = (1 - 0.5, 2 + 0.5).
    assert_eq!((read(&sum), read(&row), read(&fresh)), (vec![1.0, -1.0], vec![3.0, -1.0], vec![0.5, 2.5]));
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
        let (x, y) = images.draw(device, Draw::Batch { part: &part, job, augment }, 5);
        let (a, b) = images.draw(device, Draw::InOrder { first: 7 }, 5);
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
    let without = if common::has_wgpu() { "" } else { " (SKIPPED: no WGPU adapter)" };
    let skip = !without.is_empty();
    let mut trials = vec![
        Trial::test("update: a table step by hand on cpu", || {
            update_by_hand(&Device::Cpu);
            Ok(())
        }),
        Trial::test(format!("update: a table step by hand on wgpu{without}"), || {
            update_by_hand(&common::wgpu().unwrap());
            Ok(())
        })
        .with_ignored_flag(skip),
        Trial::test(format!("gather: batches equal the plain loop{without}"), || {
            gather_equals();
            Ok(())
        })
        .with_ignored_flag(skip),
    ];
    for fold in ["nothing", "direct", "sum", "table", "local"] {
        for (step, keep, decay, beta) in [
            (false, 1.0, 0.0, 0.0),
            (true, 1.0, 0.0, 0.0),
            (true, 0.0, 0.0, 0.0),
            (true, 0.5, 0.01, 0.0),
            (true, 1.0, 0.01, 0.9),
        ] {
            if fold == "nothing" && step {
                continue;
            }
            let case = Case { fold, step, keep, decay, beta };
            let name = format!(
                "update: {fold}, step {step}, keep {keep}, decay {decay}, momentum {beta} equals the plain loop{without}"
            );
            trials.push(
                Trial::test(name, move || {
                    update_equals(case);
                    Ok(())
                })
                .with_ignored_flag(skip),
            );
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
