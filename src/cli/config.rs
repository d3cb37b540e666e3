//! `stagger config`.

use crate::config::Options;
use crate::console::print;
use crate::error::Result;
use std::path::PathBuf;

/// The subcommands of `config`.
#[derive(clap::Subcommand)]
pub(super) enum Config {
    /// Print the JSON schema of a configuration, for editors
    Schema,
    /// Check a configuration and print it with the values of --set
    Check {
        /// TOML file with the keys of a run and, for a comparison, a section [compare]
        file: PathBuf,
        /// Set one key, such as --set lr=0.1 or --set rule.c=2
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
    },
}

/// Runs `stagger config`.
pub(super) fn config(command: Config) -> Result<()> {
    match command {
        Config::Schema => {
            print((serde_json::to_string_pretty(&crate::config::schema()).expect("plain data") + "\n").as_bytes())
        }
        Config::Check { file, sets } => {
            let (table, section) = Options::scenario(&Options::default(), Some(&file), &sets)?;
            Options::of(table.clone())?.resolve()?;
            let mut whole = table;
            if !section.is_empty() {
                crate::compare::check(&whole, section.clone())?;
                whole.insert("compare".into(), section.into());
            }
            print(toml::to_string(&whole).expect("plain data").as_bytes())
        }
    }
}
