//! The layers as plain loops: the CPU path, and what the kernels are held against.

pub(super) mod conv;
pub(super) mod loss;
pub(super) mod norm;
pub(super) mod pool;
mod tile;

use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

thread_local! {
    /// Buffers that this thread's next scratch is made of.
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Floats that are needed for a moment. They go back to the thread that drops them, so a step allocates nothing once warm.
pub struct Scratch(Vec<f32>);

impl Scratch {
    /// `len` floats of any content.
    pub fn take(len: usize) -> Self {
        // The smallest that is large enough, else the largest: it grows.
        let found = FREE.with_borrow_mut(|free| {
            let best = (0..free.len()).min_by_key(|&i| match free[i].capacity() {
                enough if enough >= len => enough,
                small => usize::MAX - small,
            });
            best.map(|i| free.swap_remove(i))
        });
        let mut floats = found.unwrap_or_default();
        floats.resize(len, 0.0);
        Scratch(floats)
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
        // A thread that ends has no list any more.
        let _ = FREE.try_with(|free| free.borrow_mut().push(std::mem::take(&mut self.0)));
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
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
