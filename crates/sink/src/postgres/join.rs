//! Single tables of a job that follows: which ones are whole, and how others join.
//!
//! **Invariant:** `tidemark.relation.state` says `joined` of exactly those tables that have every change up to the job's
//! position, but for the transactions that their `read_snapshot` does not show; it is written with the last of the rows
//! durable before it. A table that the stream goes on without is `left` before its first change is passed over.
//!
//! ```text
//! (new) ---> making ------> joined ---> left       making    we create it: dropped when the join begins again
//!     \----> joining ---/     |          |         joining   it was there, empty or ours: emptied when the join begins
//!                ^----------- reset <----/         reset     the user gave it up: emptied, joins
//! ```
//! A `joined` table may also become `stopped` (`stream.ddl = "stop-table"`): as `left`, but with the position that it stands
//! at and the reason, and it does not join by itself: `reset` lets it.
//!
//! A table that is neither ours to make nor ours to empty is refused as long as it has rows. The run of the job stays the
//! same; the record's epoch tells one process from the next, so that chunks of one that was taken over cannot commit.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tidemark_model::sql::Ident;
use tidemark_model::{JoinPoint, Lsn, Oid, Persistence, ReadSnapshot, RelationName, TablePlan};
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres::{self, error::SqlState};

use super::control::{Control, take_the_job};
use super::load::Owner;
use super::record::{WITH_OWNER, held};
use super::session::{Sessions, may_replicate, server_error};
use super::{PostgresOptions, SchemaMode};
use crate::{
    Disposition, Error, Join, Result, SnapshotStart, StoppedTable, StoredTable, StreamStart,
};

/// What [`begin`] has decided.
pub(super) struct Joining {
    /// Relations that are to be created, by their OID on the source.
    pub(super) to_make: HashSet<Oid>,
    /// Whose chunks may commit.
    pub(super) owner: Owner,
}

/// Names and OIDs as columns of a statement.
pub(super) fn columns(plans: &[TablePlan]) -> (Vec<&str>, Vec<&str>, Vec<Oid>) {
    let mut columns = (Vec::new(), Vec::new(), Vec::new());
    for plan in plans {
        columns.0.push(plan.relation.name.schema.as_str());
        columns.1.push(plan.relation.name.name.as_str());
        columns.2.push(plan.relation.oid);
    }
    columns
}

/// What a table of a first snapshot becomes: the stream goes on without an unlogged one, of which no WAL is written.
pub(super) fn state_after(plan: &TablePlan) -> &'static str {
    if plan.relation.persistence == Persistence::Unlogged { "left" } else { "joined" }
}

/// The tables of a state, `joined` or, of a snapshot that died, `whole`; `None` where a version wrote the record that did not tell them apart.
pub(super) async fn whole(
    client: &Client,
    job: &str,
    state: &str,
) -> Result<Option<Vec<StoredTable>>> {
    let attempt = "read which tables the target has whole";
    let rows = client
        .query(
            "SELECT r.schema_name, r.relation_name, (j ->> 'relation_oid')::oid, j ->> 'state', \
               j ->> 'read_snapshot', j ->> 'joined_lsn', (j ->> 'joined_timeline')::int8 \
             FROM tidemark.relation r, LATERAL (SELECT to_jsonb(r) AS j) x \
             WHERE r.job = $1 AND j ->> 'state' IS NOT NULL",
            &[&job],
        )
        .await
        .map_err(|cause| server_error(attempt, None, cause))?;
    if rows.is_empty() {
        return Ok(None);
    }
    let mut tables = Vec::with_capacity(rows.len());
    for row in rows.iter().filter(|row| row.get::<_, &str>(3) == state) {
        let name = RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        let malformed = || Error::new(Disposition::Internal, attempt).on(&name);
        let join = match (row.get::<_, Option<&str>>(4), row.get::<_, Option<&str>>(5)) {
            (None, _) => None,
            (Some(snapshot), lsn) => {
                let snapshot: ReadSnapshot =
                    snapshot.parse().map_err(|cause| malformed().because(cause))?;
                let lsn: Lsn = lsn.and_then(|lsn| lsn.parse().ok()).ok_or_else(malformed)?;
                let timeline = row.get::<_, Option<i64>>(6);
                let timeline = timeline.and_then(|timeline| u32::try_from(timeline).ok());
                Some(JoinPoint { snapshot, lsn, timeline })
            }
        };
        let oid = row.get::<_, Option<Oid>>(2).ok_or_else(malformed)?;
        tables.push(StoredTable { name, oid, join });
    }
    Ok(Some(tables))
}

