//! `sync` that follows: equal at the end, whatever stopped it in between; and what it refuses to go on from.
//!
//! **Invariant:** equality is the oracle's (psql and SHA-256) and the writer's own ledger; a position is compared only with
//! one that a server gave.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tidemark_testkit::workload::{Writer, WriterOptions, check_ledger};
use tidemark_testkit::{Cluster, Database, Version, oracle, shared};

use crate::crash::Blocker;
use crate::support::{
    Job, Running, Side, files_below, markers, move_slot, phase, reached, run_of, say, side,
    wait_until,
};

/// A filled source with a writer's tables, and an empty target; what a job leaves on the source goes with it.
pub(crate) struct Pair {
    pub(crate) source: Database,
    pub(crate) target: Database,
    name: &'static str,
}

impl Pair {
    pub(crate) fn new(name: &'static str) -> Self {
        let (source, target) = (crate::support::filled(), shared().unwrap());
        source.psql("ALTER TABLE keyless REPLICA IDENTITY FULL").unwrap();
        Self { source, target, name }
    }

    pub(crate) fn job(&self) -> Job {
        Job::new(self.name, &self.source.url(), &self.target.url())
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn writer(&self) -> Writer {
        let options = WriterOptions { clients: 2, seed: 3, pause: Duration::from_millis(4) };
        Writer::start(self.source.cluster(), self.source.name(), &options).unwrap()
    }

    /// The same rows on both sides, the writer's ledger whole on both.
    #[track_caller]
    pub(crate) fn assert_equal(&self) {
        assert_equal_rows(side(&self.source), side(&self.target));
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // The shared cluster has room for few slots, and a database with one cannot be dropped.
        self.source.psql(DROP_SLOTS).ok();
        self.target.psql(&drop_origin(self.name)).ok();
    }
}

/// Drops what the job's commits on this database were marked with.
pub(crate) fn drop_origin(job: &str) -> String {
    format!(
        "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = \
         'tidemark_{job}@' || (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
}

const DROP_SLOTS: &str = "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots \
    WHERE database = current_database() AND active_pid IS NOT NULL; \
    SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database() AND NOT active";

/// Sequences are set by a cutover, not by the stream.
#[track_caller]
fn assert_equal_rows(source: Side<'_>, target: Side<'_>) {
    let found = oracle::data_diff(source, target).unwrap();
    let rows: Vec<String> =
        found.iter().filter(|d| d.kind == "rows").map(ToString::to_string).collect();
    assert!(rows.is_empty(), "{} tables differ:\n{}", rows.len(), rows.join("\n"));
}

/// Waits until the target says that it follows.
#[track_caller]
pub(crate) fn follows(running: &mut Running, target: &Database, job: &str) {
    assert!(reached(running, || phase(side(target), job) == "follow"), "{}", running.stderr());
}

/// Writes a row and waits until it is on the target: everything before it is there, too.
#[track_caller]
pub(crate) fn passes(running: &mut Running, source: &Database, target: &Database) {
    let sql = "INSERT INTO pet (mood, tags, legs) VALUES ('glad', '{marker}', 4) RETURNING id";
    let id = source.psql(sql).unwrap();
    let there = format!("SELECT count(*) FROM pet WHERE id = {id}");
    let is_there = reached(running, || target.psql(&there).is_ok_and(|count| count == "1"));
    assert!(is_there, "{}", running.stderr());
}

fn report(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
}

fn end_lsn(target: &Database, job: &str) -> String {
    target.psql(&format!("SELECT end_lsn FROM tidemark.progress WHERE job = '{job}'")).unwrap()
}

#[test]
fn until_now_ends_with_the_sources_rows_and_the_next_one_goes_on_without_a_snapshot() {
    let pair = Pair::new("until");
    let job = pair.job();
    let writer = pair.writer();
    let first = report(&job.run(&["sync", "--until", "now", "--json"]).expect(0).stdout);
    assert_eq!(first["job"], "until");
    assert!(first["snapshot"].is_object(), "{first}");
    let run = run_of(side(&pair.target), "until");
    let written = writer.stop().unwrap();
    let second = report(&job.run(&["sync", "--until", "now", "--json"]).expect(0).stdout);
    pair.assert_equal();
    assert_eq!(check_ledger(pair.target.cluster(), pair.target.name()).unwrap(), written.committed);
    assert!(second["snapshot"].is_null(), "{second}");
    assert_eq!(run_of(side(&pair.target), "until"), run);
    assert!(second["transactions"].as_u64().unwrap() > 0, "{second}");
    assert!(second["changes"].as_u64() > second["transactions"].as_u64(), "{second}");
    assert_eq!(second["end_lsn"], end_lsn(&pair.target, "until"));
    // Nothing more: the same position, or a later one of keepalives.
    let third = report(&job.run(&["sync", "--until", "now", "--json"]).expect(0).stdout);
    assert_eq!(third["changes"], 0, "{third}");
    pair.assert_equal();
}

/// Whoever takes the same name for another target must not take the first job's slot with it.
#[test]
fn a_second_job_of_the_same_name_leaves_the_first_ones_slot_alone() {
    let pair = Pair::new("twice");
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    let other = shared().unwrap();
    let second = Job::new("twice", &pair.source.url(), &other.url());
    for _ in 0..2 {
        let refused = second.run(&["sync", "--until", "now"]).expect(2);
        assert!(refused.stderr.contains("--job"), "{}", refused.stderr);
    }
    pair.source.psql("UPDATE pet SET legs = legs + 1").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

/// What the first job writes would be taken for what the second one has written.
#[test]
fn a_chain_of_two_jobs_of_one_name_is_refused_and_of_two_names_arrives() {
    let pair = Pair::new("chain");
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    let third = shared().unwrap();
    pair.target.psql("ALTER TABLE keyless REPLICA IDENTITY FULL").unwrap();
    let same = Job::new("chain", &pair.target.url(), &third.url());
    let refused = same.run(&["sync", "--until", "now"]).expect(2);
    assert!(refused.stderr.contains("--job"), "{}", refused.stderr);
    let exclude = "[select]\nexclude = [\"tidemark.*\"]\n";
    let next = Job::new("chain-2", &pair.target.url(), &third.url()).configured(exclude);
    next.run(&["sync", "--until", "now"]).expect(0);
    pair.source.psql("UPDATE pet SET legs = legs + 1").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    next.run(&["sync", "--until", "now"]).expect(0);
    let legs = "SELECT count(*), sum(legs) FROM pet";
    assert_eq!(third.psql(legs).unwrap(), pair.source.psql(legs).unwrap());
    pair.target.psql(DROP_SLOTS).unwrap();
    third.psql(&drop_origin("chain-2")).unwrap();
}

#[test]
fn a_given_slot_that_gives_out_prepared_transactions_is_refused() {
    let pair = Pair::new("twophase");
    let make = "SELECT pg_create_logical_replication_slot('made_for_two', 'pgoutput', false, true)";
    pair.source.psql(make).unwrap();
    let job = pair.job().of_source("slot = \"made_for_two\"");
    let check = job.run(&["check"]).expect(5);
    assert!(check.stdout.contains("two_phase"), "{}", check.stdout);
}

#[test]
fn a_slot_that_a_dba_made_is_followed_and_never_dropped() {
    let pair = Pair::new("given");
    let make = "SELECT pg_create_logical_replication_slot('made_by_dba', 'pgoutput')";
    let job = pair.job().of_source("slot = \"made_by_dba\"");
    let check = job.run(&["check"]).expect(5);
    assert!(check.stdout.contains("pg_create_logical_replication_slot"), "{}", check.stdout);
    job.run(&["sync", "--until", "now"]).expect(5);
    pair.source.psql(make).unwrap();
    job.run(&["check"]).expect(0);
    let writer = pair.writer();
    let mut running = job.start(&["sync"]);
    follows(&mut running, &pair.target, "given");
    passes(&mut running, &pair.source, &pair.target);
    running.signal(Signal::KILL);
    running.end().expect(137);
    let written = writer.stop().unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
    assert_eq!(check_ledger(pair.target.cluster(), pair.target.name()).unwrap(), written.committed);
    let slots = "SELECT string_agg(slot_name, ',') FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(pair.source.psql(slots).unwrap(), "made_by_dba");
    let ran = job.run(&["cleanup", "--yes"]).expect(0);
    assert!(ran.stdout.contains("made_by_dba"), "{}", ran.stdout);
    assert_eq!(pair.source.psql(slots).unwrap(), "made_by_dba");
}

#[test]
fn a_copy_beside_a_given_slot_that_was_killed_is_begun_again_with_the_same_slot() {
    let pair = Pair::new("given2");
    let make = "SELECT pg_create_logical_replication_slot('made_by_dba2', 'pgoutput')";
    pair.source.psql(make).unwrap();
    let job = pair.job().of_source("slot = \"made_by_dba2\"");
    let writer = pair.writer();
    let mut running = job.start(&["sync"]);
    let is_loading = reached(&mut running, || markers(side(&pair.target), "given2") >= 1);
    assert!(is_loading, "{}", running.stderr());
    running.signal(Signal::KILL);
    running.end().expect(137);
    job.run(&["sync", "--until", "now"]).expect(0);
    let written = writer.stop().unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
    assert_eq!(check_ledger(pair.target.cluster(), pair.target.name()).unwrap(), written.committed);
    let slots = "SELECT string_agg(slot_name, ',') FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(pair.source.psql(slots).unwrap(), "made_by_dba2");
}

#[test]
fn a_terminated_run_ends_with_0_and_says_where_and_the_next_goes_on() {
    for signal in [Signal::TERM, Signal::INT] {
        let pair = Pair::new("stopped");
        let job = pair.job();
        let writer = pair.writer();
        let mut running = job.start(&["sync"]);
        follows(&mut running, &pair.target, "stopped");
        passes(&mut running, &pair.source, &pair.target);
        let run = run_of(side(&pair.target), "stopped");
        running.signal(signal);
        let ran = running.end().expect(0);
        let stopped_at = end_lsn(&pair.target, "stopped");
        assert!(ran.stdout.contains(&stopped_at), "{stopped_at} is not in {}", ran.stdout);
        let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'tidemark_stopped'";
        assert_eq!(
            pair.source.psql(confirmed).unwrap(),
            stopped_at,
            "what is durable is acknowledged"
        );
        writer.stop().unwrap();
        let ran = job.run(&["sync", "--until", "now", "--json"]).expect(0);
        assert!(report(&ran.stdout)["snapshot"].is_null(), "{}", ran.stdout);
        assert_eq!(run_of(side(&pair.target), "stopped"), run);
        pair.assert_equal();
    }
}

#[test]
fn a_run_killed_again_and_again_loses_nothing_and_doubles_nothing() {
    let pair = Pair::new("killed");
    let job = pair.job();
    let writer = pair.writer();
    for round in 0..5 {
        let mut running = job.start(&["sync"]);
        follows(&mut running, &pair.target, "killed");
        // In the middle of things: as soon as the position has moved, or a little later.
        let before = end_lsn(&pair.target, "killed");
        let moves = reached(&mut running, || end_lsn(&pair.target, "killed") != before);
        assert!(moves, "{}", running.stderr());
        if round % 2 == 1 {
            passes(&mut running, &pair.source, &pair.target);
        }
        running.signal(Signal::KILL);
        running.end().expect(137);
    }
    let written = writer.stop().unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
    assert_eq!(check_ledger(pair.target.cluster(), pair.target.name()).unwrap(), written.committed);
}

#[test]
fn a_second_instance_is_refused_while_the_first_follows() {
    let pair = Pair::new("second");
    let job = pair.job();
    let mut running = job.start(&["sync"]);
    follows(&mut running, &pair.target, "second");
    job.run(&["sync"]).expect(9);
    let elsewhere = TempDir::new().unwrap();
    pair.job().state_at(&elsewhere.path().join("state")).run(&["sync"]).expect(9);
    passes(&mut running, &pair.source, &pair.target);
    running.signal(Signal::TERM);
    running.end().expect(0);
    pair.assert_equal();
}

/// A job that has followed and is stopped; then `damage` happens, and what the next run says.
fn stopped_then(name: &'static str, damage: impl Fn(&Pair)) -> (Pair, Job) {
    let pair = Pair::new(name);
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.source.psql("INSERT INTO pet (mood, legs) VALUES ('sad', 3)").unwrap();
    damage(&pair);
    (pair, job)
}

#[test]
fn a_slot_that_is_gone_needs_a_new_snapshot() {
    let (pair, job) = stopped_then("gone", |pair| {
        pair.source.psql("SELECT pg_drop_replication_slot('tidemark_gone')").unwrap();
    });
    let before = end_lsn(&pair.target, "gone");
    job.run(&["sync", "--until", "now"]).expect(6).says(&["tidemark_gone"]);
    assert_eq!(end_lsn(&pair.target, "gone"), before);
}

#[test]
fn a_slot_that_was_made_again_is_not_taken_for_the_old_one() {
    let (pair, job) = stopped_then("again", |pair| {
        pair.source.psql("SELECT pg_drop_replication_slot('tidemark_again')").unwrap();
        let sql = "SELECT pg_create_logical_replication_slot('tidemark_again', 'pgoutput')";
        pair.source.psql(sql).unwrap();
    });
    let count = "SELECT count(*) FROM pet";
    let before = pair.target.psql(count).unwrap();
    job.run(&["sync", "--until", "now"]).expect(6).says(&["tidemark_again"]);
    assert_eq!(pair.target.psql(count).unwrap(), before);
}

#[test]
fn a_slot_that_somebody_advanced_is_refused() {
    let (_pair, job) = stopped_then("advanced", |pair| {
        pair.source.psql("CREATE TABLE noise AS SELECT generate_series(1, 1000) i").unwrap();
        move_slot(&pair.source, "tidemark_advanced");
    });
    job.run(&["sync", "--until", "now"]).expect(6).says(&["tidemark_advanced"]);
}

#[test]
fn an_invalidated_slot_is_refused_with_the_reason() {
    let source = Cluster::builder()
        .setting("max_slot_wal_keep_size", "16MB")
        .setting("max_wal_size", "64MB")
        .setting("wal_keep_size", "0")
        .start()
        .unwrap();
    source.create_database("shop").unwrap();
    source.psql("shop", "CREATE TABLE t (id integer PRIMARY KEY, body text)").unwrap();
    let target = shared().unwrap();
    let job = Job::new("lost", &source.url("shop"), &target.url());
    job.run(&["sync", "--until", "now"]).expect(0);
    let lost = "SELECT coalesce(wal_status = 'lost', false) FROM pg_replication_slots";
    wait_until("the slot is lost", || {
        let write = "SELECT count(pg_logical_emit_message(false, 'fill', repeat('x', 1000000))) FROM generate_series(1, 20); SELECT pg_switch_wal(); CHECKPOINT;";
        source.psql("shop", write).unwrap();
        source.psql("shop", lost).unwrap() == "t"
    });
    job.run(&["sync", "--until", "now"]).expect(6).says(&["tidemark_lost"]);
}

#[test]
fn another_cluster_under_the_same_name_is_refused() {
    let pair = Pair::new("moved");
    pair.job().run(&["sync", "--until", "now"]).expect(0);
    let other = Cluster::start_default().unwrap();
    other.create_database("shop").unwrap();
    other.psql("shop", "CREATE TABLE pet (id integer PRIMARY KEY)").unwrap();
    let rows = "SELECT count(*) FROM pet";
    let before = pair.target.psql(rows).unwrap();
    let ran =
        Job::new("moved", &other.url("shop"), &pair.target.url()).run(&["sync", "--until", "now"]);
    assert!([2, 6].contains(&ran.code), "{ran:?}");
    assert_eq!(pair.target.psql(rows).unwrap(), before);
    let left = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(other.psql("shop", left).unwrap(), "0", "a slot is left on the wrong cluster");
}

#[test]
fn a_publication_that_was_narrowed_is_refused() {
    let (pair, job) = stopped_then("narrowed", |pair| {
        let sql = "ALTER PUBLICATION tidemark_narrowed SET (publish = 'insert')";
        pair.source.psql(sql).unwrap();
    });
    let before = end_lsn(&pair.target, "narrowed");
    let ran = job.run(&["sync", "--until", "now"]);
    assert!([2, 5, 6].contains(&ran.code), "{ran:?}");
    assert!(ran.stderr.contains("publication"), "{}", ran.stderr);
    assert_eq!(end_lsn(&pair.target, "narrowed"), before);
}

#[test]
fn a_row_that_the_target_rejects_stops_the_job_and_keeps_the_position() {
    let pair = Pair::new("poison");
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.target.psql("ALTER TABLE pet ADD CONSTRAINT few CHECK (legs < 100)").unwrap();
    pair.source.psql("INSERT INTO region VALUES (77, 'before', '')").unwrap();
    pair.source.psql("INSERT INTO pet (mood, legs) VALUES ('glad', 1234567)").unwrap();
    pair.source.psql("INSERT INTO region VALUES (78, 'after', '')").unwrap();
    let ran = job.run(&["sync", "--until", "now"]).expect(7).says(&["pet", "few"]);
    assert!(!ran.stderr.contains("1234567"), "the row's values are in the message: {}", ran.stderr);
    let after = "SELECT count(*) FROM region WHERE r_regionkey = 78";
    assert_eq!(pair.target.psql(after).unwrap(), "0", "what came after the poison is there");
    // Again, with the same end; then mended.
    job.run(&["sync", "--until", "now"]).expect(7);
    pair.target.psql("ALTER TABLE pet DROP CONSTRAINT few").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

#[test]
fn status_has_the_ladder_of_lag_while_the_source_is_followed() {
    let pair = Pair::new("lagging");
    let job = pair.job();
    let writer = pair.writer();
    let mut running = job.start(&["sync"]);
    follows(&mut running, &pair.target, "lagging");
    passes(&mut running, &pair.source, &pair.target);
    let mut status = Value::Null;
    wait_until("status counts changes", || {
        status = job.status().unwrap();
        status["stream"]["changes"].as_u64() > Some(0)
    });
    assert_eq!(
        (&status["phase"], &status["is_running"]),
        (&"follow".into(), &true.into()),
        "{status}"
    );
    let position = |name: &str| {
        let text = status["lag"][name].as_str().unwrap_or_else(|| panic!("lag.{name}: {status}"));
        let (high, low) = text.split_once('/').unwrap();
        (u64::from_str_radix(high, 16).unwrap() << 32) + u64::from_str_radix(low, 16).unwrap()
    };
    let ladder = ["received_lsn", "applied_lsn", "durable_lsn"].map(position);
    assert!(ladder.is_sorted_by(|one, two| one >= two), "{status}");
    assert!(position("head_lsn") > 0 && position("sent_lsn") > 0, "{status}");
    assert!(status["lag"]["bytes"].is_u64() && status["lag"]["seconds"].is_number(), "{status}");
    assert!(status["stream"]["transactions"].as_u64() > Some(0), "{status}");
    writer.stop().unwrap();
    running.signal(Signal::TERM);
    running.end().expect(0);
}

#[test]
fn a_source_before_14_is_refused_with_the_reason() {
    let source = Cluster::builder().version(Version::V13).start().unwrap();
    source.create_database("shop").unwrap();
    source.psql("shop", "CREATE TABLE t (id integer PRIMARY KEY)").unwrap();
    let target = shared().unwrap();
    let ran = Job::new("old", &source.url("shop"), &target.url()).run(&["sync"]);
    assert!([2, 5].contains(&ran.code), "{ran:?}");
    assert!(ran.stderr.contains("14"), "{}", ran.stderr);
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)";
    assert_eq!(source.psql("shop", left).unwrap(), "0");
}

#[test]
fn a_spool_that_the_target_has_half_of_already_is_gone_through_by_the_next_run() {
    let pair = Pair::new("spooled");
    let table = "CREATE TABLE big (id integer PRIMARY KEY, body text); ALTER TABLE big ALTER body SET STORAGE EXTERNAL";
    pair.source.psql(table).unwrap();
    // Less memory than the part of the spool that is read in vain.
    let job = pair.job().configured("[limits]\nmemory = \"32MiB\"\n[snapshot]\nreaders = 2\n");
    let mut running = job.start(&["sync"]);
    let is_loading = reached(&mut running, || markers(side(&pair.target), "spooled") >= 1);
    assert!(is_loading, "{}", running.stderr());
    // The snapshot waits for the keys of this table, and the stream goes to the spool meanwhile.
    let hold = Blocker::start(&pair.target, "LOCK TABLE lineitem IN SHARE UPDATE EXCLUSIVE MODE");
    for id in 1..=60 {
        let row = format!(
            "INSERT INTO big SELECT {id}, string_agg(md5({id} || ' ' || i), '') FROM generate_series(1, 20000) i"
        );
        pair.source.psql(&row).unwrap();
    }
    let spool = job.path().join("state/spool");
    let spooled = || {
        let files = files_below(&spool).into_iter();
        files
            .filter_map(|file| fs::metadata(spool.join(file)).ok())
            .map(|file| file.len())
            .sum::<u64>()
    };
    assert!(reached(&mut running, || spooled() > 36_000_000), "{}", running.stderr());
    drop(hold);
    let applied = || {
        let count = pair.target.psql("SELECT count(*) FROM big").ok();
        count.and_then(|count| count.parse::<u32>().ok()).unwrap_or(0)
    };
    assert!(reached(&mut running, || applied() >= 30), "{}", running.stderr());
    running.signal(Signal::KILL);
    running.end();
    say(&format!("killed at {} of 60", applied()));
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}
