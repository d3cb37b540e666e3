//! Code that several rules share.

pub(super) mod draw;
pub(super) mod shared;
pub(super) mod without;
pub(super) mod workers;
