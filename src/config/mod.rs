//! The settings of a run.
//!
//! The command line, a TOML file and `--set` all fill the same [`Options`]. [`Options::resolve`] turns them
//! into typed [`Settings`]. The completed options are written to the run's folder as `config.toml`.

mod options;
mod schema;
pub mod section;
mod settings;

pub use options::Options;
pub use schema::{ConfigKey, keys, schema};
pub use settings::{ClockChoice, Dataset, OnNan, Settings};

use crate::error::{Error, Result};
use std::fmt;
use std::path::Path;

/// Applies `--set` flags to the keys of a run (`table`) and to the section `[compare]` (`section`).
///
/// `key=value` sets a key of the run, `compare.key=value` a key of the section, and `rule.key=value` a
/// parameter of the rule.
pub fn set(mut table: toml::Table, mut section: toml::Table, sets: &[String]) -> Result<(toml::Table, toml::Table)> {
    for set in sets {
        let (key, text) = set.split_once('=').ok_or_else(|| Error::usage(format!("--set `{set}` is not key=value")))?;
        let key = key.trim();
        match key.split_once('.') {
            None => table.insert(key.into(), value(text)),
            Some(("compare", key)) => section.insert(key.into(), value(text)),
            Some(("rule", part)) => {
                let rule = table.get("rule").and_then(|rule| rule.as_str()).unwrap_or("dude");
                let rule = with_parameter(rule, part, text);
                table.insert("rule".into(), rule.into())
            }
            Some(_) => return Err(unknown_key(key, Name::RunKey, keys().iter().map(|k| k.name.as_str()))),
        };
    }
    Ok((table, section))
}

/// Parses `text` as a TOML value. A text that is not one becomes a TOML string.
pub fn value(text: &str) -> toml::Value {
    let parsed = format!("v = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("v"));
    parsed.unwrap_or_else(|| toml::Value::String(text.trim().into()))
}

/// The usage error that `key` is not `what`, with the most similar of the `known` names.
pub fn unknown_key<'a>(key: &str, what: Name, known: impl IntoIterator<Item = &'a str>) -> Error {
    Error::usage(unknown(key, what, known))
}

/// Shortens a text from outside to 120 characters, for use in a message.
pub fn shortened(text: &str) -> String {
    const LIMIT: usize = 120;
    if text.chars().count() > LIMIT { text.chars().take(LIMIT).chain(['…']).collect() } else { text.into() }
}

/// The message of [`unknown_key`].
pub fn unknown<'a>(key: &str, what: Name, known: impl IntoIterator<Item = &'a str>) -> String {
    let last = key.rsplit('.').next().unwrap_or(key);
    let near = known.into_iter().map(|name| (strsim::damerau_levenshtein(last, name), name)).min();
    let hint = near.filter(|(distance, _)| *distance <= 1 + last.len() / 3);
    let hint = hint.map_or(what.list().into(), |(_, name)| format!("; did you mean `{name}`?"));
    format!("`{key}` is not {what}{hint}")
}

/// What a name should be that a user has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A key of a run.
    RunKey,
    /// A key of the section `[compare]`.
    CompareKey,
    /// A recipe.
    Recipe,
}

impl Name {
    /// Which command lists the valid names, unless the text of the name says it.
    fn list(self) -> &'static str {
        match self {
            Name::RunKey | Name::CompareKey => "; `stagger config schema` lists them",
            Name::Recipe => "",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Name::RunKey => "a key of a run",
            Name::CompareKey => "a key of [compare]",
            Name::Recipe => "a recipe (`stagger recipe list`)",
        })
    }
}

/// Returns the rule `NAME:key=value,..` with the parameter `key` set to `text`.
fn with_parameter(rule: &str, key: &str, text: &str) -> String {
    let (name, parameters) = rule.split_once(':').unwrap_or((rule, ""));
    let others = parameters.split(',').filter(|p| !p.is_empty() && p.split('=').next() != Some(key));
    let all: Vec<String> = others.map(String::from).chain([format!("{key}={}", text.trim())]).collect();
    format!("{name}:{}", all.join(","))
}

