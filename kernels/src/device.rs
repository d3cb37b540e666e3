//! Devices, flat f32 buffers on them, and the fences with which a buffer may cross from one thread's stream to another's.
//!
//! # Threads
//! On WGPU and CUDA every OS thread has its own stream (CubeCL keys streams by thread). Guaranteed: work submitted by one
//! thread runs in its order; a buffer that is still bound by enqueued work is not reused. Not guaranteed: that a reader on
//! another stream waits for the last write. Therefore (invariant I8) a producer ends with [`Device::fence`], and the
//! consumer's first launch binds that fence.

use crate::failure::DeviceError;
use crate::launch::launch_bound;
use crate::scratch::Scratch;
use burn::tensor::StreamId;
use cubecl::MemoryScope;
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

/// Where buffers live and kernels run.
#[derive(Clone)]
pub enum Device {
    /// Host memory and plain loops.
    Cpu,
    /// A CubeCL device: WGPU or CUDA.
    Gpu(Arc<Gpu>),
}

/// A CubeCL device with what every launch needs.
pub struct Gpu {
    /// The client; each thread that uses it gets its own stream.
    pub client: Client,
    /// The device's identity, which Burn's tensors carry.
    pub device: cubecl::Device,
    /// Bound where a kernel has a slot that a specialisation does not touch.
    unused: Handle,
    /// Streams overlap here, so that a hand-over needs a fence (CUDA); WGPU has one in-order queue.
    pub(crate) overlaps: bool,
}

/// A run of f32 values on a device. Cloning shares them.
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
        /// CubeCL's handle. Apart, because it is large and a buffer is handed on a dozen times per arrival.
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

/// Orders a consumer behind everything that the producer's thread had enqueued when the fence was made.
///
/// Why it works: CubeCL makes a stream wait for another when it binds a buffer that was *allocated* there after its last
/// wait. A fence is a small allocation made after the last write, so binding it forces a wait behind every write, unless
/// a later wait already covers them.
#[derive(Clone, Default)]
pub struct Fence(Option<Arc<Handle>>);

/// A stream that a thread can work on instead of its own.
#[derive(Clone, Copy, Debug)]
pub struct Stream(StreamId);

impl Stream {
    /// Stream `index` of those that follow this thread's own, so that all of them are different as far as the device has so many.
    pub fn after_current(index: u64) -> Self {
        Stream(StreamId { value: StreamId::current().value + 1 + index })
    }

    /// This thread's own.
    pub fn here() -> Self {
        Stream(StreamId::current())
    }

    /// Runs `work` on this stream.
    pub fn enter<T>(self, work: impl FnOnce() -> T) -> T {
        self.0.executes(work)
    }
}

impl Device {
    /// Wraps a CubeCL device. Its client must already be known to come up; see the crate that picks backends.
    pub fn gpu(device: cubecl::Device) -> Self {
        let client = device.client();
        let unused = client.create_from_slice(&[0; 16]);
        let overlaps = matches!(device, cubecl::Device::Cuda(_));
        Device::Gpu(Arc::new(Gpu { client, device, unused, overlaps }))
    }

