//! A first snapshot that died: what of it counts, and how a job goes on from there.
//!
//! **Invariant:** a table is `whole` (`tidemark.relation.state`) if and only if all its rows and its keys are there, as of
//! the snapshot that the record's run was begun with, or as of its own `read_snapshot` where it joined after a crash. The mark
//! is written in the transaction that ends the building of its keys, after the last of its chunks: what is in the target's WAL
//! before it survives whenever it does. An unlogged table is never whole: of what came after its copy there is no WAL. Only the process that the record's run and epoch name can write one.
//!
//! **Invariant:** the record stays at the stage of a snapshot until the last table is in; one commit makes the job follow.
//! A process that dies before finds what is whole once more, and lets the others join.
//!
//! ```text
//! (nothing) --keys are built--> whole --the last one is in--> joined            the states of join.rs go on from there
//!     \----> joining ----------/                                                joining: ours, emptied when it begins anew
//! ```
//!
//! Of a table that joins, chunks of the dead process may stay (`half.rs`). What does not fit is [`Disposition::Unfit`]: the job begins anew, as it did before anything of this was kept. Foreign
//! keys and materialized views read several tables, which are not as of one moment before the stream has passed the joins:
//! they are owed (`tidemark.progress.owed`) until [`settle`] does them.
//!
//! `docs/adr/2026-11-21-a-snapshot-goes-on-after-a-crash.md` proves it.

use std::collections::HashSet;

use tidemark_model::sql::Literal;
use tidemark_model::{JoinPoint, Oid, RelationName, TablePlan};
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres;

use super::build::{add_foreign_key, validate_foreign_key};
use super::control::Control;
use super::half::{self, Kept};
use super::join::{columns, empty, note, present, refuse_rows, state_after};
use super::load::Owner;
use super::record::{WITH_OWNER, held};
use super::session::{may_replicate, server_error};
use super::{PostgresOptions, SchemaMode};
use crate::{Disposition, Error, Join, NotEmpty, Result, SnapshotStart};

/// How a materialized view is filled.
const REFRESH: &str = "REFRESH MATERIALIZED VIEW ";

/// What can be done about rows that are not ours. `reset` is for jobs that follow.
const FOREIGN_ROWS: &str = "they are not the snapshot's: empty the table on the target, or leave it out (select.exclude), and run the same command again; --target-not-empty append keeps them";

/// Writes that tables are whole.
pub(super) struct Mark {
    pub(super) job: String,
    pub(super) owner: Owner,
    /// Where the tables join, if they do.
    pub(super) point: Option<JoinPoint>,
}

impl Mark {
    /// What ends the building of a table's keys. A process that was taken over changes nothing by it.
    pub(super) fn statement(&self, relation: &RelationName, oid: Oid) -> String {
        let null = || "NULL".to_owned();
        let (snapshot, lsn, timeline) = match &self.point {
            Some(point) => (
                Literal(&point.snapshot.to_string()).to_string(),
                Literal(&point.lsn.to_string()).to_string(),
                point.timeline.map_or_else(null, |timeline| timeline.to_string()),
            ),
            None => (null(), null(), null()),
        };
        format!(
            "WITH owner AS (SELECT FROM tidemark.progress WHERE job = {job} AND wave = '' AND run = {run} AND epoch = {} FOR KEY SHARE) \
             UPDATE tidemark.relation SET state = 'whole', relation_oid = {oid}, read_snapshot = {snapshot}, joined_lsn = {lsn}, joined_timeline = {timeline} \
             WHERE job = {job} AND schema_name = {} AND relation_name = {} AND EXISTS (SELECT FROM owner)",
            self.owner.epoch,
            Literal(&relation.schema),
            Literal(&relation.name),
            job = Literal(&self.job),
            run = Literal(&self.owner.run),
        )
    }
}

/// What [`begin`] has found.
pub(super) struct Begun {
    /// How the snapshot that died had made its tables.
    pub(super) mode: SchemaMode,
    /// Whose chunks may commit.
    pub(super) owner: Owner,
    /// Chunks that have stayed, of tables that are not whole.
    pub(super) kept: Kept,
}

fn unfit(because: impl Into<String>) -> Error {
    Error::new(
        Disposition::Unfit,
        format!("go on with the snapshot that was left unfinished: {}", because.into()),
    )
}

