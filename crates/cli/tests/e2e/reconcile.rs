//! `sync --target-not-empty reconcile`: a stream that begins at a target which holds the rows already.
//!
//! **Invariant:** what is moved is what differs, and the stream goes on from exactly there: the same rows on both sides in the
//! end, by the oracle, whoever wrote meanwhile and whatever killed it.

use rustix::process::Signal;
use serde_json::Value;
use tidemark_testkit::workload::check_ledger;
use tidemark_testkit::{Cluster, Database, shared};

use crate::crash::Blocker;
use crate::cutover::told;
use crate::follow::{Pair, follows, passes};
use crate::support::{Job, wait_until};

const ANEW: [&str; 4] = ["sync", "--target-not-empty", "reconcile", "--yes"];
/// What has become of the source while nobody followed it: six rows of two tables.
const MEANWHILE: &str = "UPDATE pet SET legs = legs + 1 WHERE id IN (3, 4); DELETE FROM pet WHERE id = 5; \
    INSERT INTO pet (mood, legs) VALUES ('sad', 3); DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless); \
    INSERT INTO keyless SELECT (k).* FROM (SELECT k FROM keyless k LIMIT 1) one";

fn anew(job: &Job, more: &[&str]) -> Value {
    told(&job.run(&[&ANEW[..], &["--until", "now", "--json"], more].concat()).expect(0).stdout)
}

/// Rows of a class that were moved, of one table or of all.
fn moved(report: &Value, table: Option<&str>, class: &str) -> u64 {
    let tables = report["snapshot"]["reconciled"].as_array().unwrap();
    let is_meant = |of: &&Value| table.is_none_or(|table| of["relation"]["name"] == table);
    tables.iter().filter(is_meant).map(|of| of[class].as_u64().unwrap()).sum()
}

/// How many sessions that compare and move rows for the job wait for a lock.
fn waits(job: &str) -> String {
    format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%{job}:delta' AND wait_event_type = 'Lock' AND datname = current_database()"
    )
}

/// A pair that was in step until its slot was lost.
fn lost(name: &'static str) -> (Pair, Job) {
    let pair = Pair::new(name);
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    lose_slot(&pair.source, &format!("tidemark_{name}"));
    (pair, job)
}

fn lose_slot(source: &Database, slot: &str) {
    source.psql(&format!("SELECT pg_drop_replication_slot('{slot}')")).unwrap();
}

#[test]
fn after_a_lost_slot_only_what_differs_is_moved_and_the_stream_goes_on() {
    let (pair, job) = lost("lostslot");
    pair.source.psql(MEANWHILE).unwrap();
    pair.target.psql("INSERT INTO pet (id, mood, legs) VALUES (900001, 'glad', 9)").unwrap();
    job.run(&["sync", "--until", "now"]).expect(6).says(&["--target-not-empty reconcile --yes"]);
    job.run(&ANEW[..3]).expect(2).says(&["overwrites and deletes", "--yes"]);
    job.run(&[&ANEW[..], &["--snapshot-only"]].concat()).expect(2).says(&["delta --scan-target"]);
    let report = anew(&job, &[]);
    let pets = |class| moved(&report, Some("pet"), class);
    assert_eq!((pets("new"), pets("modified"), pets("deleted")), (1, 2, 2), "{report}");
    assert_eq!(moved(&report, None, "new") + moved(&report, None, "deleted"), 3 + 2, "{report}");
    pair.assert_equal();
    pair.source.psql(MEANWHILE.split(';').next().unwrap()).unwrap();
    let next = told(&job.run(&["sync", "--until", "now", "--json"]).expect(0).stdout);
    assert!(next["snapshot"].is_null(), "{next}");
    pair.assert_equal();
    job.run(&["verify"]).expect(0);
}