/// Checks that `key` is a key of a run and that the type of `value` fits it. The error is a message.
fn check(key: &str, value: &toml::Value) -> std::result::Result<(), String> {
    let single = toml::Table::from_iter([(key.to_string(), value.clone())]);
    if single.try_into::<Options>().is_ok() {
        return Ok(());
    }
    let keys = keys();
    let Some(known) = keys.iter().find(|k| k.name == key) else {
        return Err(unknown(key, Name::RunKey, keys.iter().map(|k| k.name.as_str())));
    };
    let kinds = match known.kinds.as_slice() {
        ["integer"] => "a whole number",
        ["integer", "number"] => "a number, without a unit",
        ["integer", "string"] => "a whole number or a text in quotes",
        _ => "a text in quotes",
    };
    let help = known.help.lines().next().unwrap_or_default();
    Err(format!("`{key}` takes {kinds}, not {value} ({help})"))
}

/// Reads a configuration file and checks it key by key. An error names the file and the line.
fn read(path: &Path) -> Result<toml::Table> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::usage(format!("cannot read the configuration {name}: {e}; the folder of a run holds one, config.toml"))
    })?;
    let line_of = |start: usize| 1 + text[..start.min(text.len())].matches('\n').count();
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let line = line_of(e.span().map_or(0, |span| span.start));
        let there = shortened(text.lines().nth(line - 1).unwrap_or("").trim());
        let why = e.message().replace('\n', ", ");
        Error::usage(format!(
            "{name} line {line}, `{there}`: {why} (text values need quotes, and a key may occur only once)"
        ))
    })?;
    let spans = toml::de::DeTable::parse(&text).map_err(|e| Error::usage(format!("{name}: {}", e.message())))?;
    let line = |key: &str| {
        let found = spans.get_ref().iter().find(|(spanned, _)| spanned.get_ref() == key);
        found.map_or(1, |(spanned, _)| line_of(spanned.span().start))
    };
    let wrong = |key: &str, why: String| Error::usage(format!("{name} line {}: {why}", line(key)));
    let run: toml::Table =
        table.iter().filter(|(key, _)| *key != "compare").map(|(k, v)| (k.clone(), v.clone())).collect();
    for (key, value) in &run {
        check(key, value).map_err(|why| wrong(key, why))?;
    }
    let section = table.get("compare").and_then(toml::Value::as_table);
    for (key, value) in section.into_iter().flatten() {
        if let Some(why) = section::mistake(key, value) {
            let within = spans.get_ref().get("compare").and_then(|section| section.get_ref().as_table());
            let found = within.and_then(|section| section.iter().find(|(spanned, _)| spanned.get_ref() == key));
            let line = found.map_or(1, |(spanned, _)| line_of(spanned.span().start));
            return Err(Error::usage(format!("{name} line {line}: {why}")));
        }
    }
    let resolved = |table: &toml::Table| table.clone().try_into::<Options>().map(|options| options.resolve());
    if let Ok(Err(error)) = resolved(&run) {
        // Blame the key whose removal makes the configuration valid, if there is one.
        let without = |key: &str| {
            let mut rest = run.clone();
            rest.remove(key);
            matches!(resolved(&rest), Ok(Ok(_)))
        };
        return Err(match run.keys().find(|key| without(key)) {
            Some(key) => wrong(key, error.to_string()),
            None => Error::usage(format!("{name}: {error}")),
        });
    }
    for (key, prefixes) in [("dataset", ["libsvm:", "quadratic:"]), ("clock", ["replay:", "replay:"])] {
        let text = run.get(key).and_then(|value| value.as_str()).unwrap_or("");
        let file = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix));
        if let Some(file) = file.filter(|file| !Path::new(file).exists()) {
            return Err(wrong(
                key,
                format!("`{key}` names {file}, which does not exist; paths are relative to the current folder"),
            ));
        }
    }
    let data = run.get("data").and_then(|value| value.as_str());
    if let Some(folder) = data.filter(|folder| !Path::new(folder).is_dir()) {
        return Err(wrong(
            "data",
            format!("`data` names the folder {folder}, which does not exist; paths are relative to the current folder"),
        ));
    }
    Ok(table)
}

impl Options {
    /// Reads a TOML file and applies `--set key=value` and then the flags: flags override `--set`, which
    /// overrides the file.
    pub fn layered(flags: &Options, file: Option<&Path>, sets: &[String]) -> Result<Options> {
        let (table, section) = Options::scenario(flags, file, sets)?;
        if !section.is_empty() {
            return Err(Error::usage(
                "the section [compare] is for `stagger compare` only: leave it out of the configuration of a run",
            ));
        }
        Options::of(table)
    }

