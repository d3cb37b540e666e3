//! `stagger recipe`: experiments from papers, as scenarios that are included with the program.
//!
//! A recipe is a scenario of `stagger compare`. Its comment says what the paper specifies and what had to be
//! chosen. Its section `[quick]` replaces keys for a small version.

use crate::compare::{CompareOptions, compare_scenario};
use crate::config::{self, Options};
use crate::error::{Error, Result};
use std::path::PathBuf;

/// Name and text of each recipe.
const RECIPES: [(&str, &str); 16] = [
    ("abs-fig1", include_str!("recipes/abs-fig1.toml")),
    ("abs-fig2", include_str!("recipes/abs-fig2.toml")),
    ("abs-fig3", include_str!("recipes/abs-fig3.toml")),
    ("abs-fig4", include_str!("recipes/abs-fig4.toml")),
    ("asgrad-fig1", include_str!("recipes/asgrad-fig1.toml")),
    ("asgrad-fig2", include_str!("recipes/asgrad-fig2.toml")),
    ("asgrad-fig3", include_str!("recipes/asgrad-fig3.toml")),
    ("blazefl-scaling", include_str!("recipes/blazefl-scaling.toml")),
    ("dude-fig2", include_str!("recipes/dude-fig2.toml")),
    ("dude-fig3", include_str!("recipes/dude-fig3.toml")),
    ("hybrid-table1", include_str!("recipes/hybrid-table1.toml")),
    ("hybrid-table2", include_str!("recipes/hybrid-table2.toml")),
    ("hybrid-table3", include_str!("recipes/hybrid-table3.toml")),
    ("hybrid-table4", include_str!("recipes/hybrid-table4.toml")),
    ("hybrid-table5", include_str!("recipes/hybrid-table5.toml")),
    ("nvflare-fedbuff", include_str!("recipes/nvflare-fedbuff.toml")),
];

/// The subcommands of `recipe`.
// These comments are what `--help` prints.
#[allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]
#[derive(clap::Subcommand)]
pub enum Recipe {
    /// List the recipes
    List,
    /// Print a recipe: what the paper specifies, what was chosen, and the scenario
    Show {
        /// Name of the recipe
        name: String,
    },
    /// Run a recipe, as `stagger compare` runs a scenario
    Run {
        /// Name of the recipe
        name: String,
        /// Run the small version, which takes minutes on two cores
        #[arg(long)]
        quick: bool,
        /// Folder of the data sets [default: datasets]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Device backend: auto, cuda, wgpu or cpu [default: auto]
        #[arg(long)]
        backend: Option<String>,
        /// Set one key of the scenario, such as --set compare.seeds=[1,2]
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
        /// Number of runs at the same time
        #[arg(long, value_name = "N")]
        jobs: Option<usize>,
        /// Folder of the comparison; repeating the command continues it [default: runs/<name>, or
        /// runs/<name>-quick]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

fn text_of(name: &str) -> Result<&'static str> {
    let found = RECIPES.iter().find(|(known, _)| *known == name);
    let known = RECIPES.iter().map(|(known, _)| *known);
    found.map(|(_, text)| *text).ok_or_else(|| config::unknown_key(name, config::Name::Recipe, known))
}

/// Runs `stagger recipe`.
pub fn recipe(command: Recipe) -> Result<()> {
    match command {
        Recipe::List => {
            for (name, text) in RECIPES {
                let first = text.lines().next().unwrap_or("").trim_start_matches("# ");
                say!("{name:<16} {first}");
            }
            Ok(())
        }
        Recipe::Show { name } => {
            // The output is a scenario for `stagger compare --config`. The section [quick] follows as a
            // comment.
            let folder = stagger_datasets::default_folder().display().to_string();
            let text = text_of(&name)?.replace("{data}", &folder);
            let (scenario, quick) = text.split_at(text.find("\n[quick").map_or(text.len(), |at| at + 1));
            let quick: Vec<_> = quick.lines().map(|line| format!("# {line}")).collect();
            crate::console::print(format!("{}\n", format!("{scenario}{}", quick.join("\n")).trim_end()).as_bytes())
        }
        Recipe::Run { name, quick, data, backend, sets, jobs, out } => {
            let text = text_of(&name)?;
            for line in text.lines().take_while(|line| line.starts_with('#')) {
                say!("{line}");
            }
            let (scenario, section) = scenario(text, quick, data, backend, &sets)?;
            let out = out.unwrap_or_else(|| PathBuf::from("runs").join(name + if quick { "-quick" } else { "" }));
            compare_scenario(scenario, section, &CompareOptions { jobs, out: Some(out), ..CompareOptions::default() })
        }
    }
}

/// Returns the scenario of a recipe and its section `[compare]`.
fn scenario(
    text: &str,
    quick: bool,
    data: Option<PathBuf>,
    backend: Option<String>,
    sets: &[String],
) -> Result<(toml::Table, toml::Table)> {
    let data = data.unwrap_or_else(stagger_datasets::default_folder);
    // Escaped for a TOML string.
    let folder = data.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    let mut table: toml::Table = text.replace("{data}", &folder).parse().expect("a recipe is TOML");
    let section = |table: &mut toml::Table, name: &str| match table.remove(name) {
        Some(toml::Value::Table(section)) => section,
        _ => toml::Table::new(),
    };
    let (mut small, mut compare) = (section(&mut table, "quick"), section(&mut table, "compare"));
    let small_compare = section(&mut small, "compare");
    if quick {
        table.extend(small);
        compare.extend(small_compare);
    }
    if matches!(table.get("dataset").and_then(|d| d.as_str()), Some("cifar10" | "mnist")) {
        table.insert("data".into(), data.to_string_lossy().into_owned().into());
    }
    let sets_of = compare.get("vary").and_then(|vary| vary.get("set")).and_then(|panels| panels.as_array());
    let names =
        sets_of.into_iter().flatten().filter_map(|panel| panel.get("dataset")?.as_str()?.strip_prefix("libsvm:"));
    for file in names {
        if !std::path::Path::new(file).is_file() {
            return Err(Error::usage(format!(
                "{file} does not exist: put the LIBSVM file there, or name the data folder with --data"
            )));
        }
    }
    let flags = Options { backend, ..Options::default() };
    let base = Options::layered_over(table, &flags)?;
    config::set(base, compare, sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_is_a_valid_scenario() {
        for (name, text) in RECIPES {
            for quick in [false, true] {
                let mut table: toml::Table = text.parse().unwrap();
                let mut small = table.remove("quick").unwrap();
                let mut compare = table.remove("compare").unwrap().as_table().unwrap().clone();
                let small_compare = small.as_table_mut().unwrap().remove("compare").unwrap();
                if quick {
                    table.extend(small.as_table().unwrap().clone());
                    compare.extend(small_compare.as_table().unwrap().clone());
                }
                for (key, values) in compare["vary"].as_table().unwrap() {
                    match values[0].clone() {
                        toml::Value::Table(panel) => table.extend(panel),
                        value => _ = table.insert(key.clone(), value),
                    }
                }
                for rule in compare["rules"].as_array().unwrap() {
                    table.insert("rule".into(), rule.clone());
                    Options::of(table.clone())
                        .and_then(|options| options.resolve())
                        .unwrap_or_else(|e| panic!("{name}: {e}"));
                }
            }
            for part in ["gives:", "We chose:", "--quick:"] {
                assert!(text.contains(part), "{name} lacks `{part}`");
            }
        }
    }
}
