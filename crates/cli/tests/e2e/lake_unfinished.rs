//! A first snapshot into a lake that died or was stopped: what was whole stays, the rest joins, as into PostgreSQL.
//!
//! **Invariant:** a cast of the application holds one row of `slow` up on the source, so that it is known which tables are
//! whole; that the snapshot went on, and did not begin anew, is read from the run that the lake's documents name.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tidemark_testkit::Database;

use crate::crash::Blocker;
use crate::lake_joining::Lake;
use crate::support::{
    Job, Running, assert_source_clean, files_below, move_slot, reached, say, side,
};
use crate::unfinished::END_HOLDER;

/// One row of the largest table, read as text, waits for whoever has the lock. The reader's own patience with locks is not
/// meant.
const GATE: &str = "
CREATE SCHEMA gate;
CREATE TYPE gate.slow AS (at polygon);
CREATE FUNCTION gate.waits(gate.slow) RETURNS text STRICT LANGUAGE plpgsql SET lock_timeout = 0 AS $$
BEGIN
  PERFORM pg_catalog.pg_advisory_lock_shared(77), pg_catalog.pg_advisory_unlock_shared(77);
  RETURN pg_catalog.format('%s', $1);
END $$;
CREATE CAST (gate.slow AS text) WITH FUNCTION gate.waits(gate.slow);
CREATE TABLE slow (id integer PRIMARY KEY, note text, at gate.slow);
INSERT INTO slow SELECT i, repeat(md5(i::text), 8), CASE i WHEN 5000 THEN ROW('((0,0),(1,1))')::gate.slow END
  FROM generate_series(1, 8000) i;
CREATE TABLE empty (id integer PRIMARY KEY);
CREATE TABLE keyless (day date, note text);
ALTER TABLE keyless REPLICA IDENTITY FULL;
INSERT INTO keyless SELECT date '2024-01-01' + i % 50, 'n' || i % 7 FROM generate_series(1, 3000) i;
CREATE UNLOGGED TABLE scratch (id integer PRIMARY KEY);
INSERT INTO scratch SELECT generate_series(1, 500);
";

const TABLES: usize = 6;

/// Every kind of change to tables that are whole and to the one that is not.
fn changes(number: u32) -> String {
    format!(
        "BEGIN; INSERT INTO region VALUES ({id}, 'new', NULL); INSERT INTO empty VALUES ({id}); \
         UPDATE pet SET note = 'c{number}' WHERE id % 7 = {number}; DELETE FROM pet WHERE id % 23 = {number}; \
         UPDATE slow SET note = 'c{number}' WHERE id % 11 = {number}; DELETE FROM slow WHERE id % 29 = {number} AND id <> 5000; \
         UPDATE slow SET id = id + 100000 WHERE id % 31 = {number} AND id < 8000 AND id <> 5000; \
         DELETE FROM keyless WHERE day = date '2024-01-01' + {number}; INSERT INTO keyless VALUES ('2025-01-01', 'x'), ('2025-01-01', 'x'); COMMIT",
        id = 70_000 + number
    )
}

fn lake(name: &'static str) -> Lake {
    let lake = Lake::new(name);
    lake.source.psql(GATE).unwrap();
    lake
}

fn document(path: &Path) -> Value {
    fs::read_to_string(path)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

/// The run that the lake is of.
fn run_of(lake: &Lake) -> Value {
    document(&lake.root().join("_tidemark/job.json"))["run"].clone()
}

/// What says that tables are whole.
fn whole(lake: &Lake) -> Vec<String> {
    let mut names = files_below(&lake.root().join("_tidemark/whole"));
    names.retain(|name| !name.starts_with('.'));
    names
}

/// A job that waits in its first snapshot: `slow` is half there, all others are whole but for the unlogged one.
#[track_caller]
fn waits_in_slow<'a>(lake: &'a Lake, job: &Job) -> (Running, Blocker<'a>) {
    let blocker = Blocker::start(&lake.source, "SELECT pg_advisory_lock(77)");
    let mut running = job.start(&["sync"]);
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 77 \
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let came = reached(&mut running, || {
        whole(lake).len() == TABLES - 2 && lake.source.psql(waits).unwrap() != "0"
    });
    assert!(came, "{}", running.stderr());
    (running, blocker)
}

#[track_caller]
fn kill(running: Running) {
    running.signal(Signal::KILL);
    running.end().expect(137);
}

