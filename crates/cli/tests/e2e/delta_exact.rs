//! `tidemark delta` over some ten thousand rows: new, modified, deleted, a filter widened between runs, runs killed at several
//! places, less memory than the table takes; exact by an SQL comparison of both sides that knows nothing of how it is done.

use std::collections::BTreeMap;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tidemark_testkit::{Database, shared};

use crate::crash::Blocker;
use crate::support::{Job, reached, sessions_end, side};

/// More than the least memory, of which a chunk's hashes get a sixteenth.
const TABLE: &str = "CREATE TABLE item (id bigint PRIMARY KEY, part int NOT NULL, note text)";
const ROWS: &str = "INSERT INTO item SELECT i * 10, i % 10, repeat(md5(i::text), 12) FROM generate_series(1, 60000) i";
const MEMORY: u64 = 16 << 20;

/// 1 % new, 1 % modified, 0.5 % deleted, scattered over the table.
fn change(source: &Database, round: u32) {
    let sql = format!(
        "INSERT INTO item SELECT i * 100 + {round}, i % 10, 'new' FROM generate_series(1, 600) i;
         UPDATE item SET note = note || '!' WHERE id % 1000 = {round} * 10;
         DELETE FROM item WHERE id % 2000 = {round} * 10 + 500"
    );
    source.psql(&sql).unwrap();
}

/// Every row by its key.
fn rows(database: &Database, filter: &str) -> BTreeMap<i64, String> {
    let sql = format!("SELECT id, md5(t::text) FROM item t WHERE {filter}");
    let text = database.psql(&sql).unwrap();
    let rows = text.lines().filter_map(|line| line.split_once('|'));
    let rows: Vec<(i64, String)> =
        rows.map(|(id, row)| (id.parse().unwrap(), row.to_owned())).collect();
    let (count, by_key) = (rows.len(), BTreeMap::from_iter(rows));
    assert_eq!(by_key.len(), count, "a key is there twice");
    by_key
}

/// Keys of which one side has another row than the other, or none.
fn differences(ours: &BTreeMap<i64, String>, theirs: &BTreeMap<i64, String>) -> Vec<i64> {
    let missing = ours.iter().filter(|(id, row)| theirs.get(*id) != Some(*row));
    let extra = theirs.keys().filter(|id| !ours.contains_key(*id));
    missing.map(|(id, _)| *id).chain(extra.copied()).collect()
}

#[track_caller]
fn assert_exact((source, target): (&Database, &Database), filter: &str) {
    let none: [i64; 0] = [];
    assert_eq!(differences(&rows(source, filter), &rows(target, "true")), none);
}

fn found(report: &Value) -> u64 {
    let classes = report["tables"][0]["classes"].as_array().unwrap();
    classes.iter().map(|class| class["found"].as_u64().unwrap()).sum()
}

#[track_caller]
fn delta(job: &Job) -> Value {
    let ran = job.run(&["delta", "--json", "--deleted", "apply"]).expect(0);
    serde_json::from_str(&ran.stdout).unwrap()
}

/// Kills a run as soon as a session of this side waits for what is held there.
fn kill_where(job: &Job, side_of: &Database, hold: &str) {
    let held = Blocker::start(side_of, hold);
    let mut running = job.start(&["delta", "--deleted", "apply"]);
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let there = reached(&mut running, || side_of.psql(waits).unwrap() == "t");
    assert!(there, "{hold}: {}", running.stderr());
    running.signal(Signal::KILL);
    running.end().expect(128 + 9);
    drop(held);
}

#[test]
fn changes_a_wider_filter_and_kills_leave_exactly_the_rows_of_the_source() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    source.psql(TABLE).unwrap();
    target.psql(TABLE).unwrap();
    source.psql(ROWS).unwrap();
    assert!(source.psql("SELECT pg_table_size('item')").unwrap().parse::<u64>().unwrap() > MEMORY);
    let state = TempDir::new().unwrap();
    let job = |filter: &str| {
        let text = format!(
            "[[table]]\nname = \"public.item\"\nwhere = {filter:?}\n[snapshot]\nreaders = 2\nchunk_bytes = \"256KiB\"\n[limits]\nmemory = \"16MiB\"\n"
        );
        let job = Job::new("exact", &source.url(), &target.url()).configured(&text);
        job.state_at(&state.path().join("state"))
    };
    let narrow = "part < 6";
    assert_eq!(found(&delta(&job(narrow))), 36_000);
    assert_exact((&source, &target), narrow);
    let moved = rows(&target, "true");

    // One row of the source is not read while somebody has that lock.
    let wide = "part < 8 AND (id <> 300000 OR pg_advisory_xact_lock_shared(4711) IS NOT NULL)";
    change(&source, 1);
    kill_where(&job(wide), &source, "SELECT pg_advisory_lock(4711)");
    sessions_end(side(&target));
    assert_eq!(rows(&target, "true"), moved, "killed while it read");

    change(&source, 2);
    kill_where(&job(wide), &target, "SELECT FROM item WHERE id = 30020 FOR UPDATE");
    sessions_end(side(&target));
    assert_eq!(rows(&target, "true"), moved, "killed while it wrote");

    // All rows are written, and the server commits them when nobody is there any more to hear of it.
    change(&source, 3);
    let waits = "LOCK TABLE tidemark.delta IN SHARE MODE";
    kill_where(&job(wide), &target, waits);
    sessions_end(side(&target));
    assert_exact((&source, &target), wide);

    change(&source, 4);
    let wider = "part < 9";
    let differing = differences(&rows(&source, wider), &rows(&target, "true")).len() as u64;
    assert!(differing > 6000 + 400, "{differing}");
    assert_eq!(found(&delta(&job(wider))), differing);
    assert_exact((&source, &target), wider);
    assert_eq!(found(&delta(&job(wider))), 0);
    assert_exact((&source, &target), wider);
}

/// The most memory that a run has had.
fn peak(job: &Job) -> u64 {
    let (ran, peak) = job.start(&["delta", "--deleted", "apply"]).end_and_peak();
    ran.expect(0);
    assert!(peak > 0, "it was too fast to be looked at");
    peak
}

#[test]
fn more_rows_than_memory_holds_are_sorted_on_the_disk() {
    let (source, target) = (shared().unwrap(), shared().unwrap());
    let table = "CREATE TABLE item (id bigint PRIMARY KEY, part int)";
    source.psql(table).unwrap();
    target.psql(table).unwrap();
    let job = Job::new("large", &source.url(), &target.url())
        .configured("[snapshot]\nreaders = 2\n[limits]\nmemory = \"16MiB\"\n");
    let idle = peak(&job);
    source
        .psql("INSERT INTO item SELECT hashint8extended(i, 0), i FROM generate_series(1, 400000) i")
        .unwrap();
    // The hashes alone, with which key and place they belong to, would be more than that.
    let first = peak(&job);
    assert_exact((&source, &target), "true");
    source.psql("UPDATE item SET part = -part WHERE part % 1000 = 0; DELETE FROM item WHERE part % 1000 = 1; INSERT INTO item SELECT hashint8extended(i, 0), i FROM generate_series(400001, 400300) i").unwrap();
    let second = peak(&job);
    assert_exact((&source, &target), "true");
    // A quarter more for what sessions and threads take that have nothing to do at first.
    let took = format!("idle {idle}, first {first}, second {second}");
    assert!(first.max(second) < idle + MEMORY / 4 * 5, "{took}");
}
