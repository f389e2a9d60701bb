//! The sinks against real targets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a test that is left out says so")]

mod conformance;
mod parquet;
mod postgres;
