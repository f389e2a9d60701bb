//! Reads a PostgreSQL, either side: catalog, selection, readiness, snapshots, slots and publications, chunks.
//!
//! **Invariant:** nothing here writes to a user's table. What is made on a source (publication, slot) has the job's name and
//! is dropped again by the call that made it when that call fails, or by [`cleanup()`].
//!
//! ```text
//! read_catalog -> Selection::apply -> check          what is there, what is chosen, what stands in the way
//! Snapshot::take                                     locks, position, exported snapshot; with or without a slot
//! plan_chunks / key_bounds, leaf_bounds              ranges
//! Reader::open -> Reader::lock -> Reader::copy       rows of one chunk under the snapshot
//! check_continuation -> ReplicationStream -> Message   every change after it (stream)
//! ```
//!
//! **Not here:** sockets and framing (`wire`), what becomes of the rows (`sink`), which run does what (`pipeline`).

/// A reader waits this long for a lock if it was told nothing else. Behind an ALTER of the application that itself waits for
/// the snapshot's holder it would otherwise wait for ever, and the application with it (`hazards.md` A11).
pub(crate) const LOCK_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

mod address;
mod bounds;
mod catalog;
mod check;
mod chunks;
mod cleanup;
pub mod dump;
mod error;
mod filter;
mod reader;
pub mod schema;
mod selection;
mod snapshot;
mod sql;
mod stream;

pub use tidemark_model::names;

pub use address::{AddressOf, connect_refused, pooler_behind, pooler_that_refused};
pub use bounds::{key_bounds, leaf_bounds};
pub use catalog::{
    Catalog, CollationVersion, Definition, DefinitionKind, Definitions, Fires, Firing, Sequence,
    Server, read_catalog, read_collation_versions, read_definitions, read_firing, read_owned_ends,
    read_sequences, read_server,
};
pub use check::{Needs, check, check_age, slot_object};
pub use chunks::{copy_statement, estimated_bytes, even_chunk_bytes, parts_of, plan_chunks};
pub use cleanup::{Given, cleanup};
pub use error::{Disposition, Error, Result};
pub use filter::{RowFilters, check_filters, row_filters};
pub use reader::Reader;
pub use selection::Selection;
pub use snapshot::{
    AtPoint, Exported, Hook, Locked, SlotOptions, Snapshot, SnapshotOptions, check_given_slot,
    drop_publication, drop_slot, publish_for_join, refuse_existing, shapes, waiting_for_us,
};
#[doc(hidden)]
pub use stream::fuzz as fuzz_stream;
pub use stream::{
    CatchUp, CatchUpOptions, Decoded, Expected, Frame, Frames, Identity, Malformed, Message,
    PublicationState, Relations, ReplicationReader, ReplicationStream, ReplicationWriter, Round,
    RowKind, Saved, SlotState, StreamOptions, advance_slot, check_continuation, check_publication,
    emit_barrier, encode_relation, has_committed, head, identify, inspect_slot, retained_by_others,
};
