//! Writes a target: the [`Sink`] contract and the two that keep it, PostgreSQL and Parquet.
//!
//! **Invariant:** a chunk is in the target exactly once or not at all: its rows become visible together with its marker
//! (PostgreSQL: one transaction; Parquet: the manifest).
//!
//! **Not here:** reading the source (`source`), deciding what to move and in which order (`pipeline`).

mod contract;
mod error;
pub mod parquet;
#[doc(hidden)]
pub mod plant;
pub mod postgres;
mod stream;

pub use contract::{
    BeginChunk, ChunkWriter, Committed, Join, KeptChunk, NotEmpty, Sink, SnapshotStart,
    SnapshotSummary, TableSummary, TouchedKeys,
};
pub use error::{Disposition, Error, Result};
pub use stream::{
    Flushed, NewColumn, OpenStream, Positions, StoppedTable, Stored, StoredStage, StoredTable,
    StreamCounters, StreamStart, StreamWriter,
};
