//! SIGINT and SIGTERM. The first signal ends the run at its next arrival; the second ends the process at once.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the process has received a signal to stop.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Installs the signal handler. May be called more than once.
pub fn catch_signals() {
    let handler = || {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        note!("stagger: stopping after the current arrival; send the signal again to stop at once");
    };
    // An error means that a handler is already installed.
    let _ = ctrlc::set_handler(handler);
}
