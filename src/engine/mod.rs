//! The engine: the loop over arrivals, and everything that it talks to.

pub mod checkpoint;
pub mod clock;
pub mod executor;
pub mod gate;
pub mod job;
pub mod server;
mod slot;
pub mod state;
pub mod timeline;
pub mod worker;
pub mod worker_pool;
