//! TensorBoard and safetensors read the files of a run. The test needs pip and runs only with STAGGER_PIP=1.

mod common;

use libtest_mimic::{Arguments, Trial};
use std::path::Path;
use std::process::Command;

/// A Python interpreter with the packages that read the files.
fn python() -> common::Scratch {
    let home = common::scratch("readers");
    let run = |program: &Path, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(Path::new("python3"), &["-m", "venv", home.to_str().unwrap()]);
    run(&home.join("bin/pip"), &["install", "--quiet", "tensorboard", "safetensors", "numpy", "setuptools<81"]);
    home.file("bin/python")
}

const READ: &str = r#"
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from safetensors.numpy import load_file
board = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "histograms": 0})
board.Reload()
tensors = load_file(sys.argv[1] + "/model.safetensors")
stale = [e.histogram_value for e in board.Histograms("staleness")]
print(json.dumps({
    "tags": sorted(board.Tags()["scalars"]),
    "accuracy": [[e.step, e.value] for e in board.Scalars("accuracy/test")],
    "stale": [[h.num, h.sum, h.max] for h in stale],
    "tensors": {name: list(t.shape) for name, t in tensors.items()},
}))
"#;

fn packages_read_the_files() {
    let python = python();
    let folder = common::train(
        "--backend cpu --dataset synthetic --model mlp --rule asgd --workers 3 --updates 30 --eval-every 10 --test-samples 100 --clock virtual",
    );
    let output = Command::new(&python).args(["-c", READ]).arg(&folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["tags"], serde_json::json!(["accuracy/test", "loss/test", "loss/train", "time"]));
    let metrics = std::fs::read_to_string(folder.join("metrics.csv")).unwrap();
    let last: f64 = metrics.lines().last().unwrap().rsplit(',').next().unwrap().parse().unwrap();
    assert_eq!(found["accuracy"].as_array().unwrap().len(), 3);
    assert_eq!(found["accuracy"][2][0], 30);
    assert!((found["accuracy"][2][1].as_f64().unwrap() - last).abs() < 1e-6, "{found}");
    let sum = |k: usize| found["stale"].as_array().unwrap().iter().map(|h| h[k].as_f64().unwrap()).sum::<f64>();
    let events = common::events(&folder);
    assert_eq!(sum(0), 30.0);
    assert_eq!(sum(1), events.iter().map(|e| e.staleness as f64).sum::<f64>());
    assert_eq!(found["tensors"]["Mlp.fc1.weight"], serde_json::json!([3072, 128]));
}

fn main() {
    let asked = std::env::var_os("STAGGER_PIP").is_some();
    let suffix = if asked { "" } else { " (SKIPPED: STAGGER_PIP is not set)" };
    let trial = Trial::test(format!("TensorBoard and safetensors read a run's files{suffix}"), || {
        packages_read_the_files();
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial.with_ignored_flag(!asked)]).exit();
}
