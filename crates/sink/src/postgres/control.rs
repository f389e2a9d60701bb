//! The job's record on the target: who runs it, how far it is, which chunks are there.
//!
//! **Invariant:** one session holds the job's advisory lock from before the first change to the target until the end; its
//! task renews the heartbeat, and where that fails the run stops. The session does nothing else, so that a slow statement
//! never looks like a dead run. What `tidemark.chunk` says is the truth about a chunk; the local ledger is a copy.
//!
//! **Invariant:** the run that `tidemark.progress` names is the only one whose chunks can commit: a run that takes over
//! writes its own name there first, which waits for commits in flight and refuses all later ones.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemark_model::names::{advisory_lock_key, application_name};
use tidemark_model::{Lsn, RelationName, sql::Ident};
use tidemark_wire::{Client, ConnectSpec};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::load::Owner;
use super::session::{Sessions, may_replicate, server_error};
use super::{PostgresOptions, SchemaMode};
use crate::{Disposition, Error, NotEmpty, Result, SnapshotStart, SnapshotSummary};

/// How often the heartbeat is renewed.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// A holder whose heartbeat stood still for this long is dead. Several heartbeats, so that a busy target is no proof.
const STALE: Duration = Duration::from_secs(12);

const TABLES: &str = "
CREATE SCHEMA IF NOT EXISTS tidemark;
CREATE TABLE IF NOT EXISTS tidemark.progress (
  job text NOT NULL, wave text NOT NULL DEFAULT '', run text NOT NULL, phase text NOT NULL,
  end_lsn pg_lsn NOT NULL, schema_mode text NOT NULL,
  source_system_identifier text NOT NULL, source_database text NOT NULL,
  schema_state text NOT NULL DEFAULT 'none', tool_version text NOT NULL, started_at timestamptz NOT NULL DEFAULT now(), finished_at timestamptz,
  heartbeat timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (job, wave));
CREATE TABLE IF NOT EXISTS tidemark.relation (
  job text NOT NULL, schema_name text NOT NULL, relation_name text NOT NULL,
  PRIMARY KEY (job, schema_name, relation_name));
CREATE TABLE IF NOT EXISTS tidemark.chunk (
  job text NOT NULL, run text NOT NULL, relation_oid oid NOT NULL, chunk int8 NOT NULL,
  rows int8 NOT NULL, digest_raw text NOT NULL, xid int8 NOT NULL,
  PRIMARY KEY (job, run, relation_oid, chunk));
CREATE TABLE IF NOT EXISTS tidemark.lane (
  job text NOT NULL, lane int4 NOT NULL, lanes int4 NOT NULL, end_lsn pg_lsn NOT NULL, epoch int8 NOT NULL,
  PRIMARY KEY (job, lane));
COMMENT ON SCHEMA tidemark IS 'Records of Tidemark; removed by tidemark cleanup';
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tidemark.progress'::regclass AND attname = 'epoch') THEN
    ALTER TABLE tidemark.progress ADD COLUMN source_timeline int8, ADD COLUMN epoch int8 NOT NULL DEFAULT 0;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tidemark.relation'::regclass AND attname = 'state') THEN
    ALTER TABLE tidemark.relation ADD COLUMN relation_oid oid, ADD COLUMN state text, ADD COLUMN read_snapshot text, ADD COLUMN joined_lsn pg_lsn;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tidemark.relation'::regclass AND attname = 'stopped_lsn') THEN
    ALTER TABLE tidemark.relation ADD COLUMN stopped_lsn pg_lsn, ADD COLUMN stopped_because text;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tidemark.progress'::regclass AND attname = 'owed') THEN
    ALTER TABLE tidemark.progress ADD COLUMN schema_digest text, ADD COLUMN owed text[] NOT NULL DEFAULT '{}';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tidemark.relation'::regclass AND attname = 'lanes') THEN
    ALTER TABLE tidemark.relation ADD COLUMN lanes text;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tidemark.relation'::regclass AND attname = 'joined_timeline') THEN
    ALTER TABLE tidemark.relation ADD COLUMN joined_timeline int8;
  END IF;
END $$";

const RELATIONS_THERE: &str = "
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tidemark')
  AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2";