/// The tables that the stream goes on without, and why.
pub(super) async fn stopped(client: &Client, job: &str) -> Result<Vec<StoppedTable>> {
    let rows = client
        .query(
            "SELECT schema_name, relation_name, coalesce(j ->> 'stopped_because', '') \
             FROM tidemark.relation r, LATERAL (SELECT to_jsonb(r) AS j) x \
             WHERE r.job = $1 AND j ->> 'state' = 'stopped' ORDER BY 1, 2",
            &[&job],
        )
        .await
        .map_err(|cause| server_error("read which tables are stopped", None, cause))?;
    let table = |row: &tokio_postgres::Row| StoppedTable {
        name: RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
        because: row.get(2),
    };
    Ok(rows.iter().map(table).collect())
}

/// Notes which tables stand still from the stored position on.
async fn stop(client: &Client, start: &StreamStart) -> Result<()> {
    for table in &start.stopped {
        client
            .execute(
                "UPDATE tidemark.relation r SET state = 'stopped', stopped_lsn = p.end_lsn, stopped_because = $4 \
                 FROM tidemark.progress p WHERE p.job = $1 AND p.wave = '' AND r.job = $1 \
                   AND r.schema_name = $2 AND r.relation_name = $3 AND r.state = 'joined'",
                &[&start.job, &table.name.schema, &table.name.name, &table.because],
            )
            .await
            .map_err(|cause| server_error("note that a table is stopped", Some(&table.name), cause))?;
    }
    Ok(())
}

/// Notes that the stream goes on without the tables that it does not follow: from here on they miss changes.
pub(super) async fn leave_others(client: &Client, start: &StreamStart) -> Result<()> {
    let (schemas, names, oids) = columns(&start.tables);
    let attempt = |cause| server_error("note which tables are not followed any more", None, cause);
    // A record of a version that did not tell them apart.
    client
        .execute(
            "UPDATE tidemark.relation r SET state = 'joined', relation_oid = t.o \
             FROM unnest($2::text[], $3::text[], $4::oid[]) AS t(s, n, o) \
             WHERE r.job = $1 AND r.state IS NULL AND r.schema_name = t.s AND r.relation_name = t.n",
            &[&start.job, &schemas, &names, &oids],
        )
        .await
        .map_err(attempt)?;
    stop(client, start).await?;
    client
        .execute(
            "UPDATE tidemark.relation r SET state = 'left' WHERE job = $1 AND state = 'joined' \
             AND NOT EXISTS (SELECT FROM unnest($2::text[], $3::text[]) AS t(s, n) \
                             WHERE t.s = r.schema_name AND t.n = r.relation_name)",
            &[&start.job, &schemas, &names],
        )
        .await
        .map_err(attempt)?;
    Ok(())
}

/// Decides what becomes of each table, notes it, and empties or drops what an earlier attempt left.
pub(super) async fn begin(
    control: &Control,
    options: &PostgresOptions,
    start: &SnapshotStart,
    join: &Join,
) -> Result<Joining> {
    let client = control.client();
    let owner = claim(client, &start.job, join).await?;
    let states = states(client, &start.job).await?;
    let names = start.tables.iter().map(|plan| &plan.relation.name);
    let there = present(client, names.chain(join.above.iter().map(|(_, name)| name))).await?;
    let mut to_make: HashSet<Oid> =
        join.above.iter().filter(|(_, name)| !there.contains(name)).map(|(oid, _)| *oid).collect();
    let (mut making, mut joining) = (Vec::new(), Vec::new());
    for plan in start.tables.iter() {
        let name = &plan.relation.name;
        let state = states.get(name).map_or("", String::as_str);
        match (there.contains(name), state) {
            (false, _) if options.schema == SchemaMode::Exists => return Err(missing(name)),
            (false, _) => making.push(plan.clone()),
            (true, "making") if options.schema == SchemaMode::Create => making.push(plan.clone()),
            (true, "joining" | "making" | "reset") => joining.push(plan.clone()),
            (true, _) => {
                refuse_rows(client, name, &reset_hint(name)).await?;
                joining.push(plan.clone());
            }
        }
    }
    super::check::matching_or_refuse(client, &joining).await?;
    to_make.extend(making.iter().map(|plan| plan.relation.oid));
    note(client, start, &making, Some("making")).await?;
    note(client, start, &joining, Some("joining")).await?;
    for plan in making.iter().filter(|plan| there.contains(&plan.relation.name)) {
        let name = &plan.relation.name;
        let dropped = client.batch_execute(&format!("DROP TABLE {name} CASCADE")).await;
        dropped.map_err(|cause| {
            server_error("drop what an earlier attempt to join left", Some(name), cause)
        })?;
    }
    empty(client, &joining).await?;
    Ok(Joining { to_make, owner })
}