/// Takes the job over, compares what is there with what the rest would be copied into, and empties the tables that join but
/// for those of which chunks may stay.
pub(super) async fn begin(
    control: &Control,
    options: &PostgresOptions,
    start: &SnapshotStart,
    join: &Join,
    whole: &[TablePlan],
) -> Result<Begun> {
    let client = control.client();
    let mut begun = claim(client, start, join, options.schema).await?;
    let names = whole.iter().chain(start.tables.iter()).map(|plan| &plan.relation.name);
    let there = present(client, names.clone()).await?;
    if let Some(missing) = names.into_iter().find(|name| !there.contains(name)) {
        return Err(unfit("a table is not on the target any more").on(missing));
    }
    super::check::matching_or_refuse(client, &start.tables).await?;
    refuse_unlogged(client, whole).await?;
    match begun.mode {
        SchemaMode::Create => {
            let kept = half::left(client, start, &join.run).await?;
            // From here on the tables of these chunks are emptied by whoever comes next.
            own_the_rest(client, &start.job).await?;
            let is_kept = |plan: &&TablePlan| kept.contains_key(&plan.relation.oid);
            let others: Vec<_> = start.tables.iter().filter(|p| !is_kept(p)).cloned().collect();
            note(client, start, &others, Some("joining")).await?;
            drop_keys(client, start).await?;
            empty(client, &others).await?;
            begun.kept = kept;
        }
        SchemaMode::Exists => {
            let kept: HashSet<_> = whole.iter().map(|plan| &plan.relation.name).collect();
            // What is emptied is not whole any more, and other rows than ours may stay in it: before one of them goes.
            forget_others(client, &start.job, whole).await?;
            control.delete_own_rows(&kept).await?;
            note(client, start, &start.tables, None).await?;
            if options.not_empty == NotEmpty::Refuse {
                for plan in start.tables.iter() {
                    refuse_rows(client, &plan.relation.name, FOREIGN_ROWS).await?;
                }
            }
        }
    }
    Ok(begun)
}

/// Takes the record over: chunks and marks of the process that had it cannot commit any more.
async fn claim(
    client: &Client,
    start: &SnapshotStart,
    join: &Join,
    wanted: SchemaMode,
) -> Result<Begun> {
    let row = client
        .query_opt(
            &format!(
                "{WITH_OWNER} UPDATE tidemark.progress SET epoch = epoch + 1, phase = 'snapshot', heartbeat = clock_timestamp() \
                 WHERE job = $1 AND wave = '' AND run = $2 AND phase IN ('snapshot', 'finish') AND EXISTS (SELECT FROM owner) \
                 RETURNING epoch, schema_mode, schema_state, schema_digest"
            ),
            &[&start.job, &join.run],
        )
        .await
        .map_err(|cause| server_error("take the job's record on the target over", None, cause))?;
    let row = row.ok_or_else(|| unfit("the target's record is another run's by now"))?;
    let owner = Owner { run: join.run.clone(), epoch: row.get(0) };
    let digest: Option<&str> = row.get(3);
    if row.get::<_, &str>(1) == "exists" {
        if digest != start.schema_digest.as_deref() {
            return Err(unfit("other columns are chosen than when it was begun"));
        }
        return Ok(Begun { mode: SchemaMode::Exists, owner, kept: Kept::new() });
    }
    if wanted == SchemaMode::Exists || row.get::<_, &str>(2) != "made" {
        return Err(unfit("its tables were to be made by it, and are not"));
    }
    if digest.is_none() || digest != start.schema_digest.as_deref() {
        return Err(unfit(
            "definitions on the source have changed since it was begun, or which columns are chosen",
        ));
    }
    Ok(Begun { mode: SchemaMode::Create, owner, kept: Kept::new() })
}

/// Every table that the snapshot made and that is not whole is ours to empty, also one that is not chosen any more.
async fn own_the_rest(client: &Client, job: &str) -> Result<()> {
    client
        .execute(
            "UPDATE tidemark.relation SET state = 'joining' WHERE job = $1 AND state IS NULL",
            &[&job],
        )
        .await
        .map_err(|cause| server_error("note which tables are not whole", None, cause))?;
    Ok(())
}

/// A crash of the target empties an unlogged table and leaves the mark that it is whole.
async fn refuse_unlogged(client: &Client, whole: &[TablePlan]) -> Result<()> {
    let (schemas, names, _) = columns(whole);
    let found = client
        .query_opt(
            "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             JOIN unnest($1::text[], $2::text[]) AS t(s, n) ON n.nspname = t.s AND c.relname = t.n \
             WHERE c.relpersistence = 'u' LIMIT 1",
            &[&schemas, &names],
        )
        .await
        .map_err(|cause| server_error("look whether the target's tables are logged", None, cause))?;
    match found {
        Some(row) => {
            Err(unfit(format!("table {} is unlogged on the target", row.get::<_, &str>(0))))
        }
        None => Ok(()),
    }
}

