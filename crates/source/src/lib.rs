//! Reads a PostgreSQL, either side: catalog, selection, readiness, snapshots, slots and publications, chunks.
//!
//! **Invariant:** nothing here writes to a user's table. What is made on a source (publication, slot) has the job's name and
//! is dropped again by the call that made it when that call fails, or by [`cleanup()`].
//!
//! ```text
//! read_catalog -> Selection::apply -> check          what is there, what is chosen, what stands in the way
//! Snapshot::take                                     locks, position, exported snapshot; with or without a slot
//! plan_chunks / key_bounds, leaf_bounds              ranges
//! Reader::open -> Reader::copy                       rows of one chunk under the snapshot
//! ```
//!
//! **Not here:** sockets and framing (`wire`), what becomes of the rows (`sink`), which run does what (`pipeline`).

/// A reader or `pg_dump` waits this long for a lock at most. Behind an ALTER of the application that itself waits for the
/// snapshot's holder it would otherwise wait for ever, and the application with it (`hazards.md` A11).
pub(crate) const LOCK_WAIT_MS: u32 = 60_000;

mod bounds;
mod catalog;
mod check;
mod chunks;
mod cleanup;
pub mod dump;
mod error;
mod reader;
pub mod schema;
mod selection;
mod snapshot;
mod sql;

pub use tidemark_model::names;

pub use bounds::{key_bounds, leaf_bounds};
pub use catalog::{Catalog, Sequence, Server, read_catalog, read_sequences, read_server};
pub use check::{Needs, check};
pub use chunks::{copy_statement, estimated_bytes, parts_of, plan_chunks};
pub use cleanup::cleanup;
pub use error::{Disposition, Error, Result};
pub use reader::Reader;
pub use selection::Selection;
pub use snapshot::{Hook, SlotOptions, Snapshot, SnapshotOptions, drop_slot};
