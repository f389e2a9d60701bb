//! Runs one chunk: read under the snapshot, hash, write, commit.
//!
//! **Invariant:** a [`ChunkResult`] exists only after the source's CommandComplete, the sink's commit, and an equal count
//! on both sides. No rows outlive the call.

use std::sync::Arc;
use std::time::Instant;

use tidemark_digest::RowHasher;
use tidemark_model::{Budget, ChunkResult, ChunkSpec, Cpu, Reservation, Tuples};
use tidemark_sink::{BeginChunk, ChunkWriter, Committed, Sink};
use tidemark_source::Reader;

use crate::progress::TableProgress;
use crate::{Error, Kind, Result};

/// Bytes of rows handed over at a time: large enough that a hand-over costs nothing per row, small enough for the caches.
const BATCH_BYTES: usize = 1024 * 1024;

/// An error in the middle of a chunk, with the chunk's name.
fn read_error(spec: &ChunkSpec, cause: tidemark_wire::Error) -> Error {
    let state = cause.sqlstate().map(str::to_owned);
    let mut error = Error::from(cause);
    error.message = format!("read chunk {} of {}: {}", spec.chunk, spec.relation, error.message);
    explain(spec, state.as_deref(), error)
}

/// What a refusal of the source's server means. A statement that it refuses at once or half-way is most often the user's
/// filter: no SQL, or meeting a row that it was not made for.
fn explain(spec: &ChunkSpec, state: Option<&str>, mut error: Error) -> Error {
    let Some(state) = state else { return error };
    if state == "40001" {
        // A standby's replay ended the statement, perhaps the snapshot's holder with it: the next reader finds that out.
        error.is_transient = true;
        error.hint = Some(
            "set hot_standby_feedback = on and max_standby_streaming_delay = -1 on the standby, or copy from the primary".to_owned(),
        );
        return error;
    }
    if matches!(state, "22021" | "22P05") {
        error.kind = Kind::TargetRefused;
        error.hint = Some(
            "a text of this table is not valid in its encoding: mend the row, or leave the column or the table out".to_owned(),
        );
    } else if spec.filter.is_some()
        && state != "42501"
        && (state.starts_with("22") || state.starts_with("42"))
    {
        error.kind = Kind::Usage;
        error.hint = Some("mend the where of this [[table]]".to_owned());
    }
    error
}

/// What the chunks of one process share.
pub struct ChunkRunner {
    /// The target.
    pub sink: Arc<dyn Sink>,
    /// Bytes of rows on their way.
    pub budget: Budget,
    /// Hashing happens there.
    pub cpu: Cpu,
}

/// Copies one chunk. `hasher` is fresh, compiled for the chunk's columns and form; `reader` has imported the chunk's snapshot.
///
/// # Errors
/// With [`Error::is_transient`] the chunk may be run again (with a new reader if the source's connection was lost): what
/// this try wrote was taken back, or the next try finds its marker.
///
/// # Cancel safety
/// Dropping the future leaves nothing of the chunk on the target; the reader must be dropped with it.
pub async fn run_chunk(
    runner: &ChunkRunner,
    reader: &mut Reader,
    spec: &ChunkSpec,
    hasher: RowHasher,
) -> Result<ChunkResult> {
    Attempt { runner, spec, table: None, rows: 0, bytes: 0 }.run(reader, hasher, &mut None).await
}