/// A lake whose job died in `slow`.
#[track_caller]
fn died(name: &'static str) -> (Lake, Job, Value) {
    let lake = lake(name);
    let job = lake.job();
    let (running, blocker) = waits_in_slow(&lake, &job);
    kill(running);
    drop(blocker);
    let run = run_of(&lake);
    assert!(lake.commits().is_empty(), "nothing is visible");
    (lake, job, run)
}

/// The job goes on with what is there.
#[track_caller]
fn goes_on((lake, job, run): &(Lake, Job, Value)) {
    let pets = files_below(&lake.root().join("public/pet/snapshot"));
    // The unlogged one is copied again.
    let wanted = format!("{} of {TABLES} tables are whole and stay, 2 join", TABLES - 2);
    let ran = job.run(&["sync", "--until", "now"]).expect(0).says(&[&wanted]);
    say(&ran.stderr);
    assert_eq!(lake.commits()[0]["run"], *run, "it began anew: {}", ran.stderr);
    assert_eq!(files_below(&lake.root().join("public/pet/snapshot")), pets);
    assert_eq!(whole(lake), [""; 0]);
}

#[test]
fn what_was_whole_in_a_lake_stays_and_the_rest_joins() {
    let died = died("lakestays");
    let (lake, job, _) = &died;
    let status = job.status().unwrap();
    let said = status["activity"].as_str().unwrap();
    assert!(said.contains("keeps the tables that are done") && said.contains("slot"), "{said}");
    lake.source.psql(&changes(1)).unwrap();
    lake.source.psql("VACUUM FULL slow; VACUUM FULL pet").unwrap();
    lake.source.psql(&changes(2)).unwrap();
    goes_on(&died);
    lake.assert_equal();
    let snapshot = &lake.commits()[0];
    let joins = snapshot["tables"].as_array().unwrap().iter();
    let joins: Vec<&Value> = joins.filter(|table| !table["join"].is_null()).collect();
    assert_eq!(joins.len(), 2, "{snapshot}");
    lake.source.psql(&changes(3)).unwrap();
    let ran = job.run(&["sync", "--until", "now"]).expect(0);
    assert!(!ran.stderr.contains("whole and stay"), "{}", ran.stderr);
    lake.assert_equal();
}

/// What it is called, and how to tell that it has come.
type Moment<'a> = (&'a str, &'a dyn Fn(&Option<String>) -> bool);

#[test]
fn the_next_start_into_a_lake_may_die_at_any_step_and_keeps_what_it_has_joined() {
    let (lake, job, run) = died("lakedying");
    let copy = || {
        let job = document(&lake.root().join("_tidemark/job.json"));
        let copies = job["joining"].as_array().cloned().unwrap_or_default();
        copies.last().map(|copy| copy["run"].as_str().unwrap().to_owned())
    };
    let new_copy = |before: &Option<String>| copy().filter(|copy| Some(copy) != before.as_ref());
    let held = "one more whole";
    let moments: [Moment<'_>; 6] = [
        ("taken over", &|before| new_copy(before).is_some()),
        ("a file", &|before| {
            let copy = new_copy(before);
            copy.is_some_and(|copy| lake.has_file("public", |name| name.contains(&copy)))
        }),
        (held, &|before| {
            let copy = new_copy(before);
            copy.is_some_and(|copy| whole(&lake).iter().any(|name| name.starts_with(&copy)))
        }),
        ("the snapshot", &|_| !lake.commits().is_empty()),
        ("followed", &|_| lake.commits().len() > 1),
        ("changes", &|_| lake.has_file("public/slow/changes", |_| true)),
    ];
    for (part, (moment, is_there)) in (0_u32..).zip(moments) {
        let before = copy();
        let lock = "SELECT pg_advisory_lock(77)";
        let blocker = (moment == held).then(|| {
            lake.source
                .psql("CREATE TABLE fresh (id integer PRIMARY KEY); INSERT INTO fresh VALUES (1)")
                .unwrap();
            Blocker::start(&lake.source, lock)
        });
        let mut running = job.start(&["sync"]);
        let came = reached(&mut running, || is_there(&before));
        assert!(came, "{moment}: {}", running.stderr());
        kill(running);
        drop(blocker);
        assert_eq!(run_of(&lake), run, "{moment}: it began anew");
        lake.source.psql(&changes(part)).unwrap();
    }
    job.run(&["sync", "--until", "now"]).expect(0);
    assert_eq!(lake.commits()[0]["run"], run);
    lake.assert_equal();
}