/// What a statement begins with that takes the record of job `$1` over, and ends with `AND EXISTS (SELECT FROM owner)`. The
/// chunks and marks of whoever had it hold their owner's row until they commit; a plain UPDATE, which leaves the key alone,
/// would not wait for them.
pub(super) const WITH_OWNER: &str = "WITH owner AS MATERIALIZED (SELECT FROM tidemark.progress WHERE job = $1 AND wave = '' FOR UPDATE)";

/// The job as the target knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Which run.
    pub run: String,
    /// `prepare`, `snapshot`, `finish`; then `follow` where a stream continues, `complete` where none does; `cleaned`.
    pub phase: String,
    /// The position that the target stands at once the phase is `follow` or `complete`.
    pub end_lsn: Lsn,
    /// `create` or `exists`.
    pub schema_mode: String,
    /// How far the schema was created: `none`, `making` or `made`. What was there before us is never taken for ours.
    pub schema_state: String,
    /// The source cluster.
    pub source_system_identifier: String,
    /// The source's database.
    pub source_database: String,
}

impl JobRecord {
    /// Whether the snapshot is whole.
    fn is_finished(&self) -> bool {
        matches!(self.phase.as_str(), "follow" | "complete")
    }
}

/// What `begin` decided.
pub(super) struct Begun {
    /// The schema mode in force.
    pub(super) mode: SchemaMode,
    /// Whether objects of an earlier run of this job are being replaced.
    pub(super) replaces_own: bool,
    /// Whose chunks may commit.
    pub(super) owner: Owner,
}

/// The session that holds the job.
pub(super) struct Control {
    /// Has the advisory lock and renews the heartbeat.
    holder: Arc<Client>,
    /// For statements.
    client: Client,
    job: String,
    run: String,
    lost: Arc<AtomicBool>,
    /// Ends with the value, or when the job is given back.
    _heartbeat: JoinSet<()>,
    heartbeat: AbortHandle,
}

