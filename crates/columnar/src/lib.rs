//! PostgreSQL's COPY BINARY tuples to Arrow record batches.
//!
//! **Invariant:** a value either arrives exactly as PostgreSQL holds it, or it is refused, or it is replaced by declared
//! policy and counted. Nothing wraps, rounds or is guessed; every length that comes from the wire is checked before it is used.
//!
//! ```text
//! Column --map_column--> Mapping: Arrow field + how the column is selected + shape of its bytes
//! Mapping* --compile--> Program --decoder--> Decoder
//! Tuples --append--> [split a block of rows into slots] -> [column by column: one tight loop per type] --finish--> RecordBatch
//! ```
//!
//! A *slot* is where one value lies in the batch (start and length, or NULL). Arrays, composites and ranges are split into
//! slots of their parts in the same way, so that every loop over values is flat and knows its type.
//!
//! **Not here:** sockets and COPY's messages (`wire`), Parquet (`sink`), hashing (`digest`).
//!
//! PostgreSQL manual: COPY, "Binary Format"; the binary forms of values are those of the types' send functions.

mod buffer;
mod error;
mod mapping;
mod numeric;
mod program;
mod shape;
mod slot;
mod text;

pub use error::{Error, Result};
pub use mapping::{Mapping, map_column};
pub use program::{Decoder, Program};
