//! `stagger rules`.

use crate::error::{Error, Result};
use crate::rule::{self, Cost};

const LEGEND: &str = "\
server, worker: copies of the parameters kept there, not counting a worker's replica (queue: one per queued version).
models: models sent per update. limit: where the rule converges under unequal speeds and data; unbiased is the minimiser of (1/n) Σ f_i.
Below each rule: its parameters with their defaults, set by --rule NAME:key=value,key=value.
`stagger rules NAME` describes one rule: recurrence, source, what is proved, differences from the paper, parameters.
";

/// The text that `stagger rules` prints: one rule or all, for people or as JSON.
pub(super) fn rules(name: Option<String>, json: bool) -> Result<String> {
    let chosen: Vec<_> = rule::entries().filter(|e| name.as_ref().is_none_or(|n| n == e.name)).collect();
    if let Some(name) = name.as_ref().filter(|_| chosen.is_empty()) {
        return Err(Error::usage(format!("no rule is called `{name}`; `stagger rules` lists them")));
    }
    if json {
        let list: Vec<_> = chosen.iter().map(|e| as_json(e)).collect();
        return Ok(serde_json::to_string_pretty(&list).expect("plain data") + "\n");
    }
    let lines = match (name, chosen.as_slice()) {
        (Some(_), [entry]) => description(entry),
        _ => table(&chosen),
    };
    Ok(lines.join("\n") + "\n")
}

/// One rule in full, as lines.
fn description(entry: &rule::Entry) -> Vec<String> {
    let mut lines = vec![format!("{}  ({})\n", entry.name, entry.paper)];
    lines.extend(entry.about().map(String::from));
    let Cost { server, worker, copies, biased } = entry.cost;
    lines.push(format!(
        "\nserver {server} d, each worker {worker} d in addition to its replica, models sent per update: {copies}"
    ));
    lines.push(format!("limit under unequal speeds and data: {}", limit(biased)));
    let without = if rule::goes_on_without_a_worker(entry) {
        "the run continues"
    } else {
        "the rule waits for it in the end, and the run stops"
    };
    lines.push(format!("without a worker that failed (--on-failure drop): {without}\n"));
    let none = entry.keys.is_empty();
    lines.push(if none { "no parameters" } else { "parameters (--rule NAME:key=value,key=value)" }.into());
    lines.extend(entry.keys.iter().map(|k| format!("  {:<12} {} [default: {}]", k.name, k.meaning, k.default)));
    lines
}

/// The table of rules, as lines.
fn table(entries: &[&rule::Entry]) -> Vec<String> {
    let mut lines = vec![LEGEND.to_string()];
    lines.push(format!("{:<15} {:<6} {:<13} {:<13} {:<9} rule (paper)", "name", "server", "worker", "models", "limit"));
    for e in entries {
        let Cost { server, worker, copies, biased } = e.cost;
        let limit = limit(biased);
        lines.push(format!(
            "{:<15} {server:<6} {worker:<13} {copies:<13} {limit:<9} {} ({})",
            e.name, e.summary, e.paper
        ));
        if !e.keys.is_empty() {
            let keys: Vec<_> = e.keys.iter().map(|k| format!("{}={}", k.name, k.default)).collect();
            lines.push(format!("{:<15} {}", "", keys.join(", ")));
        }
    }
    lines
}

fn limit(biased: bool) -> &'static str {
    if biased { "biased" } else { "unbiased" }
}

fn as_json(entry: &rule::Entry) -> serde_json::Value {
    let keys: Vec<_> = entry
        .keys
        .iter()
        .map(|k| serde_json::json!({"name": k.name, "default": k.default, "meaning": k.meaning}))
        .collect();
    let Cost { server, worker, copies, biased } = entry.cost;
    serde_json::json!({
        "name": entry.name,
        "summary": entry.summary,
        "paper": entry.paper,
        "about": entry.about().collect::<Vec<_>>().join("\n"),
        "server_copies": server,
        "worker_copies": worker,
        "models_per_update": copies,
        "biased": biased,
        "goes_on_without_a_worker": rule::goes_on_without_a_worker(entry),
        "parameters": keys,
    })
}