/// With the job's own slot the last one may be taken: it goes before another is made.
#[test]
fn a_server_that_has_room_for_no_other_slot_has_room_for_the_jobs_own() {
    let source = Cluster::builder().setting("max_replication_slots", "1").start().unwrap();
    source
        .psql("postgres", "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        .unwrap();
    let target = shared().unwrap();
    let job = Job::new("reconfull", &source.url("postgres"), &target.url());
    job.run(&["sync", "--until", "now"]).expect(0);
    source.psql("postgres", "INSERT INTO t VALUES (2)").unwrap();
    job.run(&["check"]).expect(0);
    anew(&job, &[]);
    assert_eq!(target.psql("SELECT string_agg(id::text, ' ' ORDER BY id) FROM t").unwrap(), "1 2");
    target.psql(&crate::follow::drop_origin("reconfull")).unwrap();
}

/// Files of a delta tell what the target had before the stream went on.
#[test]
fn what_a_delta_knows_of_the_target_is_forgotten() {
    let (pair, job) = lost("reconforget");
    pair.source.psql(MEANWHILE).unwrap();
    job.run(&["delta", "--scan-target", "--deleted", "apply"]).expect(0);
    let known = "SELECT count(*) > 0 FROM tidemark.delta WHERE relation_name = 'pet'";
    let files = || {
        let files = crate::support::files_below(&job.path().join("state/delta"));
        files.iter().filter(|file| file.contains("pet")).count()
    };
    assert_eq!((pair.target.psql(known).unwrap().as_str(), files()), ("t", 1));
    let report = anew(&job, &[]);
    assert_eq!(moved(&report, None, "modified"), 0, "{report}");
    assert_eq!((pair.target.psql(known).unwrap().as_str(), files()), ("f", 0));
}

/// Between the snapshot that is compared and the stream nothing is lost or comes twice.
#[test]
fn what_is_written_while_it_compares_arrives_once() {
    let pair = Pair::new("reconlive");
    let job = pair.job();
    let writer = pair.writer();
    job.run(&["sync", "--until", "now"]).expect(0);
    for _ in 0..3 {
        lose_slot(&pair.source, "tidemark_reconlive");
        pair.source.psql("INSERT INTO pet (mood, legs) VALUES ('sad', 3)").unwrap();
        anew(&job, &[]);
    }
    let written = writer.stop().unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
    assert_eq!(check_ledger(pair.target.cluster(), pair.target.name()).unwrap(), written.committed);
}

#[test]
fn one_that_is_killed_is_not_taken_for_a_copy_and_begins_again() {
    let (pair, job) = lost("reconkill");
    pair.source.psql(MEANWHILE).unwrap();
    // Rows of it are moved by then, of others not; another process would wait for its transaction.
    let mut blocker = Blocker::start(&pair.target, "LOCK pet IN SHARE MODE");
    let running = job.start(&ANEW);
    wait_until("the rows of the pets wait", || {
        pair.target.psql(&waits("reconkill")).unwrap() == "1"
    });
    // Whoever takes the job over meanwhile waits for them.
    let take = "SET lock_timeout = 300; SELECT FROM tidemark.progress FOR UPDATE";
    assert!(pair.target.psql(take).unwrap_err().to_string().contains("lock timeout"));
    running.signal(Signal::KILL);
    running.end();
    blocker.end();
    job.run(&["sync", "--until", "now"]).expect(2).says(&["not empty", "reconcile"]);
    anew(&job, &[]);
    pair.assert_equal();
    pair.source.psql("UPDATE pet SET legs = legs + 1").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}

/// The process that lost the job may be alive: it may not write what the other one does not know of.
#[test]
fn one_whose_job_was_taken_over_moves_nothing() {
    let (pair, job) = lost("reconlost");
    pair.source.psql(MEANWHILE).unwrap();
    let legs = "SELECT sum(legs) FROM pet";
    let before = pair.target.psql(legs).unwrap();
    // The table before the pets.
    let mut blocker = Blocker::start(&pair.target, "LOCK keyless IN SHARE MODE");
    let running = job.start(&ANEW);
    wait_until("rows wait", || pair.target.psql(&waits("reconlost")).unwrap() == "1");
    pair.target.psql("UPDATE tidemark.progress SET run = 'another'").unwrap();
    blocker.end();
    running.end().expect(9);
    assert_eq!(pair.target.psql(legs).unwrap(), before);
}

/// What cannot be begun with must not cost the slot that the job may still go on from.
#[test]
fn what_is_refused_beforehand_keeps_the_slot() {
    let pair = Pair::new("reconkeep");
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.target.psql("ALTER TABLE pet RENAME TO pets").unwrap();
    job.run(&ANEW).expect(5).says(&["target-table-missing", "pet"]);
    pair.target.psql("ALTER TABLE pets RENAME TO pet").unwrap();
    // What a first copy that was killed has left has its rows, and not yet its keys.
    let run = "UPDATE tidemark.progress SET phase = 'finish'";
    pair.target.psql(run).unwrap();
    job.run(&ANEW).expect(2).says(&["still owes keys", "tidemark sync goes on"]);
    pair.target.psql("UPDATE tidemark.progress SET phase = 'follow'").unwrap();
    pair.source.psql("UPDATE pet SET legs = legs + 1").unwrap();
    let next = told(&job.run(&["sync", "--until", "now", "--json"]).expect(0).stdout);
    assert!(next["snapshot"].is_null(), "{next}");
    pair.assert_equal();
}

/// What another tool has brought over is followed without being copied again.
#[test]
fn a_target_that_something_else_has_filled_is_taken_over() {
    let pair = Pair::new("recontake");
    let other = shared().unwrap();
    let first = Job::new("recontake-1", &pair.source.url(), &other.url());
    first.run(&["sync", "--snapshot-only"]).expect(0);
    first.run(&["cleanup", "--yes"]).expect(0);
    pair.source.psql(MEANWHILE).unwrap();
    let job = Job::new("recontake", &pair.source.url(), &other.url());
    job.run(&["sync", "--until", "now"]).expect(5).says(&["target-not-empty", "reconcile"]);
    let report = anew(&job, &[]);
    assert_eq!(moved(&report, None, "modified"), 2, "{report}");
    let legs = "SELECT count(*), sum(legs) FROM pet";
    pair.source.psql("UPDATE pet SET legs = legs + 1").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    assert_eq!(other.psql(legs).unwrap(), pair.source.psql(legs).unwrap());
    job.run(&["verify"]).expect(0);
    other.psql(&crate::follow::drop_origin("recontake")).unwrap();
}

/// A stream that begins with less than all of it would lose the rest.
#[test]
fn a_row_that_the_target_refuses_or_a_table_that_it_lacks_lets_nothing_begin() {
    let (pair, job) = lost("reconstop");
    pair.source.psql(MEANWHILE).unwrap();
    pair.target.psql("ALTER TABLE pet ADD CONSTRAINT few CHECK (legs <> 3) NOT VALID").unwrap();
    let until = ["--until", "now"];
    let refused = job.run(&[&ANEW[..], &until].concat()).expect(7);
    refused.says(&["pet", "refuses 1 rows", "\"few\""]);
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(pair.source.psql(slots).unwrap(), "0");
    pair.target.psql("ALTER TABLE pet DROP CONSTRAINT few").unwrap();
    // A row that stays where it is, although it goes without an error.
    pair.target
        .psql(
            "CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
             CREATE TRIGGER stay BEFORE DELETE ON pet FOR EACH ROW EXECUTE FUNCTION stay(); \
             ALTER TABLE pet ENABLE ALWAYS TRIGGER stay",
        )
        .unwrap();
    pair.source.psql("DELETE FROM pet WHERE id = 9").unwrap();
    let refused = job.run(&[&ANEW[..], &until].concat()).expect(7);
    refused.says(&["pet", "0 rows were written instead of 1"]);
    assert_eq!(pair.source.psql(slots).unwrap(), "0");
    pair.target.psql("DROP TABLE keyless CASCADE").unwrap();
    job.run(&[&ANEW[..], &until].concat()).expect(5).says(&["keyless"]);
    assert_eq!(pair.source.psql(slots).unwrap(), "0");
}

#[test]
fn a_lake_is_refused_before_it_is_touched() {
    let source = crate::support::filled();
    let lake = tempfile::tempdir().unwrap();
    let job = Job::new("reconlake", &source.url(), &format!("file://{}", lake.path().display()));
    job.run(&ANEW).expect(2).says(&["begin with what a lake holds"]);
    assert!(std::fs::read_dir(lake.path()).unwrap().next().is_none());
}

/// After a cutover it is the stream back whose slot may be lost, and with it the way back.
#[test]
fn a_lost_way_back_is_made_again() {
    let pair = Pair::new("reconback");
    let job = pair.job();
    job.run(&["sync", "--until", "now"]).expect(0);
    job.run(&["cutover"]).expect(0);
    lose_slot(&pair.target, "tidemark_reconback__back");
    pair.target.psql(MEANWHILE).unwrap();
    job.run(&["sync", "--until", "now"]).expect(6).says(&["--target-not-empty reconcile --yes"]);
    let report = anew(&job, &[]);
    assert_eq!(moved(&report, Some("pet"), "modified"), 2, "{report}");
    let mut running = job.start(&["sync"]);
    follows(&mut running, &pair.source, "reconback--back");
    passes(&mut running, &pair.target, &pair.source);
    job.run(&["verify"]).expect(0);
    job.run(&["fallback"]).expect(0);
    passes(&mut running, &pair.source, &pair.target);
    drop(running);
    pair.target.psql("SET default_transaction_read_only = off; SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database() AND NOT active").ok();
    let reset = format!(
        "SET default_transaction_read_only = off; ALTER DATABASE {} RESET default_transaction_read_only",
        pair.target.name()
    );
    pair.target.psql(&reset).unwrap();
}
