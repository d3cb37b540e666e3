//! Tests of `docs/write-your-own-rule.md`: its files are the files of this crate, and its commands work.

use std::path::{Path, PathBuf};
use std::process::Command;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn guide() -> String {
    std::fs::read_to_string(here().join("../../docs/write-your-own-rule.md")).unwrap()
}

/// The arguments of each `cargo run` line of the guide.
fn commands() -> Vec<Vec<String>> {
    let text = guide();
    let lines = text.lines().filter_map(|l| l.strip_prefix("cargo run --release -p own-rule -- "));
    lines.map(|l| l.split_whitespace().map(String::from).collect()).collect()
}

fn run(args: &[String], out: Option<&Path>) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_own-rule"));
    command.args(args);
    if let Some(out) = out {
        command.arg("--out").arg(out);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_guide_shows_the_files_of_this_crate() {
    let text = guide();
    for file in ["Cargo.toml", "src/main.rs", "src/damped.rs"] {
        let content = std::fs::read_to_string(here().join(file)).unwrap();
        assert!(text.contains(&format!("\n{content}```")), "{file} differs from the guide");
    }
}

#[test]
fn the_commands_of_the_guide_describe_and_run_the_rule() {
    let [list, train] = <[Vec<String>; 2]>::try_from(commands()).unwrap();
    let about = run(&list, None);
    assert!(about.contains("x_{t+1} = x_t - η (1+τ)^-p") && about.contains("exponent [default: 0.5]"), "{about}");
    let folder = |name: &str| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    for name in ["a", "b"] {
        run(&train, Some(&folder(name)));
    }
    for file in ["events.jsonl", "model.safetensors"] {
        let read = |name: &str| std::fs::read(folder(name).join(file)).unwrap();
        assert!(read("a") == read("b"), "{file} differs between two runs");
    }
    let summary = std::fs::read_to_string(folder("a").join("summary.json")).unwrap();
    assert!(summary.contains("\"rule\": \"damped:p=1\"") && summary.contains("\"updates\": 200"), "{summary}");
    ["a", "b"].into_iter().for_each(|name| std::fs::remove_dir_all(folder(name)).unwrap());
}

#[test]
fn a_rule_name_can_be_registered_only_once() {
    let json = run(&["rules".into(), "--json".into()], None);
    assert_eq!(json.matches("\"name\": \"damped\"").count(), 1);
    let clash = stagger::rule::RULES.iter().find(|e| e.name == "asgd").unwrap();
    assert!(stagger::rule::register(clash).unwrap_err().to_string().contains("asgd"));
}
