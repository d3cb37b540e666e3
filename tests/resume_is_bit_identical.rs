//! Promises 13 and 14: a run that is stopped and resumed equals a run that was never stopped, bit by bit. A
//! run cannot be resumed with other settings.

mod common;

use common::{centres, has_wgpu, scratch, stagger, train};
use stagger::rule::RULES;
use std::path::{Path, PathBuf};

/// Resumes a run. Returns the standard output.
fn resume(folder: &Path, flags: &str) -> String {
    let mut args = vec!["train", "--resume", folder.to_str().unwrap()];
    args.extend(flags.split_whitespace());
    let output = stagger(&args);
    assert!(output.status.success(), "{flags}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn same(a: &Path, b: &Path, what: &str) {
    for file in ["events.jsonl", "metrics.csv", "model.safetensors"] {
        let [a, b] = [a, b].map(|folder| std::fs::read(folder.join(file)).unwrap());
        assert!(a == b, "{what}: {file} differs");
    }
}

/// Compares a run of `updates[2]` updates with one that stops at `updates[0]` and is resumed twice.
fn check_resumed(flags: &str, updates: [u64; 3], what: &str) {
    let to = |n: u64| format!("{flags} --clock virtual --updates {n}");
    let (whole, parts) = (train(&to(updates[2])), train(&to(updates[0])));
    for n in &updates[1..] {
        assert!(resume(&parts, &format!("--updates {n}")).contains("resumed"));
    }
    same(&whole, &parts, what);
}

#[test]
fn resumed_run_of_every_rule_has_identical_bytes() {
    let file = centres();
    for entry in RULES.iter().filter(|entry| entry.name != "hogwild") {
        let keys = match entry.name {
            "fedbuff" => ":b=2",
            "dude" => ":c=2",
            "diloco" | "async-diloco" => ":h=7",
            _ => "",
        };
        let flags = format!(
            "--rule {}{keys} --dataset quadratic:{} --init const:2.0 --lr 0.05 --delay exp:1,2,3 --backend cpu --seed 5 --eval-every 3",
            entry.name,
            file.display()
        );
        check_resumed(&flags, [17, 29, 40], entry.name);
    }
}

#[test]
fn resumed_run_with_momentum_or_options_has_identical_bytes() {
    let base = "--dataset clusters --workers 4 --partition dirichlet:0.5 --delay exp:1,2,3,4 --backend cpu --seed 3 --eval-every 20";
    for flags in [
        "--rule dude --momentum 0.9",
        "--rule dude --table-dtype bf16 --clip 1 --weight-decay 0.001",
        "--rule sync --momentum 0.9 --schedule cosine:100",
        "--rule fadas",
        "--rule adasync",
        "--rule dcasgd --step stacked",
    ] {
        check_resumed(&format!("{base} {flags}"), [33, 70, 100], flags);
    }
}

#[test]
fn resumed_run_on_wgpu_has_identical_bytes() {
    if !has_wgpu() {
        return println!("skipped: no adapter for WGPU");
    }
    let flags = "--rule dude --dataset clusters --model mlp --workers 3 --delay exp:1,2,3 --backend wgpu --seed 3 --eval-every 10";
    check_resumed(flags, [12, 20, 30], flags);
}

#[test]
fn run_resumed_from_an_earlier_checkpoint_has_identical_bytes() {
    let flags = "--rule abs --dataset clusters --workers 4 --delay exp:1,2,3,4 --clock virtual --backend cpu --updates 100 --eval-every 25";
    let (whole, saved) = (train(flags), train(&format!("{flags} --checkpoint-every 40 --keep-checkpoints 9")));
    same(&whole, &saved, "with checkpoints");
    let folders = || -> Vec<PathBuf> {
        let mut all: Vec<_> =
            std::fs::read_dir(saved.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    };
    // Checkpoints at updates 40 and 80, and at the end.
    assert_eq!(folders().len(), 3);
    std::fs::remove_dir_all(folders().pop().unwrap()).unwrap();
    let output = resume(&saved, "");
    assert!(output.contains("resumed    at update 80"), "{output}");
    same(&whole, &saved, "from update 80");
}

#[test]
fn resumed_wall_run_continues_its_time_and_numbers() {
    let folder = train("--rule asgd --dataset clusters --workers 2 --backend cpu --updates 200");
    let output = resume(&folder, "--updates 400");
    assert!(output.contains("resumed    at update 200"), "{output}");
    let events = common::events(&folder);
    assert_eq!(events.last().unwrap().t, 400);
    assert!(events.windows(2).all(|pair| pair[0].time <= pair[1].time && pair[0].seq + 1 == pair[1].seq));
}

#[test]
fn resuming_with_other_settings_is_refused() {
    let folder = train("--rule dude --dataset clusters --workers 2 --clock virtual --backend cpu --updates 20");
    let before = std::fs::read(folder.join("events.jsonl")).unwrap();
    let refused = |flags: &str, parts: &[&str]| {
        let mut args = vec!["train", "--resume", folder.to_str().unwrap()];
        args.extend(flags.split_whitespace());
        let output = stagger(&args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags}: {error}");
        parts.iter().for_each(|part| assert!(error.contains(part), "{flags}: `{error}` lacks `{part}`"));
    };
    refused("--rule asgd", &["--rule", "has \"dude\"", "begin a new run"]);
    refused("--workers 3", &["--workers", "has 2"]);
    refused("--lr 0.5", &["--lr"]);
    refused("--backend wgpu", &["--backend", "--resume-anyway"]);
    refused("--out elsewhere", &["--out"]);
    // A checkpoint of another version, rule, number of workers, state or format.
    let manifest =
        std::fs::read_dir(folder.join("checkpoints")).unwrap().next().unwrap().unwrap().path().join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        std::fs::write(&manifest, text.replace(from, to)).unwrap();
    };
    with("\"version\": \"0.1.0\"", "\"version\": \"9.9.9\"");
    refused("--updates 30", &["version 9.9.9", "0.1.0", "--resume-anyway"]);
    with("\"rule\": \"dude\"", "\"rule\": \"mifa\"");
    refused("--updates 30", &["mifa"]);
    with("\"workers\": 2", "\"workers\": 3");
    refused("--updates 30", &["number of workers"]);
    with("\"gradients\": 2", "\"gradients\": 3");
    refused("--updates 30", &["cannot go on"]);
    with("\"format\": 1", "\"format\": 7");
    refused("--updates 30", &["no checkpoint"]);
    std::fs::write(&manifest, &text).unwrap();
    assert_eq!(std::fs::read(folder.join("events.jsonl")).unwrap(), before, "a refused run changed its log");
    let other = scratch("empty");
    let output = stagger(&["train", "--resume", other.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
}