impl Control {
    /// Takes the job's advisory lock, ends the sessions of a killed run and creates our tables.
    pub(super) async fn open(
        options: &PostgresOptions,
        sessions: &Sessions,
        run: &str,
    ) -> Result<Self> {
        let holder = Arc::new(sessions.plain().await?);
        take_lock(&holder, options).await?;
        end_other_sessions(&holder, &options.job).await?;
        let client = sessions.plain().await?;
        client
            .batch_execute(&format!("SET client_min_messages = warning; {TABLES}"))
            .await
            .map_err(|cause| {
                server_error("create the schema tidemark for the job's record", None, cause)
                    .hint("the role needs CREATE on the target's database, and the target must not be read-only or a standby")
            })?;
        let lost = Arc::new(AtomicBool::new(false));
        let mut beating = JoinSet::new();
        let heartbeat =
            beating.spawn(beat(Arc::clone(&holder), options.job.clone(), Arc::clone(&lost)));
        Ok(Self {
            holder,
            client,
            job: options.job.clone(),
            run: run.to_owned(),
            lost,
            _heartbeat: beating,
            heartbeat,
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// An error once the session that holds the job is gone: another run may have taken it over.
    pub(super) fn alive(&self) -> Result<()> {
        if !self.lost.load(Ordering::Relaxed) && !self.holder.is_closed() {
            return Ok(());
        }
        Err(Error::new(
            Disposition::Unavailable,
            "go on after the session that holds the job was lost",
        )
        .hint("run the same command again: it starts the snapshot over"))
    }

    /// Gives the job back: whoever asks for it next has it at once.
    pub(super) async fn release(&self) -> Result<()> {
        self.lost.store(true, Ordering::Relaxed);
        self.heartbeat.abort();
        let key = advisory_lock_key(&self.job);
        self.holder
            .query("SELECT pg_advisory_unlock($1)", &[&key])
            .await
            .map_err(|cause| server_error("give the job back on the target", None, cause))?;
        Ok(())
    }

    /// Decides whether this run may write here, clears what an earlier run of the same job left, and records this one.
    pub(super) async fn begin(
        &self,
        options: &PostgresOptions,
        start: &SnapshotStart,
    ) -> Result<Begun> {
        let record = read_record(&self.client, &self.job).await?;
        let there = self.relations_there().await?;
        let (mode, replaces_own) = match record.filter(|record| record.phase != "cleaned") {
            Some(record) => self.continue_over(&record, options, start).await?,
            None => decide(options, start, &there)?,
        };
        let replaced = match replaces_own {
            true => self.own_tables("'r', 'p'").await?,
            false => Vec::new(),
        };
        // Before what takes its time, so that another instance sees a heartbeat; after the list, which it adds to.
        let owner = self.record(options, start, mode).await?;
        if mode == SchemaMode::Create && replaces_own {
            self.drop_tables(&replaced).await?;
            let left = self.relations_there().await?;
            refuse_foreign(&left, start)?;
        }
        if mode == SchemaMode::Exists {
            super::check::matching_or_refuse(&self.client, &start.tables).await?;
            self.make_room(options, start).await?;
        }
        Ok(Begun { mode, replaces_own, owner })
    }

    async fn continue_over(
        &self,
        record: &JobRecord,
        options: &PostgresOptions,
        start: &SnapshotStart,
    ) -> Result<(SchemaMode, bool)> {
        if record.source_system_identifier != start.system_identifier.to_string()
            || record.source_database != start.database
        {
            return Err(Error::new(
                Disposition::Usage,
                format!(
                    "go on with job {:?}, which the target knows with source database {:?} of cluster {}",
                    self.job, record.source_database, record.source_system_identifier
                ),
            )
            .hint("give this job another name (--job), or remove the old one with tidemark cleanup --yes"));
        }
        if record.is_finished() && options.not_empty == NotEmpty::Refuse {
            return Err(Error::new(
                Disposition::Usage,
                format!(
                    "copy again: the target already holds the finished snapshot of job {:?} at {}",
                    self.job, record.end_lsn
                ),
            )
            .hint("--target-not-empty truncate --yes replaces it"));
        }
        let created = record.schema_mode == "create" && options.schema == SchemaMode::Create;
        // Appending to a finished copy adds rows to tables that are in use: nothing of them is dropped.
        let appends = record.is_finished() && options.not_empty == NotEmpty::Append;
        let mode = if created && !appends { SchemaMode::Create } else { SchemaMode::Exists };
        self.claim(record).await?;
        if mode == SchemaMode::Exists {
            self.delete_own_rows(&HashSet::new()).await?;
            return Ok((mode, false));
        }
        let replaces_own = match record.schema_state.as_str() {
            "made" => true,
            // A small schema is made in one transaction: all of it is there or nothing.
            "making" => {
                !super::restore::is_atomic(start) || !self.own_tables("'r', 'p'").await?.is_empty()
            }
            _ => false,
        };
        Ok((mode, replaces_own))
    }

    /// Puts this run in the place of the earlier one. From here on no chunk of that one can commit, and what it committed
    /// is visible. The markers of a finished run go in the same transaction: its rows are not leftovers.
    async fn claim(&self, record: &JobRecord) -> Result<()> {
        let finished = record.is_finished();
        self.client
            .execute(
                &format!("{WITH_OWNER}, \
                 markers AS (DELETE FROM tidemark.chunk WHERE job = $1 AND $3), \
                 whole AS (UPDATE tidemark.relation SET state = NULL WHERE job = $1 AND state = 'whole') \
                 UPDATE tidemark.progress SET run = $2, phase = 'prepare', finished_at = NULL, heartbeat = clock_timestamp() \
                 WHERE job = $1 AND wave = '' AND EXISTS (SELECT FROM owner)"),
                &[&self.job, &self.run, &finished],
            )
            .await
            .map_err(|cause| server_error("take the job's record on the target over", None, cause))?;
        Ok(())
    }

    /// Deletes the rows that unfinished runs added to tables that they did not create, by the transactions that their
    /// markers name: rows that were there before stay. Every table that the job has ever named is looked at, because the
    /// selection may have become smaller since; those in `kept` stay as they are.
    pub(super) async fn delete_own_rows(&self, kept: &HashSet<&RelationName>) -> Result<()> {
        let attempt = "delete what an unfinished run left";
        let row = self
            .client
            .query_one(
                "SELECT EXISTS (SELECT FROM tidemark.chunk WHERE job = $1 AND rows > 0)",
                &[&self.job],
            )
            .await
            .map_err(|cause| server_error(attempt, None, cause))?;
        if !row.get::<_, bool>(0) {
            return Ok(());
        }
        // Neither the target's triggers nor its foreign keys' actions are meant: all of our rows go, and only they.
        let quietly = may_replicate(&self.client).await?;
        if quietly {
            let set = self.client.batch_execute("SET session_replication_role = replica").await;
            set.map_err(|cause| server_error(attempt, None, cause))?;
        }
        for name in self.own_tables("'r'").await?.iter().filter(|name| !kept.contains(name)) {
            let statement = format!(
                "DELETE FROM ONLY {name} WHERE xmin::text::int8 IN \
                 (SELECT xid & 4294967295 FROM tidemark.chunk WHERE job = $1)"
            );
            self.client
                .execute(&statement, &[&self.job])
                .await
                .map_err(|cause| server_error(attempt, Some(name), cause))?;
        }
        if quietly {
            let reset = self.client.batch_execute("RESET session_replication_role").await;
            reset.map_err(|cause| server_error(attempt, None, cause))?;
        }
        Ok(())
    }

    /// The tables of the job's record that are there; `kinds` are values of `pg_class.relkind`.
    async fn own_tables(&self, kinds: &str) -> Result<Vec<RelationName>> {
        let statement = format!(
            "SELECT r.schema_name, r.relation_name FROM tidemark.relation r \
             JOIN pg_namespace n ON n.nspname = r.schema_name \
             JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = r.relation_name AND c.relkind IN ({kinds}) \
             WHERE r.job = $1"
        );
        let rows = self
            .client
            .query(&statement, &[&self.job])
            .await
            .map_err(|cause| server_error("list the tables of an earlier run", None, cause))?;
        Ok(rows
            .iter()
            .map(|row| RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)))
            .collect())
    }

    async fn drop_tables(&self, tables: &[RelationName]) -> Result<()> {
        let attempt =
            |cause| server_error("drop what an earlier run of this job made", None, cause);
        for group in tables.chunks(500) {
            let names: Vec<String> = group.iter().map(RelationName::to_string).collect();
            let statement = format!(
                "SET client_min_messages = warning; DROP TABLE IF EXISTS {} CASCADE",
                names.join(", ")
            );
            self.client.batch_execute(&statement).await.map_err(attempt)?;
        }
        Ok(())
    }

    /// In tables that were there before us: nothing but what the user allowed.
    async fn make_room(&self, options: &PostgresOptions, start: &SnapshotStart) -> Result<()> {
        let names: Vec<String> =
            start.tables.iter().map(|plan| plan.relation.name.to_string()).collect();
        match options.not_empty {
            NotEmpty::Append => return Ok(()),
            NotEmpty::Truncate => {
                // One statement, because a foreign key may lead from any of them to any other.
                let statement = format!("TRUNCATE ONLY {}", names.join(", ONLY "));
                return self.client.batch_execute(&statement).await.map_err(|cause| {
                    server_error("truncate the chosen tables on the target", None, cause)
                        .hint("a foreign key from a table outside the selection stands in the way: choose that table too, or empty the tables yourself")
                });
            }
            NotEmpty::Refuse => {}
        }
        for plan in start.tables.iter() {
            let name = &plan.relation.name;
            let row = self
                .client
                .query_one(&format!("SELECT EXISTS (SELECT FROM ONLY {name})"), &[])
                .await
                .map_err(|cause| {
                    server_error("look whether the target's table is empty", Some(name), cause)
                })?;
            if row.get(0) {
                return Err(not_empty(name));
            }
        }
        Ok(())
    }

    async fn record(
        &self,
        options: &PostgresOptions,
        start: &SnapshotStart,
        mode: SchemaMode,
    ) -> Result<Owner> {
        let attempt = |cause| server_error("write the job's record on the target", None, cause);
        let mode = if mode == SchemaMode::Create { "create" } else { "exists" };
        let (schemas, names): (Vec<&str>, Vec<&str>) = start
            .tables
            .iter()
            .flat_map(|plan| {
                std::iter::once(&plan.relation.name).chain(&plan.relation.partition_root)
            })
            .map(|name| (name.schema.as_str(), name.name.as_str()))
            .unzip();
        let identifier = start.system_identifier.to_string();
        let lsn = start.lsn.to_string();
        // Autocommitted statements: the relations first, so that a record never names less than was made.
        self.client
            .execute(
                "WITH gone AS (DELETE FROM tidemark.lane WHERE job = $1) \
                 UPDATE tidemark.relation SET state = NULL, read_snapshot = NULL, joined_lsn = NULL, joined_timeline = NULL, lanes = NULL WHERE job = $1",
                &[&self.job],
            )
            .await
            .map_err(attempt)?;
        self.client
            .execute(
                "WITH gone AS (DELETE FROM tidemark.chunk WHERE job = $1) \
                 INSERT INTO tidemark.relation (job, schema_name, relation_name) SELECT $1, s, r FROM unnest($2::text[], $3::text[]) AS t(s, r) \
                 ON CONFLICT DO NOTHING",
                &[&self.job, &schemas, &names],
            )
            .await
            .map_err(attempt)?;
        let row = self
            .client
            .query_one(
                "INSERT INTO tidemark.progress (job, run, phase, end_lsn, schema_mode, source_system_identifier, source_database, tool_version) \
                 VALUES ($1, $2, 'prepare', $3::text::pg_lsn, $4, $5, $6, $7) \
                 ON CONFLICT (job, wave) DO UPDATE SET run = excluded.run, phase = excluded.phase, end_lsn = excluded.end_lsn, \
                 schema_mode = excluded.schema_mode, source_system_identifier = excluded.source_system_identifier, \
                 source_database = excluded.source_database, tool_version = excluded.tool_version, \
                 started_at = now(), finished_at = NULL, heartbeat = now(), epoch = progress.epoch + 1, schema_digest = NULL, owed = '{}' \
                 RETURNING epoch",
                &[&self.job, &self.run, &lsn, &mode, &identifier, &start.database, &options.tool_version],
            )
            .await
            .map_err(attempt)?;
        Ok(Owner { run: self.run.clone(), epoch: row.get(0) })
    }

    async fn relations_there(&self) -> Result<Vec<RelationName>> {
        relations_there(&self.client).await
    }

    /// Writes the phase; refused once the run is complete or another run has taken the record over.
    pub(super) async fn set_phase(&self, owner: &Owner, phase: &str) -> Result<()> {
        let changed = self
            .client
            .execute(
                "UPDATE tidemark.progress SET phase = $3 WHERE job = $1 AND run = $2 AND epoch = $4 AND phase NOT IN ('follow', 'complete')",
                &[&self.job, &self.run, &phase, &owner.epoch],
            )
            .await
            .map_err(|cause| server_error("write the job's phase on the target", None, cause))?;
        if changed == 1 {
            return Ok(());
        }
        Err(Error::new(
            Disposition::Internal,
            format!(
                "go on with run {} of job {:?}: the target's record is complete or another run's",
                self.run, self.job
            ),
        ))
    }

    /// Writes how far the schema is created, and from which definitions.
    pub(super) async fn set_schema_state(&self, state: &str, digest: Option<&str>) -> Result<()> {
        self.client
            .execute(
                "UPDATE tidemark.progress SET schema_state = $3, schema_digest = $4 WHERE job = $1 AND run = $2",
                &[&self.job, &self.run, &state, &digest],
            )
            .await
            .map_err(|cause| server_error("write how far the schema is", None, cause))?;
        Ok(())
    }

    /// Writes what the tables that were there are filled from.
    pub(super) async fn set_schema_digest(&self, digest: Option<&str>) -> Result<()> {
        self.client
            .execute(
                "UPDATE tidemark.progress SET schema_digest = $3 WHERE job = $1 AND run = $2",
                &[&self.job, &self.run, &digest],
            )
            .await
            .map_err(|cause| server_error("write what is copied of the tables", None, cause))?;
        Ok(())
    }

    /// Compares the markers with what the run believes: commits that a crash of the target took back show here.
    pub(super) async fn expect_markers(&self, summary: &SnapshotSummary) -> Result<()> {
        let row = self
            .client
            .query_one(
                "SELECT coalesce(sum(rows), 0)::int8 FROM tidemark.chunk WHERE job = $1 AND run = $2",
                &[&self.job, &self.run],
            )
            .await
            .map_err(|cause| server_error("count the chunks that the target holds", None, cause))?;
        let there = row.get::<_, i64>(0) as u64;
        let expected: u64 = summary.tables.iter().map(|table| table.rows_in).sum();
        if there == expected {
            return Ok(());
        }
        Err(Error::new(
            Disposition::Unavailable,
            format!("finish the snapshot: the target's markers name {there} rows, {expected} were committed to it"),
        )
        .hint("the target was restarted and lost commits; run the same command again: it starts the snapshot over"))
    }

    /// Closes the record. This commit waits for the disk and with it for every commit before it.
    pub(super) async fn complete(
        &self,
        start: &SnapshotStart,
        owner: &Owner,
        summary: &SnapshotSummary,
    ) -> Result<()> {
        self.alive()?;
        let (schemas, names, oids) = super::join::columns(&start.tables);
        let states: Vec<&str> = start.tables.iter().map(super::join::state_after).collect();
        let phase = if start.continues { "follow" } else { "complete" };
        let lsn = summary.lsn.to_string();
        self.client
            .batch_execute("SET synchronous_commit = on")
            .await
            .map_err(|cause| server_error("close the job's record on the target", None, cause))?;
        let changed = self
            .client
            .execute(
                "WITH whole AS (UPDATE tidemark.relation r SET state = t.state, relation_oid = t.o \
                   FROM unnest($5::text[], $6::text[], $7::oid[], $9::text[]) AS t(s, n, o, state) \
                   WHERE r.job = $1 AND r.schema_name = t.s AND r.relation_name = t.n) \
                 UPDATE tidemark.progress SET phase = $4, end_lsn = $3::text::pg_lsn, finished_at = now() \
                 WHERE job = $1 AND run = $2 AND epoch = $8 AND phase = 'finish'",
                &[&self.job, &self.run, &lsn, &phase, &schemas, &names, &oids, &owner.epoch, &states],
            )
            .await
            .map_err(|cause| server_error("close the job's record on the target", None, cause))?;
        if changed == 1 {
            return Ok(());
        }
        Err(held(&self.job))
    }
}

fn decide(
    options: &PostgresOptions,
    start: &SnapshotStart,
    there: &[RelationName],
) -> Result<(SchemaMode, bool)> {
    if options.schema == SchemaMode::Exists {
        return Ok((SchemaMode::Exists, false));
    }
    if there.is_empty() {
        return Ok((SchemaMode::Create, false));
    }
    let missing = start.tables.iter().find(|plan| !there.contains(&plan.relation.name));
    match (options.not_empty, missing) {
        (NotEmpty::Refuse, _) => Err(not_empty(&there[0])),
        (_, None) => Ok((SchemaMode::Exists, false)),
        (_, Some(plan)) => Err(Error::new(
            Disposition::Usage,
            "load into a target that holds some of the tables but not this one",
        )
        .on(&plan.relation.name)
        .hint("create the missing tables, or start from an empty database")),
    }
}

fn refuse_foreign(left: &[RelationName], start: &SnapshotStart) -> Result<()> {
    let is_chosen =
        |name: &&RelationName| start.tables.iter().any(|plan| plan.relation.name == **name);
    // Views, sequences and the like are taken away by the schema's own DROP ... IF EXISTS statements; a chosen table that
    // is still there was never ours.
    left.iter().find(is_chosen).map_or(Ok(()), |name| Err(not_empty(name)))
}

pub(super) fn not_empty(name: &RelationName) -> Error {
    Error::new(Disposition::Usage, "load into a target that is not empty")
        .on(name)
        .hint("use an empty database, or say --target-not-empty append, or --target-not-empty truncate --yes")
}

pub(super) async fn relations_there(client: &Client) -> Result<Vec<RelationName>> {
    let rows = client
        .query(RELATIONS_THERE, &[])
        .await
        .map_err(|cause| server_error("list what the target holds", None, cause))?;
    Ok(rows
        .iter()
        .map(|row| RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)))
        .collect())
}

