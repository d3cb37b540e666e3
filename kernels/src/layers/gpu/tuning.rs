//! Which of the library's kernels is fastest for a product on this device: measured once, and known from then on.
//!
//! Not part of a run unless it is asked for: what is fastest depends on the minute, and another kernel adds up in another order. With
//! the same table of results the same kernels run, and the same bytes come out.

use super::routine::{Choice, Routine};
use burn_cubecl::tensor::CubeTensor;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

/// Launches between two readings of the clock, and readings of which the shortest counts.
const TOGETHER: usize = 10;
const READINGS: usize = 3;

/// Of the largest number of a product: kernels that differ by more are not taken. The factors of some are rounded to 11 bits.
const AGREE: f32 = 0.01;

/// Product by product the name of its kernel.
pub type Table = BTreeMap<String, String>;

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

/// How often [`begin`] was called: what a thread chose before counts no more.
static BEGUN: AtomicU64 = AtomicU64::new(0);

pub(super) fn begun() -> u64 {
    BEGUN.load(Ordering::Acquire)
}

fn table() -> MutexGuard<'static, Option<Table>> {
    TABLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// From now on kernels are those of the table, and products that it does not know are measured when they first occur; `None` leaves
/// the choice to the library. Recorded steps keep their kernels.
pub fn begin(known: Option<Table>) {
    *table() = known;
    BEGUN.fetch_add(1, Ordering::Release);
}

/// The table as it is now.
pub fn known() -> Option<Table> {
    table().clone()
}

/// Whether a table names nothing but kernels that there are; else the name of another.
pub fn unknown_kernel(table: &Table) -> Option<&str> {
    table.values().map(String::as_str).find(|name| !Routine::ALL.iter().any(|r| r.name() == *name))
}

/// The kernel for a product by the table, measured if need be; `None` without a table.
pub(super) fn choose(lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> Option<Choice> {
    // Held while it measures, so that nobody measures twice. Most products occur in warm-ups, where nobody else uses the device.
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

/// Such as `f32 32768x27 * 27x32'`, where ' is for a transposed factor.
fn name(lhs: &CubeTensor, rhs: &CubeTensor) -> String {
    let factor = |tensor: &CubeTensor| {
        let sides: Vec<String> = tensor.meta.shape().iter().map(|n| n.to_string()).collect();
        let last = tensor.meta.strides().iter().next_back().copied();
        format!("{}{}", sides.join("x"), if last == Some(1) { "" } else { "'" })
    };
    format!("{} {} * {}", lhs.dtype.name(), factor(lhs), factor(rhs))
}

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
        // What is not a number in one may be infinite in another.
        let agree = |(a, b): (&f32, &f32)| !a.is_finite() || !b.is_finite() || (a - b).abs() <= AGREE * largest;
        if !found.iter().zip(&expected).all(agree) {
            continue;
        }
        let Some(seconds) = seconds(&choice, lhs, rhs, out) else { continue };
        if fastest.as_ref().is_none_or(|(least, _)| seconds < *least) {
            fastest = Some((seconds, choice));
        }
    }
    // The place is left as a launch of the chosen one leaves it: its caller launches it again.
    fastest.map(|(_, choice)| choice)
}

fn seconds(choice: &Choice, lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> Option<f64> {
    let wait = || cubecl::future::block_on(out.client.sync()).ok();
    let mut least = f64::INFINITY;
    for _ in 0..READINGS {
        wait()?;
        let began = Instant::now();
        (0..TOGETHER).for_each(|_| choice.run(lhs.clone(), rhs.clone(), out.clone()));
        wait()?;
        least = least.min(began.elapsed().as_secs_f64());
    }
    Some(least)
}
