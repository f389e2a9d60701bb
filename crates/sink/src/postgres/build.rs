//! Builds what stands around the rows once they are in: indexes, keys, foreign keys, sequences, materialized views.
//!
//! A table that is in goes through VACUUM (while it has no index that is one pass over its pages), index builds, keys and ANALYZE,
//! and then come the foreign keys that waited for it. VACUUM marks the pages as visible to all: the index builds after it
//! need not ask for every row whether it counts, and foreign keys are validated from the indexes alone.
//!
//! **Invariant:** every definition is the source server's own text, with qualified names; a key is an index first (so that
//! several are built on one table at once) and a constraint after.
//!
//! PostgreSQL manual: ALTER TABLE (`ADD CONSTRAINT .. USING INDEX`, `NOT VALID`), section 14.4 (populating a database).

mod foreign_keys;

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::try_join_all;
use tidemark_model::{ConstraintKind, IndexDef, RelationName, SchemaObjects, sql::Ident};
use tidemark_wire::tokio_postgres;
use tokio::sync::Semaphore;
use tokio_postgres::error::SqlState;

use self::foreign_keys::ForeignKeys;
use super::session::{Pool, Purpose, Sessions, server_error, wait_for_end};
use super::{PostgresOptions, SchemaMode};
use crate::{Disposition, Result, SnapshotStart};

/// Below this a table's indexes are built one after the other in one round trip: with tens of thousands of small tables the
/// round trips are what takes the time.
const SMALL_TABLE_BYTES: u64 = 16 << 20;

/// From here on sorting gets all the memory of the session and parallel workers.
const LARGE_TABLE_BYTES: u64 = 4 << 30;

/// What a build begins with. The statements after it are in the same transaction, to which the settings are bound.
///
/// Measured on 6 million rows: sorting in 256 MB costs a fifth more CPU than in 64 MB, which the caches hold more of.
/// With few rows a plan is not worth compiling.
fn settings(heap_bytes: u64) -> &'static str {
    if heap_bytes < LARGE_TABLE_BYTES {
        "SET LOCAL jit = off; SET LOCAL maintenance_work_mem = '64MB'"
    } else {
        "SET LOCAL jit = off"
    }
}

/// With several builds of one table at once, workers of each only add the merging of what they sorted.
const WITHOUT_WORKERS: &str = "SET LOCAL max_parallel_maintenance_workers = 0";

/// How often something is built while only connections are lost.
const ATTEMPTS: u32 = 4;

/// Builds, several things at once.
pub(super) struct Builder {
    pool: Pool,
    job: String,
    slots: Arc<Semaphore>,
    mode: SchemaMode,
    schema: Arc<SchemaObjects>,
    tables: HashMap<RelationName, TableBuild>,
    foreign_keys: ForeignKeys,
}

/// What is built on one table.
#[derive(Default)]
struct TableBuild {
    heap_bytes: u64,
    indexes: Vec<IndexDef>,
}

impl Builder {
    pub(super) fn new(
        options: &PostgresOptions,
        sessions: &Sessions,
        start: &SnapshotStart,
        mode: SchemaMode,
    ) -> Self {
        let table = |plan: &tidemark_model::TablePlan| {
            let build = TableBuild { heap_bytes: plan.relation.heap_bytes, indexes: Vec::new() };
            (plan.relation.name.clone(), build)
        };
        let mut tables: HashMap<_, _> = start.tables.iter().map(table).collect();
        if mode == SchemaMode::Create {
            for index in &start.schema.indexes {
                if let Some(table) = tables.get_mut(&index.table) {
                    table.indexes.push(index.clone());
                }
            }
        }
        let foreign_keys = match mode {
            SchemaMode::Create => ForeignKeys::new(&start.schema.foreign_keys),
            SchemaMode::Exists => ForeignKeys::default(),
        };
        Self {
            pool: Pool::new(sessions, Purpose::Build),
            job: options.job.clone(),
            slots: Arc::new(Semaphore::new(options.build_jobs.max(1))),
            mode,
            schema: Arc::clone(&start.schema),
            tables,
            foreign_keys,
        }
    }

    /// Indexes, keys and statistics of one table, then the foreign keys that waited for it.
    pub(super) async fn table(&self, relation: &RelationName) -> Result<()> {
        let Some(table) = self.tables.get(relation) else { return Ok(()) };
        let mut after: Vec<String> = table.indexes.iter().flat_map(after_index).collect();
        if table.heap_bytes > 0 {
            // Statistics of an empty table say nothing.
            after.push(format!("ANALYZE {relation}"));
        }
        if table.heap_bytes < SMALL_TABLE_BYTES {
            let creations = table.indexes.iter().filter_map(creation);
            let all: Vec<String> =
                creations.map(|(_, statement)| statement.to_owned()).chain(after).collect();
            self.execute(relation, "build the indexes and keys", &all).await?;
        } else {
            if self.mode == SchemaMode::Create {
                self.execute(relation, "vacuum", &[format!("VACUUM {relation}")]).await?;
            }
            self.indexes(relation, table).await?;
            self.execute(relation, "add the keys", &after).await?;
        }
        self.foreign_keys_of(relation).await
    }

    /// Builds the indexes of a table, several at once.
    async fn indexes(&self, relation: &RelationName, table: &TableBuild) -> Result<()> {
        let creations: Vec<_> = table.indexes.iter().filter_map(creation).collect();
        let mut settings = settings(table.heap_bytes).to_owned();
        if creations.len() > 1 && table.heap_bytes < LARGE_TABLE_BYTES {
            settings = format!("{settings}; {WITHOUT_WORKERS}");
        }
        let builds = creations.iter().map(async |(attempt, statement)| {
            let statements = [settings.clone(), (*statement).to_owned()];
            self.execute(relation, attempt, &statements).await
        });
        try_join_all(builds).await?;
        Ok(())
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

    /// Sets every sequence that the target has to where the source's stood under the snapshot.
    pub(super) async fn sequences(&self) -> Result<()> {
        let client = self.pool.take().await?;
        // In tables that were there before us a sequence may be ahead: set back, it would give numbers twice.
        let may_go_back = self.mode == SchemaMode::Create;
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
            let row =
                client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&view.to_string()]).await;
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
fn is_there_already(cause: &tokio_postgres::Error) -> bool {
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