/// A new partition cannot be attached while the default partition has rows of it: where they have gone on the source the
/// stream has not been yet. Names the default partitions that stay as they are.
pub(super) async fn with_default_partitions(
    client: &Client,
    start: &SnapshotStart,
    join: &Join,
    error: Error,
) -> Error {
    let above = join.above.iter().map(|(_, name)| (name.schema.as_str(), name.name.as_str()));
    let (schemas, names): (Vec<&str>, Vec<&str>) = above.unzip();
    let found = client
        .query(
            "SELECT dn.nspname, d.relname FROM unnest($1::text[], $2::text[]) AS t(s, n) \
             JOIN pg_namespace pn ON pn.nspname = t.s JOIN pg_class c ON c.relnamespace = pn.oid AND c.relname = t.n \
             JOIN pg_partitioned_table p ON p.partrelid = c.oid \
             JOIN pg_class d ON d.oid = p.partdefid JOIN pg_namespace dn ON dn.oid = d.relnamespace ORDER BY 1, 2",
            &[&schemas, &names],
        )
        .await
        .unwrap_or_default();
    let name =
        |row: &tokio_postgres::Row| RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
    let is_joining =
        |name: &RelationName| start.tables.iter().any(|plan| plan.relation.name == *name);
    let stays = found.iter().map(name).filter(|name| !is_joining(name));
    let stays: Vec<String> = stays.map(|name| name.plain()).collect();
    if stays.is_empty() || error.disposition != Disposition::Refused {
        return error;
    }
    let more = error.hint.clone().unwrap_or_default();
    error.hint(format!(
        "if a new partition takes rows out of a default partition, that one has to join with it: tidemark reset {} --yes, then run the same command again; otherwise: {more}",
        stays.join(" ")
    ))
}

fn missing(name: &RelationName) -> Error {
    Error::new(Disposition::Usage, "let a table join the job: it is not there on the target")
        .on(name)
        .hint(
            "create it there, or set target.schema = \"create\", or leave it out (select.exclude)",
        )
}

/// Takes the job's record for the tables that join: chunks of a process that had it before cannot commit any more.
async fn claim(client: &Client, job: &str, join: &Join) -> Result<Owner> {
    let row = client
        .query_opt(
            &format!(
                "{WITH_OWNER} UPDATE tidemark.progress SET epoch = epoch + 1, heartbeat = clock_timestamp() \
                 WHERE job = $1 AND wave = '' AND run = $2 AND phase = 'follow' AND EXISTS (SELECT FROM owner) RETURNING epoch"
            ),
            &[&job, &join.run],
        )
        .await
        .map_err(|cause| server_error("take the job's record on the target over", None, cause))?;
    let epoch = row.ok_or_else(|| held(job))?.get(0);
    super::stream::claim_lanes(client, job, epoch).await?;
    Ok(Owner { run: join.run.clone(), epoch })
}

async fn states(client: &Client, job: &str) -> Result<HashMap<RelationName, String>> {
    let rows = client
        .query(
            "SELECT schema_name, relation_name, state FROM tidemark.relation WHERE job = $1 AND state IS NOT NULL",
            &[&job],
        )
        .await
        .map_err(|cause| server_error("read the states of the job's tables", None, cause))?;
    let state = |row: &tokio_postgres::Row| {
        (RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)), row.get(2))
    };
    Ok(rows.iter().map(state).collect())
}

/// Those of the names that a table or a partitioned table has.
pub(super) async fn present(
    client: &Client,
    names: impl Iterator<Item = &RelationName>,
) -> Result<HashSet<RelationName>> {
    let (schemas, relations): (Vec<&str>, Vec<&str>) =
        names.map(|name| (name.schema.as_str(), name.name.as_str())).unzip();
    let rows = client
        .query(
            "SELECT s, r FROM unnest($1::text[], $2::text[]) AS w(s, r) \
             JOIN pg_namespace n ON n.nspname = w.s \
             JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.r",
            &[&schemas, &relations],
        )
        .await
        .map_err(|cause| server_error("look which tables the target has", None, cause))?;
    Ok(rows
        .iter()
        .map(|row| RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)))
        .collect())
}

fn reset_hint(name: &RelationName) -> String {
    format!(
        "tidemark reset {} --yes gives them up, or leave the table out (select.exclude)",
        name.plain()
    )
}

