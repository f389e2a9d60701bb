//! A source of a later version than the target: the schema is created by client programs that the target is older than.

use tidemark_testkit::{Cluster, Version, oracle};

use crate::support::{Job, fill};

/// A source of 18 and a target of 15, both filled as the other tests' source is, or empty.
fn later_and_earlier() -> (Cluster, Cluster) {
    let source = Cluster::builder().version(Version::V18).start().unwrap();
    let target = Cluster::builder().version(Version::V15).start().unwrap();
    for cluster in [&source, &target] {
        cluster.create_database("shop").unwrap();
    }
    fill(&source, "shop");
    (source, target)
}

fn job(name: &str, source: &Cluster, target: &Cluster) -> Job {
    let tools = Version::V18.client_dir().expect("scripts/setup installs pg_dump 18");
    let (from, to) = (source.url("shop"), target.url("shop"));
    Job::new(name, &from, &to).set("TIDEMARK_PG_BIN", &tools.display().to_string())
}

#[test]
fn a_later_source_creates_its_schema_on_an_earlier_target() {
    let (source, target) = later_and_earlier();
    job("down", &source, &target).sync(&[]).expect(0);
    let found = oracle::data_diff((&source, "shop"), (&target, "shop")).unwrap();
    assert!(found.is_empty(), "{found:?}");
    let objects = "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace), \
        (SELECT count(*) FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype IN ('p', 'u', 'f')), \
        (SELECT count(*) FROM glad)";
    assert_eq!(target.psql("shop", objects).unwrap(), source.psql("shop", objects).unwrap());
}

#[test]
fn what_an_earlier_target_cannot_have_is_refused_and_the_next_run_replaces_what_was_made() {
    let (source, target) = later_and_earlier();
    // Virtual, which 15 has no word for.
    let later = "CREATE TABLE later (id integer PRIMARY KEY, twice integer GENERATED ALWAYS AS (id * 2)); INSERT INTO later VALUES (1)";
    source.psql("shop", later).unwrap();
    let job = job("half", &source, &target);
    let ran = job.sync(&[]).expect(7).says(&["create the target's schema", "syntax error"]);
    assert!(!ran.stderr.contains("transaction_timeout"), "{}", ran.stderr);
    source.psql("shop", "DROP TABLE later").unwrap();
    job.sync(&[]).expect(0);
    let found = oracle::data_diff((&source, "shop"), (&target, "shop")).unwrap();
    assert!(found.is_empty(), "{found:?}");
}
