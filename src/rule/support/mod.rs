//! What several rules share.

pub(super) mod crowd;
pub(super) mod draw;
pub(super) mod shared;
pub(super) mod without;
