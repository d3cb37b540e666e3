//! The layers as plain loops: the CPU path, and what the kernels are held against.

pub(super) mod conv;
pub(super) mod linear;
pub(super) mod loss;
pub(super) mod norm;
pub(super) mod pool;
pub(crate) mod tile;

pub(crate) use tile::for_each_instruction_set;

use crossbeam_channel::{Receiver, Sender, bounded};
use cubecl::bytes::{AccessError, AccessPolicy, AllocationController, AllocationProperty, Bytes};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

type FreeList = (Sender<Vec<f32>>, Receiver<Vec<f32>>);

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
    floats: Vec<f32>,
    home: Sender<Vec<f32>>,
}

impl Scratch {
    /// `len` floats of any content.
    pub fn take(len: usize) -> Self {
        KNOWN.with_borrow_mut(|known| {
            let (home, kept) = known.entry(len).or_insert_with(|| {
                let mut free = FREE.lock().expect("nothing panics with the lock");
                free.entry(len).or_insert_with(|| bounded(KEPT)).clone()
            });
            Scratch { floats: kept.try_recv().unwrap_or_else(|_| vec![0.0; len]), home: home.clone() }
        })
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut scratch = Self::take(len);
        scratch.fill(0.0);
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Where enough are kept, it is given up.
        let _ = self.home.try_send(std::mem::take(&mut self.floats));
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.floats
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.floats
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
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self, _: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.floats);
        // SAFETY: the same bytes; the caller promises to write nothing that is not initialised.
        Ok(unsafe { &mut *(bytes as *mut [u8] as *mut [MaybeUninit<u8>]) })
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let bytes: &[u8] = bytemuck::cast_slice(&self.floats);
        // SAFETY: the same bytes, which nobody writes through this.
        Ok(unsafe { &*(bytes as *const [u8] as *const [MaybeUninit<u8>]) })
    }
}

/// Does all pieces of work on the threads of the current pool; on this thread where the pool has no other.
pub(crate) fn parallel<T: Send>(pieces: impl Iterator<Item = T>, work: impl Fn(T) + Sync + Send) {
    if rayon::current_num_threads() == 1 {
        pieces.for_each(work);
    } else {
        pieces.collect::<Vec<T>>().into_par_iter().for_each(work);
    }
}
