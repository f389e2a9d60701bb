//! What the ledger holds, as types.
//!
//! **Invariant:** times are milliseconds since 1970 in UTC; a time that is not there has not come.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tidemark_model::{ChunkId, Lsn, Oid, RelationName, RowSum};

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
    /// The leaf bounds as JSON.
    pub leaf_bounds: String,
    /// What its raw sums are taken over, as `digest` names it.
    pub raw_scheme: String,
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
