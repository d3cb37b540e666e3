//! The same run on WGPU and on the CPU: the order of arrivals is identical, and the weights agree up to rounding.

mod common;

use common::{events, train, weights};
use libtest_mimic::{Arguments, Trial};

/// Trains with tiny batches on both backends and compares the runs. The cnn makes fewer updates, because it
/// is slow on a software adapter.
fn agree(model: &str, rule: &str, data: &str) {
    let updates = if model == "cnn" { 20 } else { 100 };
    let limit = if data == "synthetic" { " --test-samples 100" } else { "" };
    let flags = format!(
        "--dataset {data} --model {model} --rule {rule} --workers 2 --batch 2 --delay fixed:1,2 --clock virtual --updates {updates} --eval-every 0 --seed 6 --lr 0.02{limit}"
    );
    let (cpu, wgpu) = (train(&format!("{flags} --backend cpu")), train(&format!("{flags} --backend wgpu")));
    let order =
        |folder| events(folder).into_iter().map(|e| (e.time, e.worker, e.version, e.effect)).collect::<Vec<_>>();
    assert_eq!(order(&cpu), order(&wgpu));
    for (a, b) in events(&cpu).iter().zip(events(&wgpu)) {
        let (a, b) = (a.loss.unwrap(), b.loss.unwrap());
        assert!((a - b).abs() < 1e-3 * (1.0 + a.abs()), "losses differ: {a} on cpu, {b} on wgpu");
    }
    for (a, b) in weights(&cpu).iter().zip(weights(&wgpu)) {
        assert!((a - b).abs() < 1e-3, "weights differ: {a} on cpu, {b} on wgpu");
    }
}

fn main() {
    let arguments = Arguments::from_args();
    let suffix = if common::has_wgpu() { "" } else { " (SKIPPED: no WGPU adapter)" };
    let file = common::scratch("rows").file("rows.txt");
    std::fs::write(&file, "1 1:0.5 2:-1\n-1 2:2 3:1\n1 1:-1 3:0.3\n-1 1:1\n1 2:0.7\n-1 3:-1\n").unwrap();
    let libsvm = format!("libsvm:{}", file.display());
    let trials = [("cnn", "dude", "synthetic"), ("mlp", "sync", "synthetic"), ("logreg", "asgd", libsvm.as_str())]
        .map(|(model, rule, data)| {
            let data = data.to_string();
            Trial::test(format!("{model} with {rule}: wgpu agrees with cpu{suffix}"), move || {
                agree(model, rule, &data);
                Ok(())
            })
            .with_ignored_flag(!suffix.is_empty())
        })
        .into();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(file);
    conclusion.exit();
}
