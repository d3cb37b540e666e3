//! A comparison ends with the same table, however often it is interrupted. Its figures are labelled.

mod common;

use common::{centres, scratch};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

fn compare(args: &[&str], out: &Path) -> (String, String, Option<i32>) {
    let output = common::stagger(&[&["compare", "--backend", "cpu", "--out", out.to_str().unwrap()], args].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_string();
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

/// The columns of the table that stand before the runs' real time.
fn table(out: &Path) -> String {
    let text = std::fs::read_to_string(out.join("table.csv")).unwrap();
    let column = text.lines().next().unwrap().split(',').position(|name| name.starts_with("\"real time")).unwrap();
    // Row names contain commas, so columns are counted from the end.
    let from_end = text.lines().next().unwrap().split(',').count() - column;
    text.lines().map(|line| line.rsplitn(from_end + 1, ',').last().unwrap().to_string() + "\n").collect()
}

#[test]
fn repeated_comparison_reuses_its_runs_and_gives_the_same_table() {
    let out = scratch("compare");
    let file = centres();
    let dataset = format!("quadratic:{}", file.display());
    let flags = ["--dataset", &dataset, "--rules", "asgd;dude;sync", "--seeds", "1,2", "--delay", "exp:1,2"];
    let flags = [&flags[..], &["--updates", "60", "--vary", "lr=0.02;0.1", "--init", "const:2.0"]].concat();
    let (text, errors, code) = compare(&flags, &out);
    assert_eq!(code, Some(0), "{text}{errors}");
    for part in ["6 rows of 2 seeds: 12 runs", "asgd, lr 0.02", "sync, lr 0.1", "gradient norm", "idle [%]", "±"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    assert!(!text.contains("test accuracy"), "a quadratic has no test accuracy: {text}");
    let first = table(&out);
    // Workers of sync wait; workers of asgd never do.
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("compare.json")).unwrap()).unwrap();
    let idle = |k: usize| json["rows"][k]["columns"]["idle [%]"]["mean"].as_f64().unwrap();
    assert!(idle(0) < 15.0 && idle(2) > 20.0, "idle time: {} % with asgd, {} % with sync", idle(0), idle(2));
    let figure = std::fs::read_to_string(out.join("norm-time.svg")).unwrap();
    assert!(figure.contains("time [s]") && figure.contains("norm of the gradient") && figure.contains("dude, lr 0.1"));
    let (text, _, code) = compare(&flags, &out);
    assert!(code == Some(0) && text.contains("12 runs of 12 are there already"), "{text}");
    assert_eq!(table(&out), first);
}

#[test]
fn killed_comparison_ends_with_the_same_table() {
    let flags = ["--dataset", "synthetic", "--model", "logreg", "--rules", "asgd;dude", "--seeds", "1,2,3"];
    let flags =
        [&flags[..], &["--workers", "3", "--updates", "60", "--test-samples", "200", "--target", "20"]].concat();
    let (whole, killed) = (scratch("compare-whole"), scratch("compare-killed"));
    let (text, errors, code) = compare(&flags, &whole);
    assert_eq!(code, Some(0), "{text}{errors}");
    assert!(text.contains("test accuracy [%]") && text.contains("time to target [s]"), "{text}");
    let mut child = Command::new(env!("CARGO_BIN_EXE_stagger"))
        .args([&["compare", "--backend", "cpu", "--out", killed.to_str().unwrap()], &flags[..]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Kill the comparison in the middle of a run.
    let finished = || {
        std::fs::read_dir(killed.join("runs"))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.path().join("summary.json").exists())
            .count()
    };
    while finished() < 2 {
        std::thread::sleep(Duration::from_millis(5));
        assert!(child.try_wait().unwrap().is_none(), "the comparison ended before it was killed");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let (text, errors, code) = compare(&flags, &killed);
    assert_eq!(code, Some(0), "{text}{errors}");
    assert!(text.contains("are there already"), "{text}");
    assert_eq!(table(&killed), table(&whole));
}

#[test]
fn learning_rates_are_tuned_on_held_out_images() {
    let out = scratch("compare-tuned");
    let flags = ["--dataset", "synthetic", "--model", "logreg", "--rules", "asgd", "--seeds", "4", "--workers", "2"];
    let flags = [&flags[..], &["--updates", "40", "--test-samples", "500", "--tune", "0.00001,0.02"]].concat();
    let (text, errors, code) = compare(&flags, &out);
    assert_eq!(code, Some(0), "{text}{errors}");
    assert!(text.contains("5000 held-out training images") && text.contains("tuned      asgd: lr 0.02"), "{text}");
    assert!(text.contains("asgd, lr 0.02"), "{text}");
}

#[test]
fn mistakes_are_named_before_the_first_run() {
    let out = scratch("compare-mistakes");
    let scenario = out.join("scenario.toml");
    std::fs::write(&scenario, "workers = 2\n[compare]\nrules = [\"asgd\"]\nseedz = [1]\n").unwrap();
    let scenario = scenario.to_str().unwrap();
    for (flags, parts) in [
        (vec!["--workers", "2"], ["--rules", "name the rules"]),
        (vec!["--rules", "asgd;sgd"], ["sgd", "stagger rules"]),
        (vec!["--rules", "asgd", "--vary", "wrokers=1;2"], ["wrokers", "did you mean `workers`?"]),
        (vec!["--rules", "asgd", "--vary", "workers"], ["--vary `workers`", "KEY=VALUE"]),
        (vec!["--rules", "asgd", "--vary", "workers=two"], ["`workers` takes a whole number", "two"]),
        (vec!["--rules", "asgd", "--target", "200"], ["--target 200", "percentage"]),
        (vec!["--rules", "asgd;dude:c=100", "--dataset", "clusters"], ["dude:c=100", "from 1 to 8"]),
        (vec!["--rules", "asgd;hogwild", "--dataset", "clusters"], ["hogwild", "--clock wall"]),
        (vec!["--rules", "asgd", "--dataset", "cifar10", "--data", "nowhere"], ["nowhere", "stagger data fetch"]),
        (vec!["--rules", "asgd;dude;asgd"], ["--rules: asgd twice", "leave one out"]),
        (vec!["--rules", "asgd", "--seeds", "1,2,1"], ["--seeds: 1 twice", "leave one out"]),
        (vec!["--rules", "asgd", "--vary", "lr=0.1;0.2", "--tune", "0.1"], ["--vary lr", "--tune"]),
        (vec!["--rules", "asgd", "--seed", "3"], ["seeds", "--seeds 1,2,3"]),
        (vec!["--rules", "asgd;dude", "--set", "rule.c=2"], ["its rules", "--rules"]),
        (vec!["--config", scenario], ["line 4: `compare.seedz`", "did you mean `seeds`?"]),
    ] {
        let (text, errors, code) = compare(&flags, &out);
        assert_eq!(code, Some(2), "{flags:?}: {text}{errors}");
        let line = errors.lines().find(|line| line.starts_with("stagger: ")).unwrap_or_else(|| panic!("{errors}"));
        assert!(parts.iter().all(|part| line.contains(part)), "{flags:?}: {line}");
    }
    assert!(!out.join("runs").exists(), "a run was started");
    std::fs::create_dir(out.join("runs")).unwrap();
    let writer = std::fs::File::create(out.join("runs/.writer")).unwrap();
    writer.lock().unwrap();
    let (text, errors, code) = compare(&["--rules", "asgd", "--dataset", "clusters", "--updates", "2"], &out);
    assert!(code == Some(2) && errors.contains("another comparison is writing"), "{text}{errors}");
}

#[test]
fn diverged_row_is_reported() {
    let out = scratch("compare-diverged");
    let flags = ["--rules", "asgd", "--seeds", "1", "--dataset", "clusters", "--vary", "lr=0.05;1e30"];
    let (text, errors, code) = compare(&[&flags[..], &["--updates", "20"]].concat(), &out);
    assert_eq!(code, Some(0), "{text}{errors}");
    let notes: Vec<&str> = text.lines().filter(|line| line.contains("were not finite")).collect();
    assert!(notes.len() == 1 && !notes[0].contains("lr 0.05"), "{text}");
    // Even a short run gives a curve.
    assert!(out.join("accuracy-time.png").is_file(), "{text}");
}
