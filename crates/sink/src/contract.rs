//! The contract between the pipeline and a target.
//!
//! Order of calls, all by the pipeline:
//!
//! ```text
//! check*                       at any time, changes nothing
//! prepare                      once per run; removes what a killed run of the same job left, makes the schema
//!   begin_chunk -> accept* -> commit | abort        many at once, one writer each
//!   table_loaded               once per table, after the last of its chunks is committed; several at once
//!   table_whole                once per table, after that: what it has come to
//! finish                       once, after every table; what it returns Ok for is durable
//! stored, open_stream          the way on from there: the contract of [`crate::stream`]
//! forget                       instead of a run: tables of a job that follows are to join it anew
//! ```
//!
//! A run with [`SnapshotStart::joins`] brings single tables into a job that follows: the others stay as they are, and
//! `finish` makes the tables and where they joined durable together. Until then [`Sink::stored`] does not name them.
//! With [`Join::completes`] the job is a first snapshot that died: its whole tables stay, the others join. Of those that
//! [`Join::halves`] names, chunks may stay, too: between `prepare` and the first chunk comes for each of them
//!
//! ```text
//! kept_chunks -> take_out | begin_table_anew      what is there, and what becomes of it
//! ```
//!
//! - **Accepted** (`accept` returned `Ok`): the sink holds the rows and will refuse no later than at `commit`; nothing is
//!   visible to a reader of the target, nothing survives a crash.
//! - **Durable** (`commit` returned `Ok`): the chunk's rows and its marker are in the target exactly once, whatever dies
//!   afterwards, or the run as a whole is recognised as unfinished and starts again.
//! - **After an error** of `accept` or `commit` the writer is dead: call `abort` (or drop it). Whether the chunk is there
//!   is then asked by `begin_chunk` of the same chunk, which answers [`BeginChunk::AlreadyCommitted`] if the commit had
//!   gone through after all. An error with [`Disposition::Retry`](crate::Disposition) allows that; every other one ends
//!   the run.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemark_model::{
    ChunkId, ChunkResult, ChunkSpec, Finding, JoinPoint, Lsn, Oid, RelationName, Reservation,
    RowSum, SchemaObjects, TablePlan, TupleForm, Tuples,
};

use crate::stream::{OpenStream, Stored, StreamStart};
use crate::{Disposition, Error, Result};

/// What to do with a target that holds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotEmpty {
    /// Refuse the run.
    #[default]
    Refuse,
    /// Add our rows to those that are there; a lake refuses that.
    Append,
    /// Empty the chosen tables, or the lake, first.
    Truncate,
}

/// What a run begins with.
#[derive(Debug, Clone)]
pub struct SnapshotStart {
    /// The job's name.
    pub job: String,
    /// Which run of the job; a run that starts over has a new one.
    pub run: String,
    /// The exported snapshot, also for the schema dump.
    pub snapshot_id: String,
    /// The source's LSN that belongs to the snapshot: the consistent point where a slot was made, otherwise the insert
    /// position just before the snapshot was taken (everything committed before it is in).
    pub lsn: Lsn,
    /// The source's system identifier.
    pub system_identifier: u64,
    /// The source's database.
    pub database: String,
    /// The source's `server_version_num`.
    pub source_version: u32,
    /// Every table that will come.
    pub tables: Arc<Vec<TablePlan>>,
    /// Keys, indexes, foreign keys and sequences of these tables, for a target that has such things.
    pub schema: Arc<SchemaObjects>,
    /// The source's schema as a `pg_dump` custom-format archive, where the target is to be created from it.
    pub schema_archive: Option<PathBuf>,
    /// Tables that were not chosen, by their `pg_class` OID (of the source): they and what depends on them stay out.
    pub excluded: Arc<HashMap<Oid, RelationName>>,
    /// The partitioned tables above those of the job.
    pub above: Arc<Vec<(Oid, RelationName)>>,
    /// A stream continues from the snapshot: `finish` leaves the target at the stage `Follow`.
    pub continues: bool,
    /// The target has the rows already: no chunk comes, and what they say of each other need not be looked at again.
    pub adopts: bool,
    /// These tables join a job that follows already.
    pub joins: Option<Join>,
    /// What the definitions of `schema_archive` come to: two archives of equal digests make the same schema.
    pub schema_digest: Option<String>,
}

/// How tables join a job that follows.
#[derive(Debug, Clone)]
pub struct Join {
    /// The run that the job has on the target, which stays. The start's own run names what this join writes.
    pub run: String,
    /// Where they join.
    pub point: JoinPoint,
    /// Where the target stood before the tables were published. A target that has moved since is refused, where no lock keeps
    /// others from moving it: what ended in between may be missing in the tables' snapshot.
    pub position: Lsn,
    /// The tables that are followed already.
    pub followed: Vec<(RelationName, Oid)>,
    /// The partitioned tables above them, which may have to be created, too.
    pub above: Vec<(Oid, RelationName)>,
    /// The run is a first snapshot that died: these tables of it are whole, and `finish` ends it with those that join.
    pub completes: Option<Arc<Vec<TablePlan>>>,
    /// Tables that join of which the dead run's chunks may stay.
    pub halves: Vec<Oid>,
}

/// A chunk of an earlier run that has stayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptChunk {
    /// Its number in the plan of that run.
    pub chunk: ChunkId,
    /// Its rows.
    pub rows: u64,
}

/// Keys of rows that are to be taken out of a table.
#[derive(Debug, Clone)]
pub struct TouchedKeys {
    /// The columns that make up a key: of built-in types, whose equality is that of `pg_catalog`.
    pub columns: Vec<String>,
    /// How `rows` is written.
    pub form: TupleForm,
    /// The keys as rows of COPY, without header and end.
    pub rows: Bytes,
}

