//! A DBA ends one of our sessions: each kind in turn.

use tidemark_testkit::{Database, shared};

use crate::support::{
    Job, assert_same, assert_source_clean, filled, markers, reached, side, wait_until,
};

/// Waits in the server for a session and ends it: some live for milliseconds only. Whether there was one.
fn end_session(database: &Database, which: &str) -> bool {
    let script = format!(
        "DO $$ DECLARE which integer; BEGIN FOR i IN 1..10000 LOOP \
           SELECT min(pid) INTO which FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name LIKE 'tidemark%' AND ({which}); \
           IF which IS NOT NULL THEN PERFORM pg_terminate_backend(which); RETURN; END IF; \
           PERFORM pg_sleep(0.001), pg_stat_clear_snapshot(); \
         END LOOP; RAISE 'no such session'; END $$"
    );
    database.psql(&script).is_ok()
}

/// The holder has locked all tables, also the last and smallest.
const HOLDER: &str =
    "pid IN (SELECT pid FROM pg_locks WHERE relation = 'region'::regclass AND granted)";

/// Ends one session of a run; the run recovers or ends with 8, and the same command ends well.
fn ended(name: &str, on_source: bool, which: &str, after_markers: u64, recovers: bool) {
    let (source, target) = (filled(), shared().unwrap());
    let job = Job::new(name, &source.url(), &target.url())
        .configured("[snapshot]\nreaders = 2\nchunk_bytes = \"512KiB\"\n");
    let database = if on_source { &source } else { &target };
    let ran = std::thread::scope(|scope| {
        // One of the beginning may be gone before a session that looks for it is there.
        let early = (after_markers == 0).then(|| scope.spawn(|| end_session(database, which)));
        if early.is_some() {
            let looks = "SELECT count(*) > 1 FROM pg_stat_activity WHERE query LIKE '%DECLARE which%' AND datname = current_database()";
            wait_until("it is looked for", || database.psql(looks).unwrap() == "t");
        }
        let mut running = job.start_sync();
        reached(&mut running, || markers(side(&target), name) >= after_markers);
        let is_ended = match early {
            Some(early) => early.join().unwrap(),
            None => end_session(database, which),
        };
        assert!(is_ended, "no such session: {}", running.stderr());
        running.end()
    });
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
    ended("holder", true, HOLDER, 1, true);
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
    ended("dump", true, "query ~ 'tableoid|EXECUTE dump'", 0, false);
}
