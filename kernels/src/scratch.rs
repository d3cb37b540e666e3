//! Buffers of floats on the host that are used again: the memory of tensors and buffers of the CPU backend.

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

/// A line of the processor's cache: a panel that begins with one is read at once, and half as fast if it lies across two.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Memory of a buffer, which begins with line `first` of it.
struct Lines {
    all: Memory,
    first: usize,
}

enum Memory {
    /// The allocator's.
    Heap(Vec<Line>),
    /// The system's own, in huge pages where it has them: an update of 11 million parameters takes 4.3 ms in them, and 6.3 in small ones
    /// (AMD Zen 4). Asked for the large buffers alone, they take no more than is used; asked of the allocator, they made every thread
    /// 5 MB larger.
    Mapped(MmapMut),
}

/// Bytes from which on a buffer is a large one.
const LARGE: usize = 1 << 20;
/// Where large buffers begin in their memory: so many lines after one another, and then again from the front. Each of them may be given
/// memory at a multiple of a large power of two, and what is read and written at a time would lie in the same bank of the memory and
/// wait for it (an update of 11 million parameters 4.0 ms, and 6.3 ms without, on AMD Zen 4). A line more than a page of the system's.
const APART: usize = 65;
const PLACES: usize = 16;

impl Lines {
    /// Of any content, for `len` floats.
    fn new(len: usize) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let lines = len.div_ceil(LANES);
        if !Scratch::is_large(len) {
            return Lines { all: Memory::heap(lines), first: 0 };
        }
        let first = APART * (MADE.fetch_add(1, Ordering::Relaxed) % PLACES);
        Lines { all: Memory::mapped(first + lines), first }
    }

    /// None.
    fn none() -> Self {
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

    /// Where the system maps none, the allocator is asked, which knows how a program without memory ends.
    fn mapped(lines: usize) -> Self {
        // Miri knows no advice.
        let mapped = (!cfg!(miri)).then(|| MmapMut::map_anon(lines * size_of::<Line>()).ok()).flatten();
        let Some(bytes) = mapped else { return Self::heap(lines) };
        // Not everywhere there are huge pages: then they are small ones.
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        Memory::Mapped(bytes)
    }
}

type FreeList = (Sender<Lines>, Receiver<Lines>);

/// Free buffers of one length that are kept.
const KEPT: usize = 256;

/// The free buffers of all threads, by length: as many as threads compute at a time make use of, however many threads there are.
static FREE: Mutex<BTreeMap<usize, FreeList>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// This thread's ends of those channels: the lock is taken once per thread and length.
    static KNOWN: RefCell<HashMap<usize, FreeList>> = RefCell::default();
}

/// Floats that go back to where they were taken from, so that a step allocates nothing once warm. Their first content is whatever
/// was left in them.
pub struct Scratch {
    lines: Lines,
    len: usize,
    home: Sender<Lines>,
}

impl Scratch {
    /// `len` floats of any content.
    pub fn take(len: usize) -> Self {
        KNOWN.with_borrow_mut(|known| {
            let (home, kept) = known.entry(len).or_insert_with(|| {
                let mut free = FREE.lock().expect("nothing panics with the lock");
                free.entry(len).or_insert_with(|| bounded(KEPT)).clone()
            });
            Scratch { lines: kept.try_recv().unwrap_or_else(|_| Lines::new(len)), len, home: home.clone() }
        })
    }

    /// `len` zeros.
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

    /// Whether as many floats are a large buffer, which is to be taken from here.
    pub fn is_large(len: usize) -> bool {
        size_of::<f32>() * len >= LARGE
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Where enough are kept, it is given up.
        let _ = self.home.try_send(std::mem::replace(&mut self.lines, Lines::none()));
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

/// The storage of a tensor or a buffer, which may be written again by its only holder.
impl From<Scratch> for Bytes {
    fn from(scratch: Scratch) -> Bytes {
        let len = 4 * scratch.len();
        // SAFETY: all floats of a scratch buffer, and so all its bytes, have been written.
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
        // SAFETY: the same bytes; the caller promises to write nothing that is not initialised.
        Ok(unsafe { &mut *(bytes as *mut [u8] as *mut [MaybeUninit<u8>]) })
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let bytes: &[u8] = bytemuck::cast_slice(self);
        // SAFETY: the same bytes, which nobody writes through this.
        Ok(unsafe { &*(bytes as *const [u8] as *const [MaybeUninit<u8>]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn large_buffers_begin_with_a_line_and_lie_apart() {
        let all: Vec<Scratch> = (0..8).map(|_| Scratch::take(LARGE)).collect();
        let (places, addresses): (BTreeSet<_>, Vec<_>) =
            all.iter().map(|s| (s.lines.first, s.as_ptr() as usize)).unzip();
        assert!(places.len() > 4, "{places:?}");
        assert!(addresses.iter().all(|address| address.is_multiple_of(64)), "{addresses:?}");
        assert!(all.iter().all(|scratch| scratch.len() == LARGE));
        assert_eq!(Scratch::take(100).lines.first, 0, "a small one needs no room before it");
    }

    #[test]
    fn scratch_is_a_tensors_storage_and_goes_home_from_any_thread() {
        // A length of this test's own, for the free lists are everybody's.
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