/// Refuses a table that has rows of others.
pub(super) async fn refuse_rows(client: &Client, name: &RelationName, hint: &str) -> Result<()> {
    let row =
        client.query_one(&format!("SELECT EXISTS (SELECT FROM ONLY {name})"), &[]).await.map_err(
            |cause| server_error("look whether the target's table is empty", Some(name), cause),
        )?;
    if !row.get::<_, bool>(0) {
        return Ok(());
    }
    Err(Error::new(Disposition::Usage, "let a table join the job: it has rows on the target")
        .on(name)
        .hint(hint))
}

/// Writes what becomes of tables that are copied anew; no state where other rows than ours may be in them.
pub(super) async fn note(
    client: &Client,
    start: &SnapshotStart,
    plans: &[TablePlan],
    state: Option<&str>,
) -> Result<()> {
    let (schemas, names, oids) = columns(plans);
    client
        .execute(
            "WITH gone AS (DELETE FROM tidemark.chunk WHERE job = $1 AND relation_oid = ANY ($4)) \
             INSERT INTO tidemark.relation (job, schema_name, relation_name, relation_oid, state) \
             SELECT $1, s, n, o, $5 FROM unnest($2::text[], $3::text[], $4::oid[]) AS t(s, n, o) \
             ON CONFLICT (job, schema_name, relation_name) DO UPDATE SET relation_oid = excluded.relation_oid, \
             state = excluded.state, read_snapshot = NULL, joined_lsn = NULL, joined_timeline = NULL, lanes = NULL",
            &[&start.job, &schemas, &names, &oids, &state],
        )
        .await
        .map_err(|cause| server_error("note which tables join", None, cause))?;
    Ok(())
}

/// Empties tables: where a foreign key keeps TRUNCATE from it, row by row and without what the key would do.
pub(super) async fn empty(client: &Client, plans: &[TablePlan]) -> Result<()> {
    if plans.is_empty() {
        return Ok(());
    }
    let attempt = "empty the tables that join";
    let quietly = may_replicate(client).await?;
    if quietly {
        let set = client.batch_execute("SET session_replication_role = replica").await;
        set.map_err(|cause| server_error(attempt, None, cause))?;
    }
    let names: Vec<String> = plans.iter().map(|plan| plan.relation.name.to_string()).collect();
    // In one statement: keys between the tables that join do not keep them from being emptied.
    let truncate = format!("TRUNCATE ONLY {}", names.join(", ONLY "));
    match client.batch_execute(&truncate).await {
        Ok(()) => {}
        Err(cause) if cause.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
            if !quietly {
                // A DELETE would take the rows of other tables along, or fire their triggers.
                return Err(server_error(attempt, None, cause).hint(
                    "tables outside the job's joining ones refer to it: reset them together (tidemark reset A B --yes), or let the role set session_replication_role",
                ));
            }
            for plan in plans {
                let name = &plan.relation.name;
                let emptied = client.batch_execute(&format!("DELETE FROM ONLY {name}")).await;
                emptied.map_err(|cause| server_error(attempt, Some(name), cause))?;
            }
        }
        Err(cause) => return Err(server_error(attempt, None, cause)),
    }
    if quietly {
        let reset = client.batch_execute("RESET session_replication_role").await;
        reset.map_err(|cause| server_error(attempt, None, cause))?;
    }
    Ok(())
}