/// Tables that were whole or to be emptied and are neither chosen nor kept now.
async fn forget_others(client: &Client, job: &str, whole: &[TablePlan]) -> Result<()> {
    let (schemas, names, _) = columns(whole);
    client
        .execute(
            "UPDATE tidemark.relation r SET state = NULL, read_snapshot = NULL, joined_lsn = NULL, joined_timeline = NULL \
             WHERE job = $1 AND state IN ('whole', 'joining') AND NOT EXISTS \
               (SELECT FROM unnest($2::text[], $3::text[]) AS t(s, n) WHERE r.schema_name = t.s AND r.relation_name = t.n)",
            &[&job, &schemas, &names],
        )
        .await
        .map_err(|cause| server_error("note which tables are not whole", None, cause))?;
    Ok(())
}

/// Drops the keys and indexes that were built on tables that are copied again: a part of them may be missing.
async fn drop_keys(client: &Client, start: &SnapshotStart) -> Result<()> {
    use tidemark_model::sql::Ident;

    let joining: HashSet<_> = start.tables.iter().map(|plan| &plan.relation.name).collect();
    for index in start.schema.indexes.iter().filter(|index| joining.contains(&index.table)) {
        let (table, schema) = (&index.table, Ident(&index.table.schema));
        let constraint = index.constraint.as_ref().map_or_else(String::new, |constraint| {
            let name = Ident(&constraint.name);
            format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name} CASCADE; ")
        });
        let statement = format!(
            "SET client_min_messages = warning; {constraint}DROP INDEX IF EXISTS {schema}.{}",
            Ident(&index.name)
        );
        client.batch_execute(&statement).await.map_err(|cause| {
            unfit("the keys of a table that is to be copied again cannot be dropped")
                .on(table)
                .because(server_error("drop an index", Some(table), cause))
        })?;
    }
    Ok(())
}

/// What can be done only once all tables are as of one moment, in this order.
pub(super) fn owed(start: &SnapshotStart) -> Vec<String> {
    let made = start.schema.foreign_keys.iter().filter(|key| !key.is_checked_at_once());
    let validations = made.filter(|key| key.is_valid).map(validate_foreign_key);
    let views = start.schema.materialized_views.iter().map(|view| format!("{REFRESH}{view}"));
    validations.chain(owed_keys(start)).chain(views).collect()
}

/// Foreign keys that are made only then, because they are checked when they are made.
pub(super) fn owed_keys(start: &SnapshotStart) -> Vec<String> {
    let keys = start.schema.foreign_keys.iter().filter(|key| key.is_checked_at_once());
    keys.map(|key| add_foreign_key(key, false)).collect()
}

/// Makes the job follow: from the snapshot's position, with the tables that were whole and those that joined. This commit
/// waits for the disk and with it for every commit before it.
pub(super) async fn complete(
    control: &Control,
    start: &SnapshotStart,
    owner: &Owner,
    (whole, owed): (&[TablePlan], &[String]),
) -> Result<()> {
    control.alive()?;
    let attempt = |cause| server_error("close the job's record on the target", None, cause);
    let client = control.client();
    let all: Vec<TablePlan> = whole.iter().chain(start.tables.iter()).cloned().collect();
    let (unlogged, logged): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|plan| state_after(plan) == "left");
    let (schemas, names, _) = columns(&logged);
    let left = columns(&unlogged);
    let expected = names.len() as i64;
    client.batch_execute("SET synchronous_commit = on; BEGIN").await.map_err(attempt)?;
    let changed = client
        .execute(
            "WITH named AS (SELECT * FROM unnest($2::text[], $3::text[]) AS t(s, n)), \
             whole AS (UPDATE tidemark.relation r SET state = 'joined' FROM named \
               WHERE r.job = $1 AND r.schema_name = named.s AND r.relation_name = named.n AND r.state = 'whole' RETURNING 1), \
             others AS (UPDATE tidemark.relation r SET state = 'left' WHERE r.job = $1 \
               AND NOT EXISTS (SELECT FROM named WHERE r.schema_name = named.s AND r.relation_name = named.n) \
               AND (r.state = 'whole' OR EXISTS (SELECT FROM unnest($8::text[], $9::text[]) AS t(s, n) \
                                                 WHERE r.schema_name = t.s AND r.relation_name = t.n))) \
             UPDATE tidemark.progress SET phase = 'follow', finished_at = now(), owed = $7 \
             WHERE job = $1 AND wave = '' AND run = $4 AND epoch = $5 AND phase = 'finish' \
               AND (SELECT count(*) FROM whole) = $6",
            &[&start.job, &schemas, &names, &owner.run, &owner.epoch, &expected, &owed, &left.0, &left.1],
        )
        .await
        .map_err(attempt)?;
    if changed != 1 {
        client.batch_execute("ROLLBACK").await.map_err(attempt)?;
        return Err(why_not_complete(client, start, owner, (&schemas, &names)).await?);
    }
    client.batch_execute("COMMIT").await.map_err(attempt)
}

