//! The sinks against real targets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a test that is left out says so")]

#[path = "../../../columnar/tests/it/catalog.rs"]
mod catalog;
mod conformance;
#[expect(dead_code, reason = "the decoder's own tests use all of it")]
#[path = "../../../columnar/tests/it/copy.rs"]
mod copy;
mod parquet;
mod postgres;
mod stream_postgres;
#[path = "../../../columnar/tests/it/values.rs"]
mod values;
