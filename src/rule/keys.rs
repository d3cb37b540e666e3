//! The parameters of a rule: their descriptions, and the values that the user gives.

use super::Local;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Description of a parameter of a rule.
pub struct Key {
    /// Name of the parameter in `--rule name:key=value`.
    pub name: &'static str,
    /// The default value, as it is shown to the user.
    pub default: &'static str,
    /// Meaning of the parameter, in one line.
    pub meaning: &'static str,
}

/// The parameters of a rule that the user has given: name to value, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(pub(super) BTreeMap<String, String>);

impl Keys {
    /// The text of a parameter; `None` if it is not given.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// A whole number within `range`, or `default` if the parameter is not given.
    pub fn count(&self, key: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        let Some(text) = self.0.get(key) else { return Ok(default) };
        text.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| {
            let low = range.start();
            let bounds = match *range.end() {
                usize::MAX => format!("of at least {low}"),
                high => format!("from {low} to {high}"),
            };
            Error::usage(format!("--rule: {key}={text} must be a whole number {bounds}"))
        })
    }

    /// A number within `range`, or `default` if the parameter is not given.
    pub fn number(&self, key: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        let Some(text) = self.0.get(key) else { return Ok(default) };
        text.parse().ok().filter(|x: &f64| range.contains(x) && x.is_finite()).ok_or_else(|| {
            Error::usage(format!("--rule: {key}={text} must be a number from {} to {}", range.start(), range.end()))
        })
    }

    /// The value of one of `choices`, which are pairs of a name and a value. The first is the default.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<T> {
        let Some(text) = self.0.get(key) else { return Ok(choices[0].1) };
        choices.iter().find(|(name, _)| name == text).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            Error::usage(format!("--rule: {key}={text} must be one of {}", names.join(", ")))
        })
    }

    /// The parameters `q` (local steps) and `local_lr` of rules whose workers return model differences.
    /// Returns the local steps, and the factor that turns the sum of their directions into a difference. The
    /// default is one plain gradient with the factor 1.
    pub fn difference(&self) -> Result<(Local, f64)> {
        let steps = self.count("q", 1, 1..=1 << 16)? as u32;
        if steps > 1 && self.text("local_lr").is_none() {
            return Err(Error::usage(format!(
                "--rule: q={steps} local steps need local_lr, their learning rate; --lr is then the server's"
            )));
        }
        let lr = self.number("local_lr", 1.0, 1e-12..=1e6)?;
        Ok((Local { steps, lr: Some(lr), ..Local::default() }, lr))
    }

    /// A boolean: `key` or `key=true`, or `key=false`.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let (yes, no) = (("true", true), ("false", false));
        self.choice(key, &if default { [yes, no] } else { [no, yes] })
    }
}
