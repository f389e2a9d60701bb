//! Builds what stands around the rows once they are in: indexes, keys, foreign keys, sequences, materialized views.
//!
//! **Invariant:** every definition is the source server's own text, with qualified names; a key is an index first (so that
//! several are built on one table at once) and a constraint after.
//!
//! PostgreSQL manual: ALTER TABLE (`ADD CONSTRAINT .. USING INDEX`, `NOT VALID`), section 14.4 (populating a database).

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::try_join_all;
use tidemark_model::{
    ConstraintKind, ForeignKey, IndexDef, Oid, Persistence, RelationName, SchemaObjects, sql::Ident,
};
use tidemark_wire::tokio_postgres;
use tokio::sync::Semaphore;
use tokio_postgres::error::SqlState;

use super::session::{Pool, Purpose, Sessions, server_error, wait_for_end};
use super::unfinished::Mark;
use super::{PostgresOptions, SchemaMode};
use crate::{Disposition, Result, SnapshotStart};

/// Below this a table's indexes are built one after the other in one round trip: with tens of thousands of small tables the
/// round trips are what takes the time.
const SMALL_TABLE_BYTES: u64 = 16 << 20;

/// From here on a sort gets all the memory of the session, and parallel workers.
const LARGE_TABLE_BYTES: u64 = 4 << 30;

/// What an index build begins with; its statement is in the same transaction, to which the settings are bound.
///
/// Measured on 6 million rows: sorting in 256 MB costs a fifth more CPU than in 64 MB, which the caches hold more of; and
/// where several indexes are built at once, workers of each only add the merging of what they sorted.
fn settings(heap_bytes: u64, builds_at_once: usize) -> Vec<String> {
    let mut settings = vec!["SET LOCAL jit = off".to_owned()];
    if heap_bytes < LARGE_TABLE_BYTES {
        settings.push("SET LOCAL maintenance_work_mem = '64MB'".to_owned());
        if builds_at_once > 1 {
            settings.push("SET LOCAL max_parallel_maintenance_workers = 0".to_owned());
        }
    }
    settings
}

/// A transaction that writes something and is waited for.
const FLUSH: &str =
    "SET LOCAL synchronous_commit = on; SELECT pg_logical_emit_message(true, 'tidemark', 'flush')";

/// How often something is built while only connections are lost.
const ATTEMPTS: u32 = 4;

/// Builds, several things at once.
pub(super) struct Builder {
    pool: Pool,
    job: String,
    slots: Arc<Semaphore>,
    mode: SchemaMode,
    schema: Arc<SchemaObjects>,
    /// Sequences may be behind those of the target, which is in use.
    may_be_behind: bool,
    /// Materialized views that are filled are another wave's, which is in use.
    fills_empty_views_only: bool,
    /// Says of a table that it is whole, where that is kept.
    mark: Option<Mark>,
    tables: HashMap<RelationName, TableBuild>,
}

/// What is built on one table.
#[derive(Default)]
struct TableBuild {
    oid: Oid,
    heap_bytes: u64,
    /// Never whole.
    is_unlogged: bool,
    indexes: Vec<IndexDef>,
}

impl Builder {
    pub(super) fn new(
        options: &PostgresOptions,
        sessions: &Sessions,
        start: &SnapshotStart,
        mode: SchemaMode,
        mark: Option<Mark>,
    ) -> Self {
        let table = |plan: &tidemark_model::TablePlan| {
            let relation = &plan.relation;
            let build = TableBuild {
                oid: relation.oid,
                heap_bytes: relation.heap_bytes,
                is_unlogged: relation.persistence == Persistence::Unlogged,
                indexes: Vec::new(),
            };
            (relation.name.clone(), build)
        };
        let mut tables: HashMap<_, _> = start.tables.iter().map(table).collect();
        if mode == SchemaMode::Create {
            for index in &start.schema.indexes {
                if let Some(table) = tables.get_mut(&index.table) {
                    table.indexes.push(index.clone());
                }
            }
        }
        Self {
            pool: Pool::new(sessions, Purpose::Build),
            job: options.job.clone(),
            slots: Arc::new(Semaphore::new(options.build_jobs.max(1))),
            mode,
            schema: Arc::clone(&start.schema),
            // Another wave's application may draw from a sequence that no table owns.
            may_be_behind: options.wave.is_some()
                || start.joins.as_ref().is_some_and(|join| join.completes.is_none()),
            fills_empty_views_only: options.wave.is_some(),
            mark,
            tables,
        }
    }

