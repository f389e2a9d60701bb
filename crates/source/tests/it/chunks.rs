//! Ranges hold every row of the snapshot exactly once.

use tidemark_model::{ChunkRange, Relation};
use tidemark_source::{Snapshot, key_bounds, leaf_bounds, plan_chunks};
use tidemark_testkit::shared;

use crate::support::{catalog, chunk, options, rows_of, session, spec, tables};

#[tokio::test(flavor = "multi_thread")]
async fn rows_behind_a_stale_statistic_are_read() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE t (id int); INSERT INTO t SELECT generate_series(1, 100); ANALYZE t; INSERT INTO t SELECT generate_series(101, 50000)").unwrap();
    let url = database.url();
    let snapshot = Snapshot::take(&spec(&url), &options(&url, &["public.t"]).await).await.unwrap();
    let table = &snapshot.tables()[0];
    let ranges = plan_chunks(table, 150_000, 128 * 1024);
    assert!(ranges.len() > 8, "{ranges:?}");
    assert_eq!(rows_of(&url, table, snapshot.id(), ranges).await.len(), 50_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_grew_between_planning_and_the_snapshot_is_read_whole() {
    let database = shared().unwrap();
    database
        .psql("CREATE TABLE t (id int); INSERT INTO t SELECT generate_series(1, 5000)")
        .unwrap();
    let url = database.url();
    let planned = tables(&url, &["public.t"]).await;
    let ranges = plan_chunks(&planned[0], 150_000, 64 * 1024);
    assert!(ranges.len() > 1);
    database.psql("INSERT INTO t SELECT generate_series(5001, 20000)").unwrap();
    let snapshot = Snapshot::take(&spec(&url), &options(&url, &["public.t"]).await).await.unwrap();
    assert_eq!(rows_of(&url, &planned[0], snapshot.id(), ranges).await.len(), 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn inherited_rows_and_partitions_are_read_once() {
    let database = shared().unwrap();
    database
        .psql(
            "CREATE TABLE parent (a int); CREATE TABLE child () INHERITS (parent); \
             INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2); \
             CREATE TABLE top (k int) PARTITION BY LIST (k); \
             CREATE TABLE one PARTITION OF top FOR VALUES IN (1) PARTITION BY LIST (k); \
             CREATE TABLE leaf PARTITION OF one FOR VALUES IN (1); \
             CREATE TABLE two PARTITION OF top FOR VALUES IN (2); INSERT INTO top VALUES (1), (2)",
        )
        .unwrap();
    let url = database.url();
    let snapshot = Snapshot::take(&spec(&url), &options(&url, &["public.*"]).await).await.unwrap();
    let mut counts = Vec::new();
    for table in snapshot.tables() {
        let rows = rows_of(&url, table, snapshot.id(), vec![ChunkRange::Whole]).await;
        counts.push((table.name.name.clone(), rows.len()));
    }
    let expected = [("child", 1), ("leaf", 1), ("parent", 1), ("two", 1)];
    assert_eq!(counts, expected.map(|(name, rows)| (name.to_owned(), rows)));
}

async fn assert_key_ranges_are_complete(url: &str, table: &Relation, rows: usize) {
    let ranges = key_bounds(&session(url).await, table, 8).await.unwrap();
    assert!(ranges.len() > 4, "{}: {ranges:?}", table.name);
    let snapshot =
        Snapshot::take(&spec(url), &options(url, &[&table.name.plain()]).await).await.unwrap();
    assert_eq!(rows_of(url, table, snapshot.id(), ranges).await.len(), rows, "{}", table.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_ranges_read_every_row_once_whatever_the_type_and_collation() {
    let database = shared().unwrap();
    database
        .psql(
            "CREATE TABLE ints (id bigint PRIMARY KEY); INSERT INTO ints SELECT g * g FROM generate_series(-50, 0) g; \
             CREATE TABLE uuids (id uuid PRIMARY KEY); INSERT INTO uuids SELECT gen_random_uuid() FROM generate_series(1, 500); \
             CREATE TABLE texts (id varchar(40) COLLATE \"und-x-icu\" PRIMARY KEY); \
             INSERT INTO texts SELECT (ARRAY['_a', '-b', 'A', 'a', 'B', 'ä', '''', '\\'])[1 + g % 8] || g FROM generate_series(1, 800) g; \
             ANALYZE",
        )
        .unwrap();
    let url = database.url();
    for (name, rows) in [("public.ints", 51), ("public.uuids", 500), ("public.texts", 800)] {
        assert_key_ranges_are_complete(&url, &tables(&url, &[name]).await[0], rows).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_extension_types_are_not_split_by_the_order_of_another_type() {
    let database = shared().unwrap();
    database
        .psql(
            "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE DOMAIN name_of AS citext; \
             CREATE TABLE folded (id citext PRIMARY KEY); \
             INSERT INTO folded SELECT (ARRAY['a', 'B', 'c', 'D'])[1 + g % 4] || g FROM generate_series(1, 800) g; \
             CREATE TABLE named (id name_of PRIMARY KEY); INSERT INTO named SELECT id FROM folded; \
             CREATE TABLE pairs (id hstore PRIMARY KEY); \
             INSERT INTO pairs SELECT hstore('k' || g, (g * 7 % 10)::text) FROM generate_series(1, 800) g; \
             CREATE TABLE uuids (id uuid PRIMARY KEY, b citext); \
             INSERT INTO uuids SELECT gen_random_uuid(), 'x' FROM generate_series(1, 800); ANALYZE",
        )
        .unwrap();
    let url = database.url();
    for name in ["public.folded", "public.named", "public.pairs", "public.uuids"] {
        let table = &tables(&url, &[name]).await[0];
        let ranges = key_bounds(&session(&url).await, table, 8).await.unwrap();
        let is_split = name == "public.uuids";
        assert_eq!(ranges.len() > 4, is_split, "{name}: {ranges:?}");
        let snapshot = Snapshot::take(&spec(&url), &options(&url, &[name]).await).await.unwrap();
        assert_eq!(rows_of(&url, table, snapshot.id(), ranges).await.len(), 800, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nullable_unique_column_is_never_split_by() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE t (a int UNIQUE); INSERT INTO t SELECT NULLIF(g % 2, 0) * g FROM generate_series(1, 200) g; ANALYZE").unwrap();
    let url = database.url();
    let table = &tables(&url, &["public.t"]).await[0];
    assert_eq!(key_bounds(&session(&url).await, table, 8).await.unwrap(), [ChunkRange::Whole]);
}

#[tokio::test(flavor = "multi_thread")]
async fn leaf_bounds_come_for_all_tables_at_once() {
    let database = shared().unwrap();
    database
        .psql(
            "CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 200000); \
             CREATE TABLE \"b'x\" (\"k'\" text COLLATE \"C\" PRIMARY KEY); INSERT INTO \"b'x\" SELECT 'k,\"' || g FROM generate_series(1, 1000) g; \
             CREATE TABLE c (id text COLLATE \"und-x-icu\" PRIMARY KEY); INSERT INTO c SELECT g::text FROM generate_series(1, 1000) g; \
             ANALYZE",
        )
        .unwrap();
    let catalog = catalog(&database.url()).await;
    let bounds = leaf_bounds(&session(&database.url()).await, &catalog.relations).await.unwrap();
    let of = |table: &str| {
        let oid =
            catalog.relations.iter().find(|relation| relation.name.name == table).unwrap().oid;
        bounds.get(&oid)
    };
    let (column, values) = of("a").unwrap();
    assert_eq!(column, "id");
    // Finer than a histogram of 100 intervals, and beyond its end.
    let values: Vec<i32> = values.iter().map(|value| value.parse().unwrap()).collect();
    assert!(values.is_sorted() && (750..850).contains(&values.len()), "{}", values.len());
    assert!(*values.last().unwrap() > 220_000, "{values:?}");
    let (column, values) = of("b'x").unwrap();
    assert_eq!((column.as_str(), values.first().unwrap().as_str()), ("k'", "k,\"1"));
    assert!(of("c").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_are_locked_and_read() {
    let database = shared().unwrap();
    let long = "n".repeat(63);
    for name in [r#"a""b; drop table x;--"#, "select", &long, "Üñï", "%s", r"\", r#""""#, "a.b*c"]
    {
        database
            .psql(&format!(
                "CREATE TABLE \"{name}\" (\"{name}\" int); INSERT INTO \"{name}\" VALUES (1)"
            ))
            .unwrap();
    }
    let url = database.url();
    let snapshot = Snapshot::take(&spec(&url), &options(&url, &["public.*"]).await).await.unwrap();
    assert_eq!(snapshot.tables().len(), 8);
    for table in snapshot.tables() {
        let mut spec_of = chunk(table, snapshot.id(), ChunkRange::Blocks { from: 0, to: None });
        spec_of.filter = Some("true -- a comment".into());
        let mut reader = tidemark_source::Reader::open(&spec(&url), snapshot.id()).await.unwrap();
        assert_eq!(crate::support::lines(&mut reader, &spec_of).await, ["1\n"], "{}", table.name);
    }
}
