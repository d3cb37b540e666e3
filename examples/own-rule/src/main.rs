//! stagger with one additional rule.

mod damped;

use std::process::ExitCode;

fn main() -> ExitCode {
    stagger::rule::register(&damped::ENTRY).expect("the name is free");
    stagger::cli::main()
}
