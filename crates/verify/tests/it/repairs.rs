//! Rows that are made what the source has: what is written, what is left alone, and that the stream is not overtaken.
//!
//! **Invariant:** whether a repair worked is said by a verification of all rows afterwards, never by the repair itself.

use serde_json::Value;
use tidemark_model::RelationName;
use tidemark_pipeline::{Target, Triggers};
use tidemark_report::{DiffKind, Redaction, Verdict};
use tidemark_source::read_catalog;
use tidemark_verify::{How, Repaired, Request, Suspect, repair, verify_quiesced};
use tidemark_wire::ConnectSpec;
use tokio_util::sync::CancellationToken;

use crate::naming::Kept;
use crate::support::Pair;

async fn side(url: &str) -> (Option<String>, Option<String>) {
    let client = ConnectSpec::parse(url).unwrap().connect().await.unwrap();
    let server = read_catalog(&client).await.unwrap().server;
    (Some(server.system_identifier.to_string()), Some(server.database))
}

pub(crate) async fn how(pair: &Pair, applies: bool, moves: bool) -> How {
    How { sides: [side(&pair.source.url()).await, side(&pair.target.url()).await], applies, moves }
}

/// The lines as a report hands them on.
pub(crate) fn suspects(kept: &Kept) -> Vec<Suspect> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let suspect = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let name = |field: &str| line[field].as_str().unwrap().to_owned();
        let key = line["key"].as_object().unwrap().iter();
        Suspect {
            table: RelationName::new(name("schema"), name("table")),
            kind: serde_json::from_value::<DiffKind>(line["kind"].clone()).unwrap(),
            key: key.map(|(column, value)| (column.clone(), text(value))).collect(),
        }
    };
    kept.text().lines().map(suspect).collect()
}

/// Repairs, and gives the statements where nothing is written.
pub(crate) async fn repaired(
    request: &Request,
    how: How,
    suspects: &[Suspect],
) -> (Repaired, Vec<String>) {
    let mut said = Vec::new();
    let mut say = |sql: &str| {
        said.push(sql.to_owned());
        Ok(())
    };
    let mut all = suspects.iter().cloned().map(Ok);
    let done = repair(request, how, &mut all, &mut say, &CancellationToken::new()).await.unwrap();
    (done, said)
}

async fn found(pair: &Pair) -> (Verdict, Kept) {
    let mut request = pair.request.clone();
    let kept = Kept::new(&mut request, Redaction::None);
    let outcome = verify_quiesced(&request, &CancellationToken::new()).await.unwrap();
    (outcome.verdict(), kept)
}

const ROWS: &str = r#"
    CREATE TABLE parent (id int PRIMARY KEY, code char(5), made int GENERATED ALWAYS AS (id * 2) STORED);
    CREATE TABLE child (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE, j json, b bytea, n numeric, f float8, a int[]);
    CREATE TABLE "a ""t""" ("k.x" text, "v""w" timestamptz, PRIMARY KEY ("k.x", "v""w"), x text);
    CREATE TABLE keyless (a text, j json);
    INSERT INTO parent SELECT i, 'c' || i FROM generate_series(1, 20) i;
    INSERT INTO child (parent, j, b, n, f, a) SELECT i, '{"a": 1}', '\x00ff', 1.50, 'NaN', '{1,NULL}' FROM generate_series(1, 20) i;
    INSERT INTO "a ""t""" SELECT E'it''s \\ ' || i, '2026-01-01 00:00Z', 'x' FROM generate_series(1, 5) i;
    INSERT INTO keyless VALUES ('A', '{}'), ('A', '{}'), ('B', NULL)"#;

