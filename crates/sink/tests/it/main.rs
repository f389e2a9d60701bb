//! The sinks against real targets.

mod conformance;
mod parquet;
mod postgres;
