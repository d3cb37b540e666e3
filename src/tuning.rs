//! `--tune-kernels FILE`: which kernel is fastest for each matrix product on this device, measured once and kept in a file.
//!
//! With the same file the same kernels run, so a run repeats itself; without one the choice is the library's.

use crate::backend::Backend;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use stagger_kernels::Device;
use stagger_kernels::nn::tuning::{self, Table};
use std::path::{Path, PathBuf};

/// What the file holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tuned {
    /// What it was measured on.
    device: String,
    /// Its driver then.
    driver: String,
    /// Product by product the name of its kernel.
    products: Table,
}

/// A file of kernels in use.
pub struct Tuning {
    file: PathBuf,
    tuned: Tuned,
}

impl Tuning {
    /// Takes the kernels of `file` into use, if one is named; it need not be there yet.
    pub fn open(file: Option<&Path>, backend: &Backend) -> Result<Option<Tuning>> {
        tuning::begin(None);
        let Some(file) = file else { return Ok(None) };
        if matches!(backend.device, Device::Cpu) {
            return Err(Error::usage("--tune-kernels measures kernels of a GPU: on the CPU leave it out"));
        }
        let (device, driver) = (backend.name.clone(), backend.driver.clone());
        let name = file.display();
        let tuned = match std::fs::read_to_string(file) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| {
                Error::usage(format!("--tune-kernels {name} is not a file of measured kernels ({e}); give another name"))
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Tuned { device, driver, products: Table::new() },
            Err(e) => return Err(Error::usage(format!("--tune-kernels {name} cannot be read: {e}"))),
        };
        if tuned.device != backend.name {
            return Err(Error::usage(format!(
                "--tune-kernels {name} was measured on {}, and this is {}: give another file",
                tuned.device, backend.name
            )));
        }
        if let Some(kernel) = tuning::unknown_kernel(&tuned.products) {
            return Err(Error::usage(format!(
                "--tune-kernels {name} names a kernel `{kernel}` that there is not: delete the file"
            )));
        }
        tuning::begin(Some(tuned.products.clone()));
        Ok(Some(Tuning { file: file.into(), tuned }))
    }

    /// Writes what was measured anew; gives how many products that are, and of how many.
    pub fn finish(mut self) -> Result<(usize, usize)> {
        let products = tuning::known().unwrap_or_default();
        let new = products.len() - self.tuned.products.len();
        if new > 0 {
            self.tuned.products = products;
            let unwritten = |e: std::io::Error| Error::failed(format!("cannot write {}: {e}", self.file.display()));
            let text = serde_json::to_string_pretty(&self.tuned).expect("plain data");
            // Whole or not at all.
            let beside = self.file.with_extension("part");
            std::fs::write(&beside, text).map_err(unwritten)?;
            std::fs::rename(&beside, &self.file).map_err(unwritten)?;
        }
        Ok((new, self.tuned.products.len()))
    }
}