async fn beat(client: Arc<Client>, job: String, lost: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let beaten = client
            .execute(
                "UPDATE tidemark.progress SET heartbeat = clock_timestamp() WHERE job = $1",
                &[&job],
            )
            .await;
        if let Err(error) = beaten {
            tracing::error!(%error, "the session that holds the job on the target is lost");
            lost.store(true, Ordering::Relaxed);
            return;
        }
    }
}

/// Refuses where a session whose heartbeat goes on has the job. The lock is given back with the session that takes it here.
pub(super) async fn refuse_if_held(options: &PostgresOptions, sessions: &Sessions) -> Result<()> {
    let client = sessions.plain().await?;
    take_lock(&client, options).await
}

/// Takes the job for a command that ends at once; where nothing knows of any job that is an error.
pub(super) async fn take_the_job(client: &Client, options: &PostgresOptions) -> Result<()> {
    if heartbeat_of(client, &options.job).await?.is_none() {
        return Err(Error::new(
            Disposition::Usage,
            format!("take job {:?} on the target: the target does not know it", options.job),
        )
        .hint("tidemark sync starts the job"));
    }
    take_lock(client, options).await?;
    end_other_sessions(client, &options.job).await?;
    client
        .batch_execute(&format!("SET client_min_messages = warning; {TABLES}"))
        .await
        .map_err(|cause| server_error("bring the job's record up to date", None, cause))
}

