//! Tables of which a first snapshot that died has left whole chunks.
//!
//! **Invariant:** the chunks of a table stay only where nothing but the run that made its record has ever written to it, its
//! rows are in the WAL as their markers are, and no chunk of that run can commit any more. What is taken out is out,
//! durably, before the first chunk of the run that goes on is begun; the mark that the table is whole comes after both.
//!
//! A process that dies in between leaves the table `joining`: the next one empties it.
//!
//! `docs/adr/2026-11-21-a-half-copied-table-goes-on.md` proves it.

use std::collections::{HashMap, HashSet};
use std::pin::pin;

use bytes::Bytes;
use futures::SinkExt as _;
use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{ChunkId, Oid, RelationName, TupleForm};
use tidemark_wire::Client;

use super::control::Control;
use super::join::{empty, note};
use super::load::{MESSAGE_BYTES, Owner, SIGNATURE, TRAILER};
use super::record::held;
use super::session::{Pool, server_error};
use crate::{Error, KeptChunk, Result, SnapshotStart, TouchedKeys};

/// The chunks that have stayed, by table.
pub(super) type Kept = HashMap<Oid, Vec<KeptChunk>>;

/// What of these tables the run that died has left: of those that no other run has written to. To be called by the process
/// that has taken the record over, before it notes what becomes of the tables.
pub(super) async fn left(client: &Client, start: &SnapshotStart, run: &str) -> Result<Kept> {
    let Some(join) = start.joins.as_ref().filter(|join| !join.halves.is_empty()) else {
        return Ok(Kept::new());
    };
    // A table that was to join once has a state.
    let rows = client
        .query(
            "SELECT c.relation_oid, c.chunk, c.rows FROM tidemark.chunk c WHERE c.job = $1 AND c.run = $2 \
               AND c.relation_oid = ANY ($3) \
               AND NOT EXISTS (SELECT FROM tidemark.chunk o WHERE o.job = $1 AND o.run <> $2 AND o.relation_oid = c.relation_oid)",
            &[&start.job, &run, &join.halves],
        )
        .await
        .map_err(|cause| server_error("read which chunks the target has", None, cause))?;
    let untouched = untouched(client, &start.job).await?;
    let is_ours = |oid: Oid| {
        let mut plans = start.tables.iter();
        plans.any(|plan| plan.relation.oid == oid && untouched.contains(&plan.relation.name))
    };
    let mut kept = Kept::new();
    for row in rows {
        let oid: Oid = row.get(0);
        let chunk = ChunkId::try_from(row.get::<_, i64>(1)).ok();
        if let (Some(chunk), true) = (chunk, is_ours(oid)) {
            let rows = row.get::<_, i64>(2) as u64;
            kept.entry(oid).or_default().push(KeptChunk { chunk, rows });
        }
    }
    Ok(kept)
}

/// The tables that were never to join. A crash of the target empties an unlogged one and leaves the markers.
async fn untouched(client: &Client, job: &str) -> Result<HashSet<RelationName>> {
    let rows = client
        .query(
            "SELECT r.schema_name, r.relation_name FROM tidemark.relation r \
             JOIN pg_namespace n ON n.nspname = r.schema_name \
             JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = r.relation_name \
             WHERE r.job = $1 AND r.state IS NULL AND c.relpersistence = 'p'",
            &[&job],
        )
        .await
        .map_err(|cause| server_error("read the states of the job's tables", None, cause))?;
    let name = |row: &tidemark_wire::tokio_postgres::Row| {
        RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1))
    };
    Ok(rows.iter().map(name).collect())
}

/// Takes rows out by their keys, in one transaction that waits for the disk. Gives the keys, each once.
pub(super) async fn take_out(
    pool: &Pool,
    (job, owner): (&str, &Owner),
    relation: &RelationName,
    keys: TouchedKeys,
) -> Result<Vec<Vec<String>>> {
    let attempt = "take out the rows that changed since they were copied";
    let failed = |cause| server_error(attempt, Some(relation), cause);
    let client = pool.take().await?;
    let columns: Vec<String> = keys.columns.iter().map(|name| Ident(name).to_string()).collect();
    let list = columns.join(", ");
    let begin = format!(
        "BEGIN; SET LOCAL synchronous_commit = on; \
         CREATE TEMPORARY TABLE tidemark_touched ON COMMIT DROP AS SELECT {list} FROM ONLY {relation} WITH NO DATA"
    );
    client.batch_execute(&begin).await.map_err(failed)?;
    load(&client, &list, &keys).await.map_err(failed)?;
    let own = format!(
        "SELECT FROM tidemark.progress WHERE job = {} AND wave = '' AND run = {} AND epoch = {} FOR KEY SHARE",
        Literal(job),
        Literal(&owner.run),
        owner.epoch
    );
    if client.query(&own, &[]).await.map_err(failed)?.is_empty() {
        return Err(held(job).on(relation));
    }
    let equal: Vec<String> =
        columns.iter().map(|name| format!("t.{name} OPERATOR(pg_catalog.=) k.{name}")).collect();
    let delete = format!(
        "ANALYZE pg_temp.tidemark_touched; \
         DELETE FROM ONLY {relation} t USING pg_temp.tidemark_touched k WHERE {}",
        equal.join(" AND ")
    );
    client.batch_execute(&delete).await.map_err(failed)?;
    let texts: Vec<String> =
        columns.iter().map(|name| format!("{name}::pg_catalog.text")).collect();
    let read = format!(
        "SELECT {} FROM (SELECT DISTINCT {list} FROM pg_temp.tidemark_touched) k",
        texts.join(", ")
    );
    let rows = client.query(&read, &[]).await.map_err(failed)?;
    let key = |row: &tidemark_wire::tokio_postgres::Row| {
        (0..columns.len()).map(|index| row.try_get(index)).collect::<Result<Vec<String>, _>>()
    };
    let taken = rows.iter().map(key).collect::<Result<_, _>>().map_err(failed)?;
    client.batch_execute("COMMIT").await.map_err(failed)?;
    pool.give_back(client);
    Ok(taken)
}

/// Loads the keys into the temporary table.
async fn load(
    client: &Client,
    list: &str,
    keys: &TouchedKeys,
) -> Result<(), tidemark_wire::tokio_postgres::Error> {
    let (format, is_binary) = match keys.form {
        TupleForm::PgBinary => ("binary", true),
        TupleForm::PgText => ("text", false),
    };
    let statement = format!("COPY pg_temp.tidemark_touched ({list}) FROM STDIN (FORMAT {format})");
    let mut copy = pin!(client.copy_in::<_, Bytes>(&statement).await?);
    if is_binary {
        copy.feed(Bytes::from_static(SIGNATURE)).await?;
    }
    let mut rest = keys.rows.clone();
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(MESSAGE_BYTES));
        copy.feed(piece).await?;
    }
    if is_binary {
        copy.feed(Bytes::from_static(TRAILER)).await?;
    }
    copy.finish().await.map(drop)
}

/// Empties a table whose chunks had stayed.
pub(super) async fn begin_anew(
    control: &Control,
    start: &SnapshotStart,
    relation: &RelationName,
) -> Result<()> {
    let plan = start.tables.iter().find(|plan| plan.relation.name == *relation);
    let plan = plan.ok_or_else(|| {
        Error::new(crate::Disposition::Internal, "empty a table that does not join").on(relation)
    })?;
    let plans = std::slice::from_ref(plan);
    note(control.client(), start, plans, Some("joining")).await?;
    empty(control.client(), plans).await
}
