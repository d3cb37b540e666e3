//! The commands of the README run as they are printed, one after another, in an empty folder.

mod common;

use common::scratch;
use std::process::Command;

/// The arguments of each `cargo run --release -- ..` line in the README's `sh` blocks.
fn commands() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    let lines = blocks.flat_map(str::lines).filter_map(|line| line.strip_prefix("cargo run --release -- "));
    lines.map(|line| words(line.split(" #").next().unwrap())).collect()
}

/// The words of a command line; double quotes hold a word together.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.trim().chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn commands_run_as_printed() {
    let folder = scratch("readme");
    let commands = commands();
    assert!(commands.len() >= 5, "{commands:?}");
    for arguments in commands {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stagger"));
        let output = command.current_dir(&folder).args(&arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{errors}", arguments.join(" "));
    }
    for left in ["runs/a/summary.json", "runs/compare/table.md", "runs/compare/accuracy-time.png", "report.html"] {
        assert!(folder.join(left).exists(), "{left} is not there");
    }
    let weights = |run: &str| std::fs::read(folder.join(run).join("model.safetensors")).unwrap();
    assert!(weights("runs/a") == weights("runs/b"), "the replay has other weights");
}

#[test]
fn readme_is_short() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    assert!(text.lines().count() <= 150, "{} lines", text.lines().count());
}