    /// Indexes, keys and statistics of one table.
    pub(super) async fn table(&self, relation: &RelationName) -> Result<()> {
        let Some(table) = self.tables.get(relation) else { return Ok(()) };
        let creations = table.indexes.iter().filter_map(creation);
        let mut after: Vec<String> = table.indexes.iter().flat_map(after_index).collect();
        if table.heap_bytes > 0 {
            // Statistics of an empty table say nothing.
            after.push(format!("ANALYZE {relation}"));
        }
        // The last of it, in one transaction with the keys.
        let mark = self.mark.iter().filter(|_| !table.is_unlogged);
        after.extend(mark.map(|mark| mark.statement(relation, table.oid)));
        if table.heap_bytes < SMALL_TABLE_BYTES {
            let all: Vec<String> =
                creations.map(|(_, statement)| statement.to_owned()).chain(after).collect();
            return self.execute(relation, "build the indexes and keys", &all).await;
        }
        let creations: Vec<_> = creations.collect();
        let settings = settings(table.heap_bytes, creations.len());
        let builds = creations.into_iter().map(async |(attempt, statement)| {
            let statements = [settings.as_slice(), &[statement.to_owned()]].concat();
            self.execute(relation, &attempt, &statements).await
        });
        try_join_all(builds).await?;
        self.execute(relation, "add the keys", &after).await
    }

    async fn execute(
        &self,
        relation: &RelationName,
        attempt: &str,
        statements: &[String],
    ) -> Result<()> {
        if statements.is_empty() {
            return Ok(());
        }
        let _slot = self.slots.acquire().await.expect("the build slots are never closed");
        let text = statements.join("; ");
        let mut lost = None;
        for tries_left in (0..ATTEMPTS).rev() {
            let client = self.pool.take().await?;
            if let Some(backend) = lost {
                wait_for_end(&client, backend, &self.job).await?;
            }
            match client.batch_execute(&text).await {
                Ok(()) => self.pool.give_back(client),
                // The batch is one transaction: if a part of it is there, the lost try had committed.
                Err(cause) if lost.is_some() && is_there_already(&cause) => {
                    self.pool.give_back(client)
                }
                Err(cause) => {
                    let error = server_error(attempt, Some(relation), cause);
                    if error.disposition != Disposition::Retry || tries_left == 0 {
                        return Err(error);
                    }
                    tracing::warn!(%relation, attempt, "a connection was lost; it is done again");
                    lost = Some(client.backend_pid());
                    continue;
                }
            }
            return Ok(());
        }
        Ok(())
    }

    /// Foreign keys: first all of them NOT VALID, which takes a moment, then validated several at once.
    pub(super) async fn foreign_keys(&self) -> Result<()> {
        if self.mode != SchemaMode::Create {
            return Ok(());
        }
        for key in &self.schema.foreign_keys {
            let attempt = format!("add foreign key {}", Ident(&key.name));
            let statement = add_foreign_key(key, is_validated_later(key));
            self.execute(&key.table, &attempt, &[statement]).await?;
        }
        self.vacuum().await?;
        // Two validations of one table would wait for each other's lock: a table's keys come one after the other.
        let mut by_table: HashMap<&RelationName, Vec<&ForeignKey>> = HashMap::new();
        for key in self.schema.foreign_keys.iter().filter(|key| is_validated_later(key)) {
            by_table.entry(&key.table).or_default().push(key);
        }
        let mut tables: Vec<_> = by_table.into_values().collect();
        tables.sort_by_key(|keys| std::cmp::Reverse(self.heap_bytes(&keys[0].table)));
        try_join_all(tables.into_iter().map(|keys| self.validate(keys))).await?;
        Ok(())
    }

