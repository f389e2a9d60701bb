//! Targets that hold something already: append, truncate, and tables that somebody else made.

use tidemark_testkit::{Database, shared};

use crate::crash::kill_at_markers;
use crate::support::{Job, assert_same, filled, run_of, side};

const ROWS: u32 = 40_000;

/// A source with one table of several chunks, and a target with the same table and rows of its own.
fn pair() -> (Database, Database) {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    let table = "CREATE TABLE event (id integer, t text); CREATE TABLE small (id integer)";
    source.psql(&format!("{table}; INSERT INTO event SELECT i, repeat('x', 60) FROM generate_series(1, {ROWS}) i; INSERT INTO small SELECT 1; ANALYZE")).unwrap();
    target
        .psql(&format!(
            "{table}; INSERT INTO event SELECT -i, 'ours' FROM generate_series(1, 100) i"
        ))
        .unwrap();
    (source, target)
}

fn job(name: &str, source: &Database, target: &Database) -> Job {
    Job::new(name, &source.url(), &target.url())
        .configured("[snapshot]\nreaders = 1\nchunk_bytes = \"256KiB\"\n")
}

#[test]
fn appended_rows_are_added_once_although_the_run_was_killed() {
    let (source, target) = pair();
    let job = job("append", &source, &target);
    job.sync(&[]).expect(5).says(&["--target-not-empty"]);
    let mut done = 1;
    for count in [1, 4] {
        let before = run_of(side(&target), "append");
        let running = job.start(&["sync", "--snapshot-only", "--target-not-empty", "append"]);
        let is_killed = kill_at_markers(running, side(&target), "append", &before, count);
        done += u32::from(!is_killed);
    }
    job.sync(&["--target-not-empty", "append"]).expect(0);
    let counts = "SELECT count(*) FILTER (WHERE id < 0), count(*) FILTER (WHERE id > 0), count(DISTINCT id) FROM event";
    assert_eq!(target.psql(counts).unwrap(), format!("100|{}|{}", done * ROWS, ROWS + 100));
}

#[test]
fn appending_after_a_finished_append_never_takes_finished_rows_away() {
    let (source, target) = pair();
    let job = job("append-two", &source, &target);
    job.sync(&["--target-not-empty", "append"]).expect(0);
    let before = run_of(side(&target), "append-two");
    let running = job.start(&["sync", "--snapshot-only", "--target-not-empty", "append"]);
    let is_killed = kill_at_markers(running, side(&target), "append-two", &before, 2);
    job.sync(&["--target-not-empty", "append"]).expect(0);
    let done = 2 + u32::from(!is_killed);
    let rows = target.psql("SELECT count(*) FROM event WHERE id > 0").unwrap();
    assert_eq!(rows, (done * ROWS).to_string());
}

#[test]
fn truncate_replaces_a_finished_copy_and_needs_a_yes() {
    let (source, target) = (filled(), shared().unwrap());
    let job = Job::new("replace", &source.url(), &target.url());
    job.sync(&[]).expect(0);
    source.psql("DELETE FROM keyless WHERE day = '2024-01-02'; REFRESH MATERIALIZED VIEW days; UPDATE pet SET legs = 9 WHERE id < 10").unwrap();
    job.sync(&[]).expect(2).says(&["--target-not-empty truncate --yes"]);
    job.sync(&["--target-not-empty", "truncate"]).expect(2).says(&["--yes"]);
    job.sync(&["--target-not-empty", "truncate", "--yes"]).expect(0);
    assert_same(side(&source), side(&target));
}

#[test]
fn tables_of_the_target_may_have_another_column_order() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    source.psql("CREATE TABLE t (a integer PRIMARY KEY, b text, c numeric(8, 2)); INSERT INTO t SELECT i, 'b' || i, i / 3.0 FROM generate_series(1, 500) i").unwrap();
    target.psql("CREATE TABLE t (c numeric(8, 2), extra integer DEFAULT 7, a integer PRIMARY KEY, b text)").unwrap();
    let job = job("order", &source, &target).configured("schema = \"exists\"\n");
    job.sync(&[]).expect(0);
    let rows = "SELECT md5(string_agg(a || b || c, ',' ORDER BY a)) FROM t";
    assert_eq!(source.psql(rows).unwrap(), target.psql(rows).unwrap());
    assert_eq!(target.psql("SELECT DISTINCT extra FROM t").unwrap(), "7");
}

#[test]
fn appending_to_a_copy_that_was_made_here_drops_nothing_and_sets_no_sequence_back() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    source.psql("CREATE TABLE note (id serial, t text); INSERT INTO note (t) SELECT 'source' FROM generate_series(1, 500)").unwrap();
    let job = Job::new("append-made", &source.url(), &target.url());
    job.sync(&[]).expect(0);
    target.psql("INSERT INTO note (t) SELECT 'target' FROM generate_series(1, 7); CREATE TABLE theirs (a integer)").unwrap();
    job.sync(&["--target-not-empty", "append"]).expect(0);
    let counts = "SELECT count(*) FILTER (WHERE t = 'source'), count(*) FILTER (WHERE t = 'target') FROM note";
    assert_eq!(target.psql(counts).unwrap(), "1000|7");
    assert_eq!(target.psql("SELECT last_value FROM note_id_seq").unwrap(), "507");
    assert_eq!(target.psql("SELECT to_regclass('theirs') IS NOT NULL").unwrap(), "t");
}

#[test]
fn rows_of_a_killed_run_leave_tables_with_foreign_keys() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    let tables = "CREATE TABLE parent (id integer PRIMARY KEY, t text); \
                  CREATE TABLE child (id integer PRIMARY KEY, parent integer REFERENCES parent, t text)";
    source.psql(&format!("{tables}; INSERT INTO parent SELECT i, repeat('p', 90) FROM generate_series(1, {ROWS}) i; \
                          INSERT INTO child SELECT i, i, repeat('c', 90) FROM generate_series(1, {ROWS}) i; ANALYZE")).unwrap();
    target.psql(tables).unwrap();
    let job = Job::new("keys", &source.url(), &target.url())
        .configured("schema = \"exists\"\n[snapshot]\nreaders = 1\nchunk_bytes = \"256KiB\"\n");
    let before = run_of(side(&target), "keys");
    let running = job.start(&["sync", "--snapshot-only"]);
    kill_at_markers(running, side(&target), "keys", &before, 20);
    job.sync(&[]).expect(0);
    assert_same(side(&source), side(&target));
}

#[test]
fn what_was_there_before_a_run_is_never_taken_for_its_own() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    source.psql("CREATE TYPE mood AS ENUM ('a', 'b'); CREATE TABLE t (m mood); INSERT INTO t VALUES ('a')").unwrap();
    target.psql("CREATE TYPE mood AS ENUM ('theirs')").unwrap();
    let job = Job::new("theirs", &source.url(), &target.url());
    for _ in 0..2 {
        job.sync(&[]).expect(7).says(&["mood"]);
        assert_eq!(target.psql("SELECT enum_range(NULL::mood)").unwrap(), "{theirs}");
    }
}

#[test]
fn a_table_that_does_not_fit_is_not_emptied_first() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    source.psql("CREATE TABLE t (a bigint); INSERT INTO t VALUES (1)").unwrap();
    target.psql("CREATE TABLE t (a integer); INSERT INTO t VALUES (42)").unwrap();
    let job = Job::new("unfit", &source.url(), &target.url());
    job.sync(&["--target-not-empty", "truncate", "--yes"]).expect(5).says(&["bigint", "integer"]);
    assert_eq!(target.psql("SELECT a FROM t").unwrap(), "42");
}
