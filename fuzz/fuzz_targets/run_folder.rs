//! A run's folder from an untrusted source, up to the page of its report. The input is five files, separated by
//! zero bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stagger::report::{ReportOptions, report};
use stagger_fuzz::{file, scratch};

const NAMES: [&str; 5] = ["summary.json", "config.toml", "metrics.csv", "events.jsonl", "partition.csv"];

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(NAMES.len(), |byte| *byte == 0);
    for name in NAMES {
        file(name, parts.next().unwrap_or_default());
    }
    let _ = report(&ReportOptions {
        folders: vec![scratch()],
        out: scratch().join("page.html"),
        figures: None,
        target: Some(50.0),
    });
});
