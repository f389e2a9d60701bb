//! The local task engine: one queue of chunks, readers that take from it, keys built as soon as a table is in.
//!
//! **Invariant:** the queue is in planning order (largest table first); a table is told to be loaded exactly once, after
//! the last of its chunks is in the ledger. The first error stops everything; nothing is detached.
//!
//! A later engine runs [`run_chunk`](super::run_chunk) elsewhere; plan, ledger and chunk know nothing of this one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemark_digest::{DigestColumn, DigestKey, Forms, LeafBounds, RowHasher};
use tidemark_ledger::Ledger;
use tidemark_model::{ChunkResult, ChunkSpec, Oid, TablePlan, TupleForm};
use tidemark_source::Reader;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::chunk::{Attempt, ChunkRunner};
use super::readers::ReaderOptions;
use super::report::table_report;
use crate::progress::Progress;
use crate::{Error, Kind, Result};

/// How often a chunk is tried while the snapshot's holder lives.
const ATTEMPTS: u32 = 6;
/// Wait before the second try; doubles, with jitter.
const BACKOFF: Duration = Duration::from_millis(200);

/// Everything that the workers of one run share.
pub(super) struct Engine {
    pub(super) runner: ChunkRunner,
    pub(super) readers: ReaderOptions,
    /// Those that have their locks and no work yet.
    pub(super) idle: Mutex<Vec<Reader>>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) progress: Arc<Progress>,
    pub(super) tables: HashMap<Oid, TableWork>,
    pub(super) key: DigestKey,
    pub(super) forms: Forms,
    pub(super) queue: Mutex<VecDeque<ChunkSpec>>,
    pub(super) done: Mutex<HashMap<Oid, Vec<ChunkResult>>>,
    pub(super) stop: CancellationToken,
}

/// What a worker must know of a table.
pub(super) struct TableWork {
    pub(super) plan: TablePlan,
    pub(super) leaves: LeafBounds,
}

impl Engine {
    /// Copies every chunk with `readers` connections and finishes every table.
    pub(super) async fn run(self: &Arc<Self>, readers: usize) -> Result<()> {
        let mut workers = JoinSet::new();
        for _ in 0..readers.max(1) {
            workers.spawn(Arc::clone(self).work());
        }
        join_all(&mut workers, &self.stop).await
    }

