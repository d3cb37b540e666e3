//! Host buffers of floats that are reused. They are the memory of the tensors and buffers on the CPU backend.

use crate::simd::LANES;
use crossbeam_channel::{Receiver, Sender, bounded};
use cubecl::bytes::{AccessError, AccessPolicy, AllocationController, AllocationProperty, Bytes};
use memmap2::MmapMut;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A cache line. A panel that starts at a cache line is loaded in one access. A panel across two lines loads
/// at half the speed.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// The memory of a buffer. The buffer starts at line `first`.
struct Lines {
    all: Memory,
    first: usize,
}

enum Memory {
    /// Memory from the allocator.
    Heap(Vec<Line>),
    /// Memory from the operating system, in huge pages where it has them. An update of 11 million parameters
    /// takes 4.3 ms with huge pages and 6.3 ms with small ones (AMD Zen 4). Only large buffers ask for huge
    /// pages, which then take no more memory than is used. With huge pages in the allocator, each thread took
    /// 5 MB more.
    Mapped(MmapMut),
}

/// Minimum size of a large buffer, in bytes.
const LARGE: usize = 1 << 20;
/// Distance in lines between the offsets at which successive large buffers start in their memory: one line
/// more than a page.
///
/// The system may place each large buffer at a multiple of a large power of two. Without different offsets,
/// floats that are read and written at the same time would be in the same memory bank, and the accesses would
/// wait. An update of 11 million parameters takes 4.0 ms with the offsets and 6.3 ms without them
/// (AMD Zen 4).
const OFFSET_LINES: usize = 65;
/// Number of different offsets. After the last one, the next buffer starts at offset 0 again.
const OFFSETS: usize = 16;

impl Lines {
    /// Memory for `len` floats. Its content is unspecified.
    fn new(len: usize) -> Self {
        static CREATED: AtomicUsize = AtomicUsize::new(0);
        let lines = len.div_ceil(LANES);
        if !Scratch::is_large(len) {
            return Lines { all: Memory::heap(lines), first: 0 };
        }
        let first = OFFSET_LINES * (CREATED.fetch_add(1, Ordering::Relaxed) % OFFSETS);
        Lines { all: Memory::mapped(first + lines), first }
    }

    /// No memory.
    fn empty() -> Self {
        Lines { all: Memory::Heap(Vec::new()), first: 0 }
    }

    fn floats(&self) -> &[f32] {
        let all: &[f32] = match &self.all {
            Memory::Heap(lines) => bytemuck::cast_slice(lines),
            Memory::Mapped(bytes) => bytemuck::cast_slice(bytes),
        };
        &all[LANES * self.first..]
    }

    fn floats_mut(&mut self) -> &mut [f32] {
        let all: &mut [f32] = match &mut self.all {
            Memory::Heap(lines) => bytemuck::cast_slice_mut(lines),
            Memory::Mapped(bytes) => bytemuck::cast_slice_mut(bytes),
        };
        &mut all[LANES * self.first..]
    }
}

impl Memory {
    fn heap(lines: usize) -> Self {
        Memory::Heap(vec![Line([0.0; LANES]); lines])
    }

    /// Falls back to the allocator if the system maps no memory. The allocator handles an out-of-memory
    /// error.
    fn mapped(lines: usize) -> Self {
        // Miri does not support `madvise`.
        let mapped = (!cfg!(miri)).then(|| MmapMut::map_anon(lines * size_of::<Line>()).ok()).flatten();
        let Some(bytes) = mapped else { return Self::heap(lines) };
        // Ignores errors: a system without huge pages uses small ones.
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        Memory::Mapped(bytes)
    }
}

type FreeList = (Sender<Lines>, Receiver<Lines>);

/// Maximum number of free buffers that are kept per length.
const MAX_FREE: usize = 256;

/// The free buffers of all threads, by length. Their number depends on how many threads compute at the same
/// time, not on how many threads exist.
static FREE: Mutex<BTreeMap<usize, FreeList>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// This thread's handles to the free lists. With them, a thread takes the lock only once per length.
    static THREAD_FREE: RefCell<HashMap<usize, FreeList>> = RefCell::default();
}

