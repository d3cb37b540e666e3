//! The program: the library's command line, and the allocator that suits it.

use std::process::ExitCode;

/// Tensors are made by one thread and freed by another all the time: by workers and the server on the CPU, by workers and
/// the thread that issues launches on a GPU. The system's allocator takes a lock for that, and gives large blocks back to
/// the kernel only to fault them in again.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    stagger::cli::main()
}
