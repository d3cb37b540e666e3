//! What the keys of a configuration take: for messages and for `stagger config schema`.

use super::Options;

/// A key of a run's configuration.
pub struct Key {
    /// Its name: the flag's, with `_` for `-`.
    pub name: String,
    /// What it means: the flag's help.
    pub help: String,
    /// What may stand there, as JSON calls it.
    pub kinds: Vec<&'static str>,
}

/// All keys of a run, in the order of the flags.
pub fn keys() -> Vec<Key> {
    let command = <Options as clap::Args>::augment_args(clap::Command::new("train"));
    let key = |flag: &clap::Arg| {
        let name = flag.get_long()?.replace('-', "_");
        let help = flag.get_long_help().or(flag.get_help()).map(|text| text.to_string()).unwrap_or_default();
        // Asked of the type itself, so that it cannot say anything else.
        let samples = [("integer", "1"), ("number", "1.5"), ("string", "\"1\"")];
        let fits = |sample: &&(&str, &str)| toml::from_str::<Options>(&format!("{name} = {}", sample.1)).is_ok();
        let kinds = samples.iter().filter(fits).map(|(kind, _)| *kind).collect();
        Some(Key { name, help, kinds })
    };
    command.get_arguments().filter_map(key).collect()
}

/// The JSON schema of a run's configuration, and of a scenario's section `[compare]`.
pub fn schema() -> serde_json::Value {
    use serde_json::json;
    let property = |key: Key| (key.name, json!({"description": key.help, "type": key.kinds}));
    let mut properties: serde_json::Map<_, _> = keys().into_iter().map(property).collect();
    let list = |of: &str, what: &str| json!({"type": "array", "items": {"type": of}, "description": what});
    properties.insert(
        "compare".into(),
        json!({
            "type": "object",
            "description": "for `stagger compare`",
            "additionalProperties": false,
            "properties": {
                "rules": list("string", "the rules"),
                "seeds": list("integer", "the seeds, each for every rule"),
                "vary": {"type": "object", "additionalProperties": {"type": "array"}, "description": "a key of a run and its values"},
                "target": {"type": "number", "description": "test accuracy in percent"},
                "tune": list("number", "learning rates of which each rule takes its best"),
                "jobs": {"type": "integer", "description": "runs at a time"},
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
