//! Measures which CubeK kernel is the fastest for each product on this device, and keeps the results in a
//! table.
//!
//! A run tunes only on request. The fastest kernel can change from one measurement to the next, and a
//! different kernel adds up in a different order. With the same table, the same kernels run, and the results
//! are the same bytes.

use super::routine::{Choice, Routine};
use burn_cubecl::tensor::CubeTensor;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

/// Launches per timing.
const LAUNCHES: usize = 10;
/// Timings per kernel. The shortest one counts.
const TIMINGS: usize = 3;

/// Maximum difference from the default kernel, relative to the largest value of the product. Kernels that
/// differ by more are not used. Some kernels round the factors to 11 bits.
const TOLERANCE: f32 = 0.01;

/// The name of the kernel for each product.
pub type Table = BTreeMap<String, String>;

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

/// Number of calls of [`begin`]. A thread discards the choices that it made before the last call.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Number of calls of [`begin`] so far.
pub(super) fn begun() -> u64 {
    BEGUN.load(Ordering::Acquire)
}

fn table() -> MutexGuard<'static, Option<Table>> {
    TABLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Starts to use the kernels of a table. A product that is not in the table is measured when it first occurs.
/// `None` stops tuning: products use the default kernel. Recorded steps keep their kernels.
pub fn begin(known: Option<Table>) {
    *table() = known;
    BEGUN.fetch_add(1, Ordering::Release);
}

/// The current table.
pub fn known() -> Option<Table> {
    table().clone()
}

/// The first name in the table that is not the name of a kernel, if there is one.
pub fn unknown_kernel(table: &Table) -> Option<&str> {
    table.values().map(String::as_str).find(|name| !Routine::ALL.iter().any(|r| r.name() == *name))
}

/// The kernel of a product from the table, measured if it is not there. `None` without a table.
pub(super) fn choose(lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> Option<Choice> {
    // The lock is held during a measurement, so that no product is measured twice. Most products first occur
    // in a warm-up, when nothing else uses the device.
    let mut table = table();
    let table = table.as_mut()?;
    let product = name(lhs, rhs);
    let known = table.get(&product).and_then(|name| Routine::ALL.into_iter().find(|r| r.name() == name));
    if let Some(choice) = known.and_then(|routine| Choice::with(routine, lhs, rhs, out)) {
        return Some(choice);
    }
    let fastest = measure(lhs, rhs, out)?;
    table.insert(product, fastest.routine.name().into());
    Some(fastest)
}

/// The key of a product, such as `f32 32768x27 * 27x32'`, where ' marks a transposed factor.
fn name(lhs: &CubeTensor, rhs: &CubeTensor) -> String {
    let factor = |tensor: &CubeTensor| {
        let sides: Vec<String> = tensor.meta.shape().iter().map(|n| n.to_string()).collect();
        let last = tensor.meta.strides().iter().next_back().copied();
        format!("{}{}", sides.join("x"), if last == Some(1) { "" } else { "'" })
    };
    format!("{} {} * {}", lhs.dtype.name(), factor(lhs), factor(rhs))
}

/// Measures all kernels and returns the fastest one that agrees with the default kernel.
fn measure(lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> Option<Choice> {
    let usual = Choice::usual(lhs, rhs, out)?;
    let result = |choice: &Choice| -> Option<Vec<f32>> {
        let run = || choice.run(lhs.clone(), rhs.clone(), out.clone());
        catch_unwind(AssertUnwindSafe(run)).ok()?;
        let bytes = out.client.read_one(out.handle.clone()).ok()?;
        Some(bytemuck::cast_slice(&bytes).to_vec())
    };
    let expected = result(&usual)?;
    let largest = expected.iter().filter(|x| x.is_finite()).fold(0f32, |m, x| m.max(x.abs()));
    let mut fastest: Option<(f64, Choice)> = None;
    for routine in Routine::ALL {
        let Some(choice) = Choice::with(routine, lhs, rhs, out) else { continue };
        let Some(found) = result(&choice) else { continue };
        // A value that is NaN in one result may be infinite in the other.
        let agree = |(a, b): (&f32, &f32)| !a.is_finite() || !b.is_finite() || (a - b).abs() <= TOLERANCE * largest;
        if !found.iter().zip(&expected).all(agree) {
            continue;
        }
        let Some(seconds) = seconds(&choice, lhs, rhs, out) else { continue };
        if fastest.as_ref().is_none_or(|(shortest, _)| seconds < *shortest) {
            fastest = Some((seconds, choice));
        }
    }
    // `out` now holds the result of the last measured kernel. The caller launches the chosen one afterwards.
    fastest.map(|(_, choice)| choice)
}

/// The shortest time of [`LAUNCHES`] launches, in seconds.
fn seconds(choice: &Choice, lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> Option<f64> {
    let wait = || cubecl::future::block_on(out.client.sync()).ok();
    let mut shortest = f64::INFINITY;
    for _ in 0..TIMINGS {
        wait()?;
        let began = Instant::now();
        (0..LAUNCHES).for_each(|_| choice.run(lhs.clone(), rhs.clone(), out.clone()));
        wait()?;
        shortest = shortest.min(began.elapsed().as_secs_f64());
    }
    Some(shortest)
}