    /// Marks the pages of the tables that foreign keys connect as visible to all, so that the keys are validated from the
    /// indexes alone. Only now: what still ran beside an earlier VACUUM would have kept it from most pages. And only once all
    /// commits are on disk: a page whose rows came by one that is not is left as it is.
    async fn vacuum(&self) -> Result<()> {
        let keys = self.schema.foreign_keys.iter().filter(|key| is_validated_later(key));
        let mut tables: Vec<_> = keys
            .flat_map(|key| [&key.table, &key.references])
            .filter(|table| self.heap_bytes(table) >= SMALL_TABLE_BYTES)
            .collect();
        tables.sort_by_key(|table| (std::cmp::Reverse(self.heap_bytes(table)), *table));
        tables.dedup();
        let Some(largest) = tables.first() else { return Ok(()) };
        let flushed = self.execute(largest, "flush the commits", &[FLUSH.to_owned()]).await;
        if let Err(error) = flushed {
            tracing::debug!(%error, "the vacuum may leave pages alone whose commits are not on disk");
        }
        try_join_all(
            tables.into_iter().map(async |table| {
                self.execute(table, "vacuum", &[format!("VACUUM {table}")]).await
            }),
        )
        .await?;
        Ok(())
    }

    /// Foreign keys that are not checked against rows: while the tables are not as of one moment they need not hold. One that
    /// can only be checked at once is left out: it is owed.
    pub(super) async fn foreign_keys_unchecked(&self) -> Result<()> {
        if self.mode != SchemaMode::Create {
            return Ok(());
        }
        for key in self.schema.foreign_keys.iter().filter(|key| !key.is_checked_at_once()) {
            let attempt = format!("add foreign key {}", Ident(&key.name));
            let statement = add_foreign_key(key, true);
            self.execute(&key.table, &attempt, &[statement]).await?;
        }
        Ok(())
    }

    async fn validate(&self, keys: Vec<&ForeignKey>) -> Result<()> {
        for key in keys {
            let statement = validate_foreign_key(key);
            let attempt = format!("validate foreign key {}", Ident(&key.name));
            self.execute(&key.table, &attempt, &[statement]).await?;
        }
        Ok(())
    }

    fn heap_bytes(&self, relation: &RelationName) -> u64 {
        self.tables.get(relation).map_or(0, |table| table.heap_bytes)
    }

    /// Sets every sequence that the target has to where the source's stood under the snapshot.
    pub(super) async fn sequences(&self) -> Result<()> {
        let client = self.pool.take().await?;
        // In tables that were there before us a sequence may be ahead: set back, it would give numbers twice.
        let may_go_back = self.mode == SchemaMode::Create && !self.may_be_behind;
        for group in self.schema.sequences.chunks(1000) {
            let names: Vec<String> =
                group.iter().map(|sequence| sequence.name.to_string()).collect();
            let values: Vec<i64> = group.iter().map(|sequence| sequence.last_value).collect();
            let called: Vec<bool> = group.iter().map(|sequence| sequence.is_called).collect();
            client
                .execute(
                    "SELECT setval(c.oid::regclass, s.value, s.called) \
                     FROM unnest($1::text[], $2::int8[], $3::bool[]) AS s(name, value, called) \
                     JOIN pg_class c ON c.oid = to_regclass(s.name) AND c.relkind = 'S' \
                     JOIN pg_namespace n ON n.oid = c.relnamespace \
                     LEFT JOIN pg_sequences p ON p.schemaname = n.nspname AND p.sequencename = c.relname \
                     WHERE $4 OR p.last_value IS NULL \
                        OR sign(p.increment_by) * p.last_value <= sign(p.increment_by) * s.value",
                    &[&names, &values, &called, &may_go_back],
                )
                .await
                .map_err(|cause| server_error("set the sequences", None, cause))?;
        }
        self.pool.give_back(client);
        Ok(())
    }

