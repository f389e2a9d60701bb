//! When the PostgreSQL target makes foreign keys. The target's own catalog says what is there, so nothing depends on time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tidemark_model::{
    ConstraintDef, ConstraintKind, ForeignKey, IndexDef, RelationName, SchemaObjects, TablePlan,
};
use tidemark_sink::postgres::{PostgresOptions, PostgresSink, SchemaMode, Triggers};
use tidemark_sink::{NotEmpty, Sink, SnapshotStart};
use tidemark_testkit::{Database, shared};
use tidemark_wire::ConnectSpec;

use crate::conformance::{self, JOB};

/// `child` points to `parent`, `parent` to itself; `last` has nothing to do with them.
const TABLES: [&str; 3] = ["parent", "child", "last"];

struct Rig {
    target: Database,
    plans: Vec<TablePlan>,
    sink: PostgresSink,
    _archive: TempDir,
}

impl Rig {
    /// A target whose schema is made and whose tables are empty.
    async fn prepared() -> Self {
        let (source, target) = (shared().unwrap(), shared().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let archive = dump(&source, directory.path());
        let plans: Vec<TablePlan> =
            (101..).zip(TABLES).map(|(oid, table)| conformance::plan(oid, &name(table))).collect();
        let sink = PostgresSink::new(PostgresOptions {
            spec: ConnectSpec::parse(&target.url()).unwrap(),
            job: JOB.to_owned(),
            schema: SchemaMode::Create,
            not_empty: NotEmpty::Refuse,
            triggers: Triggers::Replica,
            build_jobs: 2,
            restore_tool: |_| "pg_restore".into(),
            tool_version: "test".to_owned(),
        });
        let start = SnapshotStart {
            schema: Arc::new(objects()),
            schema_archive: Some(archive),
            ..conformance::start("r1", &plans)
        };
        sink.prepare(&start).await.unwrap();
        Self { target, plans, sink, _archive: directory }
    }

    fn plan(&self, table: &str) -> &TablePlan {
        self.plans.iter().find(|plan| plan.relation.name == name(table)).unwrap()
    }

    /// Loads rows with these ids into a table and says that it is in.
    async fn load(&self, table: &str, ids: std::ops::Range<i64>) -> tidemark_sink::Result<()> {
        let spec = conformance::spec("r1", self.plan(table), 0);
        conformance::write(&self.sink, &spec, ids).await.unwrap();
        self.sink.table_loaded(&name(table)).await
    }

    /// The foreign keys on the target, with whether they are validated.
    fn foreign_keys(&self) -> String {
        let sql = "SELECT string_agg(conname || ' ' || convalidated, ', ' ORDER BY conname) \
                   FROM pg_constraint WHERE contype = 'f'";
        self.target.psql(sql).unwrap()
    }
}

fn name(table: &str) -> RelationName {
    RelationName::new("public", table)
}

/// The schema of a database that has the tables without anything around them.
fn dump(source: &Database, directory: &Path) -> PathBuf {
    let tables = TABLES.map(|table| format!("CREATE TABLE {table} (id int8 NOT NULL, body text);"));
    source.psql(&tables.concat()).unwrap();
    let archive = directory.join("schema.dump");
    let mut tool = source.cluster().client_command("pg_dump");
    let dumped =
        tool.args(["--format=custom", "--schema-only", "--dbname", source.name()]).output();
    let dumped = dumped.unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    std::fs::write(&archive, dumped.stdout).unwrap();
    archive
}

fn objects() -> SchemaObjects {
    let key = |(oid, table): (u32, &str)| IndexDef {
        oid,
        table: name(table),
        name: format!("{table}_pkey"),
        definition: format!("CREATE UNIQUE INDEX {table}_pkey ON public.{table} (id)"),
        constraint: Some(ConstraintDef {
            oid: oid + 100,
            name: format!("{table}_pkey"),
            kind: ConstraintKind::PrimaryKey,
            definition: "PRIMARY KEY (id)".to_owned(),
            deferrable: String::new(),
        }),
        is_clustered: false,
        is_replica_identity: false,
    };
    let foreign = |oid, table: &str| ForeignKey {
        oid,
        table: name(table),
        references: name("parent"),
        name: format!("{table}_fk"),
        definition: "FOREIGN KEY (id) REFERENCES public.parent(id)".to_owned(),
        is_valid: true,
        on_partitioned: false,
    };
    SchemaObjects {
        indexes: (1001..).zip(TABLES).map(key).collect(),
        foreign_keys: vec![foreign(1301, "child"), foreign(1302, "parent")],
        ..SchemaObjects::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_key_is_made_as_soon_as_both_of_its_tables_are_in() {
    let rig = Rig::prepared().await;
    rig.load("child", 0..50).await.unwrap();
    assert_eq!(rig.foreign_keys(), "", "parent is not in yet");
    rig.load("parent", 0..100).await.unwrap();
    assert_eq!(rig.foreign_keys(), "child_fk true, parent_fk true", "last is not in yet");
    rig.load("last", 0..10).await.unwrap();
    let rows = [("parent", 100), ("child", 50), ("last", 10)];
    let rows = rows.map(|(table, rows)| (rig.plan(table), rows));
    rig.sink.finish(&conformance::summary(&rows)).await.unwrap();
    assert_eq!(rig.foreign_keys(), "child_fk true, parent_fk true");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_without_its_parent_is_an_error_that_names_the_key() {
    let rig = Rig::prepared().await;
    rig.load("parent", 0..100).await.unwrap();
    let error = rig.load("child", 50..150).await.unwrap_err();
    assert_eq!(error.relation, Some(name("child")));
    let text = error.to_string();
    assert!(text.contains("validate foreign key \"child_fk\""), "{text}");
    assert_eq!(rig.foreign_keys(), "child_fk false, parent_fk true");
}
