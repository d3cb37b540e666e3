//! A rule with its parameters, as `--rule name:key=value,key=value` gives it.

use super::{Entry, Keys, Rule, Setting, entries};
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A rule's name and parameters, as given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    name: String,
    keys: Keys,
}

impl FromStr for RuleSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, list) = text.split_once(':').unwrap_or((text, ""));
        let entry = entries().find(|e| e.name == name).ok_or_else(|| {
            let names: Vec<_> = entries().map(|e| e.name).collect();
            Error::usage(format!(
                "--rule `{name}` is unknown; the rules are {} (`stagger rules` describes them)",
                names.join(", ")
            ))
        })?;
        let mut keys = Keys::default();
        for item in list.split(',').filter(|i| !i.is_empty()) {
            let (key, value) = item.split_once('=').unwrap_or((item, "true"));
            if !entry.keys.iter().any(|k| k.name == key) {
                let known: Vec<_> = entry.keys.iter().map(|k| k.name).collect();
                let known = match known.as_slice() {
                    [] => "the rule has no parameters".into(),
                    [first, ..] => format!("the rule has {} (write {first}=VALUE)", known.join(", ")),
                };
                return Err(Error::usage(format!("--rule {name}: no parameter `{key}`; {known}")));
            }
            if keys.0.insert(key.into(), value.into()).is_some() {
                return Err(Error::usage(format!("--rule {name}: `{key}` is given twice")));
            }
        }
        Ok(RuleSpec { name: name.into(), keys })
    }
}

impl fmt::Display for RuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.name)?;
        for (k, (key, value)) in self.keys.0.iter().enumerate() {
            write!(f, "{}{key}={value}", if k == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}

impl RuleSpec {
    /// The rule's name without parameters.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rule's entry in the table of rules.
    pub fn entry(&self) -> &'static Entry {
        entries().find(|e| e.name == self.name).expect("parsed names are in the table")
    }

    /// Builds the rule for a run.
    ///
    /// # Errors
    ///
    /// A usage error that names the parameter if a value is not allowed.
    pub fn build(&self, setting: &Setting) -> Result<Box<dyn Rule>> {
        (self.entry().build)(&self.keys, setting)
    }
}
