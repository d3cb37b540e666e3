//! The memory estimate of a run is within 15 % of the memory that the run takes.

mod common;

use serde_json::Value;

/// Estimate divided by the memory taken, of a run with these flags. `None` if the run was not on the CPU.
fn ratio(flags: &str) -> Option<f64> {
    let folder = common::train(&format!("--dataset synthetic --eval-every 0 {flags}"));
    let text = std::fs::read_to_string(folder.join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&text).unwrap();
    let ratio = summary["memory_estimate"].as_f64().unwrap() / summary["memory"].as_f64().unwrap();
    (summary["backend"] == "cpu").then_some(ratio)
}

#[test]
#[cfg(target_os = "linux")]
fn estimate_is_within_15_percent() {
    for flags in [
        "--backend cpu --threads-per-worker 1 --model logreg --rule asgd --workers 2 --updates 40",
        "--backend cpu --threads-per-worker 1 --model cnn --rule asgd --workers 1 --updates 20",
        "--backend cpu --threads-per-worker 1 --model cnn --rule asgd --workers 4 --updates 40",
        "--backend cpu --threads-per-worker 2 --model cnn --rule asgd --workers 1 --updates 20",
        "--backend cpu --threads-per-worker 4 --model cnn --rule asgd --workers 2 --updates 20",
        "--backend cpu --threads-per-worker 1 --model cnn --rule asgd --workers 16 --updates 64",
        "--backend cpu --threads-per-worker 1 --model cnn --rule asgd --workers 16 --updates 64 --clock virtual",
        "--backend cpu --threads-per-worker 1 --model mlp --rule asgd --workers 64 --updates 1000 --clock virtual",
        "--backend cpu --threads-per-worker 1 --model cnn --rule asgd --workers 16 --updates 64 --clock virtual --delay fixed:1,2,3,7",
        "--backend cpu --threads-per-worker 1 --model cnn --rule asgd --workers 16 --updates 64 --delay fixed:0.5",
        // Long enough for every worker to have a model of its own.
        "--backend cpu --threads-per-worker 1 --model cnn --rule asgd --workers 256 --updates 640",
        "--backend cpu --threads-per-worker 1 --model mlp --rule asgd --workers 16 --updates 128",
        "--backend cpu --threads-per-worker 1 --model mlp --rule asgd --workers 64 --updates 1000",
        "--backend cpu --threads-per-worker 1 --model mlp --rule asgd --workers 256 --updates 1024",
        // With large batches the peak is in the middle of a pass. Workers that start together reach it at the
        // same time.
        "--backend cpu --threads-per-worker 1 --model cnn --rule sync --workers 2 --batch 128 --updates 8",
        "--backend cpu --threads-per-worker 1 --model resnet18 --rule sync --workers 2 --batch 8 --updates 8",
        "--backend cpu --threads-per-worker 1 --model cnn --rule dude --workers 32 --updates 128 --checkpoint-every 20",
        "--backend cpu --threads-per-worker 1 --model mlp --rule asgd --workers 64 --updates 512 --checkpoint-every 50",
        "--backend cpu --threads-per-worker 1 --model cnn --rule fedbuff --workers 64 --updates 20",
        "--backend cpu --threads-per-worker 1 --model cnn --rule asgd --workers 64 --updates 256 --checkpoint-every 20",
        "--backend cpu --threads-per-worker 1 --model cnn --rule rr --workers 8 --updates 10",
        "--backend cpu --threads-per-worker 1 --model cnn --rule rr --workers 16 --updates 20 --clock virtual --delay exp:1,2,3",
        "--backend cpu --threads-per-worker 1 --model cnn --rule mifa --workers 16 --updates 12",
        "--backend cpu --threads-per-worker 1 --model cnn --rule easgd --workers 8 --updates 16",
        "--backend cpu --threads-per-worker 1 --model cnn --rule easgd --workers 64 --updates 256",
        "--backend cpu --threads-per-worker 1 --model cnn --rule adpsgd --workers 16 --updates 48",
        "--backend cpu --threads-per-worker 1 --model cnn --rule diloco:h=4 --workers 16 --updates 4",
        "--backend cpu --threads-per-worker 1 --model cnn --rule diloco:h=2 --workers 8 --updates 4",
        "--backend cpu --threads-per-worker 1 --model resnet18 --rule asgd --workers 8 --batch 4 --updates 24",
        "--backend cpu --model cnn --rule asgd --workers 16 --updates 64 --clock virtual --delay fixed:1,2,3,7 --step stacked",
        "--backend cpu --model cnn --rule asgd --workers 2 --updates 8 --clock virtual --step stacked",
        "--backend cpu --model cnn --rule asgd --workers 4 --updates 32 --clock virtual --step stacked",
        "--backend cpu --model mlp --rule asgd --workers 16 --updates 64 --clock virtual --step stacked",
        "--backend cpu --model mlp --rule sync --workers 16 --updates 64 --clock virtual --delay exp:1,2,3 --step stacked",
        "--backend cpu --model mlp --rule fedbuff:b=4 --workers 16 --updates 64 --clock virtual --delay exp:1,2,3 --step stacked",
        "--backend cpu --model mlp --rule asgd --workers 64 --updates 200 --clock virtual --step stacked",
    ] {
        let found = ratio(flags).expect("the run is on the CPU");
        println!("{flags}: estimate / taken {found:.2}");
        assert!((1.0 / 1.15..1.15).contains(&found), "{flags}: estimate / taken {found}");
    }
    // With the default backend, the drivers that were asked for a device take memory too. A run on a GPU is
    // not compared.
    let flags = "--rule dude --workers 8 --updates 60";
    let found = ratio(flags);
    println!("{flags}: estimate / taken {found:.2?}");
    assert!(found.is_none_or(|found| (1.0 / 1.15..1.15).contains(&found)), "{flags}: estimate / taken {found:?}");
    // Workers that are out of step may take less than the estimate, but not more.
    for flags in [
        "--backend cpu --threads-per-worker 1 --model cnn --rule asgd --workers 2 --batch 128 --updates 8",
        "--backend cpu --threads-per-worker 1 --model resnet18 --rule asgd --workers 2 --batch 8 --updates 8",
    ] {
        let found = ratio(flags).expect("the run is on the CPU");
        println!("{flags}: estimate / taken {found:.2}");
        assert!(found > 1.0 / 1.15, "{flags}: estimate / taken {found}");
    }
}
