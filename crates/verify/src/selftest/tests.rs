//! What a self-test says of an engine that is as it should be, and of one that is blind.

use std::time::Duration;

use tidemark_digest::Forms;
use tidemark_pipeline::{
    Job, NotEmpty, PostgresTarget, SchemaMode, StreamJob, TableOptions, Target, Triggers,
};
use tidemark_report::Level;
use tidemark_source::Selection;
use tidemark_testkit::{Database, shared};
use tidemark_wire::ConnectSpec;
use tokio_util::sync::CancellationToken;

use super::{Missed, Selftest, selftest, tested};
use crate::pair::Pair;
use crate::{Lines, Request};

/// A table with a key and few types, one without a key, and one that is empty.
const TABLES: &str = "
CREATE TABLE pet (id int PRIMARY KEY, name text, legs int2, born date, weight numeric);
INSERT INTO pet SELECT i, 'pet ' || i, i % 5, date '2020-01-01' + i, i / 8.0 FROM generate_series(1, 500) i;
CREATE TABLE note (day date, body varchar(30));
INSERT INTO note SELECT '2024-01-01', 'note ' || i % 7 FROM generate_series(1, 50) i;
CREATE TABLE nothing (id int PRIMARY KEY)";

struct Pairing {
    source: Database,
    target: Database,
    request: Request,
}

impl Pairing {
    fn new(name: &str, sql: &str) -> Self {
        let (source, target) = (shared().unwrap(), shared().unwrap());
        source.psql(sql).unwrap();
        let spec = |side: &Database| ConnectSpec::parse(&side.url()).unwrap();
        let job = Job {
            name: name.to_owned(),
            state_dir: "unused".into(),
            source: spec(&source),
            target: Target::Postgres(PostgresTarget {
                spec: spec(&target),
                schema: SchemaMode::Exists,
                triggers: Triggers::Replica,
                not_empty: NotEmpty::Refuse,
            }),
            selection: Selection::default(),
            tables: Vec::<TableOptions>::new(),
            readers: 2,
            chunk_bytes: 256 * 1024,
            lock_timeout: Duration::from_secs(5),
            memory: 64 << 20,
            follows: false,
            stream: StreamJob::default(),
            tool_version: "test".to_owned(),
            wave: None,
        };
        let request = Request::new(job, Level::Digest, Lines::nowhere());
        Self { source, target, request }
    }

    async fn tampered(&self, tamper: impl Fn(&mut Pair) + Sync) -> Selftest {
        let stop = CancellationToken::new();
        Box::pin(tested(&self.request, &stop, &tamper)).await.unwrap()
    }
}

/// The mutations that were not found wherever they were planted.
fn missed_names(tested: &Selftest) -> Vec<&str> {
    let missed = tested.mutations.iter().filter(|tried| !tried.missed.is_empty());
    missed.map(|tried| tried.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mutation_is_planted_and_found_and_nothing_is_left() {
    let pair = Pairing::new("whole", TABLES);
    let found = selftest(&pair.request, &CancellationToken::new()).await.unwrap();
    let all: Vec<_> = found.mutations.iter().flat_map(|tried| &tried.missed).collect();
    assert!(found.found_all(), "{all:#?}");
    assert_eq!(found.untried().count(), 0, "{:?}", found.mutations);
    let tables: Vec<_> = found.tables.iter().map(|(name, rows)| (name.plain(), *rows)).collect();
    assert_eq!(tables, [("public.note".to_owned(), 50), ("public.pet".to_owned(), 200)]);
    let planted = |name: &str| {
        let tried = found.mutations.iter().find(|tried| tried.name == name).unwrap();
        let tables =
            tried.tables.iter().map(|table| table.as_ref().map(|table| table.name.as_str()));
        tables.collect::<Vec<_>>()
    };
    assert_eq!(planted("untouched"), [Some("note"), Some("pet")]);
    assert_eq!(planted("scale"), [Some("pet")]);
    assert_eq!(planted("key"), [Some("pet")]);
    assert_eq!(planted("range-bound"), [None], "no table of the user has a range");
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'tidemark%'";
    for side in [&pair.source, &pair.target] {
        assert_eq!(side.psql(left).unwrap(), "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_does_not_look_at_a_column_misses_what_is_in_it() {
    let pair = Pairing::new("column", TABLES);
    let tested = pair.tampered(|pair| pair.look_away("name")).await;
    let missed = missed_names(&tested);
    for mutation in ["blank", "line-end", "case", "accent", "word-for-null"] {
        assert!(missed.contains(&mutation), "{mutation}: {missed:?}");
    }
    assert!(!missed.contains(&"untouched") && !missed.contains(&"doubled"), "{missed:?}");
    let all: Vec<_> = tested.mutations.iter().flat_map(|tried| &tried.missed).collect();
    let is_blank = |missed: &&&Missed| missed.column.as_deref() == Some("name");
    assert!(all.iter().filter(is_blank).all(|missed| missed.found == "identical"), "{all:#?}");
    assert!(!tested.found_all());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_loses_rows_of_a_side_calls_what_is_the_same_different() {
    let pair = Pairing::new("rows", TABLES);
    let tested = pair.tampered(Pair::lose_rows).await;
    let missed = missed_names(&tested);
    assert!(missed.contains(&"untouched") && missed.contains(&"bit"), "{missed:?}");
    assert!(!tested.found_all());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_sees_bytes_only_calls_what_is_written_otherwise_different() {
    let pair = Pairing::new("values", TABLES);
    let tested = pair.tampered(|pair| pair.forms = Forms::Raw).await;
    let all: Vec<_> = tested.mutations.iter().filter(|tried| !tried.missed.is_empty()).collect();
    let names = missed_names(&tested);
    assert_eq!(names, ["scale", "minus-zero", "month", "json-format"], "{all:#?}");
    assert!(all.iter().all(|tried| tried.missed[0].found == "different by the sums"), "{all:#?}");
}
