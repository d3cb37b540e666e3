//! Streams, and the fences that order one stream behind another.

use super::{Device, Gpu};
use crate::launch::launch_bound;
use burn::tensor::StreamId;
use cubecl::prelude::*;
use cubecl::server::Handle;
use std::sync::Arc;

/// Orders a consumer behind all work that the producer's thread had enqueued when the fence was made.
///
/// A fence is a small allocation, made after the producer's last write. CubeCL makes a stream wait for
/// another stream when it binds a buffer that was *allocated* there after its last wait. Binding the fence
/// therefore forces a wait behind every write, unless a later wait already covers them.
#[derive(Clone, Default)]
pub struct Fence(Option<Arc<Handle>>);

impl Fence {
    /// Whether a consumer has nothing to wait for.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

/// A stream on which a thread can work instead of its own.
#[derive(Clone, Copy, Debug)]
pub struct Stream(StreamId);

impl Stream {
    /// Stream number `index` (from 0) after this thread's own. Different indices give different streams, as
    /// long as the device has enough of them.
    pub fn after_current(index: u64) -> Self {
        Stream(StreamId { value: StreamId::current().value + 1 + index })
    }

    /// This thread's own stream.
    pub fn here() -> Self {
        Stream(StreamId::current())
    }

    /// Runs `work` on this stream.
    pub fn enter<T>(self, work: impl FnOnce() -> T) -> T {
        self.0.executes(work)
    }
}

impl Device {
    /// Makes a fence behind the work that this thread has enqueued, for a consumer on another thread (see
    /// [`Fence`]).
    pub fn fence(&self) -> Fence {
        match self {
            Device::Gpu(gpu) if gpu.overlaps => Fence(Some(Arc::new(gpu.client.empty(16)))),
            _ => Fence(None),
        }
    }

    /// Makes another thread's stream wait for the fence now.
    ///
    /// If that thread's first launch made the wait instead, the stream would wait for all work that the
    /// fence's stream has been given until then, including work that it does not need.
    pub fn wait_fence(&self, stream: Stream, fence: &Fence) {
        if let (Device::Gpu(gpu), Fence(Some(fence))) = (self, fence) {
            // SAFETY: the kernel reads and writes nothing.
            stream.enter(|| unsafe {
                launch_bound!(
                    nothing_kernel, &gpu.client, CubeCount::new_single(), 1;
                    (fence.as_ref().clone(), 4, false);;
                )
            })
        }
    }
}

impl Gpu {
    /// The fence's buffer, or the unused buffer if no wait is needed.
    pub(crate) fn fenced(&self, fence: &Fence) -> Handle {
        fence.0.as_deref().unwrap_or(&self.unused).clone()
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
fn nothing_kernel(_fence: &[f32]) {}
