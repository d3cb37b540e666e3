//! Flat f32 buffers: in host memory or on a device, their views, and the pool that reuses them.

use super::{Device, failed};
use crate::failure::DeviceError;
use crate::scratch::Scratch;
use cubecl::bytes::Bytes;
use cubecl::prelude::*;
use cubecl::server::Handle;
use std::cell::RefCell;
use std::sync::Arc;

/// A range of f32 values on a device. Clones share the values.
#[derive(Clone)]
pub enum Buffer {
    /// Host memory: `len` floats from float `start` of `bytes`.
    Host {
        /// Shared storage.
        bytes: Arc<Bytes>,
        /// First float.
        start: usize,
        /// Number of floats.
        len: usize,
    },
    /// Device memory: the handle covers exactly `len` floats.
    Device {
        /// CubeCL's handle. It is behind an `Arc` because it is large, and a buffer is cloned about twelve
        /// times per arrival.
        handle: Arc<Handle>,
        /// Number of floats.
        len: usize,
    },
}

impl From<Scratch> for Buffer {
    fn from(scratch: Scratch) -> Buffer {
        let len = scratch.len();
        Buffer::Host { bytes: Arc::new(scratch.into()), start: 0, len }
    }
}

/// A buffer to bind, and its length in vectors.
pub(crate) type Slot = (Handle, usize);

impl Device {
    /// A buffer with the content `values`.
    pub fn upload(&self, values: Vec<f32>) -> Buffer {
        let len = values.len();
        match self {
            Device::Cpu if Scratch::is_large(len) => Scratch::copy_of(&values).into(),
            Device::Cpu => Buffer::Host { bytes: Arc::new(Bytes::from_elems(values)), start: 0, len },
            Device::Gpu(gpu) => Buffer::on_device(gpu.client.create(Bytes::from_elems(values)), len),
        }
    }

    /// A buffer of `len` zeros. A GPU writes them itself, so nothing is copied from the host.
    pub fn zeros(&self, len: usize) -> Buffer {
        let Device::Gpu(gpu) = self else {
            return if Scratch::is_large(len) { Scratch::zeros(len).into() } else { self.upload(vec![0.0; len]) };
        };
        let buffer = self.uninitialised(len);
        // SAFETY: the buffer holds `len` floats.
        unsafe {
            fill_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static(len.div_ceil(256).clamp(1, 2048) as u32, 1, 1),
                CubeDim::new_1d(256),
                BufferArg::from_raw_parts(buffer.handle(), len),
            )
        }
        buffer
    }

    /// A buffer of `len` floats with arbitrary content. The caller must overwrite it before it is read.
    pub fn uninitialised(&self, len: usize) -> Buffer {
        match self {
            Device::Cpu => Scratch::take(len).into(),
            Device::Gpu(gpu) => Buffer::on_device(gpu.client.empty(4 * len), len),
        }
    }

    /// The buffer in host memory: the buffer itself on the CPU, else a copy ([`Device::download`]).
    pub fn on_host(&self, buffer: &Buffer) -> Result<Buffer, DeviceError> {
        match self {
            Device::Cpu => Ok(buffer.clone()),
            Device::Gpu(_) => Ok(Device::Cpu.upload(self.download(buffer)?)),
        }
    }

    /// Copies a buffer to the host. Waits for the earlier work on this thread's stream.
    pub fn download(&self, buffer: &Buffer) -> Result<Vec<f32>, DeviceError> {
        match (self, buffer) {
            (Device::Cpu, _) => Ok(buffer.host().to_vec()),
            (Device::Gpu(gpu), Buffer::Device { handle, .. }) => {
                let bytes = gpu.client.read_one(handle.as_ref().clone()).map_err(failed)?;
                Ok(bytemuck::pod_collect_to_vec(&bytes))
            }
            _ => unreachable!("a GPU has no host buffers"),
        }
    }

    /// Waits for the device, and reads one float of each buffer, because the runtime reports a failed launch when
    /// its output is read.
    pub fn was_written<'a>(&self, buffers: impl Iterator<Item = &'a Buffer>) -> Result<(), DeviceError> {
        buffers.filter(|buffer| !buffer.is_empty()).try_for_each(|b| self.download(&b.view(0, 1)).map(|_| ()))?;
        self.sync()
    }
}

