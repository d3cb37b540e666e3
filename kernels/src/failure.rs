//! A device that failed while in use.

use std::fmt;

/// What the runtime said: a chain of causes, each on a line of its own, among lines that say nothing to who runs the program.
#[derive(Debug)]
pub struct DeviceError(pub String);

/// What such a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It has no memory left.
    Memory,
    /// The driver or the card has given up: nothing will work any more.
    Lost,
    /// A kernel could not be built for it.
    Kernel,
    /// Anything else.
    Other,
}

impl DeviceError {
    /// What it is, by the words that CUDA, NVRTC, wgpu and the runtime have for it.
    pub fn cause(&self) -> Cause {
        let text = self.0.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if says(&["out of device memory", "out of memory", "outofmemory", "no room for", "not enough memory"]) {
            Cause::Memory
        } else if says(&["compil", "nvrtc"]) {
            Cause::Kernel
        } else if says(&["poisoned", "device lost", "device is lost", "devicelost", "parent device is lost"]) {
            Cause::Lost
        } else {
            Cause::Other
        }
    }

    /// The chain on one line, without repetitions.
    pub fn chain(&self) -> String {
        const SAY_NOTHING: [&str; 4] = ["Caused by", "Backtrace", "No backtrace available", "Asked at"];
        let mut said: Vec<&str> = Vec::new();
        for line in self.0.lines().map(|line| line.trim().trim_end_matches([':', '.'])) {
            if !line.is_empty() && !SAY_NOTHING.contains(&line) && !said.contains(&line) {
                said.push(line);
            }
        }
        said.join(": ")
    }

    /// The link of the chain that says most: the last.
    pub fn root(&self) -> String {
        self.chain().rsplit(": ").next().unwrap_or_default().to_string()
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "the device failed: {}", self.chain())
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
        assert_eq!((error.cause(), error.root().as_str()), (Cause::Lost, "cuStreamSynchronize failed with status 719"));
    }
}