    /// `cpu`, `wgpu` or `cuda`.
    pub fn name(&self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Gpu(gpu) if gpu.overlaps => "cuda",
            Device::Gpu(_) => "wgpu",
        }
    }

    /// A buffer holding `values`.
    pub fn upload(&self, values: Vec<f32>) -> Buffer {
        let len = values.len();
        match self {
            Device::Cpu if Scratch::is_large(len) => Scratch::copy_of(&values).into(),
            Device::Cpu => Buffer::Host { bytes: Arc::new(Bytes::from_elems(values)), start: 0, len },
            Device::Gpu(gpu) => Buffer::on_device(gpu.client.create(Bytes::from_elems(values)), len),
        }
    }

    /// A buffer of `len` zeros, written on the device: no byte crosses the bus.
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

    /// A buffer of `len` floats whose content is to be overwritten before it is read.
    pub fn uninitialised(&self, len: usize) -> Buffer {
        match self {
            Device::Cpu => Scratch::take(len).into(),
            Device::Gpu(gpu) => Buffer::on_device(gpu.client.empty(4 * len), len),
        }
    }

    /// The buffer on the host: itself if it is there, else a copy ([`Device::download`]).
    pub fn on_host(&self, buffer: &Buffer) -> Result<Buffer, DeviceError> {
        match self {
            Device::Cpu => Ok(buffer.clone()),
            Device::Gpu(_) => Ok(Device::Cpu.upload(self.download(buffer)?)),
        }
    }

    /// Copies a buffer to the host, waiting for the work before it on this thread's stream.
    pub fn download(&self, buffer: &Buffer) -> Result<Vec<f32>, DeviceError> {
        match (self, buffer) {
            (Device::Cpu, _) => Ok(buffer.host().to_vec()),
            (Device::Gpu(gpu), Buffer::Device { handle, .. }) => {
                let bytes = gpu.client.read_one(handle.as_ref().clone()).map_err(failed)?;
                Ok(bytemuck::pod_collect_to_vec(&bytes))
            }
            _ => unreachable!("a host buffer never meets a GPU"),
        }
    }

    /// Waits for the device, and reads a float of each buffer: what was launched in vain is told to who reads what it was to write.
    pub fn was_written<'a>(&self, buffers: impl Iterator<Item = &'a Buffer>) -> Result<(), DeviceError> {
        buffers.filter(|buffer| !buffer.is_empty()).try_for_each(|b| self.download(&b.view(0, 1)).map(|_| ()))?;
        self.sync()
    }

    /// Ends a run of work whose result goes to another thread: see [`Fence`].
    pub fn fence(&self) -> Fence {
        match self {
            Device::Gpu(gpu) if gpu.overlaps => Fence(Some(Arc::new(gpu.client.empty(16)))),
            _ => Fence(None),
        }
    }

    /// Makes another thread's stream wait for what the fence covers, now. If that thread's first launch did so, it would wait for all that
    /// the fence's stream has been given until then: for work of others that it does not need.
    pub fn wait_fence(&self, stream: Stream, fence: &Fence) {
        if let (Device::Gpu(gpu), Fence(Some(fence))) = (self, fence) {
            // SAFETY: the kernel touches nothing.
            stream.enter(|| unsafe {
                launch_bound!(nothing_kernel, &gpu.client, CubeCount::new_single(), 1; (fence.as_ref().clone(), 4, false);;)
            })
        }
    }

    /// Hands what was enqueued to the device. Nothing waits for its completion.
    pub fn flush(&self) -> Result<(), DeviceError> {
        match self {
            Device::Cpu => Ok(()),
            Device::Gpu(gpu) => gpu.client.flush().map_err(failed),
        }
    }

    /// Runs `work` on the thread that issues this device's launches, as if on this thread's stream: what it enqueues goes out at
    /// once. One crossing between threads for all of it, and no flush; worth it for a few launches, not for hundreds.
    pub fn issue<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send) -> Result<T, DeviceError> {
        match self {
            Device::Cpu => Ok(work()),
            Device::Gpu(gpu) => {
                // A panic goes on where it belongs: it is not the device's.
                let result = gpu.client.exclusive(|| catch_unwind(AssertUnwindSafe(work))).map_err(failed)?;
                result.map_or_else(|panic| resume_unwind(panic), Ok)
            }
        }
    }

    /// Waits until everything enqueued by this thread is done.
    pub fn sync(&self) -> Result<(), DeviceError> {
        match self {
            Device::Cpu => Ok(()),
            Device::Gpu(gpu) => cubecl::future::block_on(gpu.client.sync()).map_err(failed),
        }
    }

    /// Runs one tiny kernel and checks what it computed.
    pub fn probe(&self) -> Result<(), DeviceError> {
        let Device::Gpu(gpu) = self else { return Ok(()) };
        let x = gpu.client.create(Bytes::from_elems(vec![1.0f32, 2.0, 3.0, 4.0]));
        let y = gpu.client.empty(16);
        // SAFETY: four units, four floats in both buffers.
        unsafe {
            probe_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::new_single(),
                CubeDim::new_1d(4),
                BufferArg::from_raw_parts(x, 4),
                BufferArg::from_raw_parts(y.clone(), 4),
            )
        }
        let got: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.client.read_one(y).map_err(failed)?);
        if got == [3.0, 5.0, 7.0, 9.0] {
            Ok(())
        } else {
            Err(DeviceError(format!("a test kernel gave {got:?} instead of [3.0, 5.0, 7.0, 9.0]")))
        }
    }
}

