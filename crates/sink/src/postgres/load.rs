//! Writes chunks: COPY and marker in one transaction.
//!
//! **Invariant:** COPY's own row count equals what the source's CommandComplete said, and the marker commits with the
//! rows; a connection that saw an error is never used again.
//!
//! PostgreSQL manual: COPY ("Binary Format", FREEZE), section 55.2.6 (COPY protocol).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures::SinkExt as _;
use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{
    ChunkId, ChunkRange, ChunkResult, ChunkSpec, Oid, Reservation, TupleForm, Tuples,
};
use tidemark_wire::{Client, tokio_postgres};
use tokio_postgres::CopyInSink;
use tokio_postgres::error::SqlState;

use super::session::{Pool, Purpose, Sessions, row_hint, server_error, wait_for_end};
use super::{PostgresOptions, SchemaMode};
use crate::{ChunkWriter, Committed, Disposition, Error, NotEmpty, Result, SnapshotStart};

/// COPY BINARY's signature, flags and empty header extension.
pub(super) const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// COPY BINARY's end: a field count of -1.
pub(super) const TRAILER: &[u8] = &[0xff, 0xff];
/// Size of one CopyData message: large enough to cost nothing per message, small enough that the buffers behind the
/// socket stay small even when a row is not.
pub(super) const MESSAGE_BYTES: usize = 256 * 1024;

/// Which record of the job says that a chunk may commit.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    /// The job's run.
    pub(super) run: String,
    /// How often the record was taken over: one process and the next may have the same run.
    pub(super) epoch: i64,
}

/// What the chunks of one run share.
#[derive(Clone)]
pub(super) struct Loader {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Pool,
    job: String,
    run: String,
    owner: Owner,
    /// Whether a table of one chunk may be truncated and frozen: nobody else can have rows in it, no key points at it.
    may_freeze: bool,
    /// Chunks whose commit was asked for, with the backend that was asked: only their markers can be there.
    asked: Mutex<HashMap<(Oid, ChunkId), i32>>,
}