#[test]
fn what_does_not_fit_lets_a_snapshot_into_a_lake_begin_anew() {
    type Damage = fn(&Database);
    let damages: [(&str, Damage, &str); 4] = [
        (
            "lakeslot",
            |source| {
                source.psql("SELECT pg_drop_replication_slot('tidemark_lakeslot')").unwrap();
            },
            "tidemark_lakeslot",
        ),
        ("lakemoved", |source| move_slot(source, "tidemark_lakemoved"), "tidemark_lakemoved"),
        (
            "lakealtered",
            |source| {
                source.psql("ALTER TABLE pet ADD COLUMN more integer DEFAULT 7").unwrap();
            },
            "definitions on the source have changed",
        ),
        (
            "lakedropped",
            |source| {
                source.psql("DROP TABLE pet; CREATE TABLE pet (id integer PRIMARY KEY)").unwrap();
            },
            "pet",
        ),
    ];
    for (name, damage, because) in damages {
        let (lake, job, run) = died(name);
        lake.source.psql(&changes(1)).unwrap();
        damage(&lake.source);
        let ran = job.run(&["sync", "--until", "now"]).expect(0).says(&["begins anew", because]);
        assert_ne!(lake.commits()[0]["run"], run, "{}", ran.stderr);
        lake.assert_equal();
    }
    let (lake, job, run) = died("lakestate");
    let elsewhere = TempDir::new().unwrap();
    lake.source.psql("SELECT pg_drop_replication_slot('tidemark_lakestate')").unwrap();
    lake.source.psql("DROP PUBLICATION tidemark_lakestate").unwrap();
    let other = lake.job().state_at(&elsewhere.path().join("state"));
    let said = ["a run that this state directory does not know; it begins anew"];
    other.run(&["sync", "--until", "now"]).expect(0).says(&said);
    assert_ne!(lake.commits()[0]["run"], run);
    lake.assert_equal();
    drop(job);
}

#[test]
fn a_stop_keeps_what_is_whole_in_a_lake_until_it_is_given_up() {
    let lake = lake("lakestop");
    let job = lake.job();
    let (running, blocker) = waits_in_slow(&lake, &job);
    running.signal(Signal::TERM);
    let said = [
        "4 tables are whole and stay: the same tidemark sync",
        "slot tidemark_lakestop stays on the source",
        "tidemark cleanup --yes gives the job up and drops the slot",
    ];
    running.end().expect(130).says(&said);
    drop(blocker);
    lake.source.psql(&changes(1)).unwrap();
    let stopped = (lake, job);
    let run = run_of(&stopped.0);
    let died = (stopped.0, stopped.1, run);
    goes_on(&died);
    died.0.assert_equal();

    let given_up = self::lake("lakegiven");
    let job = given_up.job();
    let (running, blocker) = waits_in_slow(&given_up, &job);
    running.signal(Signal::INT);
    running.end().expect(130).says(&["tables are whole and stay"]);
    drop(blocker);
    job.run(&["cleanup", "--yes"]).expect(0);
    assert_source_clean(side(&given_up.source));
    let run = run_of(&given_up);
    job.run(&["sync", "--until", "now"]).expect(0).says(&["begins anew"]);
    assert_ne!(run_of(&given_up), run);
    given_up.assert_equal();
}

#[test]
fn a_snapshot_into_a_lake_whose_holder_is_lost_goes_on_with_what_is_whole() {
    let lake = lake("lakeholder");
    let job = lake.job();
    let (mut running, mut blocker) = waits_in_slow(&lake, &job);
    let run = run_of(&lake);
    assert_eq!(lake.source.psql(END_HOLDER).unwrap(), "t");
    assert!(reached(&mut running, || lake.copies()), "{}", running.stderr());
    lake.source.psql(&changes(1)).unwrap();
    blocker.end();
    lake.passes(&mut running);
    running.signal(Signal::TERM);
    let said = ["the holder's session ended", "tables are whole and stay, 2 join"];
    running.end().expect(0).says(&said);
    assert_eq!(lake.commits()[0]["run"], run, "it began anew");
    lake.assert_equal();
}
