//! The command line: arguments, configuration, progress, output and exit codes.
//!
//! **Invariant:** results go to stdout, everything else to stderr; a process ends with a code of [`exit::ExitCode`] and no
//! other; no secret is ever printed ([`redact`] is the only place that shows a connection string).
//!
//! ```text
//! args  --\
//!          config (RawConfig -> Config) --> job --> commands --> output, progress
//! file  --/                                    \--> exit (Failure -> ExitCode)
//! ```
//!
//! A library beside the binary, so that documentation and tests are made from the same tables that the program runs on.
//!
//! **Not here:** moving data (`pipeline`), connecting (`wire`).

pub mod args;
pub mod commands;
pub mod config;
mod delta;
mod demo;
pub mod docs;
pub mod exit;
mod files;
pub mod job;
pub mod jobs;
pub mod log;
pub mod metrics;
mod migrate;
pub mod output;
pub mod progress;
pub mod redact;
mod repair;
mod report;
mod running;
mod selftest;
mod serve;
mod start;
mod verify;
mod waves;

pub use start::run;