/// A buffer of floats that returns to its free list when it is dropped. A step allocates nothing once every
/// buffer that it needs exists. A reused buffer still holds its old content.
pub struct Scratch {
    lines: Lines,
    len: usize,
    free_list: Sender<Lines>,
}

impl Scratch {
    /// A buffer of `len` floats. Its content is unspecified.
    pub fn take(len: usize) -> Self {
        THREAD_FREE.with_borrow_mut(|known| {
            let (free_list, kept) = known.entry(len).or_insert_with(|| {
                let mut free = FREE.lock().expect("no thread panics while it holds the lock");
                free.entry(len).or_insert_with(|| bounded(MAX_FREE)).clone()
            });
            Scratch { lines: kept.try_recv().unwrap_or_else(|_| Lines::new(len)), len, free_list: free_list.clone() }
        })
    }

    /// A buffer of `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut scratch = Self::take(len);
        scratch.fill(0.0);
        scratch
    }

    /// A copy of these floats.
    pub fn copy_of(values: &[f32]) -> Self {
        let mut scratch = Self::take(values.len());
        scratch.copy_from_slice(values);
        scratch
    }

    /// Whether a buffer of `len` floats is large. Large buffers should be allocated as [`Scratch`].
    pub fn is_large(len: usize) -> bool {
        size_of::<f32>() * len >= LARGE
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If the free list is full, the memory is freed.
        let _ = self.free_list.try_send(std::mem::replace(&mut self.lines, Lines::empty()));
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.lines.floats()[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.lines.floats_mut()[..self.len]
    }
}

/// The storage of a tensor or a buffer. Its only owner may write to it.
impl From<Scratch> for Bytes {
    fn from(scratch: Scratch) -> Bytes {
        let len = 4 * scratch.len();
        // SAFETY: all floats of a scratch buffer, and so all its bytes, are initialised.
        unsafe { Bytes::from_controller(Box::new(scratch), len) }
    }
}

impl AllocationController for Scratch {
    fn alloc_align(&self) -> usize {
        align_of::<Line>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self, _: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(self);
        // SAFETY: these are the same bytes. The caller promises to write only initialised bytes.
        Ok(unsafe { &mut *(bytes as *mut [u8] as *mut [MaybeUninit<u8>]) })
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let bytes: &[u8] = bytemuck::cast_slice(self);
        // SAFETY: these are the same bytes, and nothing writes to them through this reference.
        Ok(unsafe { &*(bytes as *const [u8] as *const [MaybeUninit<u8>]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn large_buffers_start_at_a_cache_line_and_at_different_offsets() {
        let all: Vec<Scratch> = (0..8).map(|_| Scratch::take(LARGE)).collect();
        let (places, addresses): (BTreeSet<_>, Vec<_>) =
            all.iter().map(|s| (s.lines.first, s.as_ptr() as usize)).unzip();
        assert!(places.len() > 4, "{places:?}");
        assert!(addresses.iter().all(|address| address.is_multiple_of(64)), "{addresses:?}");
        assert!(all.iter().all(|scratch| scratch.len() == LARGE));
        assert_eq!(Scratch::take(100).lines.first, 0, "a small buffer starts at offset 0");
    }

    #[test]
    fn scratch_is_a_tensors_storage_and_returns_from_any_thread() {
        // No other test uses this length. All tests share the free lists.
        let len = 37;
        let mut scratch = Scratch::zeros(len);
        scratch[3] = 2.5;
        let address = scratch.as_ptr();
        let mut bytes = Bytes::from(scratch);
        assert_eq!(bytemuck::cast_slice::<u8, f32>(&bytes)[3], 2.5);
        bytemuck::cast_slice_mut::<u8, f32>(&mut bytes)[4] = 1.5;
        let shared = std::sync::Arc::new(bytes);
        let read = |bytes: std::sync::Arc<Bytes>| bytemuck::cast_slice::<u8, f32>(&bytes)[..5].to_vec();
        let readers: Vec<_> = (0..2).map(|_| shared.clone()).map(|b| std::thread::spawn(move || read(b))).collect();
        assert_eq!(read(shared), [0.0, 0.0, 0.0, 2.5, 1.5]);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), [0.0, 0.0, 0.0, 2.5, 1.5]);
        }
        let again = Scratch::take(len);
        assert_eq!((again.as_ptr(), again[4]), (address, 1.5));
    }
}
