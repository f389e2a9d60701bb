//! The hard cases that are about tables and databases instead of values; the number of each is in its test's name.

use tidemark_report::{Level, SchemaSeverity, Verdict};
use tidemark_testkit::{Cluster, Version};
use tidemark_verify::verify_quiesced;
use tokio_util::sync::CancellationToken;

use crate::support::{Pair, request, table};

#[tokio::test(flavor = "multi_thread")]
async fn case_19_text_keys_are_the_same_whatever_the_order_of_the_collation() {
    let pair = Pair::new();
    let collation = "CREATE COLLATION sorted (provider = icu, locale = 'en-US-u-kf-upper');";
    let rows = "INSERT INTO t SELECT k || i FROM unnest(ARRAY['a-b', 'aB', 'ab', '_', 'Z', 'é', '-']) k, generate_series(1, 500) i; ANALYZE t";
    pair.source
        .psql(&format!("CREATE TABLE t (k text COLLATE \"C\" PRIMARY KEY); {rows}"))
        .unwrap();
    pair.target
        .psql(&format!("{collation} CREATE TABLE t (k text COLLATE sorted PRIMARY KEY); {rows}"))
        .unwrap();
    assert_eq!(pair.table("t").await.verdict, Verdict::Identical);
    pair.target.psql("UPDATE t SET k = 'Ab7' WHERE k = 'ab7'").unwrap();
    let found = pair.table("t").await;
    let rows = found.named.unwrap().rows;
    assert_eq!((found.verdict, rows.missing, rows.extra), (Verdict::Different, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn case_20_text_of_another_encoding_is_compared_as_text_and_bytes_that_are_none_are_refused()
{
    let cluster = Cluster::builder().version(Version::from_env()).start().unwrap();
    for (name, encoding) in
        [("latin", "LATIN1"), ("utf", "UTF8"), ("raw", "SQL_ASCII"), ("raw_too", "SQL_ASCII")]
    {
        let options =
            format!("TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'");
        cluster.create_database_with(name, &options).unwrap();
        cluster.psql(name, "CREATE TABLE t (a text)").unwrap();
    }
    for name in ["latin", "utf"] {
        let sql =
            "SET client_encoding = 'UTF8'; INSERT INTO t VALUES ('caf' || chr(233)), ('plain')";
        cluster.psql(name, sql).unwrap();
    }
    for name in ["raw", "raw_too"] {
        cluster.psql(name, "INSERT INTO t VALUES (E'caf\\351'), ('plain')").unwrap();
    }
    let compared = async |one: &str, other: &str| {
        let request = request(&cluster.url(one), &cluster.url(other));
        verify_quiesced(&request, &CancellationToken::new()).await
    };
    let outcome = compared("latin", "utf").await.unwrap();
    assert_eq!(table(&outcome, "t").verdict, Verdict::Identical);
    // The server itself does not give out what is no text: never a verdict, and the table is named.
    for (one, other) in [("raw", "raw_too"), ("latin", "raw")] {
        let error = compared(one, other).await.unwrap_err().to_string();
        assert!(error.contains("22021") && error.contains(r#""public"."t""#), "{error}");
        assert!(!error.contains("caf"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_21_a_value_of_twenty_megabytes_is_compared_to_its_last_byte() {
    let pair = Pair::new();
    pair.both(
        "CREATE TABLE t (b bytea); INSERT INTO t SELECT decode(repeat('00ff', 10000000), 'hex')",
    );
    assert_eq!(pair.table("t").await.verdict, Verdict::Identical);
    pair.target.psql("UPDATE t SET b = set_byte(b, length(b) - 1, 254)").unwrap();
    assert_eq!(pair.table("t").await.verdict, Verdict::Different);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_55_generated_columns_are_compared_and_an_expression_that_drifted_is_found() {
    let pair = Pair::new();
    let sql = "CREATE TABLE t (a int PRIMARY KEY, b int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO t VALUES (1), (2)";
    pair.both(sql);
    assert_eq!(pair.table("t").await.verdict, Verdict::Identical);
    pair.target.psql("DROP TABLE t").unwrap();
    pair.target.psql(&sql.replace("a * 2", "a * 3")).unwrap();
    let found = pair.table("t").await;
    assert_eq!((found.verdict, found.named.unwrap().rows.changed), (Verdict::Different, 2));
    if Version::from_env() >= Version::V18 {
        pair.both(
            &sql.replace("STORED", "VIRTUAL")
                .replace("TABLE t", "TABLE v")
                .replace("INTO t", "INTO v"),
        );
        assert_eq!(pair.table("v").await.verdict, Verdict::Identical);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_62_partitions_and_children_are_compared_each_by_its_own_rows() {
    let pair = Pair::new();
    pair.both(
        "CREATE TABLE p (a int, b text) PARTITION BY LIST (a); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); \
         CREATE TABLE p2 PARTITION OF p DEFAULT; INSERT INTO p SELECT i % 3, 'x' FROM generate_series(1, 300) i; \
         CREATE TABLE parent (a int); CREATE TABLE child () INHERITS (parent); \
         INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2), (3)",
    );
    let outcome = pair.verify().await;
    assert_eq!(outcome.verdict(), Verdict::Identical, "{outcome:?}");
    let rows = |name| table(&outcome, name).source.count;
    assert_eq!((rows("p1"), rows("p2"), rows("parent"), rows("child")), (100, 200, 1, 2));
    // The parent shows as many rows as before.
    pair.target.psql("DELETE FROM ONLY parent; INSERT INTO child VALUES (1)").unwrap();
    let outcome = pair.verify().await;
    let verdicts = ["parent", "child"].map(|name| table(&outcome, name).verdict);
    assert_eq!(verdicts, [Verdict::Different; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_63_columns_are_matched_by_name_whatever_became_of_the_table() {
    let pair = Pair::new();
    pair.source
        .psql(
            "CREATE TABLE t (gone int, id int PRIMARY KEY, a text); INSERT INTO t VALUES (9, 1, 'a'), (8, 2, 'b'); \
             ALTER TABLE t DROP gone; ALTER TABLE t ADD c int DEFAULT 7",
        )
        .unwrap();
    pair.target
        .psql("CREATE TABLE t (a text, c int DEFAULT 7, id bigint PRIMARY KEY); INSERT INTO t VALUES ('b', 7, 2), ('a', 7, 1)")
        .unwrap();
    let outcome = pair.verify().await;
    assert_eq!(table(&outcome, "t").verdict, Verdict::Identical);
    let told: Vec<_> = outcome.findings.iter().map(|found| (found.kind, found.severity)).collect();
    assert_eq!(told, [("column-type", SchemaSeverity::Warning)]);
    pair.target.psql("UPDATE t SET c = 8 WHERE id = 2").unwrap();
    assert_eq!(pair.table("t").await.verdict, Verdict::Different);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_63_a_difference_in_the_last_of_1600_columns_is_found() {
    let pair = Pair::new();
    pair.both(
        "DO $$ BEGIN EXECUTE 'CREATE TABLE wide (' || (SELECT string_agg('c' || i || ' int2', ', ') FROM generate_series(1, 1600) i) || ')'; \
         EXECUTE 'INSERT INTO wide SELECT ' || (SELECT string_agg('i', ', ') FROM generate_series(1, 1600)) || ' FROM generate_series(1, 20) i'; END $$",
    );
    assert_eq!(pair.table("wide").await.verdict, Verdict::Identical);
    pair.target.psql("UPDATE wide SET c1600 = 0 WHERE c1 = 20").unwrap();
    let found = pair.table("wide").await;
    assert_eq!((found.verdict, found.named), (Verdict::Different, None));
    assert!(found.unnamed.unwrap().contains("columns"));
    // With a key the row has a name, also where its columns cannot be told.
    let mut pair = pair;
    pair.both("ALTER TABLE wide ADD PRIMARY KEY (c1)");
    pair.request.level = Level::Rows;
    let named = pair.table("wide").await.named.unwrap();
    assert_eq!((named.rows.changed, named.examples.len()), (1, 1));
}