    /// Like [`Options::layered`] for a comparison. Returns the keys that its runs share, and the section
    /// `[compare]`.
    pub fn scenario(flags: &Options, file: Option<&Path>, sets: &[String]) -> Result<(toml::Table, toml::Table)> {
        let mut table = file.map_or(Ok(toml::Table::new()), read)?;
        let section = match table.remove("compare") {
            Some(toml::Value::Table(section)) => section,
            None => toml::Table::new(),
            Some(_) => return Err(Error::usage("`compare` is a section: [compare], then its keys")),
        };
        // Parameters of the rule are set last, because a flag may still change the rule.
        let (rule_sets, others): (Vec<String>, Vec<String>) =
            sets.iter().cloned().partition(|set| set.trim_start().starts_with("rule."));
        let (table, section) = set(table, section, &others)?;
        set(Options::layered_over(table, flags)?, section, &rule_sets)
    }

    /// Returns `table` with the values of the flags that were given.
    pub fn layered_over(mut table: toml::Table, flags: &Options) -> Result<toml::Table> {
        let given = toml::Table::try_from(flags).map_err(|e| {
            Error::usage(format!(
                "a flag cannot be written to a configuration: {e} (whole numbers go up to {}, and paths must be UTF-8)",
                i64::MAX
            ))
        })?;
        table.extend(given);
        Ok(table)
    }

    /// Converts a table into options.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for an unknown key or a value of the wrong type.
    pub fn of(table: toml::Table) -> Result<Options> {
        for (key, value) in &table {
            check(key, value).map_err(Error::usage)?;
        }
        table.try_into().map_err(|e: toml::de::Error| Error::usage(format!("configuration: {}", e.message())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(sets: &[&str]) -> Result<Options> {
        Options::layered(&Options::default(), None, &sets.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn keys_know_their_types_and_errors_name_them() {
        let keys = keys();
        let kinds = |name: &str| keys.iter().find(|k| k.name == name).unwrap().kinds.clone();
        assert_eq!(kinds("workers"), ["integer"]);
        assert_eq!(kinds("lr"), ["integer", "number"]);
        assert_eq!(kinds("batch"), ["integer", "string"]);
        assert_eq!(kinds("rule"), ["string"]);
        assert!(keys.iter().all(|k| !k.help.is_empty() && !k.kinds.is_empty()));
        assert_eq!(set(&["rule=dude:c=2,init=zero", "rule.c=3"]).unwrap().rule.unwrap(), "dude:init=zero,c=3");
        let error = set(&["wrokers=3"]).unwrap_err().to_string();
        assert!(error.contains("did you mean `workers`?"), "{error}");
        let error = set(&["time=\"10 s\""]).unwrap_err().to_string();
        assert!(error.contains("without a unit") && error.contains("10 s"), "{error}");
    }

    #[test]
    fn flags_override_set() {
        let flags = Options { lr: Some(0.5), ..Options::default() };
        let options =
            Options::layered(&flags, None, &["lr=0.1".into(), "batch=64".into(), "rule=sync".into()]).unwrap();
        assert_eq!(
            (options.lr, options.batch.as_deref(), options.rule.as_deref()),
            (Some(0.5), Some("64"), Some("sync"))
        );
    }

    #[test]
    fn errors_name_the_wrong_value() {
        assert!(set(&["lrr=1"]).unwrap_err().to_string().contains("lrr"));
        assert!(set(&["lr=fast"]).unwrap_err().to_string().contains("fast"));
        for (sets, part) in [
            ("workers=0", "--workers 0"),
            ("batch=0", "--batch 0"),
            ("clock=sundial", "sundial"),
            ("dataset=imagenet", "imagenet"),
            ("init=const:x", "const:x"),
            ("momentum=1.0", "--momentum 1"),
            ("lr=-1.0", "--lr -1"),
            ("table_dtype=f16", "--table-dtype f16"),
            ("precision=f64", "--precision `f64`"),
            ("schedule=polynomial", "polynomial"),
            ("clip=0.0", "--clip 0"),
            ("momentum_every=2", "--momentum-every"),
            ("augment=blur", "blur"),
            ("device_timeline=100001", "--device-timeline 100001"),
            ("partition=zipf", "zipf"),
            ("rule=sgd", "sgd"),
        ] {
            let error = set(&[sets]).unwrap().resolve().unwrap_err().to_string();
            assert!(error.contains(part), "{sets}: {error}");
        }
    }
}
