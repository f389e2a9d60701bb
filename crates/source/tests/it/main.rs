//! The source against real servers: catalog, selection, readiness, snapshots with and without a slot, chunks.
//!
//! **Invariant:** tests wait for states, never for time, and each has a database of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod catalog;
mod check;
mod chunks;
mod joining;
mod slot;
mod snapshot;
mod stream;
mod stream_catch_up;
mod stream_golden;
mod stream_peers;
mod stream_refusals;
mod stream_render;
mod stream_scenario;
mod stream_support;
mod support;
