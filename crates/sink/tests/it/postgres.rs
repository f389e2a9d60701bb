//! The PostgreSQL sink against a real server: the conformance suite, and what only a PostgreSQL target has.
//!
//! The reader is `psql`; the tables are there before the run (`schema = "exists"`), because these tests have no source.

use std::sync::Arc;

use tidemark_model::{ChunkSpec, Finding, RelationName, TablePlan};
use tidemark_sink::postgres::{PostgresOptions, PostgresSink, SchemaMode, Triggers};
use tidemark_sink::{
    BeginChunk, NotEmpty, OpenStream, Result, Sink, SnapshotStart, SnapshotSummary, Stored,
    StreamStart,
};
use tidemark_testkit::{Database, shared};
use tidemark_wire::ConnectSpec;

use crate::conformance::{self, JOB, Reader, Target};

/// A fresh database of the shared cluster.
pub(crate) struct PostgresTarget {
    database: Database,
}

impl PostgresTarget {
    fn new() -> Self {
        Self { database: shared().expect("a cluster starts") }
    }

    fn options(&self) -> PostgresOptions {
        PostgresOptions {
            spec: ConnectSpec::parse(&self.database.url()).expect("the kit's URL is one"),
            job: JOB.to_owned(),
            schema: SchemaMode::Exists,
            not_empty: NotEmpty::Refuse,
            triggers: Triggers::Replica,
            follows: false,
            lanes: 1,
            lanes_from: tidemark_sink::postgres::LANES_FROM,
            build_jobs: 2,
            restore_tool: |_| "pg_restore".into(),
            tool_version: "test".to_owned(),
            wave: None,
        }
    }

    fn psql(&self, sql: &str) -> String {
        self.database.psql(sql).expect("psql runs")
    }
}

impl Target for PostgresTarget {
    fn sink(&self) -> Arc<dyn Sink> {
        // A new process comes after the old one is gone, and with it its sessions.
        self.psql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
             WHERE application_name LIKE 'tidemark%' AND datname = current_database()",
        );
        Arc::new(WithTables {
            sink: PostgresSink::new(self.options()),
            database: self.database.url(),
        })
    }

    fn reader(&self) -> &dyn Reader {
        self
    }
}

#[async_trait::async_trait]
impl Reader for PostgresTarget {
    async fn visible_ids(&self, relation: &RelationName) -> Option<Vec<i64>> {
        let text = self.psql(&format!("SELECT id FROM ONLY {relation} ORDER BY id"));
        Some(text.lines().map(|line| line.parse().expect("ids are numbers")).collect())
    }

    async fn debris(&self) -> usize {
        // Markers of other runs than the one that is recorded.
        let text = self.psql(
            "SELECT count(*) FROM tidemark.chunk c WHERE NOT EXISTS \
             (SELECT FROM tidemark.progress p WHERE p.job = c.job AND p.run = c.run)",
        );
        text.trim().parse().expect("a count")
    }
}

/// Makes the tables of a run before the sink prepares, as somebody who chose `schema = "exists"` has done.
struct WithTables {
    sink: PostgresSink,
    database: String,
}

#[async_trait::async_trait]
impl Sink for WithTables {
    async fn check(&self, tables: &[TablePlan]) -> Result<Vec<Finding>> {
        self.sink.check(tables).await
    }

    async fn prepare(&self, start: &SnapshotStart) -> Result<()> {
        let client = ConnectSpec::parse(&self.database).unwrap().connect().await.unwrap();
        for plan in start.tables.iter() {
            let name = &plan.relation.name;
            let sql = format!(
                "SET client_min_messages = warning; CREATE TABLE IF NOT EXISTS {name} (id int8 NOT NULL, body text)"
            );
            client.batch_execute(&sql).await.unwrap();
            // The catalog of these tests calls its types by their short names.
            let sql = format!("ALTER TABLE {name} ALTER id TYPE int8");
            client.batch_execute(&sql).await.unwrap();
        }
        let mut start = start.clone();
        let mut plans = start.tables.as_ref().clone();
        for column in plans.iter_mut().flat_map(|plan| &mut plan.columns) {
            if column.type_name == "int8" {
                column.type_name = "bigint".to_owned();
            }
        }
        start.tables = Arc::new(plans);
        self.sink.prepare(&start).await
    }

    async fn begin_chunk(&self, spec: &ChunkSpec) -> Result<BeginChunk> {
        self.sink.begin_chunk(spec).await
    }

    async fn table_loaded(&self, relation: &RelationName) -> Result<()> {
        self.sink.table_loaded(relation).await
    }

    async fn finish(&self, summary: &SnapshotSummary) -> Result<()> {
        self.sink.finish(summary).await
    }

    async fn refuse_if_held(&self) -> Result<()> {
        self.sink.refuse_if_held().await
    }

    async fn stored(&self) -> Result<Option<Stored>> {
        self.sink.stored().await
    }

    async fn forget(&self, job: &str, tables: &[RelationName]) -> Result<Vec<RelationName>> {
        self.sink.forget(job, tables).await
    }

    async fn open_stream(&self, start: &StreamStart) -> Result<OpenStream> {
        self.sink.open_stream(start).await
    }
}

macro_rules! conforms {
    ($($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                conformance::$name(&PostgresTarget::new()).await;
            }
        )*
    };
}

conforms!(
    a_run_makes_exactly_what_was_sent_visible
    what_is_aborted_or_dropped_leaves_nothing
    a_committed_chunk_is_not_taken_again
    a_wrong_count_is_refused
    interleaved_tables_do_not_mix
    parallel_chunks_all_arrive_once
    the_next_run_clears_what_a_killed_run_left
    a_target_that_is_not_empty_is_refused
    finishing_twice_is_refused
);
