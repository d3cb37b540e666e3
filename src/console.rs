//! Lines on standard output and standard error.
//!
//! While the dashboard owns the terminal, lines for standard error are held and printed afterwards.

use crate::error::{Error, Result};
use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

/// Prints a line on standard output. If the reader is gone (`stagger train | head`, a closed terminal), the
/// line is lost and the program continues.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// Prints a line on standard error, or holds it while the dashboard owns the terminal.
macro_rules! note {
    ($($text:tt)*) => {
        $crate::console::note(format_args!($($text)*))
    };
}

/// Lines held until the dashboard releases the terminal; `None` while there is no dashboard.
static HELD: Mutex<Option<Vec<String>>> = Mutex::new(None);

/// Prints a line on standard error, or holds it. Use `note!`.
pub fn note(line: Arguments) {
    match &mut *HELD.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(held) => held.push(line.to_string()),
        None => _ = writeln!(std::io::stderr(), "{line}"),
    }
}

/// Holds all following lines, including the messages of panics.
pub fn hold() {
    *HELD.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    std::panic::set_hook(Box::new(|panic| note!("{panic}")));
}

/// Prints the held lines and stops holding lines.
pub fn release() {
    let held = HELD.lock().unwrap_or_else(PoisonError::into_inner).take();
    held.into_iter().flatten().for_each(|line| note!("{line}"));
}

/// Prints a whole text on standard output. A reader that has closed the pipe (`stagger rules | head`) is not an
/// error.
pub fn print(text: &[u8]) -> Result<()> {
    match std::io::stdout().write_all(text) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|e| Error::failed(format!("cannot print: {e}"))),
    }
}
