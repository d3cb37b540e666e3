//! Matrix products by the library's kernels, each kernel chosen once.
//!
//! To choose a kernel takes the library longer than to launch it, and a step has the same products every time. So each thread keeps what
//! was chosen for its products: what the [`tuning`](super::tuning) knows to be fastest, or else what the library chooses unasked.

use super::routine::Choice;
use super::tuning;
use burn_cubecl::tensor::CubeTensor;
use std::cell::RefCell;
use std::rc::Rc;

thread_local! {
    /// Chosen since tuning last began. Few: a step has some eleven to sixty different products.
    static CHOICES: RefCell<(u64, Vec<Rc<Choice>>)> = const { RefCell::new((0, Vec::new())) };
}

/// The product of two matrices, or of two batches of them, written to `out`, which is contiguous. A factor may be transposed.
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

/// The measured kernel, or else what the library takes.
fn choose(lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> Choice {
    tuning::choose(lhs, rhs, out)
        .or_else(|| Choice::usual(lhs, rhs, out))
        .unwrap_or_else(|| panic!("no kernel for the product of {lhs:?} and {rhs:?}"))
}
