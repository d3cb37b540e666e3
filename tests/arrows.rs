//! The modules import each other downwards only, and without circles.
//!
//! `docs/architecture.md` shows the layers. The test reads the imports of every source file: a path that begins with `crate::` or
//! `super::` outside of comments and unit tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The layers of `src/`, the highest first. Modules on one line may not import each other, unless the line says so.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["recipe", "report"],
    &["bench", "compare"],
    &["run"],
    &["config"],
    &["engine"],
    &["view"],
    &["record"],
    &["problem", "rule", "host", "schedule", "fault"],
    &["console"],
    &["error"],
];

/// Imports of one crate's files: module path → module paths that it names.
type Imports = BTreeMap<Vec<String>, BTreeSet<Vec<String>>>;

/// All source files below `folder` with their module paths.
fn files(folder: &Path) -> Vec<(Vec<String>, PathBuf)> {
    let mut found = Vec::new();
    let mut folders = vec![(Vec::new(), folder.to_path_buf())];
    while let Some((module, folder)) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().to_string();
            let child = [module.clone(), vec![name.clone()]].concat();
            if path.is_dir() {
                folders.push((child, path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = if ["mod", "lib", "main"].contains(&name.as_str()) { module.clone() } else { child };
                if name != "main" {
                    found.push((module, path));
                }
            }
        }
    }
    found.sort();
    found
}

/// The code of a file without comments, string contents and unit tests.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]").unwrap_or(text.len());
    let line = |line: &str| line.split("//").next().unwrap_or("").to_string() + "\n";
    text[..end].lines().map(line).collect()
}

/// The paths in `code` that begin with `crate` or `super`, as module paths; `a::{b, c::d}` counts as both.
fn paths(code: &str, module: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if before.is_alphanumeric() || before == '_' || before == '$' || code[..at].ends_with("super::") {
                continue;
            }
            let mut base: Vec<String> = Vec::new();
            let mut rest = &code[at..];
            if start == "super::" {
                base = module.to_vec();
                let mut levels = 1;
                rest = &rest["super::".len()..];
                while let Some(more) = rest.strip_prefix("super::") {
                    (levels, rest) = (levels + 1, more);
                }
                base.truncate(base.len().saturating_sub(levels));
            } else {
                rest = &rest["crate::".len()..];
            }
            expand(rest, &base, &mut found);
        }
    }
    found
}

/// Follows one path, and each branch of a group in braces.
fn expand(text: &str, base: &[String], found: &mut Vec<Vec<String>>) {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        let (mut depth, mut begin) = (1, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || (depth == 1 && c == ',') {
                expand(&group[begin..at], base, found);
                begin = at + 1;
            }
            if depth == 0 {
                return;
            }
        }
        return;
    }
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if name.is_empty() {
        return;
    }
    let path = [base.to_vec(), vec![name.clone()]].concat();
    match text[name.len()..].strip_prefix("::") {
        Some(rest) => expand(rest, &path, found),
        None => found.push(path),
    }
}

/// The imports between the files of one crate. A path leads to the deepest module that it names.
fn imports(folder: &Path) -> Imports {
    let files = files(folder);
    let modules: BTreeSet<_> = files.iter().map(|(module, _)| module.clone()).collect();
    let resolve = |path: &Vec<String>| (0..=path.len()).rev().map(|n| path[..n].to_vec()).find(|m| modules.contains(m));
    let imports = |(module, file): &(Vec<String>, PathBuf)| {
        let text = fs::read_to_string(file).unwrap();
        let found = paths(&code(&text), module);
        let named = found.iter().filter_map(resolve).filter(|other| other != module && !other.is_empty());
        (module.clone(), named.collect())
    };
    files.iter().map(imports).collect()
}

/// Imports that run upwards between the layers, as sentences.
fn upward(imports: &Imports, layers: &[&[&str]]) -> Vec<String> {
    let level = |module: &[String]| layers.iter().position(|layer| layer.contains(&module[0].as_str()));
    let mut wrong = Vec::new();
    for (from, all) in imports.iter().filter(|(from, _)| !from.is_empty()) {
        let Some(here) = level(from) else {
            wrong.push(format!("{} stands in no layer", from.join("::")));
            continue;
        };
        for to in all.iter().filter(|to| to[0] != from[0]) {
            if level(to).is_none_or(|there| there <= here) {
                wrong.push(format!("{} imports {}, which is not below it", from.join("::"), to.join("::")));
            }
        }
    }
    wrong
}

/// A circle of files, if there is one. What a child takes from the module around it does not count.
fn circle(imports: &Imports) -> Option<Vec<String>> {
    let counts = |from: &[String], to: &[String]| !from.starts_with(to) && !to.starts_with(from);
    // Modules whose imports are all known to lead to no circle.
    let mut done: BTreeSet<&Vec<String>> = BTreeSet::new();
    loop {
        let free = |module: &&Vec<String>| {
            !done.contains(*module)
                && imports[*module]
                    .iter()
                    .all(|to| !counts(module, to) || done.contains(to) || !imports.contains_key(to))
        };
        let next: Vec<_> = imports.keys().filter(free).collect();
        if next.is_empty() {
            break;
        }
        done.extend(next);
    }
    // What is left lies on a circle or leads to one: follow it until a module comes twice.
    let mut here = imports.keys().find(|module| !done.contains(module))?;
    let mut way: Vec<&Vec<String>> = Vec::new();
    while !way.contains(&here) {
        way.push(here);
        let leads_on = |to: &&Vec<String>| counts(here, to) && imports.contains_key(*to) && !done.contains(*to);
        here = imports[here].iter().find(leads_on)?;
    }
    let first = way.iter().position(|module| *module == here)?;
    Some(way[first..].iter().map(|module| module.join("::")).collect())
}

#[test]
fn imports_run_downwards_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let wrong = upward(&imports(&root.join("src")), LAYERS);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["src", "kernels/src", "datasets/src"] {
        let circle = circle(&imports(&root.join(folder)));
        assert!(circle.is_none(), "{folder}: {}", circle.unwrap().join(" → "));
    }
}

#[test]
fn a_planted_arrow_and_a_planted_circle_are_found() {
    let module = |path: &str| -> Vec<String> { path.split("::").map(String::from).collect() };
    let graph = |arrows: &[(&str, &str)]| {
        let mut graph = Imports::new();
        for (from, to) in arrows {
            graph.entry(module(to)).or_default();
            graph.entry(module(from)).or_default().insert(module(to));
        }
        graph
    };
    let good = graph(&[("run", "config"), ("config", "rule"), ("engine::server", "engine::state")]);
    assert!(upward(&good, LAYERS).is_empty() && circle(&good).is_none());
    let up = graph(&[("rule::dude", "engine::server")]);
    assert_eq!(upward(&up, LAYERS), ["rule::dude imports engine::server, which is not below it"]);
    let round = graph(&[("a::x", "b"), ("b", "c::y"), ("c::y", "a::x"), ("d", "b")]);
    assert_eq!(circle(&round).unwrap().len(), 3);
    let text = "use crate::{error, rule::{dude, shared::Bound}};\nuse super::gate::Gate; // crate::cli\n#[cfg(test)] crate::run";
    let found = paths(&code(text), &module("engine::worker"));
    let found: Vec<String> = found.iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["error", "rule::dude", "rule::shared::Bound", "engine::gate::Gate"]);
}
