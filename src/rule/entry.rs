//! Entries of the table of rules, and the registration of rules from other crates.

use super::{Key, Keys, RULES, Rule, Setting};
use crate::error::{Error, Result};
use std::sync::Mutex;

/// A rule's memory, traffic and bias, for `stagger rules`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Number of copies of the parameters at the server.
    pub server: &'static str,
    /// Number of copies of the parameters per worker, besides its replica.
    pub worker: &'static str,
    /// Number of models that are sent per update.
    pub copies: &'static str,
    /// Whether unequal speeds move the limit away from the minimiser of (1/n) Σ f_i when the f_i differ.
    pub biased: bool,
}

/// A rule in the table of rules.
pub struct Entry {
    /// Name of the rule, for `--rule`.
    pub name: &'static str,
    /// Description in one line.
    pub summary: &'static str,
    /// Authors and year of the source.
    pub paper: &'static str,
    /// Text of the rule's file. Its head states the recurrence, the source, what is proved, and where the
    /// implementation differs.
    pub source: &'static str,
    /// Memory, traffic and bias.
    pub cost: Cost,
    /// Parameters of the rule.
    pub keys: &'static [Key],
    /// Builds the rule for a run. Returns a usage error if a parameter is wrong.
    pub build: fn(&Keys, &Setting) -> Result<Box<dyn Rule>>,
}

impl Entry {
    /// Lines of the head of the rule's file.
    pub fn about(&self) -> impl Iterator<Item = &'static str> {
        let lines = self.source.lines().take_while(|line| line.starts_with("//!"));
        lines.map(|line| line.strip_prefix("//! ").unwrap_or("")).filter(|line| !line.starts_with("```"))
    }
}

static REGISTERED: Mutex<Vec<&'static Entry>> = Mutex::new(Vec::new());

/// Adds a rule from another crate. Call it before the command line starts.
///
/// # Errors
///
/// A usage error if a rule of this name exists.
pub fn register(entry: &'static Entry) -> Result<()> {
    if entries().any(|e| e.name == entry.name) {
        return Err(Error::usage(format!("a rule called `{}` already exists", entry.name)));
    }
    REGISTERED.lock().expect("no thread panics while it holds the lock").push(entry);
    Ok(())
}

/// All rules: those of this crate, then the registered ones.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    RULES.iter().chain(REGISTERED.lock().expect("no thread panics while it holds the lock").clone())
}
