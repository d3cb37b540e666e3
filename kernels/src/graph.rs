//! Recorded steps: a sequence of launches that is recorded once and replayed as one launch.
//!
//! On CUDA a recording is a CUDA graph: one launch, whatever it contains. On WGPU the runtime keeps the
//! dispatches and encodes them again for each replay, which still saves the work of the tensor library. The
//! buffers that a recording reads and writes keep their addresses. A recording may bind buffers of its own
//! stream only. For a buffer of another stream, the runtime would record events and wait for them in the
//! middle of the recording, which the driver refuses.

use crate::device::Device;
use crate::failure::DeviceError;
use burn::tensor::StreamId;
use cubecl::client::{Client, Graph};

/// How often a step runs before it is recorded. These runs compile kernels and allocate memory, because a
/// recording must not do either.
const WARM_UP: usize = 2;

/// A recorded step and its output, in buffers that each replay overwrites.
pub struct Recorded<T> {
    graph: Graph,
    output: T,
    stream: StreamId,
}

impl Device {
    /// Records what `step` launches on this thread's stream. No other thread may use the device during the
    /// recording.
    ///
    /// Returns an error if the device cannot record. The stream is then in the same state as before.
    pub fn record<T>(&self, mut step: impl FnMut() -> T) -> Result<Recorded<T>, DeviceError> {
        let Device::Gpu(gpu) = self else { return Err(DeviceError("the CPU has no launches to record".into())) };
        let failed = |e: &dyn std::fmt::Display| DeviceError(format!("a step could not be recorded: {e}"));
        let client = &gpu.client;
        client.graph_prepare().map_err(|e| failed(&e))?;
        // Ends the stream's recording state on every early return.
        struct Leave<'a>(Option<&'a Client>);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                if let Some(client) = self.0 {
                    let _ = client.stop_capture();
                }
            }
        }
        let mut leave = Leave(Some(client));
        for _ in 0..WARM_UP {
            let output = step();
            self.sync()?;
            drop(output);
        }
        client.start_capture().map_err(|e| failed(&e))?;
        let output = step();
        leave.0 = None;
        let graph = client.stop_capture().map_err(|e| failed(&e))?;
        Ok(Recorded { graph, output, stream: StreamId::current() })
    }
}

impl<T> Recorded<T> {
    /// Whether the step was recorded on this thread's stream.
    pub fn is_here(&self) -> bool {
        self.stream == StreamId::current()
    }

    /// Enqueues the step again on the stream on which it was recorded, and returns the output that it writes.
    ///
    /// A reader on another stream needs two fences: one that orders its read behind this replay, and one that
    /// orders the next replay behind its read. Panics if the recording belongs to another thread's stream.
    pub fn replay(&self) -> Result<&T, DeviceError> {
        assert!(self.is_here(), "only the thread that made a recording may replay it");
        // SAFETY: the memory pages of the recording stay allocated as long as it exists. Only this thread, on
        // the recording's own stream, writes its inputs and replays it. Fences order other streams, as
        // documented above.
        unsafe { self.graph.replay() }.map_err(|e| DeviceError(e.to_string()))?;
        Ok(&self.output)
    }
}

impl<T, E> Recorded<Result<T, E>> {
    /// Turns the recording of a result into the result of a recording, as [`Option::transpose`] does for
    /// options.
    pub fn transpose(self) -> Result<Recorded<T>, E> {
        let Recorded { graph, output, stream } = self;
        output.map(|output| Recorded { graph, output, stream })
    }
}
