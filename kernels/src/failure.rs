//! Errors of a device that fails while it is in use.

use std::fmt;

/// The runtime's error text: a chain of causes, one per line. Other lines, such as backtraces and lists of
/// skipped kernels, do not help the user.
#[derive(Debug)]
pub struct DeviceError(pub String);

/// Lower-case texts that mean that the device is lost: CUDA's numbers and names of errors after which a
/// context cannot be used, and the words of the runtimes.
const LOST: [&str; 20] = [
    "status 700",
    "status 702",
    "status 709",
    "status 714",
    "status 715",
    "status 716",
    "status 717",
    "status 718",
    "status 719",
    "_launch_failed",
    "_launch_timeout",
    "_illegal_",
    "_ecc_",
    "_hardware_",
    "_device_unavailable",
    "cuda_error_unknown",
    "poisoned",
    "device lost",
    "devicelost",
    "device is lost",
];

/// Lower-case texts that mean that device memory is exhausted. The runtime says "no room for" if a recording
/// has to allocate. The steps before the recording allocate all that it needs, so this happens only if they
/// ran out of memory.
const MEMORY: [&str; 5] = ["out of device memory", "out of memory", "outofmemory", "no room for", "not enough memory"];

/// Why a device failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The device has no memory left.
    Memory,
    /// The driver or the GPU has failed. All later work on the device fails too.
    Lost,
    /// A kernel could not be compiled for the device.
    Kernel,
    /// Any other failure.
    Other,
}

impl DeviceError {
    /// The cause, found by the words that CUDA, NVRTC, wgpu and the runtime use.
    pub fn cause(&self) -> Cause {
        let text = self.links().join("\n").to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        // A lost device is checked first, because everything else fails after the loss.
        if says(&LOST) {
            Cause::Lost
        } else if says(&MEMORY) {
            Cause::Memory
        } else if says(&["compil", "nvrtc"]) {
            Cause::Kernel
        } else {
            Cause::Other
        }
    }

    /// The links of the chain, without repetitions, without launches skipped because of the failure, and
    /// without a kernel's source.
    fn links(&self) -> Vec<&str> {
        const SAY_NOTHING: [&str; 4] = ["Caused by", "Backtrace", "No backtrace available", "Asked at"];
        let mut said: Vec<&str> = Vec::new();
        let lines = self.0.lines().map(|line| line.trim().trim_end_matches([':', '.']));
        for line in lines.take_while(|line| !line.starts_with("[Source]")) {
            let follows = line.starts_with("skipped ") || line.contains("skip record");
            if !(line.is_empty() || follows || SAY_NOTHING.contains(&line) || said.contains(&line)) {
                said.push(line);
            }
        }
        said
    }

    /// The most specific link: the compiler's message if a kernel did not compile, else the last link.
    pub fn root(&self) -> &str {
        let links = self.links();
        // The compiler's message is on the line after its heading.
        let heading = links.iter().position(|link| link.starts_with("[Compilation Error]"));
        let message = heading.and_then(|k| links.get(k + 1));
        message.or(links.last()).copied().unwrap_or("no reason given")
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "the device failed: {}", self.links().join(": "))
    }
}

impl std::error::Error for DeviceError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_causes_becomes_a_sentence() {
        let error = DeviceError(
            "Several failures at once\nCaused by:\n  An IO error happened\nCaused by:\n  out of device memory allocating 2097152 bytes\nNo backtrace available\nAsked at:\nNo backtrace available".into(),
        );
        assert_eq!(error.cause(), Cause::Memory);
        let chain = "Several failures at once: An IO error happened: out of device memory allocating 2097152 bytes";
        assert_eq!(error.to_string(), format!("the device failed: {chain}"));
        assert_eq!(error.root(), "out of device memory allocating 2097152 bytes");
        let error =
            DeviceError("The device is poisoned\nCaused by:\n  cuStreamSynchronize failed with status 719".into());
        assert_eq!((error.cause(), error.root()), (Cause::Lost, "cuStreamSynchronize failed with status 719"));
        let error = DeviceError(
            "Several failures at once\n skipped `UpdateKernel`: it needed memory\n(93 older skip record(s) were dropped)\nCaused by:\n  [Compilation Error]:\n  a.h(1): error: no\n[Source]:\n int x;".into(),
        );
        assert_eq!((error.cause(), error.root()), (Cause::Kernel, "a.h(1): error: no"));
        assert_eq!(
            error.to_string(),
            "the device failed: Several failures at once: [Compilation Error]: a.h(1): error: no"
        );
    }
}
