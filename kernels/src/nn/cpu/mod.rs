//! The layers as plain loops: the CPU path, and what the kernels are held against.

pub(super) mod conv;
pub(super) mod loss;
pub(super) mod norm;
pub(super) mod pool;
pub(crate) mod tile;

pub(crate) use tile::for_each_instruction_set;

use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};

type FreeList = (Sender<Vec<f32>>, Receiver<Vec<f32>>);

/// Buffers of one length that a thread keeps for its next step.
const KEPT: usize = 32;

thread_local! {
    /// This thread's free buffers, by length. A buffer that ends its life on another thread comes home through the channel.
    static FREE: RefCell<HashMap<usize, FreeList>> = RefCell::default();
}

/// Floats that go back to the thread that took them, so that a step allocates nothing once warm. Their first content is whatever
/// was left in them.
pub struct Scratch {
    floats: Vec<f32>,
    home: Sender<Vec<f32>>,
}

impl Scratch {
    /// `len` floats of any content.
    pub fn take(len: usize) -> Self {
        FREE.with_borrow_mut(|free| {
            let (home, kept) = free.entry(len).or_insert_with(|| bounded(KEPT));
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
        // A thread that has ended, or has enough, takes none back.
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

/// Seen as bytes, it can be the storage of a tensor.
impl AsRef<[u8]> for Scratch {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.floats)
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
