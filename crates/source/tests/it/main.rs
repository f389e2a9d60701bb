//! The source against real servers: catalog, selection, readiness, snapshots with and without a slot, chunks.
//!
//! **Invariant:** tests wait for states, never for time, and each has a database of its own.

mod catalog;
mod check;
mod chunks;
mod slot;
mod snapshot;
mod support;