/// What came of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSummary {
    /// The table.
    pub relation: RelationName,
    /// Rows that left the source.
    pub rows_out: u64,
    /// Rows that the target took.
    pub rows_in: u64,
    /// Bytes as COPY wrote them.
    pub bytes: u64,
    /// Digest over all rows.
    pub sum: RowSum,
    /// Values replaced by policy, by column.
    pub replaced: Vec<(String, u64)>,
}

/// What a run ends with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSummary {
    /// The position of the snapshot.
    pub lsn: Lsn,
    /// Every table.
    pub tables: Vec<TableSummary>,
}

/// The answer to `begin_chunk`.
pub enum BeginChunk {
    /// Send rows.
    Write(Box<dyn ChunkWriter>),
    /// The marker of this very chunk and run is there: an earlier `commit` had gone through.
    AlreadyCommitted(Committed),
}

/// What a committed chunk holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// Rows that the target counted.
    pub rows: u64,
    /// Values that had no form in the target and were replaced by policy, by column name.
    pub replaced: Vec<(String, u64)>,
}

fn without_halves(relation: &RelationName) -> Error {
    let attempt = "go on with a half-copied table of a target that keeps none";
    Error::new(Disposition::Internal, attempt).on(relation)
}

/// A target.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Looks at the target and says what stands in the way of these tables. Changes nothing.
    async fn check(&self, tables: &[TablePlan]) -> Result<Vec<Finding>>;

    /// Makes the target ready for a run: takes what a killed run of this job left away, creates the schema where asked,
    /// records the job. Calling it again after an error is safe.
    async fn prepare(&self, start: &SnapshotStart) -> Result<()>;

    /// Begins one chunk. Many chunks are open at once, of one table or of several.
    async fn begin_chunk(&self, spec: &ChunkSpec) -> Result<BeginChunk>;

    /// The chunks of the run that died which `prepare` has left in a table of [`Join::halves`]; none of them can change any
    /// more. Nothing of a table without any is there.
    fn kept_chunks(&self, _relation: Oid) -> Vec<KeptChunk> {
        Vec::new()
    }

    /// Takes the rows with these keys out of a table whose chunks were kept, durably and with every commit before it. Gives
    /// the keys, each once, as the text of its values.
    ///
    /// # Errors
    /// The target cannot be reached, or another instance has the job: the rows are out or not, and the run is over.
    async fn take_out(
        &self,
        relation: &RelationName,
        _keys: TouchedKeys,
    ) -> Result<Vec<Vec<String>>> {
        Err(without_halves(relation))
    }

    /// Empties a table whose chunks were kept: it is copied anew.
    ///
    /// # Errors
    /// As of [`Sink::prepare`].
    async fn begin_table_anew(&self, relation: &RelationName) -> Result<()> {
        Err(without_halves(relation))
    }

    /// Says that every chunk of a table is committed: keys and indexes can be built, files closed.
    async fn table_loaded(&self, relation: &RelationName) -> Result<()>;

    /// Says what a table has come to that is loaded. From here on a run that goes on after a crash may find it whole; a target
    /// that notes that by itself needs no word.
    async fn table_whole(&self, summary: &TableSummary) -> Result<()> {
        let _ = summary;
        Ok(())
    }

    /// Ends the run. When it returns `Ok`, everything is durable and the target says so by itself.
    async fn finish(&self, summary: &SnapshotSummary) -> Result<()>;

    /// Where the target stands with this job; `None` where the job has never been. Changes nothing.
    async fn stored(&self) -> Result<Option<Stored>>;

    /// Refuses where another instance that lives has the job on the target. Moves nothing.
    ///
    /// # Errors
    /// [`Disposition::Held`](crate::Disposition).
    async fn refuse_if_held(&self) -> Result<()>;

    /// Notes that these tables of the job are to be emptied and to join anew with the next run. Gives those that it noted:
    /// the others the job does not have.
    ///
    /// # Errors
    /// Another instance has the job.
    async fn forget(&self, job: &str, tables: &[RelationName]) -> Result<Vec<RelationName>>;

    /// Gives back at once what a run holds on the target that has failed, whoever still holds the sink. The run is over.
    fn let_go(&self) {}

    /// Says that the stream has passed every join: all tables are as of one moment, and what could not be checked before can
    /// be now. May be called at any time after that, also while the stream goes on; repeating it is harmless.
    async fn settle(&self) -> Result<()> {
        Ok(())
    }

    /// Opens the target for the stream, and takes the job on it unless this run's snapshot has it already.
    ///
    /// # Errors
    /// The target does not hold a snapshot that a stream continues from, or belongs to another source.
    async fn open_stream(&self, start: &StreamStart) -> Result<OpenStream>;
}

/// One chunk on its way into a target.
#[async_trait]
pub trait ChunkWriter: Send {
    /// Takes rows over. The reservation is released once the bytes are no longer held. Returns when the sink is ready
    /// for more: this is the back-pressure.
    ///
    /// # Cancel safety
    /// None: a writer whose `accept` was dropped half-way must be aborted.
    async fn accept(&mut self, tuples: Tuples, reservation: Reservation) -> Result<()>;

    /// Makes the chunk durable together with its marker. `result` is what the source said: a different count is an error
    /// and nothing stays.
    async fn commit(self: Box<Self>, result: &ChunkResult) -> Result<Committed>;

    /// Takes everything of this chunk back.
    async fn abort(self: Box<Self>);
}
