//! Matrix products with CubeK's kernels. The kernel of a product is chosen once.
//!
//! Planning a kernel takes longer than launching it, and every step has the same products. So each thread
//! keeps the kernels of its products: the fastest ones according to [`tuning`](super::tuning), or else the
//! default ones.

use super::routine::Choice;
use super::tuning;
use burn_cubecl::tensor::CubeTensor;
use std::cell::RefCell;
use std::rc::Rc;

thread_local! {
    /// The choices since the last call of [`tuning::begin`], and the number of that call. A list is enough: a
    /// step has about eleven to sixty different products.
    static CHOICES: RefCell<(u64, Vec<Rc<Choice>>)> = const { RefCell::new((0, Vec::new())) };
}

/// Writes the product of two matrices, or of two batches of matrices, to `out`, which is contiguous. A factor
/// may be transposed.
pub(super) fn product(lhs: CubeTensor, rhs: CubeTensor, out: CubeTensor) {
    let known = CHOICES.with_borrow_mut(|(begun, all)| {
        if *begun != tuning::begun() {
            (*begun, *all) = (tuning::begun(), Vec::new());
        }
        all.iter().find(|choice| choice.fits(&lhs, &rhs, &out)).cloned()
    });
    let choice = known.unwrap_or_else(|| {
        let choice = Rc::new(choose(&lhs, &rhs, &out));
        CHOICES.with_borrow_mut(|(_, all)| all.push(choice.clone()));
        choice
    });
    choice.run(lhs, rhs, out);
}

/// The measured kernel, or else the default one.
fn choose(lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> Choice {
    tuning::choose(lhs, rhs, out)
        .or_else(|| Choice::usual(lhs, rhs, out))
        .unwrap_or_else(|| panic!("no kernel for the product of {lhs:?} and {rhs:?}"))
}
