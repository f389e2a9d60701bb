//! The words of the design as types; no I/O.
//!
//! **Invariant:** nothing here opens a file, a socket or a clock; every crate may depend on this one and it depends on
//! none of ours. A position is always an [`Lsn`], an identifier that goes into SQL is always an [`sql::Ident`], a secret
//! is always a [`Secret`].
//!
//! **Not here:** how a catalog is read (`source`), how a connection is described (`wire`), how a row is hashed (`digest`).

mod budget;
mod change;
mod chunk;
mod cpu;
mod finding;
mod lsn;
pub mod names;
mod plan;
mod read_snapshot;
mod relation;
mod schema;
mod secret;
pub mod sql;
mod tuples;

pub use budget::{Budget, Reservation};
pub use change::{
    Cell, Cells, Change, MalformedTuple, OldRow, Operation, StreamBatch, StreamColumn,
    StreamRelation, Transaction, TransactionHead, TupleData,
};
pub use chunk::{ChunkId, ChunkRange, ChunkResult, ChunkSpec, LeafSum, RowSum, SelectColumn, Wire};
pub use cpu::Cpu;
pub use finding::{CODES, Code, Finding, Severity, Side};
pub use lsn::{Lsn, ParseLsnError};
pub use plan::{TablePlan, Unrepresentable};
pub use read_snapshot::{JoinPoint, MalformedSnapshot, ReadSnapshot};
pub use relation::{
    Column, DataType, Generated, Identity, Index, Key, Persistence, Relation, RelationKind,
    RelationName, ReplicaIdentity, TypeKind,
};
pub use schema::{
    ConstraintDef, ConstraintKind, ForeignKey, IndexDef, PartitionedIndex, SchemaObjects,
    SequencePosition,
};
pub use secret::Secret;
pub use tuples::{TupleForm, Tuples};

/// PostgreSQL's object identifier: unique inside one database, meaningless outside it.
pub type Oid = u32;