fn failed(error: impl std::fmt::Display) -> DeviceError {
    DeviceError(error.to_string())
}

impl Gpu {
    /// The fence's buffer, or a stand-in where no fence is needed.
    pub(crate) fn fenced(&self, fence: &Fence) -> Handle {
        fence.0.as_deref().unwrap_or(&self.unused).clone()
    }

    /// Bytes of device memory that all streams' pools hold.
    pub fn reserved(&self) -> u64 {
        self.client.memory_report(MemoryScope::Device).usage().bytes_reserved
    }

    /// A buffer of 16 bytes that no kernel touches.
    pub(crate) fn unused(&self) -> Handle {
        self.unused.clone()
    }

    /// How many buffers one launch may bind.
    pub(crate) fn bindings(&self) -> usize {
        self.client.properties().hardware.max_bindings as usize
    }
}

impl Buffer {
    /// The buffer of a handle that covers exactly `len` floats.
    pub fn on_device(handle: Handle, len: usize) -> Self {
        Buffer::Device { handle: Arc::new(handle), len }
    }

    /// Whether both are the same floats of the same memory.
    pub fn is(&self, other: &Buffer) -> bool {
        match (self, other) {
            (Buffer::Host { bytes, start, len }, Buffer::Host { bytes: others, start: first, len: many }) => {
                Arc::ptr_eq(bytes, others) && (start, len) == (first, many)
            }
            (Buffer::Device { handle, .. }, Buffer::Device { handle: others, .. }) => Arc::ptr_eq(handle, others),
            _ => false,
        }
    }

    /// Whether this is the only handle to host memory.
    fn is_alone(&self) -> bool {
        matches!(self, Buffer::Host { bytes, .. } if Arc::strong_count(bytes) == 1)
    }

    /// Number of floats.
    pub fn len(&self) -> usize {
        match self {
            Buffer::Host { len, .. } | Buffer::Device { len, .. } => *len,
        }
    }

    /// Whether it holds no float.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A view of `len` floats from float `start`: no byte is copied.
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

    /// The floats of a host buffer that nobody else holds, for writing.
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

/// A consumer's own sight of weights that another thread publishes.
///
/// Where streams do not overlap (CPU, WGPU) this is the published buffer itself: no byte is copied. On CUDA it is a fixed
/// buffer of the consumer's stream, filled by one small launch per pull. Reading the published buffer there would make
/// every launch that binds a parameter a cross-stream one: each costs two events and a turn in the runtime's clean-up
/// queue, which holds eight, so a step of thirty such launches would stall the thread that issues everybody's work.
pub struct Replica {
    /// With the stream that it belongs to: a replica that moved to another thread begins anew there.
    own: Option<(StreamId, Buffer)>,
}

/// Published weights on their way to a replica: ordered behind `fence`, to be copied by a launch.
pub struct WeightCopy {
    pub(crate) from: Buffer,
    pub(crate) fence: Fence,
    pub(crate) to: Buffer,
}

impl Replica {
    /// A replica that has pulled nothing yet.
    pub fn new() -> Self {
        Replica { own: None }
    }

    /// The weights to read for the job at hand, valid until the next pull. The launch binds `fence`, and everything that this
    /// thread enqueues afterwards is ordered behind it (I8).
    pub fn pull(&mut self, device: &Device, published: &Buffer, fence: &Fence) -> Buffer {
        let (weights, pull) = self.copy_weights(device, published, fence, false);
        if let (Device::Gpu(gpu), Some(WeightCopy { from, fence, to })) = (device, pull) {
            copy_sealed(gpu, &from, gpu.fenced(&fence), &to);
        }
        weights
    }

    /// The same, but the copy, if there is one, is left to a launch that does more. With `fixed` the weights are always brought to
    /// the replica's own buffer, whose place a recorded step knows.
    pub fn copy_weights(
        &mut self,
        device: &Device,
        published: &Buffer,
        fence: &Fence,
        fixed: bool,
    ) -> (Buffer, Option<WeightCopy>) {
        if fence.0.is_none() && !fixed {
            return (published.clone(), None);
        }
        let own = self.fixed(device, published.len());
        (own.clone(), Some(WeightCopy { from: published.clone(), fence: fence.clone(), to: own }))
    }