impl Loader {
    pub(super) fn new(
        options: &PostgresOptions,
        sessions: &Sessions,
        start: &SnapshotStart,
        mode: SchemaMode,
        owner: Owner,
    ) -> Self {
        let may_freeze = mode == SchemaMode::Create
            && options.not_empty != NotEmpty::Append
            && start.joins.is_none();
        let inner = Inner {
            pool: Pool::new(sessions, Purpose::Load),
            job: options.job.clone(),
            run: start.run.clone(),
            owner,
            may_freeze,
            asked: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Rows of the chunk if its marker is there.
    pub(super) async fn committed(&self, spec: &ChunkSpec) -> Result<Option<u64>> {
        let asked = self.asked().get(&(spec.relation_oid, spec.chunk)).copied();
        let Some(backend) = asked else { return Ok(None) };
        let client = self.inner.pool.take().await?;
        // A lost connection does not end its backend at once: the commit may still be on its way.
        wait_for_end(&client, backend, &self.inner.job).await?;
        let row = client
            .query_opt(
                "SELECT rows FROM tidemark.chunk WHERE job = $1 AND run = $2 AND relation_oid = $3 AND chunk = $4",
                &[&self.inner.job, &self.inner.run, &spec.relation_oid, &i64::from(spec.chunk)],
            )
            .await
            .map_err(|cause| server_error("look for the marker of a chunk", Some(&spec.relation), cause))?;
        self.inner.pool.give_back(client);
        Ok(row.map(|row| row.get::<_, i64>(0) as u64))
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<(Oid, ChunkId), i32>> {
        self.inner.asked.lock().expect("no holder of this lock panics")
    }

    /// A writer that takes its connection when the first row comes.
    pub(super) fn writer(&self, spec: &ChunkSpec) -> PostgresChunk {
        PostgresChunk {
            loader: self.clone(),
            freeze: self.inner.may_freeze && spec.range == ChunkRange::Whole,
            spec: spec.clone(),
            copying: None,
        }
    }
}

/// One chunk on its way.
pub(super) struct PostgresChunk {
    loader: Loader,
    spec: ChunkSpec,
    freeze: bool,
    copying: Option<Copying>,
}

struct Copying {
    client: Client,
    copy: Pin<Box<CopyInSink<Bytes>>>,
}

impl PostgresChunk {
    fn error(&self, attempt: &str, cause: tokio_postgres::Error) -> Error {
        let hint = row_hint(
            &cause,
            "mend the target's table or the row on the source, then run the same command again",
        );
        let error = server_error(
            format!("{attempt}, chunk {}", self.spec.chunk),
            Some(&self.spec.relation),
            cause,
        );
        match error.disposition {
            Disposition::Refused => error.hint(hint),
            _ => error,
        }
    }

    fn commit_error(&self, cause: tokio_postgres::Error) -> Error {
        if cause.code() != Some(&SqlState::DIVISION_BY_ZERO) {
            return self.error("commit", cause);
        }
        Error::new(
            Disposition::Held,
            format!("commit chunk {}: another run has taken the job over", self.spec.chunk),
        )
        .on(&self.spec.relation)
        .hint("one of the two runs must end; tidemark status shows which one is at work")
    }

    async fn copying(&mut self) -> Result<&mut Copying> {
        if self.copying.is_none() {
            let client = self.loader.inner.pool.take().await?;
            let begin = match self.freeze {
                true => format!("BEGIN; TRUNCATE ONLY {}", self.spec.relation),
                false => "BEGIN".to_owned(),
            };
            client
                .batch_execute(&begin)
                .await
                .map_err(|cause| self.error("begin to load", cause))?;
            let statement = copy_in_statement(&self.spec, self.freeze);
            let copy = client
                .copy_in::<_, Bytes>(&statement)
                .await
                .map_err(|cause| self.error("begin to load", cause))?;
            let mut copy = Box::pin(copy);
            if self.spec.form == TupleForm::PgBinary {
                let header = copy.feed(Bytes::from_static(SIGNATURE)).await;
                header.map_err(|cause| self.error("begin to load", cause))?;
            }
            self.copying = Some(Copying { client, copy });
        }
        Ok(self.copying.as_mut().expect("it was set just above"))
    }
}

#[async_trait]
impl ChunkWriter for PostgresChunk {
    async fn accept(&mut self, tuples: Tuples, reservation: Reservation) -> Result<()> {
        let mut rest = tuples.data.clone();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(MESSAGE_BYTES));
            let fed = self.copying().await?.copy.feed(piece).await;
            if let Err(cause) = fed {
                return Err(self.error("load rows", cause));
            }
        }
        // Held until the next batch comes, it could be what the reading of that batch waits for.
        drop(reservation);
        Ok(())
    }

    async fn commit(mut self: Box<Self>, result: &ChunkResult) -> Result<Committed> {
        let (client, rows, begin) = match self.copying.take() {
            None => (self.loader.inner.pool.take().await?, 0, "BEGIN;"),
            Some(mut copying) => {
                if self.spec.form == TupleForm::PgBinary {
                    let fed = copying.copy.feed(Bytes::from_static(TRAILER)).await;
                    fed.map_err(|cause| self.error("load rows", cause))?;
                }
                let rows = copying.copy.as_mut().finish().await;
                (copying.client, rows.map_err(|cause| self.error("load rows", cause))?, "")
            }
        };
        if rows != result.rows_out {
            return Err(Error::new(
                Disposition::Internal,
                format!(
                    "commit chunk {}: the source sent {} rows, the target took {rows}",
                    self.spec.chunk, result.rows_out
                ),
            )
            .on(&self.spec.relation));
        }
        self.loader.asked().insert((self.spec.relation_oid, self.spec.chunk), client.backend_pid());
        let marker = marker_statement(&self.loader.inner, &self.spec, rows, result);
        client
            .batch_execute(&format!("{begin} {marker}; COMMIT"))
            .await
            .map_err(|cause| self.commit_error(cause))?;
        self.loader.inner.pool.give_back(client);
        Ok(Committed { rows, replaced: Vec::new() })
    }

    async fn abort(self: Box<Self>) {
        // Dropping the connection in the middle of COPY makes the server roll the transaction back.
        drop(self);
    }
}

/// One statement text for marker and commit: one round trip, no plan to prepare. Where another run has taken the job over
/// there is no row to lock and the division ends the transaction: a run that was stopped and goes on cannot add its rows.
fn marker_statement(inner: &Inner, spec: &ChunkSpec, rows: u64, result: &ChunkResult) -> String {
    format!(
        "WITH owner AS (SELECT FROM tidemark.progress WHERE job = {job} AND wave = '' AND run = {owner} AND epoch = {epoch} FOR KEY SHARE) \
         INSERT INTO tidemark.chunk (job, run, relation_oid, chunk, rows, digest_raw, xid) \
         SELECT {job}, {run}, {}, {}, {rows} / (SELECT count(*) FROM owner), '{:032x}', pg_current_xact_id()::text::int8",
        spec.relation_oid,
        spec.chunk,
        result.sum.raw,
        job = Literal(&inner.job),
        run = Literal(&inner.run),
        owner = Literal(&inner.owner.run),
        epoch = inner.owner.epoch,
    )
}

fn copy_in_statement(spec: &ChunkSpec, freeze: bool) -> String {
    let names: Vec<String> =
        spec.columns.iter().map(|column| Ident(&column.name).to_string()).collect();
    // A table without columns takes no column list at all.
    let list = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    let format = match spec.form {
        TupleForm::PgBinary => "binary",
        TupleForm::PgText => "text",
    };
    let freeze = if freeze { ", FREEZE" } else { "" };
    format!("COPY {}{list} FROM STDIN (FORMAT {format}{freeze})", spec.relation)
}
