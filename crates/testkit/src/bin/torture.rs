//! `scripts/torture`: see the module `torture` of this crate.
//!
//! **Invariant:** exit code 0 only when every run was good (or every planted defect was caught), 1 when one was not, 2
//! when the campaign itself could not be run.

use std::io::{Write as _, stderr, stdout};
use std::process::ExitCode;

use tidemark_testkit::torture::{Campaign, parse};

fn main() -> ExitCode {
    let ended = parse(std::env::args().skip(1))
        .and_then(|options| Campaign::new(options).run(&mut stdout()));
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(cause) => {
            // Nobody is left to tell when this cannot be written.
            writeln!(stderr(), "error: {cause:#}").ok();
            ExitCode::from(2)
        }
    }
}