    /// One reader: chunks until none is left, then the keys of the tables that it finished.
    async fn work(self: Arc<Self>) -> Result<()> {
        let mut builds: JoinSet<Result<()>> = JoinSet::new();
        let mut reader = self.idle.lock().expect("no holder panics").pop();
        while let Some(spec) = self.next_chunk() {
            let finished = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::interrupted()),
                finished = self.chunk(&mut reader, &spec) => finished?,
            };
            if finished {
                builds.spawn(Arc::clone(&self).finish_table(spec.relation_oid));
            }
            while let Some(built) = builds.try_join_next() {
                built.map_err(panicked)??;
            }
        }
        drop(reader);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::interrupted()),
                built = builds.join_next() => match built {
                    None => return Ok(()),
                    Some(built) => built.map_err(panicked)??,
                },
            }
        }
    }

    fn next_chunk(&self) -> Option<ChunkSpec> {
        self.queue.lock().expect("no holder panics").pop_front()
    }

    /// Copies one chunk, trying again while only a connection was lost. Returns whether it was its table's last.
    async fn chunk(&self, reader: &mut Option<Reader>, spec: &ChunkSpec) -> Result<bool> {
        let progress = self.progress.table(spec.relation_oid);
        let mut uncertain = None;
        let mut attempt_number = 1;
        let result = loop {
            let mut attempt = Attempt {
                runner: &self.runner,
                spec,
                table: progress.as_deref(),
                rows: 0,
                bytes: 0,
            };
            if let Some(table) = &progress {
                table.copying();
            }
            let error = match self.attempt(&mut attempt, reader, &mut uncertain).await {
                Ok(result) => break result,
                Err(error) => error,
            };
            *reader = None;
            if let (Some(table), true) = (&progress, uncertain.is_none()) {
                table.take_back(attempt.rows, attempt.bytes);
            }
            if !error.is_transient || error.lost_snapshot || attempt_number == ATTEMPTS {
                return Err(error);
            }
            tracing::warn!(
                relation = %spec.relation, chunk = spec.chunk, attempt = attempt_number, %error,
                "a connection was lost; the chunk is copied again"
            );
            tokio::time::sleep(backoff(attempt_number)).await;
            attempt_number += 1;
        };
        self.record(result).await
    }

    async fn attempt(
        &self,
        attempt: &mut Attempt<'_>,
        reader: &mut Option<Reader>,
        uncertain: &mut Option<ChunkResult>,
    ) -> Result<ChunkResult> {
        let work = &self.tables[&attempt.spec.relation_oid];
        let hasher = hasher(&work.plan, self.forms, &self.key, work.leaves.clone())?;
        let reader = match reader {
            Some(reader) => reader,
            None => reader.insert(self.readers.open().await?),
        };
        attempt.run(reader, hasher, uncertain).await
    }

    async fn record(&self, result: ChunkResult) -> Result<bool> {
        let oid = result.relation_oid;
        let ledger = Arc::clone(&self.ledger);
        let for_ledger = result.clone();
        blocking(move || ledger.record_chunk(&for_ledger)).await??;
        self.done.lock().expect("no holder panics").entry(oid).or_default().push(result);
        Ok(self.progress.table(oid).is_some_and(|table| table.chunk_done()))
    }

    async fn finish_table(self: Arc<Self>, oid: Oid) -> Result<()> {
        let progress = self.progress.table(oid);
        if let Some(table) = &progress {
            table.building();
        }
        let plan = &self.tables[&oid].plan;
        self.runner.sink.table_loaded(&plan.relation.name).await?;
        let summary = {
            let done = self.done.lock().expect("no holder panics");
            table_report(plan, done.get(&oid).map_or(&[], Vec::as_slice)).summary
        };
        self.runner.sink.table_whole(&summary).await?;
        let ledger = Arc::clone(&self.ledger);
        blocking(move || ledger.finish_relation(oid)).await??;
        if let Some(table) = &progress {
            table.done();
        }
        Ok(())
    }
}

/// A hasher for a table's rows; rows that travel as text have a raw form only.
pub(super) fn hasher(
    plan: &TablePlan,
    forms: Forms,
    key: &DigestKey,
    leaves: LeafBounds,
) -> Result<RowHasher> {
    let columns: Vec<DigestColumn<'_>> = (plan.columns.iter())
        .zip(&plan.select)
        .map(|(column, select)| DigestColumn { column, wire: select.wire })
        .collect();
    let forms = match plan.form {
        TupleForm::PgBinary => forms,
        TupleForm::PgText => Forms::Raw,
    };
    RowHasher::compile(&columns, plan.form, forms, key, leaves).map_err(|cause| {
        let message = format!("prepare to hash the rows of {}", plan.relation.name);
        Error::new(Kind::Internal, message).because(cause)
    })
}

/// Joins all; the first error stops the others and is the one returned.
async fn join_all(workers: &mut JoinSet<Result<()>>, stop: &CancellationToken) -> Result<()> {
    let mut first = None;
    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended.map_err(panicked).flatten() {
            // Workers that stop because of the first error say that they were interrupted: that is not the cause.
            if first.is_none() {
                first = Some(error);
            }
            stop.cancel();
        }
    }
    first.map_or(Ok(()), Err)
}

fn panicked(error: tokio::task::JoinError) -> Error {
    if error.is_cancelled() {
        return Error::interrupted();
    }
    Error::new(Kind::Internal, "run a task: it panicked").because(error)
}

/// Runs what waits for files off the threads that serve sockets.
///
/// # Errors
/// It panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(panicked)
}

/// Doubles from [`BACKOFF`] up to a few seconds, spread by the clock's lowest digits so that readers do not come in step.
fn backoff(attempt: u32) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    let jitter = 0.75 + f64::from(nanos % 1000) / 2000.0;
    (BACKOFF * 2_u32.pow(attempt.min(5) - 1)).mul_f64(jitter)
}
