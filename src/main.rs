//! Parses the arguments, calls `cli`, and turns the result into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    snug::cli::run(std::env::args_os())
}
