//! The keys of a scenario's section `[compare]`.

use serde::Deserialize;
use std::collections::BTreeMap;

/// The section `[compare]` of a scenario: what `stagger compare` runs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// Rules with their parameters.
    pub rules: Vec<String>,
    /// Random seeds; every rule runs with each.
    pub seeds: Vec<u64>,
    /// Keys of a run, each with the values to compare.
    pub vary: BTreeMap<String, Vec<toml::Value>>,
    /// Target test accuracy in percent.
    pub target: Option<f64>,
    /// Candidate learning rates; each rule uses its best one.
    pub tune: Vec<f64>,
    /// Number of runs at the same time; `None` for the default.
    pub jobs: Option<usize>,
}

/// Keys of `[compare]` and the values that they take, for messages.
const KEYS: [(&str, &str); 6] = [
    ("rules", "a list of rules, such as [\"dude\", \"asgd\"]"),
    ("seeds", "a list of whole numbers of at least 0, such as [1, 2, 3]"),
    ("vary", "keys of a run with a list of values each, such as { workers = [4, 8] }"),
    ("target", "a percentage"),
    ("tune", "a list of learning rates, such as [0.02, 0.1]"),
    ("jobs", "a whole number of at least 1"),
];

/// Checks one key of `[compare]` and its value on their own. Returns a message if they are wrong.
pub fn mistake(key: &str, value: &toml::Value) -> Option<String> {
    let Some((_, takes)) = KEYS.iter().find(|(name, _)| *name == key) else {
        let names = KEYS.map(|(name, _)| name);
        return Some(super::unknown(&format!("compare.{key}"), super::Name::CompareKey, names));
    };
    let single = toml::Table::from_iter([(key.to_string(), value.clone())]);
    let wrong = || format!("[compare] {key} = {}: it takes {takes}", super::shortened(&value.to_string()));
    single.try_into::<Plan>().is_err().then(wrong)
}