/// One try at one chunk.
pub(super) struct Attempt<'a> {
    pub(super) runner: &'a ChunkRunner,
    pub(super) spec: &'a ChunkSpec,
    pub(super) table: Option<&'a TableProgress>,
    /// What this try has counted into the progress so far.
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl Attempt<'_> {
    /// `uncertain` carries the counts of an earlier try whose commit got no answer.
    pub(super) async fn run(
        &mut self,
        reader: &mut Reader,
        hasher: RowHasher,
        uncertain: &mut Option<ChunkResult>,
    ) -> Result<ChunkResult> {
        let started = Instant::now();
        let mut writer = match self.runner.sink.begin_chunk(self.spec).await? {
            BeginChunk::Write(writer) => {
                if let (Some(lost), Some(table)) = (uncertain.take(), self.table) {
                    table.take_back(lost.rows_out, lost.bytes);
                }
                writer
            }
            BeginChunk::AlreadyCommitted(committed) => {
                return self.settle(uncertain.take(), committed);
            }
        };
        let copied = self.copy(reader, hasher, writer.as_mut()).await;
        let mut result = match copied {
            Ok(result) => result,
            Err(error) => {
                writer.abort().await;
                return Err(error);
            }
        };
        *uncertain = Some(result.clone());
        let committed = writer.commit(&result).await?;
        *uncertain = None;
        result.rows_in = committed.rows;
        result.replaced = committed.replaced;
        result.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.counts_agree(result)
    }

    async fn copy(
        &mut self,
        reader: &mut Reader,
        mut hasher: RowHasher,
        writer: &mut dyn ChunkWriter,
    ) -> Result<ChunkResult> {
        let mut copy = reader.copy(self.spec).await.map_err(|cause| {
            let state = cause.sqlstate().map(str::to_owned);
            explain(self.spec, state.as_deref(), Error::from(cause))
        })?;
        let budget = &self.runner.budget;
        let lost = |cause| read_error(self.spec, cause);
        let mut next = copy.next(BATCH_BYTES, budget).await.map_err(lost)?;
        while let Some((tuples, reservation)) = next {
            // The next batch is read while this one is hashed and written.
            let read = async { copy.next(BATCH_BYTES, budget).await.map_err(lost) };
            let write = self.write(hasher, tuples, reservation, writer);
            (next, hasher) = tokio::try_join!(read, write)?;
        }
        let rows_out = copy.rows().unwrap_or_default();
        let (sum, leaves) = hasher.finish();
        if sum.count != rows_out {
            let message = format!(
                "read chunk {} of {}: the server announced {rows_out} rows, {} arrived",
                self.spec.chunk, self.spec.relation, sum.count
            );
            return Err(Error::new(Kind::Internal, message));
        }
        Ok(ChunkResult {
            relation_oid: self.spec.relation_oid,
            chunk: self.spec.chunk,
            rows_out,
            rows_in: 0,
            bytes: self.bytes,
            sum,
            leaves,
            replaced: Vec::new(),
            duration_ms: 0,
        })
    }

    async fn write(
        &mut self,
        mut hasher: RowHasher,
        tuples: Tuples,
        reservation: Reservation,
        writer: &mut dyn ChunkWriter,
    ) -> Result<RowHasher> {
        let (rows, bytes) = (tuples.row_count() as u64, tuples.data.len() as u64);
        hasher = self.hash(hasher, &tuples).await?;
        writer.accept(tuples, reservation).await?;
        self.rows += rows;
        self.bytes += bytes;
        if let Some(table) = self.table {
            table.add(rows, bytes);
        }
        Ok(hasher)
    }

    async fn hash(&self, mut hasher: RowHasher, tuples: &Tuples) -> Result<RowHasher> {
        let tuples = tuples.clone();
        let hashed = self.runner.cpu.run(move || hasher.add(&tuples).map(|()| hasher)).await;
        hashed.map_err(|cause| {
            let message =
                format!("hash the rows of chunk {} of {}", self.spec.chunk, self.spec.relation);
            Error::new(Kind::Internal, message).because(cause)
        })
    }

    /// An earlier try's commit had gone through although its answer was lost.
    fn settle(&self, earlier: Option<ChunkResult>, committed: Committed) -> Result<ChunkResult> {
        let Some(mut result) = earlier else {
            let message = format!(
                "copy chunk {} of {}: the target says that it holds this chunk already, this run never wrote it",
                self.spec.chunk, self.spec.relation
            );
            return Err(Error::new(Kind::Internal, message));
        };
        result.rows_in = committed.rows;
        result.replaced = committed.replaced;
        self.counts_agree(result)
    }

    fn counts_agree(&self, result: ChunkResult) -> Result<ChunkResult> {
        if result.rows_in == result.rows_out {
            return Ok(result);
        }
        let message = format!(
            "copy chunk {} of {}: {} rows left the source, the target took {}",
            self.spec.chunk, self.spec.relation, result.rows_out, result.rows_in
        );
        Err(Error::new(Kind::Internal, message))
    }
}