const DAMAGE: &str = r#"
    SET session_replication_role = replica;
    DELETE FROM parent WHERE id IN (3, 4); UPDATE parent SET code = 'x' WHERE id = 5; INSERT INTO parent VALUES (99, 'new');
    UPDATE child SET j = NULL, b = '\x', n = 1.5, f = '-Infinity' WHERE id = 6; DELETE FROM child WHERE id = 7; UPDATE child SET a = '{}' WHERE id = 8;
    DELETE FROM "a ""t""" WHERE "k.x" LIKE '% 2'; UPDATE "a ""t""" SET x = NULL WHERE "k.x" LIKE '% 3';
    DELETE FROM keyless; INSERT INTO keyless VALUES ('A', '{}'), ('B', NULL), ('B', NULL), ('B', NULL)"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_made_what_the_source_has_and_only_if_asked_for() {
    let pair = Pair::new();
    pair.both(ROWS);
    pair.target.psql(DAMAGE).unwrap();
    let (verdict, kept) = found(&pair).await;
    assert_eq!(verdict, Verdict::Different);
    let suspects = suspects(&kept);
    assert_eq!(suspects.len(), 11, "{}", kept.text());
    let (would, said) = repaired(&pair.request, how(&pair, false, false).await, &suspects).await;
    assert_eq!((would.written, would.healed, would.stale), (12, 0, 0), "{said:#?}");
    assert!(said.iter().any(|sql| sql.starts_with("DELETE FROM ONLY \"public\".\"parent\"")));
    let (_, still) = found(&pair).await;
    assert_eq!(still.text().lines().count(), 11, "nothing was written");
    let (done, said) = repaired(&pair.request, how(&pair, true, false).await, &suspects).await;
    assert_eq!((done.written, done.left, said.len()), (12, 0, 0));
    let (verdict, kept) = found(&pair).await;
    assert_eq!(verdict, Verdict::Identical, "{}", kept.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_statements_say_is_what_they_do() {
    let pair = Pair::new();
    pair.both(ROWS);
    pair.target.psql(DAMAGE).unwrap();
    let suspects = suspects(&found(&pair).await.1);
    let (_, said) = repaired(&pair.request, how(&pair, false, false).await, &suspects).await;
    let script = format!("SET session_replication_role = replica; {}", said.join(";\n"));
    pair.target.psql(&script).unwrap();
    let (verdict, kept) = found(&pair).await;
    assert_eq!(verdict, Verdict::Identical, "{}", kept.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_only_one_row_may_have_are_exchanged() {
    let pair = Pair::new();
    // What only the target has of a row has to be there afterwards as well.
    pair.both("CREATE TABLE t (id int PRIMARY KEY, code text UNIQUE, twice text GENERATED ALWAYS AS (code || code) STORED); \
               CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE)");
    pair.both("INSERT INTO t SELECT i, 'c' || i FROM generate_series(1, 9) i; INSERT INTO child SELECT i, i FROM generate_series(1, 9) i");
    pair.target
        .psql("ALTER TABLE t ADD note text; UPDATE t SET note = 'n' || id; \
               UPDATE t SET code = '-' || code WHERE id <= 5; \
               UPDATE t SET code = 'c' || (ARRAY[2, 1, 4, 5, 3])[id] WHERE id <= 5; \
               DELETE FROM child WHERE id = 9; DELETE FROM t WHERE id = 8; INSERT INTO t VALUES (10, 'c8')")
        .unwrap();
    let suspects = suspects(&found(&pair).await.1);
    let mut request = pair.request.clone();
    if let Target::Postgres(target) = &mut request.job.target {
        target.triggers = Triggers::AsIs;
    }
    let how = how(&pair, true, false).await;
    let mut all = suspects.iter().filter(|suspect| suspect.table.name == "t").cloned().map(Ok);
    let stop = CancellationToken::new();
    let refused = repair(&request, how.clone(), &mut all, &mut |_| Ok(()), &stop).await;
    // Nothing is taken out for a moment where triggers and foreign keys see it.
    assert!(refused.unwrap_err().message.contains("23505"));
    let (done, _) = repaired(&pair.request, how, &suspects).await;
    assert_eq!((done.written, done.left), (9, 0));
    let notes =
        "SELECT string_agg(id || code || note || twice, ',' ORDER BY id) FROM t WHERE id <= 5";
    assert_eq!(
        pair.target.psql(notes).unwrap(),
        "1c1n1c1c1,2c2n2c2c2,3c3n3c3c3,4c4n4c4c4,5c5n5c5c5"
    );
    assert_eq!(pair.target.psql("SELECT count(*) FROM child").unwrap(), "9");
    assert_eq!(
        pair.target.psql("SELECT count(*) FROM t WHERE code = 'c8' AND id = 8").unwrap(),
        "1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finding_that_does_not_hold_any_more_is_left_alone() {
    let pair = Pair::new();
    pair.both("CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'r' FROM generate_series(1, 9) i");
    pair.target
        .psql("UPDATE t SET a = 'x' WHERE id IN (1, 2, 3); DELETE FROM t WHERE id IN (4, 5)")
        .unwrap();
    let suspects = suspects(&found(&pair).await.1);
    // Healed, changed on the source, gone from the source; there by now, in another way.
    pair.target
        .psql("UPDATE t SET a = 'r' WHERE id = 1; INSERT INTO t VALUES (4, 'other')")
        .unwrap();
    pair.source.psql("UPDATE t SET a = 'newer' WHERE id = 2; DELETE FROM t WHERE id = 3").unwrap();
    let (done, _) = repaired(&pair.request, how(&pair, true, false).await, &suspects).await;
    assert_eq!(done, Repaired { written: 2, healed: 1, stale: 2, left: 0 });
    let rows = pair
        .target
        .psql("SELECT string_agg(id || a, ' ' ORDER BY id) FROM t WHERE id < 6")
        .unwrap();
    assert_eq!(rows, "1r 2newer 3x 4other 5r");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_is_refused_and_a_refusal_of_the_target_writes_nothing_and_shows_no_value()
{
    let pair = Pair::new();
    pair.both("CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'geheim' || i FROM generate_series(1, 9) i");
    pair.target
        .psql("DELETE FROM t WHERE id < 4; ALTER TABLE t ADD CONSTRAINT not_two CHECK (id <> 2)")
        .unwrap();
    let suspects = suspects(&found(&pair).await.1);
    let stop = CancellationToken::new();
    let mut how = how(&pair, true, false).await;
    let mut all = suspects.iter().cloned().map(Ok);
    let error =
        repair(&pair.request, how.clone(), &mut all, &mut |_| Ok(()), &stop).await.unwrap_err();
    let said = format!("{error:?}");
    assert!(said.contains("not_two") && !said.contains("geheim"), "{said}");
    assert_eq!(pair.target.psql("SELECT count(*) FROM t").unwrap(), "6");
    how.sides.swap(0, 1);
    let mut all = suspects.iter().cloned().map(Ok);
    let error = repair(&pair.request, how, &mut all, &mut |_| Ok(()), &stop).await.unwrap_err();
    assert!(error.to_string().contains("another source"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_the_target_makes_itself_are_made_what_the_source_has() {
    let pair = Pair::new();
    pair.both(
        "CREATE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2';
         CREATE TABLE account (code text PRIMARY KEY, no int GENERATED ALWAYS AS IDENTITY UNIQUE, a int, n numeric,
             doubled int GENERATED ALWAYS AS (f(a)) STORED, twice int GENERATED ALWAYS AS (no * 2) STORED);
         CREATE TABLE entry (code text REFERENCES account ON DELETE CASCADE);
         INSERT INTO account (code, a, n) SELECT 'c' || i, i, 1.50 FROM generate_series(1, 9) i;
         INSERT INTO entry SELECT code FROM account;
         CREATE TABLE keyless (no int GENERATED ALWAYS AS IDENTITY, a text);
         INSERT INTO keyless OVERRIDING SYSTEM VALUE VALUES (1, 'x'), (1, 'x'), (2, 'y');",
    );
    // Another number, a value that its expression does not give any more, both at once, and rows that are missing.
    pair.target
        .psql(
            "ALTER TABLE account ADD own text DEFAULT 'new'; UPDATE account SET own = 'kept';
             UPDATE account SET no = DEFAULT WHERE code IN ('c1', 'c2');
             CREATE OR REPLACE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 3';
             UPDATE account SET a = a, n = 1.5 WHERE code IN ('c2', 'c3');
             CREATE OR REPLACE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2';
             DELETE FROM keyless WHERE no = 1; SET session_replication_role = replica;
             DELETE FROM account WHERE code = 'c4'; INSERT INTO account (code, a) VALUES ('extra', 3)",
        )
        .unwrap();
    let suspects = suspects(&found(&pair).await.1);
    let (done, _) = repaired(&pair.request, how(&pair, true, false).await, &suspects).await;
    assert_eq!((done.written, done.left, done.stale), (7, 0, 0));
    let own = "SELECT string_agg(own, ' ' ORDER BY code) FROM account";
    assert_eq!(pair.target.psql(own).unwrap(), "kept kept kept new kept kept kept kept kept");
    assert_eq!(pair.target.psql("SELECT count(*) FROM entry").unwrap(), "9", "nothing cascaded");
    pair.target.psql("ALTER TABLE account DROP own").unwrap();
    let (verdict, kept) = found(&pair).await;
    assert_eq!(verdict, Verdict::Identical, "{}", kept.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_made_in_another_way_stays_different_and_is_told() {
    let pair = Pair::new();
    pair.both("CREATE TABLE t (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED); INSERT INTO t SELECT generate_series(1, 3)");
    pair.target
        .psql("ALTER TABLE t DROP g, ADD g int GENERATED ALWAYS AS (id * 3) STORED; DELETE FROM t WHERE id = 2")
        .unwrap();
    let suspects = suspects(&found(&pair).await.1);
    let (done, _) = repaired(&pair.request, how(&pair, true, false).await, &suspects).await;
    assert_eq!((done.written, done.left), (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_triggers_fire_no_row_is_put_in_anew_for_its_identity() {
    let mut pair = Pair::new();
    pair.both("CREATE TABLE t (code text PRIMARY KEY, no int GENERATED ALWAYS AS IDENTITY); INSERT INTO t VALUES ('a'), ('b')");
    pair.target.psql("UPDATE t SET no = DEFAULT WHERE code = 'a'").unwrap();
    let suspects = suspects(&found(&pair).await.1);
    if let tidemark_pipeline::Target::Postgres(target) = &mut pair.request.job.target {
        target.triggers = tidemark_pipeline::Triggers::AsIs;
    }
    let (stop, how) = (CancellationToken::new(), how(&pair, true, false).await);
    let mut all = suspects.iter().cloned().map(Ok);
    let error =
        repair(&pair.request, how.clone(), &mut all, &mut |_| Ok(()), &stop).await.unwrap_err();
    let said = format!("{error} {error:?}");
    assert!(
        said.contains("GENERATED ALWAYS") && said.contains("SET GENERATED BY DEFAULT"),
        "{said}"
    );
    // The way out that it names.
    pair.target.psql("ALTER TABLE t ALTER no SET GENERATED BY DEFAULT").unwrap();
    let (done, _) = repaired(&pair.request, how, &suspects).await;
    assert_eq!((done.written, done.left), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_goes_makes_room_for_the_one_that_comes() {
    let pair = Pair::new();
    pair.both("CREATE TABLE t (id int PRIMARY KEY, code text UNIQUE); INSERT INTO t SELECT i, 'c' || i FROM generate_series(1, 40) i");
    pair.target.psql("UPDATE t SET id = id + 100").unwrap();
    let suspects = suspects(&found(&pair).await.1);
    let (done, _) = repaired(&pair.request, how(&pair, true, false).await, &suspects).await;
    assert_eq!((done.written, done.left), (80, 0));
}
