//! The contract between the pipeline and a target while the source is followed.
//!
//! Order of calls, all by the pipeline:
//!
//! ```text
//! stored                       at any time, changes nothing: where the target stands, if the job has ever been there
//! open_stream                  once per run, after `finish` of a snapshot in this run or instead of one; takes the job
//!   accept* -> flush           batches in commit order; each end LSN above the one before it
//!   add_columns                between batches, before the first change that has the new columns
//!   advance                    between batches: the source has nothing for us up to there
//!   close                      drain, durable, give the job back
//! ```
//!
//! - **Accepted** (`accept` returned `Ok`): the target holds the batch and goes on with it; it may not be applied yet.
//! - **Applied**: a reader of the target sees it, with everything before it and nothing after it: a target commits after
//!   a batch whose `continues` is false, and moves all tables together.
//! - **Durable**: it survives whatever dies. The end LSN is stored in the same target transaction (or manifest commit) as
//!   the rows; only [`Flushed`] says so, and only sinks make one.
//! - **After an error** the writer is dead; what was not durable is as if it had never been sent. A new `open_stream`
//!   says where the target stands. An error with [`Disposition::Retry`](crate::Disposition) allows that in the same run.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tidemark_model::{Column, JoinPoint, Lsn, Oid, RelationName, StreamBatch, TablePlan};
use tokio::sync::watch;

use crate::Result;

/// What the stream begins with.
#[derive(Debug, Clone)]
pub struct StreamStart {
    /// The job's name.
    pub job: String,
    /// Which run of the job, as in the snapshot.
    pub run: String,
    /// The source's system identifier.
    pub system_identifier: u64,
    /// The source's timeline.
    pub timeline: u32,
    /// The source's database.
    pub database: String,
    /// The source's `server_version_num`.
    pub source_version: u32,
    /// Every table that is followed, as the source has it; changes name them by `relation.oid`. A table that the target has
    /// and that is not among them misses changes from here on: it must join anew.
    pub tables: Arc<Vec<TablePlan>>,
    /// Tables that the stream goes on without until the user gives them up; what is new among them is noted.
    pub stopped: Vec<StoppedTable>,
}

/// Where a target stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Which run wrote it.
    pub run: String,
    /// How far that run came.
    pub stage: StoredStage,
    /// Everything that committed on the source before it is there, once the stage is `Follow` or `Complete`.
    pub end_lsn: Lsn,
    /// The source's system identifier, as text because JSON's readers do not keep 64 bits.
    pub system_identifier: String,
    /// The source's database.
    pub database: String,
    /// The source's timeline when the stream was opened last; none before.
    pub timeline: Option<u32>,
    /// The tables that are whole, at the stage `Follow`, and of a snapshot that died those that were whole by then; none where
    /// the record does not tell.
    pub tables: Option<Vec<StoredTable>>,
    /// Where `tables` does not tell: the names of those that the job's snapshot copied, as far as the target knows them.
    #[serde(default)]
    pub copied: Option<Vec<RelationName>>,
    /// The tables that the stream goes on without.
    #[serde(default)]
    pub stopped: Vec<StoppedTable>,
    /// Counts the processes that have taken the job; none where the target keeps no such count.
    #[serde(default)]
    pub epoch: Option<i64>,
}

/// A table that the stream goes on without, since a change of its definition that could not be carried over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedTable {
    /// Its name.
    pub name: RelationName,
    /// What happened to it.
    pub because: String,
}

/// A table that a target has whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTable {
    /// Its name.
    pub name: RelationName,
    /// `pg_class.oid` on the source.
    pub oid: Oid,
    /// Where it joined the stream; none for tables of the job's first snapshot.
    pub join: Option<JoinPoint>,
}

/// How far the run came that a target knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoredStage {
    /// A snapshot is being made or was left unfinished.
    Snapshot,
    /// The snapshot is whole and a stream continues from it.
    Follow,
    /// The snapshot is whole and nothing continues from it (`--snapshot-only`).
    Complete,
}

/// The answer to `open_stream`.
pub struct OpenStream {
    /// What takes the batches.
    pub writer: Box<dyn StreamWriter>,
    /// The stored end LSN: transactions that end at or before it are not to be sent again.
    pub position: Lsn,
    /// The columns that the target has of each followed table, so that the pipeline knows which ones are new.
    pub columns: HashMap<RelationName, Vec<String>>,
    /// Whether parts of a transaction are taken whose end LSN is not known yet: their heads have a bound below it.
    pub takes_undecided: bool,
    /// The number that the target counts this session by, if it counts them: see [`Stored::epoch`].
    pub epoch: Option<i64>,
}

/// A position that a target has made durable: made by sinks and by the spool, after they have flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flushed(Lsn);

impl Flushed {
    /// States that everything up to `lsn` survives a crash of whatever holds it. To be called only where that was just
    /// answered by a disk, a server or an object store.
    pub fn up_to(lsn: Lsn) -> Self {
        Self(lsn)
    }

    /// The position.
    pub fn lsn(self) -> Lsn {
        self.0
    }
}

/// How far a writer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// Readers of the target see everything up to here.
    pub applied: Lsn,
    /// Everything up to here survives.
    pub durable: Flushed,
}

/// Takes the stream into a target.
#[async_trait]
pub trait StreamWriter: Send {
    /// Takes a batch over. Returns when the writer is ready for the next one: this is the back-pressure. The batch may
    /// be applied later; see [`StreamWriter::positions`].
    ///
    /// # Cancel safety
    /// None: a writer whose `accept` was dropped half-way must be dropped.
    async fn accept(&mut self, batch: StreamBatch) -> Result<()>;

    /// Waits until everything accepted is durable.
    ///
    /// # Errors
    /// An accepted batch could not be applied. Also when a part of a transaction was accepted and its end was not.
    async fn flush(&mut self) -> Result<Flushed>;

    /// Stores that the source has nothing for us up to `lsn`, once everything accepted is durable.
    async fn advance(&mut self, lsn: Lsn) -> Result<Flushed>;

    /// Adds columns to a table before the first change that has them. Repeating it is harmless.
    async fn add_columns(&mut self, relation: &RelationName, columns: &[NewColumn]) -> Result<()>;

    /// How far the writer is, without waiting.
    fn positions(&self) -> watch::Receiver<Positions>;

    /// Rows that were read, written or settled so far.
    fn counters(&self) -> StreamCounters;

    /// Flushes and gives the job back.
    async fn close(self: Box<Self>) -> Result<Flushed>;
}

/// A column that the source has got.
#[derive(Debug, Clone, PartialEq)]
pub struct NewColumn {
    /// As the source's catalog shows it.
    pub column: Column,
    /// Its constant default as SQL, if it has one.
    pub default: Option<String>,
}

/// What a writer has done since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamCounters {
    /// Source transactions applied.
    pub transactions: u64,
    /// Changes applied.
    pub changes: u64,
    /// Commits on the target.
    pub commits: u64,
    /// Batches that had to be applied in the exact order of the source.
    pub exact_order: u64,
    /// Batches that several lanes applied side by side.
    #[serde(default)]
    pub in_lanes: u64,
}
