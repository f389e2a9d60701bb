//! The local record of a job: its run, tables, chunks, leaves and journal, in one SQLite file of the state directory.
//!
//! **Invariant:** one process at a time writes (a lock held for the life of [`Ledger`]); others read while it does
//! ([`LedgerReader`]), a verification beside it writes what it has proven ([`Proofs`]) and a migration what it has done
//! ([`Journal`]), and nothing else. Each method is one transaction: after a crash the ledger holds all of it or nothing. There
//! are no rows of users in it, only names, counts and sums, and the keys at which tables are cut into leaves.
//!
//! The ledger is a hint. What the target's own markers say is the truth, so a ledger that is damaged is moved away, never
//! repaired.
//!
//! Beside that file are those of a delta ([`RowFiles`]): what is known of every row, as hashes.
//!
//! **Not here:** what follows from what is written here (`pipeline`), and how sums are made (`digest`). All calls block:
//! callers keep them off the threads that serve sockets.

mod beside;
mod directory;
mod error;
mod leaves;
mod lock;
mod reader;
mod record;
mod rows;
mod schema;
mod writer;

pub use beside::{Journal, note};
pub use error::Error;
pub use leaves::Proofs;
pub use reader::LedgerReader;
pub use record::{
    ChunkRecord, CopiedLeaves, CopyId, JournalEntry, LeafRecord, NewProof, NewRelation,
    ProofRecord, ProvenLeaf, RelationRecord, RunRecord, now_ms,
};
pub use rows::{KnownRow, KnownRows, NewRows, RowFiles};
pub use writer::Ledger;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
