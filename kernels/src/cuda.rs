//! Checks whether CUDA can be used on this machine. The runtime panics if a part is missing, so each part is
//! checked first.

use cudarc::driver::{result, sys};
use std::path::Path;

/// Description of a CUDA device.
pub struct Card {
    /// Its name.
    pub name: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// The newest CUDA version that its driver supports.
    pub driver: String,
}

/// Checks the driver, the device, the compiler library and the headers, and describes the first device.
///
/// The error is a clause that names what is missing.
pub fn cuda_card() -> Result<Card, String> {
    // SAFETY: both calls only try to load a shared library.
    let (driver, compiler) = unsafe { (sys::is_culib_present(), cudarc::nvrtc::sys::is_culib_present()) };
    if !driver {
        return Err("no NVIDIA driver is installed (libcuda was not found)".into());
    }
    result::init().map_err(|e| format!("the NVIDIA driver does not start: {e:?}"))?;
    if result::device::get_count().map_err(|e| format!("the NVIDIA driver cannot count its GPUs: {e:?}"))? == 0 {
        return Err("the NVIDIA driver sees no GPU".into());
    }
    if !compiler {
        return Err(
            "the CUDA compiler library NVRTC was not found; install the CUDA toolkit or add its lib folder to \
                    LD_LIBRARY_PATH"
                .into(),
        );
    }
    // The folders in which CubeCL looks for the headers.
    let places = [
        std::env::var("CUDA_PATH").ok(),
        Some("/usr/local/cuda".into()),
        Some("/opt/cuda".into()),
        Some("/usr".into()),
    ];
    if !places.iter().flatten().any(|place| Path::new(place).join("include/cuda_runtime.h").is_file()) {
        return Err("the CUDA headers were not found; install the CUDA toolkit and set CUDA_PATH".into());
    }
    let device = result::device::get(0).map_err(|e| format!("the NVIDIA driver cannot open GPU 0: {e:?}"))?;
    let name = result::device::get_name(device).unwrap_or_else(|_| "NVIDIA GPU".into());
    // SAFETY: the driver has just returned this device.
    let memory = unsafe { result::device::total_mem(device) }
        .map_err(|e| format!("the NVIDIA driver cannot read the memory size of GPU 0: {e:?}"))? as u64;
    let mut version = 0;
    // SAFETY: the driver is loaded, and the call writes one integer.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    let driver = match status {
        sys::CUresult::CUDA_SUCCESS => format!("CUDA {}.{}", version / 1000, version % 1000 / 10),
        _ => "CUDA (unknown version)".into(),
    };
    Ok(Card { name, memory, driver })
}