/// Marks are committed without waiting for the disk: a target that crashed may have lost the last of them, with the rows and
/// keys that they speak of. Otherwise another process has the record.
async fn why_not_complete(
    client: &Client,
    start: &SnapshotStart,
    owner: &Owner,
    (schemas, names): (&[&str], &[&str]),
) -> Result<Error> {
    let rows = client
        .query(
            "SELECT t.s, t.n FROM tidemark.progress p, unnest($4::text[], $5::text[]) AS t(s, n) \
             LEFT JOIN tidemark.relation r ON r.job = $1 AND r.schema_name = t.s AND r.relation_name = t.n \
             WHERE p.job = $1 AND p.wave = '' AND p.run = $2 AND p.epoch = $3 AND p.phase = 'finish' \
               AND r.state IS DISTINCT FROM 'whole' ORDER BY 1, 2",
            &[&start.job, &owner.run, &owner.epoch, &schemas, &names],
        )
        .await
        .map_err(|cause| server_error("look which tables are whole", None, cause))?;
    let Some(first) = rows.first() else { return Ok(held(&start.job)) };
    let name = RelationName::new(first.get::<_, &str>(0), first.get::<_, &str>(1));
    Ok(Error::new(
        Disposition::Unavailable,
        format!("finish the snapshot: the target lost the marks of {} table(s) that were whole", rows.len()),
    )
    .on(&name)
    .hint("the target was restarted and lost commits; run the same command again: it copies these tables anew and keeps the others"))
}

/// Enters the last part, which reads and writes more than one table.
pub(super) async fn enter_finish(control: &Control, job: &str, owner: &Owner) -> Result<()> {
    control.alive()?;
    let changed = control
        .client()
        .execute(
            "UPDATE tidemark.progress SET phase = 'finish' \
             WHERE job = $1 AND wave = '' AND run = $2 AND epoch = $3 AND phase = 'snapshot'",
            &[&job, &owner.run, &owner.epoch],
        )
        .await
        .map_err(|cause| server_error("write the job's phase on the target", None, cause))?;
    if changed == 1 { Ok(()) } else { Err(held(job)) }
}

/// Does what is owed, in its order. What cannot be done is named and stays owed.
pub(super) async fn settle(client: &Client, job: &str) -> Result<()> {
    let attempt = |cause| server_error("read what the job owes the target", None, cause);
    let row = client
        .query_opt("SELECT owed FROM tidemark.progress WHERE job = $1 AND wave = ''", &[&job])
        .await
        .map_err(attempt)?;
    let owed: Vec<String> = row.map(|row| row.get(0)).unwrap_or_default();
    if owed.is_empty() {
        return Ok(());
    }
    if may_replicate(client).await? {
        // Event triggers of the application are not meant.
        client.batch_execute("SET session_replication_role = replica").await.map_err(attempt)?;
    }
    for statement in owed {
        let is_gone = is_view_gone(client, &statement).await?;
        match if is_gone { Ok(()) } else { client.batch_execute(&statement).await } {
            Ok(()) if is_gone => tracing::warn!(statement, "not done: it is not there any more"),
            Ok(()) => tracing::info!(statement, "done, now that all tables are as of one moment"),
            Err(cause) if is_done(&statement, &cause) => {}
            Err(cause) => {
                let error = server_error("finish what the snapshot left", None, cause);
                tracing::warn!(statement, %error, cause = ?error.source, "not done; the next start tries again");
                continue;
            }
        }
        client
            .execute(
                "UPDATE tidemark.progress SET owed = array_remove(owed, $2) WHERE job = $1 AND wave = ''",
                &[&job, &statement],
            )
            .await
            .map_err(|cause| server_error("note what the job owes the target", None, cause))?;
    }
    Ok(())
}

/// Whether there is nothing left to do: the key is there, or the one that was to be validated is not, or the view.
fn is_done(statement: &str, cause: &tokio_postgres::Error) -> bool {
    use tokio_postgres::error::SqlState;

    let state = cause.code();
    match statement {
        _ if statement.starts_with("REFRESH") => false,
        _ if statement.contains(" VALIDATE CONSTRAINT ") => state.is_some_and(|state| {
            [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_OBJECT].contains(state)
        }),
        _ => {
            state == Some(&SqlState::DUPLICATE_OBJECT) || state == Some(&SqlState::UNDEFINED_TABLE)
        }
    }
}

/// Whether a materialized view that is to be filled is not there any more.
async fn is_view_gone(client: &Client, statement: &str) -> Result<bool> {
    let Some(view) = statement.strip_prefix(REFRESH) else { return Ok(false) };
    let row = client
        .query_one("SELECT pg_catalog.to_regclass($1) IS NULL", &[&view])
        .await
        .map_err(|cause| server_error("look for a materialized view on the target", None, cause))?;
    Ok(row.get(0))
}