/// The start without indexes and foreign keys that the target has already: a partition gets those of the table that it is
/// attached to, a table that was there has its own.
pub(super) async fn without_what_is_there(
    client: &Client,
    start: &SnapshotStart,
) -> Result<SnapshotStart> {
    let attempt = |cause| server_error("look which keys the target has", None, cause);
    let named = |rows: Vec<tokio_postgres::Row>| -> HashSet<(String, String)> {
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let indexes = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                   WHERE c.relkind IN ('i', 'I')";
    let indexes = named(client.query(indexes, &[]).await.map_err(attempt)?);
    let keys = "SELECT n.nspname || '.' || c.relname, k.conname FROM pg_constraint k \
                JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE k.contype = 'f'";
    let keys = named(client.query(keys, &[]).await.map_err(attempt)?);
    let mut schema = (*start.schema).clone();
    schema
        .indexes
        .retain(|index| !indexes.contains(&(index.table.schema.clone(), index.name.clone())));
    schema.foreign_keys.retain(|key| {
        let table = format!("{}.{}", key.table.schema, key.table.name);
        !keys.contains(&(table, key.name.clone()))
    });
    Ok(SnapshotStart { schema: Arc::new(schema), ..start.clone() })
}

/// Says that the tables are whole, where they joined, and what is owed for them once the stream is there. This commit waits
/// for the disk and with it for every commit before it.
pub(super) async fn joined(
    control: &Control,
    start: &SnapshotStart,
    join: &Join,
    owed: &[String],
) -> Result<()> {
    control.alive()?;
    let attempt = |cause| server_error("note that tables have joined", None, cause);
    let client = control.client();
    client.batch_execute("SET synchronous_commit = on").await.map_err(attempt)?;
    let (schemas, names, _) = columns(&start.tables);
    let (snapshot, lsn) = (join.point.snapshot.to_string(), join.point.lsn.to_string());
    let timeline = join.point.timeline.map(i64::from);
    let changed = client
        .execute(
            "WITH p AS (UPDATE tidemark.progress \
               SET owed = owed || ARRAY(SELECT s FROM unnest($8::text[]) AS s WHERE s <> ALL (owed)) \
               WHERE job = $1 AND wave = '' AND run = $6 AND phase = 'follow' RETURNING job) \
             UPDATE tidemark.relation r SET state = 'joined', read_snapshot = $4, joined_lsn = $5::text::pg_lsn, joined_timeline = $7 \
             FROM unnest($2::text[], $3::text[]) AS t(s, n), p \
             WHERE r.job = p.job AND r.schema_name = t.s AND r.relation_name = t.n",
            &[&start.job, &schemas, &names, &snapshot, &lsn, &join.run, &timeline, &owed],
        )
        .await
        .map_err(attempt)?;
    if changed == start.tables.len() as u64 { Ok(()) } else { Err(held(&start.job)) }
}

const UNCHECKED: &str = "
SELECT n.nspname, c.relname, k.conname
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND NOT k.convalidated AND k.conparentid = 0
  AND EXISTS (SELECT FROM tidemark.relation r WHERE r.job = $1 AND r.state = 'joined' AND r.read_snapshot IS NOT NULL
              AND to_regclass(format('%I.%I', r.schema_name, r.relation_name)) IN (k.conrelid, k.confrelid))
ORDER BY 1, 2, 3";

/// Validates the foreign keys of tables that have joined. One that does not hold, as it need not on the source either, is
/// named and left as it is.
pub(super) async fn settle(options: &PostgresOptions, sessions: &Sessions) -> Result<()> {
    let client = sessions.plain().await?;
    let rows = client.query(UNCHECKED, &[&options.job]).await.map_err(|cause| {
        server_error("look for foreign keys that are not validated", None, cause)
    })?;
    for row in rows {
        let name = RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        let key = Ident(row.get(2)).to_string();
        match client.batch_execute(&format!("ALTER TABLE {name} VALIDATE CONSTRAINT {key}")).await {
            Ok(()) => {
                tracing::info!(table = %name, key, "a foreign key of a table that joined is validated")
            }
            Err(cause) => {
                let error = server_error("validate a foreign key", Some(&name), cause);
                tracing::warn!(key, %error, cause = ?error.source, "a foreign key stays NOT VALID");
            }
        }
    }
    super::unfinished::settle(&client, &options.job).await
}

/// Notes that tables are to join anew.
pub(super) async fn forget(
    options: &PostgresOptions,
    sessions: &Sessions,
    tables: &[RelationName],
) -> Result<Vec<RelationName>> {
    let client = sessions.plain().await?;
    take_the_job(&client, options).await?;
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|name| (name.schema.as_str(), name.name.as_str())).unzip();
    let rows = client
        .query(
            "WITH named AS (SELECT r.* FROM tidemark.relation r, unnest($2::text[], $3::text[]) AS t(s, n) \
               WHERE r.job = $1 AND r.schema_name = t.s AND r.relation_name = t.n AND r.relation_oid IS NOT NULL \
               AND EXISTS (SELECT FROM tidemark.progress WHERE job = $1 AND wave = '' AND phase = 'follow')), \
             given_up AS (UPDATE tidemark.relation r SET state = 'reset' FROM named \
               WHERE (r.job, r.schema_name, r.relation_name) = (named.job, named.schema_name, named.relation_name) \
               AND r.state IN ('joined', 'left', 'stopped')) \
             SELECT schema_name, relation_name FROM named ORDER BY 1, 2",
            &[&options.job, &schemas, &names],
        )
        .await
        .map_err(|cause| server_error("note that tables are to join anew", None, cause))?;
    Ok(rows
        .iter()
        .map(|row| RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)))
        .collect())
}
