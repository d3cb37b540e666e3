//! SIGINT and SIGTERM: the first one ends a run at its next arrival, the second one ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a signal has asked the process to stop.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Installs the signal handler. May be called more than once.
pub fn catch_signals() {
    let handler = || {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        note!("stagger: stopping after the arrival in hand; again to stop at once");
    };
    // An error means that the handler is installed already.
    let _ = ctrlc::set_handler(handler);
}