impl Buffer {
    /// The buffer of a handle that covers exactly `len` floats.
    pub fn on_device(handle: Handle, len: usize) -> Self {
        Buffer::Device { handle: Arc::new(handle), len }
    }

    /// Whether both buffers are the same range of the same memory.
    pub fn is(&self, other: &Buffer) -> bool {
        match (self, other) {
            (Buffer::Host { bytes, start, len }, Buffer::Host { bytes: others, start: first, len: many }) => {
                Arc::ptr_eq(bytes, others) && (start, len) == (first, many)
            }
            (Buffer::Device { handle, .. }, Buffer::Device { handle: others, .. }) => Arc::ptr_eq(handle, others),
            _ => false,
        }
    }

    /// Whether this is host memory without another holder.
    fn is_alone(&self) -> bool {
        matches!(self, Buffer::Host { bytes, .. } if Arc::strong_count(bytes) == 1)
    }

    /// Number of floats.
    pub fn len(&self) -> usize {
        match self {
            Buffer::Host { len, .. } | Buffer::Device { len, .. } => *len,
        }
    }

    /// Whether the buffer has no floats.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A view of `len` floats from float `start`, without a copy. Panics if the view does not lie inside the
    /// buffer.
    #[inline]
    pub fn view(&self, start: usize, len: usize) -> Buffer {
        assert!(start + len <= self.len(), "a view must lie inside its buffer");
        match self {
            Buffer::Host { bytes, start: first, .. } => {
                Buffer::Host { bytes: bytes.clone(), start: first + start, len }
            }
            Buffer::Device { handle, len: all } => {
                let handle = handle.as_ref().clone();
                Buffer::on_device(handle.offset_start(4 * start as u64).offset_end(4 * (all - start - len) as u64), len)
            }
        }
    }

    /// The floats of a host buffer. Panics on a device buffer.
    #[inline]
    pub fn host(&self) -> &[f32] {
        match self {
            Buffer::Host { bytes, start, len } => &bytemuck::cast_slice(bytes.as_ref())[*start..*start + *len],
            Buffer::Device { .. } => panic!("a device buffer has no host slice"),
        }
    }

    /// The floats of a host buffer, for writing. Panics on a device buffer, and if the buffer has another
    /// holder.
    pub(crate) fn host_mut(&mut self) -> &mut [f32] {
        match self {
            Buffer::Host { bytes, start, len } => {
                let bytes = Arc::get_mut(bytes).expect("a buffer that is written has one owner");
                &mut bytemuck::cast_slice_mut(bytes)[*start..*start + *len]
            }
            Buffer::Device { .. } => panic!("a device buffer has no host slice"),
        }
    }

    /// The handle of a device buffer. Panics on a host buffer.
    pub(crate) fn handle(&self) -> Handle {
        match self {
            Buffer::Device { handle, .. } => handle.as_ref().clone(),
            Buffer::Host { .. } => panic!("a host buffer has no device handle"),
        }
    }
}

/// A gradient of `len` floats that is computed on the host, as one buffer, and its loss.
///
/// `write` gets the slice for the gradient, must write all of it, and returns the loss. If this thread's last
/// gradient has no holder any more, its buffers are reused, so a gradient that is folded at once allocates nothing.
pub fn gradient_on_host(len: usize, write: impl FnOnce(&mut [f32]) -> f32) -> (Arc<[Buffer]>, Buffer) {
    thread_local! {
        static LAST: RefCell<Option<(Arc<[Buffer]>, Buffer)>> = const { RefCell::new(None) };
    }
    LAST.with_borrow_mut(|last| {
        let free = |(buffers, loss): &(Arc<[Buffer]>, Buffer)| {
            Arc::strong_count(buffers) == 1 && buffers[0].len() == len && buffers[0].is_alone() && loss.is_alone()
        };
        let again = last.take().filter(free);
        let (buffers, loss) = last.insert(again.unwrap_or_else(|| {
            let zeros = |len| Device::Cpu.upload(vec![0.0; len]);
            (Arc::new([zeros(len)]), zeros(1))
        }));
        let gradient = Arc::get_mut(buffers).expect("the buffers have no other holder")[0].host_mut();
        loss.host_mut()[0] = write(gradient);
        (buffers.clone(), loss.clone())
    })
}

