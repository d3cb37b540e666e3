//! The keys of a configuration with their types, for messages and for `stagger config schema`.

use super::Options;

/// A key of a run's configuration.
pub struct ConfigKey {
    /// Name: the flag's name with `_` in place of `-`.
    pub name: String,
    /// Meaning: the flag's help. The first line is the short help.
    pub help: String,
    /// Types of its values, as JSON Schema names them.
    pub kinds: Vec<&'static str>,
}

/// All keys of a run, in the order of the flags of `train`.
pub fn keys() -> Vec<ConfigKey> {
    let command = <Options as clap::Args>::augment_args(clap::Command::new("train"));
    let key = |flag: &clap::Arg| {
        let name = flag.get_long()?.replace('-', "_");
        let help = flag.get_long_help().or(flag.get_help()).map(|text| text.to_string()).unwrap_or_default();
        // Try a value of each type on `Options` itself, so that the schema cannot disagree with it.
        let samples = [("integer", "1"), ("number", "1.5"), ("string", "\"1\"")];
        let fits = |sample: &&(&str, &str)| toml::from_str::<Options>(&format!("{name} = {}", sample.1)).is_ok();
        let kinds = samples.iter().filter(fits).map(|(kind, _)| *kind).collect();
        Some(ConfigKey { name, help, kinds })
    };
    command.get_arguments().filter_map(key).collect()
}

/// The JSON schema of a run's configuration, and of a scenario's section `[compare]`.
pub fn schema() -> serde_json::Value {
    use serde_json::json;
    let property = |key: ConfigKey| (key.name, json!({"description": key.help, "type": key.kinds}));
    let mut properties: serde_json::Map<_, _> = keys().into_iter().map(property).collect();
    let list = |of: &str, what: &str| json!({"type": "array", "items": {"type": of}, "description": what});
    properties.insert(
        "compare".into(),
        json!({
            "type": "object",
            "description": "Settings of `stagger compare`",
            "additionalProperties": false,
            "properties": {
                "rules": list("string", "Rules with their parameters"),
                "seeds": list("integer", "Random seeds; every rule runs with each seed"),
                "vary": {"type": "object", "additionalProperties": {"type": "array"}, "description": "Keys of a run, each with a list of values"},
                "target": {"type": "number", "description": "Target test accuracy in percent"},
                "tune": list("number", "Candidate learning rates; each rule uses its best one"),
                "jobs": {"type": "integer", "description": "Number of runs at the same time"},
            },
        }),
    );
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A run of stagger",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}
