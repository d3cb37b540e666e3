//! Sparse rows in LIBSVM's text format, and a file of centres for quadratics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stagger_datasets::{libsvm, quadratic};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(rows) = libsvm::parse(bytes) {
        let entries: usize = (0..rows.len()).map(|r| rows.row(r).count()).sum();
        assert!(entries <= bytes.len());
    }
    let _ = quadratic::load(&stagger_fuzz::file("centres.csv", bytes));
});
