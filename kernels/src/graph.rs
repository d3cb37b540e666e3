//! A run of launches that is recorded once and replayed with one.
//!
//! On CUDA a recording is a graph of the driver's: one launch, whatever it holds. On WGPU the runtime keeps the dispatches and
//! encodes them anew, which still spares the way through a tensor library. What a recording reads and writes stays where it
//! was. It may bind buffers of its own stream alone: for another stream's the runtime would record and wait for events in the middle
//! of it, which a driver refuses.

use crate::device::Device;
use crate::failure::DeviceError;
use burn::tensor::StreamId;
use cubecl::client::{Client, Graph};

/// Times that a step runs before it is recorded: kernels are compiled and memory is taken, none of which a recording may do.
const WARM_UP: usize = 2;

/// What a recorded step gave, in buffers that every replay writes anew.
pub struct Recorded<T> {
    graph: Graph,
    output: T,
    stream: StreamId,
}

impl Device {
    /// Records what `step` launches on this thread's stream. Nobody else may use the device meanwhile. An error if the device
    /// cannot record; the stream is then as it was.
    pub fn record<T>(&self, mut step: impl FnMut() -> T) -> Result<Recorded<T>, DeviceError> {
        let Device::Gpu(gpu) = self else { return Err(DeviceError("the CPU has no launches to record".into())) };
        let failed = |e: &dyn std::fmt::Display| DeviceError(format!("a step could not be recorded: {e}"));
        let client = &gpu.client;
        client.graph_prepare().map_err(|e| failed(&e))?;
        // However this ends early, the stream leaves the state in which it records.
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
    /// Whether this thread's stream is the one it was recorded on.
    pub fn is_here(&self) -> bool {
        self.stream == StreamId::current()
    }

    /// Enqueues the step again, on the stream it was recorded on, and gives what it writes. Whoever reads that on another stream
    /// orders this stream's next replay behind the reading (with a fence), and this replay before it.
    pub fn replay(&self) -> Result<&T, DeviceError> {
        assert!(self.is_here(), "a recording is replayed by the thread that made it");
        // SAFETY: the pages that the recording touches are guarded for its life; inputs are refreshed and replays are made on this
        // thread alone, which is its stream; other streams are ordered by fences, as said above.
        unsafe { self.graph.replay() }.map_err(|e| DeviceError(e.to_string()))?;
        Ok(&self.output)
    }
}

impl<T, E> Recorded<Result<T, E>> {
    /// The recording of a step that did not fail.
    pub fn transpose(self) -> Result<Recorded<T>, E> {
        let Recorded { graph, output, stream } = self;
        output.map(|output| Recorded { graph, output, stream })
    }
}
