//! What the ledger holds, as types.
//!
//! **Invariant:** times are milliseconds since 1970 in UTC; a time that is not there has not come.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tidemark_model::{ChunkId, LeafSum, Lsn, Oid, RelationName, RowSum};

/// One run of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The job.
    pub job: String,
    /// Which run of the job; a run that starts over has a new one.
    pub run: String,
    /// Where it is: the phases of `status`.
    pub phase: String,
    /// The source's system identifier.
    pub system_identifier: u64,
    /// The source's database.
    pub database: String,
    /// The source's `server_version_num`.
    pub server_version: u32,
    /// The LSN that belongs to the snapshot.
    pub snapshot_lsn: Lsn,
    /// The digest key in hexadecimal: two sides are compared under the same key only.
    pub digest_key: String,
    /// The version of the canonical form that the sums are over.
    pub canonical_version: u32,
    /// When it began.
    pub started_at_ms: i64,
    /// When it was done.
    pub finished_at_ms: Option<i64>,
    /// What stopped it last.
    pub last_error: Option<String>,
}

/// A relation that a run will move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRelation {
    /// OID on the source.
    pub oid: Oid,
    /// Its name.
    pub name: RelationName,
    /// Number of its chunks.
    pub chunks_total: u32,
    /// How it is cut into leaves, as JSON.
    pub leaf_bounds: String,
    /// What its raw sums are taken over, as `digest` names it; empty where they are of a part of its rows.
    pub raw_scheme: String,
    /// Its file and its columns when it was copied: rows of another shape compare with nothing. Empty where it is not known.
    pub shape: String,
    /// Rows that are expected.
    pub estimated_rows: u64,
    /// Bytes that are expected.
    pub estimated_bytes: u64,
}

/// A relation of a run and what is done of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelationRecord {
    /// What was planned.
    pub plan: NewRelation,
    /// Chunks that are done.
    pub chunks_done: u32,
    /// Rows that left the source, of the chunks that are done.
    pub rows_out: u64,
    /// Rows that the target took.
    pub rows_in: u64,
    /// Bytes as COPY wrote them.
    pub bytes: u64,
    /// The sum of the chunks that are done.
    pub sum: RowSum,
    /// Values without a form in the target that were replaced, by column, in the order of names.
    pub replaced: Vec<(String, u64)>,
    /// Whether everything of it is in, keys and indexes included.
    pub is_finished: bool,
}

/// What is known of the leaves of a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafRecord {
    /// Which copy of which relation.
    pub copy: CopyId,
    /// Its name.
    pub name: RelationName,
    /// How it is cut, as JSON.
    pub leaf_bounds: String,
    /// The sums of its rows as they were copied; none where not all of it was.
    pub copied: Option<CopiedLeaves>,
    /// What verifications have found the same on both sides.
    pub proof: Option<ProofRecord>,
    /// The leaves that the stream has touched since the copy: after which position at the latest.
    pub touched: HashMap<u32, Lsn>,
}

impl LeafRecord {
    /// Whether the stream has left a leaf alone since it stood at that position; of none, since the copy.
    pub fn is_untouched(&self, leaf: u32, since: Option<Lsn>) -> bool {
        let mark = self.touched.get(&leaf);
        mark.is_none_or(|after| since.is_some_and(|since| *after < since))
    }
}

/// A copy of a relation: what is known of its leaves is void when it is copied again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CopyId {
    /// OID on the source.
    pub oid: Oid,
    pub(crate) generation: i64,
}

/// Sums of the source's rows at the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedLeaves {
    /// See [`NewRelation::raw_scheme`].
    pub raw_scheme: String,
    /// See [`NewRelation::shape`].
    pub shape: String,
    /// Of the leaves that have rows.
    pub leaves: Vec<LeafSum>,
}

/// What verifications have found the same on both sides of a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofRecord {
    /// What the sums are taken over; those of another one compare with nothing.
    pub scheme: String,
    /// Position and time of the last verification that called the whole table the same.
    pub last: Option<(Lsn, i64)>,
    /// The leaves, each with the position at which both sides had this sum.
    pub leaves: Vec<ProvenLeaf>,
}

/// A leaf that was the same on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProvenLeaf {
    /// At this position.
    pub lsn: Lsn,
    /// With this sum.
    pub sum: LeafSum,
}

/// What a verification has found out about a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewProof {
    /// The copy whose leaves were read.
    pub copy: CopyId,
    /// What the sums are taken over.
    pub scheme: String,
    /// The leaves that are the same; of all others nothing is known any more.
    pub leaves: Vec<ProvenLeaf>,
    /// Where the whole table is the same: at which position.
    pub whole: Option<Lsn>,
}

/// A chunk that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRecord {
    /// Number within the relation.
    pub chunk: ChunkId,
    /// Rows that left the source.
    pub rows_out: u64,
    /// Rows that the target took.
    pub rows_in: u64,
    /// Bytes as COPY wrote them.
    pub bytes: u64,
    /// The sum of its rows.
    pub sum: RowSum,
    /// How long it took.
    pub duration_ms: u64,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// When.
    pub at_ms: i64,
    /// In which run, if there was one.
    pub run: Option<String>,
    /// What, as a short stable name.
    pub event: String,
    /// More, as JSON.
    pub detail: serde_json::Value,
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