/// Takes the advisory lock, from a dead run if need be.
async fn take_lock(client: &Client, options: &PostgresOptions) -> Result<()> {
    let attempt = |cause| server_error("take the job's advisory lock on the target", None, cause);
    let key = advisory_lock_key(&options.job);
    let deadline = Instant::now() + STALE;
    let mut seen = heartbeat_of(client, &options.job).await?;
    loop {
        let row =
            client.query_one("SELECT pg_try_advisory_lock($1)", &[&key]).await.map_err(attempt)?;
        if row.get(0) {
            return Ok(());
        }
        let beat = heartbeat_of(client, &options.job).await?;
        if beat != seen && seen.is_some() {
            return Err(held(&options.job));
        }
        seen = beat;
        if Instant::now() >= deadline {
            return end_holder(client, key, options).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn end_holder(client: &Client, key: i64, options: &PostgresOptions) -> Result<()> {
    let attempt = |cause| server_error("end the session of a dead run on the target", None, cause);
    let name = application_name(&options.job);
    client
        .query(
            "SELECT pg_terminate_backend(a.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
             WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted \
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
               AND (l.classid::int8 << 32 | l.objid::int8) = $1 \
               AND a.application_name = $2 AND a.usename = current_user",
            &[&key, &name],
        )
        .await
        .map_err(attempt)?;
    let deadline = Instant::now() + STALE;
    while Instant::now() < deadline {
        let row =
            client.query_one("SELECT pg_try_advisory_lock($1)", &[&key]).await.map_err(attempt)?;
        if row.get(0) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(held(&options.job))
}

pub(super) fn held(job: &str) -> Error {
    let mut error = Error::new(
        Disposition::Held,
        format!("take job {job:?} on the target: another instance holds it"),
    );
    error.hint = Some("stop the other instance, or give this job another name (--job)".to_owned());
    error
}

/// Whether any job has ever been recorded on the target.
pub(super) async fn has_records(client: &Client) -> Result<bool> {
    let row = client
        .query_one("SELECT to_regclass('tidemark.progress') IS NOT NULL", &[])
        .await
        .map_err(|cause| server_error("look for the jobs' records on the target", None, cause))?;
    Ok(row.get(0))
}

async fn heartbeat_of(client: &Client, job: &str) -> Result<Option<String>> {
    let attempt = |cause| server_error("read the job's heartbeat on the target", None, cause);
    if !has_records(client).await? {
        return Ok(None);
    }
    let row = client
        .query_opt(
            "SELECT heartbeat::text FROM tidemark.progress WHERE job = $1 AND wave = ''",
            &[&job],
        )
        .await
        .map_err(attempt)?;
    Ok(row.map(|row| row.get(0)))
}

/// Ends sessions of this job that a killed run left on the target, and waits until they are gone: a statement of theirs may
/// still run. Only ours: same role and application name, begun before this one.
async fn end_other_sessions(client: &Client, job: &str) -> Result<()> {
    let attempt = "end the sessions of a killed run on the target";
    let name = application_name(job);
    let deadline = Instant::now() + STALE;
    loop {
        let ended = client
            .query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE application_name = $1 AND usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()",
                &[&name],
            )
            .await
            .map_err(|cause| server_error(attempt, None, cause))?;
        if ended.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                Disposition::Unavailable,
                format!("{attempt}: {} of them go on", ended.len()),
            )
            .hint(
                "end them by hand (pg_stat_activity names them) and run the same command again",
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn read_record(client: &Client, job: &str) -> Result<Option<JobRecord>> {
    let row = client
        .query_opt(
            "SELECT run, phase, end_lsn::text, schema_mode, source_system_identifier, source_database, schema_state \
             FROM tidemark.progress WHERE job = $1 AND wave = ''",
            &[&job],
        )
        .await
        .map_err(|cause| server_error("read the job's record on the target", None, cause))?;
    Ok(row.map(|row| JobRecord {
        run: row.get(0),
        phase: row.get(1),
        end_lsn: row.get::<_, &str>(2).parse().unwrap_or_default(),
        schema_mode: row.get(3),
        source_system_identifier: row.get(4),
        source_database: row.get(5),
        schema_state: row.get(6),
    }))
}

/// The job as the target knows it, if it does.
///
/// # Errors
/// The target cannot be reached or does not let us read.
pub async fn read_job_record(spec: &ConnectSpec, job: &str) -> Result<Option<JobRecord>> {
    let client = spec.connect().await.map_err(|cause| {
        Error::new(Disposition::Unavailable, "connect to the target").because(cause)
    })?;
    if heartbeat_of(&client, job).await?.is_none() {
        return Ok(None);
    }
    read_record(&client, job).await
}

/// Whether the closing commit of this run is on the target. The job's sessions are ended first, so that the answer stays
/// true; only for a run of this very process, which does not go on.
///
/// # Errors
/// The target cannot be reached.
pub async fn closed_run(options: &PostgresOptions, run: &str) -> Result<bool> {
    let client = options.spec.connect().await.map_err(|cause| {
        Error::new(Disposition::Unavailable, "connect to the target").because(cause)
    })?;
    let ours = async || {
        let record = read_record(&client, &options.job).await?;
        Ok::<_, Error>(record.filter(|record| record.run == run))
    };
    // Another instance that has taken the job over is left alone.
    match ours().await? {
        None => return Ok(false),
        Some(record) if record.is_finished() => return Ok(true),
        Some(_) => end_other_sessions(&client, &options.job).await?,
    }
    Ok(ours().await?.is_some_and(|record| record.is_finished()))
}

/// Removes the job's records from the target, by exact name, and the schema `tidemark` with the last of them. Data stays.
/// Returns what was done, one line each.
///
/// # Errors
/// Another instance holds the job, or the target refuses.
pub async fn cleanup(options: &PostgresOptions) -> Result<Vec<String>> {
    let attempt = |cause| server_error("remove the job's records from the target", None, cause);
    let sessions = Sessions::new(options);
    let client = sessions.plain().await?;
    if heartbeat_of(&client, &options.job).await?.is_none() {
        return Ok(Vec::new());
    }
    take_lock(&client, options).await?;
    end_other_sessions(&client, &options.job).await?;
    let mut done = Vec::new();
    // A record of a version without lanes has no table of them.
    let tables = format!("SET client_min_messages = warning; {TABLES}");
    client.batch_execute(&tables).await.map_err(attempt)?;
    for table in ["chunk", "lane", "relation", "progress"] {
        let statement = format!("DELETE FROM tidemark.{} WHERE job = $1", Ident(table));
        let rows = client.execute(&statement, &[&options.job]).await.map_err(attempt)?;
        if rows > 0 {
            done.push(format!(
                "target: removed {rows} rows of job {:?} from tidemark.{table}",
                options.job
            ));
        }
    }
    let row =
        client.query_one("SELECT count(*) FROM tidemark.progress", &[]).await.map_err(attempt)?;
    if row.get::<_, i64>(0) == 0 {
        client
            .batch_execute("DROP TABLE tidemark.chunk, tidemark.lane, tidemark.relation, tidemark.progress; DROP SCHEMA tidemark")
            .await
            .map_err(attempt)?;
        done.push("target: dropped the schema tidemark".to_owned());
    }
    done.extend(super::origin::drop_all(&client, &options.job).await?);
    Ok(done)
}