    /// Fills materialized views, each after those it reads.
    pub(super) async fn materialized_views(&self) -> Result<()> {
        if self.mode != SchemaMode::Create || self.schema.materialized_views.is_empty() {
            return Ok(());
        }
        let client = self.pool.take().await?;
        for view in &self.schema.materialized_views {
            let attempt = |cause| server_error("fill a materialized view", Some(view), cause);
            // One that reads a table outside the selection was not created.
            let sql = "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass($1) AND NOT ($2 AND relispopulated))";
            let row =
                client.query_one(sql, &[&view.to_string(), &self.fills_empty_views_only]).await;
            if row.map_err(attempt)?.get(0) {
                client
                    .batch_execute(&format!("REFRESH MATERIALIZED VIEW {view}"))
                    .await
                    .map_err(attempt)?;
            }
        }
        self.pool.give_back(client);
        Ok(())
    }
}

/// Whether a statement failed because its object exists.
pub(super) fn is_there_already(cause: &tokio_postgres::Error) -> bool {
    let states = [
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_OBJECT,
        SqlState::INVALID_TABLE_DEFINITION, // a second primary key
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, // the index has its constraint
    ];
    cause.code().is_some_and(|state| states.contains(state))
}

/// What makes the index, unless only its constraint can.
fn creation(index: &IndexDef) -> Option<(String, &str)> {
    let is_exclusion = |kind| kind == ConstraintKind::Exclusion;
    if index.constraint.as_ref().is_some_and(|constraint| is_exclusion(constraint.kind)) {
        return None;
    }
    Some((format!("build index {}", Ident(&index.name)), &index.definition))
}

/// The constraint and the marks that an index carries.
fn after_index(index: &IndexDef) -> Vec<String> {
    let (table, name) = (&index.table, Ident(&index.name));
    let mut statements = Vec::new();
    if let Some(constraint) = &index.constraint {
        let add = format!("ALTER TABLE ONLY {table} ADD CONSTRAINT {}", Ident(&constraint.name));
        statements.push(match constraint.kind {
            ConstraintKind::PrimaryKey => {
                format!("{add} PRIMARY KEY USING INDEX {name}{}", constraint.deferrable)
            }
            ConstraintKind::Unique => {
                format!("{add} UNIQUE USING INDEX {name}{}", constraint.deferrable)
            }
            ConstraintKind::Exclusion => format!("{add} {}", constraint.definition),
        });
    }
    if index.is_clustered {
        statements.push(format!("ALTER TABLE {table} CLUSTER ON {name}"));
    }
    if index.is_replica_identity {
        statements.push(format!("ALTER TABLE ONLY {table} REPLICA IDENTITY USING INDEX {name}"));
    }
    statements
}

fn is_validated_later(key: &ForeignKey) -> bool {
    key.is_valid && !key.is_checked_at_once()
}

pub(super) fn validate_foreign_key(key: &ForeignKey) -> String {
    format!("ALTER TABLE {} VALIDATE CONSTRAINT {}", key.table, Ident(&key.name))
}

pub(super) fn add_foreign_key(key: &ForeignKey, is_validated_later: bool) -> String {
    let only = if key.on_partitioned { "" } else { "ONLY " };
    let suffix = if is_validated_later { " NOT VALID" } else { "" };
    format!(
        "ALTER TABLE {only}{} ADD CONSTRAINT {} {}{suffix}",
        key.table,
        Ident(&key.name),
        key.definition
    )
}
