//! The program: one place that prints errors, one place that exits.

use std::process::ExitCode;

fn main() -> ExitCode {
    match stagger::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stagger: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
