//! What a first snapshot finds on the target, and how it makes room: whether this run may write here, and what an earlier run
//! of the same job left.
//!
//! **Invariant:** the record names this run before anything of an earlier one is dropped or emptied, and names every table
//! before it is made; what was there before the job is never taken for the job's.

use std::collections::HashSet;

use tidemark_model::RelationName;
use tidemark_wire::Client;

use super::control::Control;
use super::load::Owner;
use super::record::{JobRecord, WITH_OWNER, read_record};
use super::session::{may_replicate, server_error};
use super::{PostgresOptions, SchemaMode};
use crate::{Disposition, Error, NotEmpty, Result, SnapshotStart};

const RELATIONS_THERE: &str = "
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tidemark')
  AND n.nspname NOT LIKE 'tidemark\\_selftest\\_%' AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2";

/// What `begin` decided.
pub(super) struct Begun {
    /// The schema mode in force.
    pub(super) mode: SchemaMode,
    /// Whether objects of an earlier run of this job are being replaced.
    pub(super) replaces_own: bool,
    /// Whose chunks may commit.
    pub(super) owner: Owner,
}

impl Control {
    /// Decides whether this run may write here, clears what an earlier run of the same job left, and records this one. Beside
    /// others, their relations are none of its business.
    pub(super) async fn begin(
        &self,
        options: &PostgresOptions,
        start: &SnapshotStart,
        is_beside_others: bool,
    ) -> Result<Begun> {
        let record = read_record(&self.client, &self.job).await?;
        let there = self.relations_there().await?;
        let (mode, replaces_own) = match record.filter(|record| record.phase != "cleaned") {
            Some(record) => self.continue_over(&record, options, start).await?,
            None if is_beside_others => {
                refuse_foreign(&there, start)?;
                (SchemaMode::Create, false)
            }
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
        .hint("use an empty database, or say --target-not-empty truncate --yes, or append; or reconcile --yes, which compares what is there and moves only what differs")
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
