//! The program `stagger`: the command line of the library, and the allocator.

use std::process::ExitCode;

/// mimalloc instead of the system allocator.
///
/// Buffers are often allocated by one thread and freed by another: by workers and the server on the CPU, by
/// workers and the thread that issues launches on a GPU. The system allocator takes a lock for this, and it
/// returns large blocks to the kernel, which then cost page faults again.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    stagger::cli::main()
}
