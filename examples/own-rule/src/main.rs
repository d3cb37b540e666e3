//! stagger with one rule more.

mod damped;

use std::process::ExitCode;

fn main() -> ExitCode {
    stagger::rule::register(&damped::ENTRY).expect("the name is free");
    stagger::cli::main()
}
