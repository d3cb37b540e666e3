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

/// What is `unsafe` on the host, small enough for Miri: `cargo +nightly miri test -p stagger-kernels --lib`.
#[cfg(test)]
mod tests {
    use super::*;

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

    /// By the path of [`for_each_instruction_set`] that this processor takes (Miri: by what it is told to have), at a size that no tile divides.
    #[test]
    fn a_product_in_tiles_is_the_product() {
        let (batch, from, to) = (5, 7, 19);
        let value = |k: usize| ((k * 37 + 11) % 23) as f32 / 8.0 - 1.0;
        let [x, w, dy] = [batch * from, from * to, batch * to].map(|len| (0..len).map(value).collect::<Vec<f32>>());
        let bias = vec![0.5; to];
        let (mut y, mut dx, mut dw) =
            (vec![f32::NAN; batch * to], vec![f32::NAN; batch * from], vec![f32::NAN; from * to]);
        linear::forward(&x, &w, &bias, &mut y);
        linear::input_gradient(&dy, &w, to, &mut dx);
        linear::weight_gradient(&x, &dy, batch, &mut dw);
        for b in 0..batch {
            for o in 0..to {
                let exact: f32 = (0..from).map(|i| x[b * from + i] * w[i * to + o]).sum::<f32>() + 0.5;
                assert!((y[b * to + o] - exact).abs() < 1e-4, "y[{b}, {o}]");
            }
            for i in 0..from {
                let exact: f32 = (0..to).map(|o| dy[b * to + o] * w[i * to + o]).sum();
                assert!((dx[b * from + i] - exact).abs() < 1e-4, "dx[{b}, {i}]");
            }
        }
        for i in 0..from {
            for o in 0..to {
                let exact: f32 = (0..batch).map(|b| x[b * from + i] * dy[b * to + o]).sum();
                assert!((dw[i * to + o] - exact).abs() < 1e-4, "dw[{i}, {o}]");
            }
        }
    }
}
