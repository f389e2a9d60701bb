//! The binary: hands the arguments to the library and its exit code to the system.
//!
//! **Invariant:** nothing is decided here; see `tidemark::run`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidemark::run(std::env::args_os())
}
