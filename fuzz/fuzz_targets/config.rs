//! A configuration file, read and resolved to the settings of a run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stagger::config::Options;

fuzz_target!(|bytes: &[u8]| {
    let file = stagger_fuzz::file("config.toml", bytes);
    let _ = Options::layered(&Options::default(), Some(&file), &[]).and_then(|options| options.resolve());
});
