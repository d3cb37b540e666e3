//! `--tune-kernels FILE`: which kernel is fastest for each matrix product on this device, measured once and kept in a file.
//!
//! With the same file the same kernels run, so a run repeats itself; without one the choice is the library's.

use crate::error::{Error, Result};
use crate::host::backend::Backend;
use serde::{Deserialize, Serialize};
use stagger_kernels::Device;
use stagger_kernels::layers::tuning::{self, Table};
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
    driver: String,
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
                Error::usage(format!(
                    "--tune-kernels {name} is not a file of measured kernels ({e}); give another name"
                ))
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
        if tuned.driver != backend.driver {
            say!("NOTE       {name} was measured with the driver {}, and this is {}", tuned.driver, backend.driver);
        }
        let tuning = Tuning { file: file.into(), driver: backend.driver.clone(), tuned };
        // Found out before the work.
        std::fs::write(tuning.beside(), "").and_then(|()| std::fs::remove_file(tuning.beside())).map_err(|e| {
            Error::usage(format!("--tune-kernels {name} cannot be written: {e}; give a name in a folder that can be"))
        })?;
        tuning::begin(Some(tuning.tuned.products.clone()));
        Ok(Some(tuning))
    }

    /// Where the file is written before it takes its name: whole or not at all.
    fn beside(&self) -> PathBuf {
        self.file.with_extension("part")
    }

    /// Writes what was measured anew; gives how many products that are, and of how many.
    pub fn finish(mut self) -> Result<(usize, usize)> {
        let Some(products) = tuning::known() else { return Ok((0, self.tuned.products.len())) };
        let new =
            products.iter().filter(|(product, kernel)| self.tuned.products.get(*product) != Some(*kernel)).count();
        if new > 0 {
            let unwritten = |e: std::io::Error| Error::failed(format!("cannot write {}: {e}", self.file.display()));
            (self.tuned.products, self.tuned.driver) = (products, self.driver.clone());
            let text = serde_json::to_string_pretty(&self.tuned).expect("plain data");
            std::fs::write(self.beside(), text).map_err(unwritten)?;
            std::fs::rename(self.beside(), &self.file).map_err(unwritten)?;
        }
        Ok((new, self.tuned.products.len()))
    }
}