    /// The replica's own buffer of `len` floats, on this thread's stream.
    pub fn fixed(&mut self, device: &Device, len: usize) -> Buffer {
        let here = StreamId::current();
        if self.own.as_ref().is_none_or(|(stream, _)| *stream != here) {
            self.own = Some((here, device.uninitialised(len)));
        }
        self.own.as_ref().expect("just made").1.clone()
    }
}

/// Copies a whole flat buffer: one launch, or the processor's own copy.
pub fn copy(device: &Device, from: &Buffer, to: &mut Buffer) {
    match device {
        Device::Cpu => to.host_mut().copy_from_slice(from.host()),
        Device::Gpu(gpu) => copy_sealed(gpu, from, gpu.unused(), to),
    }
}

fn copy_sealed(gpu: &Gpu, from: &Buffer, fence: Handle, to: &Buffer) {
    let len = from.len() / 4;
    // SAFETY: both buffers hold the same number of floats, a multiple of the alignment; the fence has four.
    unsafe {
        pull_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(len.div_ceil(256).clamp(1, 2048) as u32, 1, 1),
            CubeDim::new_1d(256),
            4,
            BufferArg::from_raw_parts(from.handle(), len),
            BufferArg::from_raw_parts(fence, 4),
            BufferArg::from_raw_parts(to.handle(), len),
        )
    }
}

impl Default for Replica {
    fn default() -> Self {
        Self::new()
    }
}

/// A gradient of `len` floats that is computed on the host, and its loss, which `write` gives: it is told where to write the gradient, and
/// leaves no float out. The buffers are those of this thread's last gradient if nobody holds them any more, so that a gradient that is
/// taken in at once allocates nothing.
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
        let gradient = Arc::get_mut(buffers).expect("nobody else holds them")[0].host_mut();
        loss.host_mut()[0] = write(gradient);
        (buffers.clone(), loss.clone())
    })
}

/// Weight buffers that come round again, so that an update allocates nothing.
///
/// On the CPU a buffer is reused once its last holder gives it back; one that is dropped instead comes round too, with the other
/// buffers that nobody holds. On a GPU CubeCL's own pools do this.
pub struct BufferPool {
    device: Device,
    len: usize,
    free: Vec<Buffer>,
}

impl BufferPool {
    /// Buffers of `len` floats on `device`.
    pub fn new(device: Device, len: usize) -> Self {
        BufferPool { device, len, free: Vec::new() }
    }

    /// A buffer to be overwritten whole.
    #[inline]
    pub fn take(&mut self) -> Buffer {
        self.free.pop().unwrap_or_else(|| self.device.uninitialised(self.len))
    }

    /// Takes a holder's share of a buffer: it is free if that was the last one.
    #[inline]
    pub fn give(&mut self, buffer: Buffer) {
        if buffer.is_alone() {
            self.free.push(buffer);
        }
    }
}

#[cube(launch_unchecked)]
fn pull_kernel<N: Size>(from: &[Vector<f32, N>], _seal: &[f32], to: &mut [Vector<f32, N>]) {
    let stride = CUBE_DIM as usize * CUBE_COUNT;
    let mut i = ABSOLUTE_POS;
    while i < to.len() {
        to[i] = from[i];
        i += stride;
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

#[cube(launch_unchecked, create_dummy_kernel)]
fn nothing_kernel(_seal: &[f32]) {}

#[cube(launch_unchecked)]
fn probe_kernel(x: &[f32], y: &mut [f32]) {
    y[ABSOLUTE_POS] = x[ABSOLUTE_POS] * 2.0f32 + 1.0f32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_buffer_is_never_one_that_somebody_still_reads() {
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
    fn a_gradient_on_the_host_is_never_written_over_one_that_somebody_holds() {
        let make = |value: f32, len| {
            gradient_on_host(len, |gradient| {
                gradient.fill(value);
                -value
            })
        };
        let (first, loss) = make(1.0, 3);
        let address = first[0].host().as_ptr();
        // Each of the handles keeps it.
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
        assert_ne!(again, address, "the first was given up while its loss was held");
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
