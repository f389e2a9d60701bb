//! A DBA ends one of our sessions: each kind in turn.

use tidemark_testkit::{Database, shared};

use crate::support::{Job, Running, assert_same, assert_source_clean, filled, markers, reached, side};

/// Waits for a session and ends it; whether there was one.
fn end_session(database: &Database, running: &mut Running, which: &str) -> bool {
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
         WHERE datname = '{}' AND pid <> pg_backend_pid() AND ({which}) LIMIT 1) s",
        database.name()
    );
    reached(running, || database.psql(&sql).unwrap() != "0")
}

/// Ends one session of a run; the run recovers or ends with 8, and the same command ends well.
fn ended(name: &str, on_source: bool, which: &str, after_markers: u64, recovers: bool) {
    let (source, target) = (filled(), shared().unwrap());
    let job = Job::new(name, &source.url(), &target.url()).configured("[snapshot]\nreaders = 2\nchunk_bytes = \"512KiB\"\n");
    let mut running = job.start_sync();
    reached(&mut running, || markers(side(&target), name) >= after_markers);
    let database = if on_source { &source } else { &target };
    assert!(end_session(database, &mut running, which), "no such session: {}", running.stderr());
    let ran = running.end();
    if recovers {
        ran.expect(0);
    } else if ran.code != 0 {
        ran.expect(8);
        job.sync(&[]).expect(0);
    }
    assert_same(side(&source), side(&target));
    assert_source_clean(side(&source));
}

#[test]
fn a_reader_that_is_ended_is_replaced() {
    ended("reader", true, "query LIKE 'COPY%' AND state = 'active'", 1, true);
}

#[test]
fn a_holder_that_is_ended_begins_the_run_again_with_a_new_snapshot() {
    ended("holder", true, "query LIKE '%pg_export_snapshot%' AND state = 'idle in transaction'", 1, true);
}

#[test]
fn a_loader_that_is_ended_is_replaced() {
    ended("loader", false, "query LIKE 'COPY%' AND state = 'active'", 1, true);
}

#[test]
fn an_index_builder_that_is_ended_is_replaced() {
    ended("builder", false, "query LIKE '%CREATE%INDEX%' AND state = 'active'", 1, true);
}

#[test]
fn without_the_session_that_holds_the_job_the_run_ends_and_the_next_one_goes_on() {
    let holds = "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')";
    ended("control", false, holds, 1, false);
}

#[test]
fn a_pg_dump_that_is_ended_begins_the_run_again() {
    let dumps = "query ~ 'pg_catalog' AND pid NOT IN (SELECT pid FROM pg_stat_activity WHERE query ~ 'pg_export_snapshot') \
        AND (application_name = 'pg_dump' OR query ~ 'LOCK TABLE|pg_dump')";
    ended("dump", true, dumps, 0, false);
}
