//! Databases as a whole: hundreds of tables, and tables of every kind beside each other.
//!
//! **Invariant:** what is named is what was changed on the target by hand.

use std::fmt::Write as _;

use tidemark_report::{Level, Redaction, Verdict};
use tidemark_testkit::{Database, Version, workload};
use tidemark_verify::verify_quiesced;
use tokio_util::sync::CancellationToken;

use crate::naming::Kept;
use crate::support::{Pair, table};

const TABLES: usize = 500;

/// Sessions that a database has had.
fn sessions(database: &Database) -> u64 {
    let sql = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()";
    database.psql(sql).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_tables_are_read_by_a_handful_of_sessions() {
    let mut pair = Pair::new();
    let mut rows = String::new();
    for number in 1..=TABLES {
        let count = number % 7;
        writeln!(
            rows,
            "INSERT INTO many.t{number} SELECT i, 'r' || i, i / 4.0 FROM generate_series(1, {count}) i;"
        )
        .unwrap();
    }
    for side in [&pair.source, &pair.target] {
        workload::load_many_tables(side.cluster(), side.name(), TABLES).unwrap();
        side.psql(&rows).unwrap();
    }
    // Older servers do not count them.
    let counts = Version::from_env() >= Version::V14;
    let before = if counts { sessions(&pair.source) } else { 0 };
    let outcome = pair.verify().await;
    assert_eq!(outcome.verdict(), Verdict::Identical, "{:?}", outcome.findings);
    assert_eq!(outcome.tables.len(), TABLES);
    if counts {
        let sessions = sessions(&pair.source) - before;
        assert!(sessions <= 15, "{sessions} sessions, one of them our own psql");
    }
    pair.target.psql("UPDATE many.t78 SET a = 'x'; DELETE FROM many.t499 WHERE id = 1").unwrap();
    let kept = Kept::new(&mut pair.request, Redaction::None);
    let outcome = pair.verify().await;
    let found = outcome.tables.iter().filter(|table| table.verdict != Verdict::Identical);
    let found: Vec<&str> = found.map(|table| table.name.name.as_str()).collect();
    assert_eq!(found, ["t499", "t78"]);
    assert_eq!(
        (kept.of("t499"), kept.of("t78")),
        (vec!["missing id=1".to_owned()], vec!["changed id=1".to_owned()])
    );
}

/// Each with what the target does to it, and the lines that must come of it.
const KINDS: &[(&str, &str, &str, &[&str])] = &[
    (
        "measured",
        "CREATE TABLE measured (at date, place int, v text, PRIMARY KEY (at, place)) PARTITION BY RANGE (at); \
         CREATE TABLE early PARTITION OF measured FOR VALUES FROM (MINVALUE) TO ('2026-01-01') PARTITION BY LIST (place); \
         CREATE TABLE early_1 PARTITION OF early FOR VALUES IN (1); CREATE TABLE early_2 PARTITION OF early FOR VALUES IN (2); \
         CREATE TABLE late PARTITION OF measured DEFAULT; \
         INSERT INTO measured SELECT date '2025-12-01' + i % 60, 1 + i % 2, 'v' || i FROM generate_series(0, 59) i",
        "UPDATE measured SET v = 'x' WHERE at = '2025-12-03'; DELETE FROM measured WHERE at = '2026-01-05'",
        &[],
    ),
    ("early_1", "", "", &[r#"changed at="2025-12-03" place=1"#]),
    ("late", "", "", &[r#"missing at="2026-01-05" place=2"#]),
    (
        "noted",
        "CREATE TABLE noted (note text, n int); INSERT INTO noted SELECT 'n' || i % 3, i % 2 FROM generate_series(1, 60) i",
        "INSERT INTO noted SELECT * FROM noted WHERE note = 'n1' AND n = 0 LIMIT 2",
        &[r#"extra n=0 note="n1" x2"#],
    ),
    (
        "word",
        "CREATE TABLE word (w citext PRIMARY KEY, n int); INSERT INTO word VALUES ('Foo', 1), ('bar', 2), ('Baz', 3)",
        // By its bytes it is another key, whatever the index says.
        "UPDATE word SET n = 7 WHERE w = 'BAR'; UPDATE word SET w = 'BAZ' WHERE w = 'baz'",
        &[r#"changed w="bar""#, r#"extra w="BAZ""#, r#"missing w="Baz""#],
    ),
    (
        "label",
        "CREATE TABLE label (l text COLLATE lax PRIMARY KEY, n int); INSERT INTO label VALUES ('Straße', 1), ('été', 2), ('E', 3)",
        "UPDATE label SET n = 9 WHERE l = 'straße'; DELETE FROM label WHERE l = 'e'",
        &[r#"changed l="Straße""#, r#"missing l="E""#],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn partitions_tables_without_a_key_and_keys_of_loose_equality_are_identical_or_named() {
    let mut pair = Pair::new();
    pair.both(
        "CREATE EXTENSION citext; \
         CREATE COLLATION lax (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    );
    for (_, setup, ..) in KINDS {
        pair.both(setup);
    }
    let outcome = pair.verify().await;
    assert_eq!(outcome.verdict(), Verdict::Identical, "{outcome:?}");
    // Rows of partitioned tables are counted once, in their partitions.
    assert!(outcome.tables.iter().all(|table| !["measured", "early"].contains(&&*table.name.name)));
    let rows = |name: &str| table(&outcome, name).source.count;
    assert_eq!(rows("early_1") + rows("early_2") + rows("late"), 60);
    for (_, _, change, _) in KINDS {
        pair.target.psql(change).unwrap();
    }
    for level in [Level::Digest, Level::Rows] {
        pair.request.level = level;
        let kept = Kept::new(&mut pair.request, Redaction::None);
        let found = verify_quiesced(&pair.request, &CancellationToken::new()).await.unwrap();
        assert_eq!(found.verdict(), Verdict::Different);
        for (name, .., lines) in KINDS {
            let named = kept.of(name);
            let lines = match (level, *name) {
                // There the source is asked which keys are equal.
                (Level::Rows, "word") => &[r#"changed w="bar""#, r#"equivalent w="Baz""#],
                _ => *lines,
            };
            // At level rows the columns follow.
            let fits = named.len() == lines.len()
                && named.iter().zip(lines).all(|(named, line)| named.starts_with(line));
            assert!(fits, "{level:?} {name}: {named:?}");
        }
        assert_eq!(table(&found, "early_2").verdict, Verdict::Identical);
    }
}