/// A pool of weight buffers, so that an update allocates nothing.
///
/// On the CPU a buffer is reused after its last holder gives it back. A buffer that is dropped instead is
/// reused too, together with the other free host buffers of its length. On a GPU, CubeCL's own memory pools
/// reuse buffers.
pub struct BufferPool {
    device: Device,
    len: usize,
    free: Vec<Buffer>,
}

impl BufferPool {
    /// A pool of buffers of `len` floats on `device`.
    pub fn new(device: Device, len: usize) -> Self {
        BufferPool { device, len, free: Vec::new() }
    }

    /// A buffer with arbitrary content. The caller must overwrite all of it.
    #[inline]
    pub fn take(&mut self) -> Buffer {
        self.free.pop().unwrap_or_else(|| self.device.uninitialised(self.len))
    }

    /// Gives back a holder's share of a buffer. After the last share, the buffer is free.
    #[inline]
    pub fn give(&mut self, buffer: Buffer) {
        if buffer.is_alone() {
            self.free.push(buffer);
        }
    }
}

#[cube(launch_unchecked)]
fn fill_kernel(to: &mut [f32]) {
    let stride = CUBE_DIM as usize * CUBE_COUNT;
    let mut i = ABSOLUTE_POS;
    while i < to.len() {
        to[i] = 0.0f32;
        i += stride;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_never_hands_out_a_buffer_that_has_a_holder() {
        let mut pool = BufferPool::new(Device::Cpu, 8);
        let first = pool.take();
        let snapshot = first.clone();
        let address = first.host().as_ptr();
        pool.give(first);
        assert_ne!(pool.take().host().as_ptr(), address);
        pool.give(snapshot);
        assert_eq!(pool.take().host().as_ptr(), address);
    }

    #[test]
    fn a_gradient_on_the_host_never_overwrites_one_that_has_a_holder() {
        let make = |value: f32, len| {
            gradient_on_host(len, |gradient| {
                gradient.fill(value);
                -value
            })
        };
        let (first, loss) = make(1.0, 3);
        let address = first[0].host().as_ptr();
        // Each of the two handles keeps the memory.
        let other = make(2.0, 3);
        assert_eq!((first[0].host(), loss.host(), other.1.host()), (&[1.0; 3][..], &[-1.0][..], &[-2.0][..]));
        drop((first, other));
        drop(make(3.0, 3));
        assert_eq!(loss.host(), [-1.0]);
        drop(loss);
        let last = make(4.0, 3);
        let again = last.0[0].host().as_ptr();
        drop(last);
        assert_eq!(make(5.0, 3).0[0].host().as_ptr(), again);
        assert_ne!(again, address, "the first buffers were not kept, because their loss had a holder");
        assert_eq!(make(6.0, 5).0[0].host(), [6.0; 5]);
    }

    #[test]
    fn a_view_shares_the_bytes() {
        let buffer = Device::Cpu.upload((0..10).map(|x| x as f32).collect());
        assert_eq!(buffer.view(2, 3).view(1, 2).host(), [3.0, 4.0]);
        assert!(buffer.clone().is(&buffer) && buffer.view(2, 3).is(&buffer.view(2, 3)));
        assert!(!buffer.view(2, 3).is(&buffer.view(3, 3)) && !buffer.is(&Device::Cpu.upload(buffer.host().to_vec())));
    }
}
