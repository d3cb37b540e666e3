//! `--tune-kernels FILE`: measures once which kernel is fastest for each matrix product on this device, and
//! stores the result in a file.
//!
//! With the same file the same kernels run, so a run can be repeated. Without a file the library chooses the
//! kernels.

use crate::error::{Error, Result};
use crate::host::backend::Backend;
use serde::{Deserialize, Serialize};
use stagger_kernels::Device;
use stagger_kernels::layers::tuning::{self, Table};
use std::path::{Path, PathBuf};

/// The content of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tuned {
    /// Name of the device on which the kernels were measured.
    device: String,
    /// The driver of the device at that time.
    driver: String,
    /// The name of the kernel for each product.
    products: Table,
}

/// An open file of measured kernels.
pub struct Tuning {
    file: PathBuf,
    driver: String,
    tuned: Tuned,
}

impl Tuning {
    /// Uses the kernels in `file`. The file does not have to exist yet. Returns `None` if `file` is `None`.
    ///
    /// # Errors
    ///
    /// If the backend is the CPU, the file cannot be read or written, the kernels were measured on another
    /// device, or a kernel does not exist.
    pub fn open(file: Option<&Path>, backend: &Backend) -> Result<Option<Tuning>> {
        tuning::begin(None);
        let Some(file) = file else { return Ok(None) };
        if matches!(backend.device, Device::Cpu) {
            return Err(Error::usage("--tune-kernels measures the kernels of a GPU: on the CPU leave it out"));
        }
        let (device, driver) = (backend.name.clone(), backend.driver.clone());
        let name = file.display();
        let tuned = match std::fs::read_to_string(file) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| {
                Error::usage(format!(
                    "--tune-kernels {name} is not a file of measured kernels ({e}); give another file name"
                ))
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Tuned { device, driver, products: Table::new() },
            Err(e) => return Err(Error::usage(format!("--tune-kernels {name} cannot be read: {e}"))),
        };
        if tuned.device != backend.name {
            return Err(Error::usage(format!(
                "--tune-kernels {name} was measured on {}, but this device is {}: give another file",
                tuned.device, backend.name
            )));
        }
        if let Some(kernel) = tuning::unknown_kernel(&tuned.products) {
            return Err(Error::usage(format!(
                "--tune-kernels {name} names a kernel `{kernel}` that does not exist: delete the file"
            )));
        }
        if tuned.driver != backend.driver {
            say!("NOTE       {name} was measured with the driver {}, but now it is {}", tuned.driver, backend.driver);
        }
        let tuning = Tuning { file: file.into(), driver: backend.driver.clone(), tuned };
        // Checked now, so that a run does not fail at its end.
        std::fs::write(tuning.partial(), "").and_then(|()| std::fs::remove_file(tuning.partial())).map_err(|e| {
            Error::usage(format!("--tune-kernels {name} cannot be written: {e}; give a file in a writable folder"))
        })?;
        tuning::begin(Some(tuning.tuned.products.clone()));
        Ok(Some(tuning))
    }

    /// The temporary file that is renamed to the final name, so that the file is never incomplete.
    fn partial(&self) -> PathBuf {
        self.file.with_extension("part")
    }

    /// Writes the file if kernels were newly measured. Returns the number of products with a new kernel, and
    /// the number of all products.
    pub fn finish(mut self) -> Result<(usize, usize)> {
        let Some(products) = tuning::known() else { return Ok((0, self.tuned.products.len())) };
        let new =
            products.iter().filter(|(product, kernel)| self.tuned.products.get(*product) != Some(*kernel)).count();
        if new > 0 {
            let unwritten = |e: std::io::Error| Error::failed(format!("cannot write {}: {e}", self.file.display()));
            (self.tuned.products, self.tuned.driver) = (products, self.driver.clone());
            let text = serde_json::to_string_pretty(&self.tuned).expect("plain data can be serialized");
            std::fs::write(self.partial(), text).map_err(unwritten)?;
            std::fs::rename(self.partial(), &self.file).map_err(unwritten)?;
        }
        Ok((new, self.tuned.products.len()))
    }
}
