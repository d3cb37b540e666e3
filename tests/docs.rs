//! The page of every command equals the program's help, and every promise names tests that exist.
//! `STAGGER_BLESS=1 cargo test --release --test docs` updates the pages.

mod common;

use common::stagger;
use std::path::Path;

/// The help text of a command, without trailing spaces.
fn help(args: &[&str]) -> String {
    let output = stagger(&[args, &["--help"]].concat());
    assert!(output.status.success(), "{args:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n") + "\n"
}

/// Names of the commands that a help text lists.
fn commands(help: &str) -> Vec<String> {
    let list = help.split("Commands:\n").nth(1).unwrap_or("").split("\n\n").next().unwrap_or("");
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let first = names.filter_map(|line| line.split_whitespace().next());
    first.filter(|name| *name != "help").map(String::from).collect()
}

#[test]
fn command_pages_equal_the_help() {
    let all = commands(&help(&[]));
    assert!(all.len() > 8, "{all:?}");
    for command in &all {
        let own = help(&[command]);
        let subcommands = commands(&own).into_iter().map(|name| format!("\n{}", help(&[command, &name])));
        let text = own.clone() + &subcommands.collect::<String>();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/commands").join(format!("{command}.md"));
        let page = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let (prose, _) = page.split_once("```text\n").expect("a page ends with its help");
        let now = format!("{prose}```text\n{text}```\n");
        if std::env::var_os("STAGGER_BLESS").is_some() {
            std::fs::write(&file, &now).unwrap();
        }
        let is_current = page == now || std::env::var_os("STAGGER_BLESS").is_some();
        assert!(is_current, "{} is out of date; STAGGER_BLESS=1 updates it", file.display());
    }
}

/// A row is `| number | promise | file: test, test; file: test |`, files and tests in backticks.
#[test]
fn every_promise_names_existing_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.trim_matches('|').split(" | ").map(str::trim);
        Some((cells.next()?.parse::<usize>().ok()?, cells.nth(1)?))
    });
    let mut promises = 0;
    for (number, tests) in rows.filter(|row| row.1.contains("tests/")) {
        promises += 1;
        assert_eq!(number, promises);
        for part in tests.split("; ") {
            let mut names = part.split('`').skip(1).step_by(2);
            let file = names.next().unwrap();
            let text = std::fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            let tests: Vec<&str> = names.filter(|name| !name.starts_with("STAGGER_")).collect();
            assert!(!tests.is_empty(), "promise {number} names no test in {file}");
            for test in tests {
                // A test is a function, or a part of a trial's name.
                let is_there = |line: &str| match line.split_once(test) {
                    Some((before, _)) => before.trim_end().ends_with("fn") || before.contains('"'),
                    None => false,
                };
                let mut lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                assert!(lines.any(is_there), "promise {number}: {file} has no test `{test}`");
            }
        }
    }
    assert_eq!(promises, 22);
}
