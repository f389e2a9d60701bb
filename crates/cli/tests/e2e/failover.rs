//! The source is promoted, or comes back from an older backup: followed on where that is certain to be right, else refused.
//!
//! **Invariant:** what is refused has written nothing: the target still has what the server had that was followed
//! (`hazards.md` B31-B33).

use tidemark_testkit::{Cluster, Version, oracle, shared};

use crate::follow::{drop_origin, follows};
use crate::support::{Job, Side, side, wait_until};

const TABLE: &str = "CREATE TABLE t (id integer PRIMARY KEY, body text); \
    INSERT INTO t SELECT i, 'first' FROM generate_series(1, 500) i";

fn insert(from: u32, word: &str) -> String {
    format!(
        "INSERT INTO t SELECT i, '{word}' FROM generate_series({from}, {from} + 200) i; \
         UPDATE t SET body = '{word}' WHERE id % 100 = 1"
    )
}

#[track_caller]
fn assert_equal(source: &Cluster, target: Side<'_>) {
    let found = oracle::data_diff((source, "shop"), target).unwrap();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_source_from_an_older_backup_is_refused_and_nothing_is_lost() {
    let source = Cluster::start_default().unwrap();
    source.create_database("shop").unwrap();
    source.psql("shop", TABLE).unwrap();
    let target = shared().unwrap();
    Job::new("backup", &source.url("shop"), &target.url())
        .run(&["sync", "--until", "now"])
        .expect(0);
    // A copy of everything but the slots, on the same timeline, as copies of whole disks are.
    let backup = source.standby().unwrap();
    backup.wait_for_replay(&source).unwrap();
    backup.stop_fast().unwrap();
    source.psql("shop", &insert(1_000, "after the backup")).unwrap();
    let job = Job::new("backup", &source.url("shop"), &target.url());
    job.run(&["sync", "--until", "now"]).expect(0);
    source.stop_fast().unwrap();
    std::fs::remove_file(backup.data_dir().join("standby.signal")).unwrap();
    backup.start().unwrap();
    let restored = Job::new("backup", &backup.url("shop"), &target.url());
    restored.run(&["sync", "--until", "now"]).expect(6).says(&["restored", "tidemark cleanup"]);
    // It goes on, and is ahead of the saved position then: the same LSNs, other changes.
    backup.psql("shop", &insert(2_000, "another history")).unwrap();
    let bytes = "SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 100000))) FROM generate_series(1, 50)";
    backup.psql("shop", bytes).unwrap();
    restored.run(&["sync", "--until", "now"]).expect(6).says(&["slot", "tidemark cleanup"]);
    source.start().unwrap();
    assert_equal(&source, side(&target));
    job.run(&["sync", "--until", "now"]).expect(0);
    target.psql(&drop_origin("backup")).unwrap();
}

/// Whoever has no answer does not know how far behind the target is.
#[test]
fn a_source_that_does_not_answer_is_told_beside_the_lag_of_then() {
    let source = Cluster::start_default().unwrap();
    source.create_database("shop").unwrap();
    source.psql("shop", TABLE).unwrap();
    let target = shared().unwrap();
    let job = Job::new("silent", &source.url("shop"), &target.url());
    let mut running = job.start(&["sync"]);
    follows(&mut running, &target, "silent");
    let silent = || job.status().and_then(|status| status["lag"]["source_silent_seconds"].as_f64());
    wait_until("the source has answered", || silent().is_some_and(|seconds| seconds < 3.0));
    source.stop_immediate().unwrap();
    wait_until("the source is silent", || silent().is_some_and(|seconds| seconds > 6.0));
    let told = job.run(&["status"]).expect(0).stdout;
    assert!(told.contains("silent     the source, which is followed, has not answered"), "{told}");
    source.start().unwrap();
    wait_until("the source answers again", || silent().is_some_and(|seconds| seconds < 3.0));
    drop(running);
    target.psql(&drop_origin("silent")).ok();
}

/// A primary, and a standby that keeps failover slots (17 and later).
fn pair_with_failover() -> (Cluster, Cluster) {
    let primary = Cluster::builder().version(Version::V18).start().unwrap();
    primary.create_database("shop").unwrap();
    primary.psql("shop", TABLE).unwrap();
    primary.psql("postgres", "SELECT pg_create_physical_replication_slot('standby')").unwrap();
    let standby = primary.standby().unwrap();
    let conninfo = format!(
        "host={} port={} user=postgres dbname=postgres",
        primary.socket_dir().display(),
        primary.port()
    );
    // It has one from the beginning, where this is read last.
    standby.psql("postgres", &format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'")).unwrap();
    for (name, value) in [
        ("primary_slot_name", "standby"),
        ("hot_standby_feedback", "on"),
        ("sync_replication_slots", "on"),
    ] {
        standby.configure_setting(name, value).unwrap();
    }
    standby.restart().unwrap();
    primary
        .configure_setting("synchronized_standby_slots", "standby")
        .and_then(|()| primary.restart())
        .unwrap();
    (primary, standby)
}

#[test]
fn a_promoted_standby_that_has_the_slot_is_followed_on_and_the_old_primary_is_refused() {
    let (primary, standby) = pair_with_failover();
    let target = shared().unwrap();
    let tools = Version::V18.client_dir().expect("scripts/setup installs pg_dump 18");
    let job = |source: &Cluster| {
        Job::new("promoted", &source.url("shop"), &target.url())
            .of_source("failover = true")
            .set("TIDEMARK_PG_BIN", &tools.display().to_string())
    };
    job(&primary).run(&["sync", "--until", "now"]).expect(0);
    primary.psql("shop", &insert(1_000, "before the failover")).unwrap();
    job(&primary).run(&["sync", "--until", "now"]).expect(0);
    let is_synced = "SELECT coalesce(bool_and(synced AND NOT temporary AND invalidation_reason IS NULL), false) \
        FROM pg_replication_slots WHERE slot_name = 'tidemark_promoted'";
    // The standby keeps a copy of the slot once the slot has moved beyond what the standby still has.
    wait_until("the standby has the slot", || {
        primary
            .psql(
                "shop",
                "SELECT pg_log_standby_snapshot(); UPDATE t SET body = body || '.' WHERE id = 7",
            )
            .unwrap();
        job(&primary).run(&["sync", "--until", "now"]).expect(0);
        standby.psql("postgres", is_synced).unwrap() == "t"
    });
    // Not yet on the target when the primary dies.
    primary.psql("shop", &insert(2_000, "not yet there")).unwrap();
    standby.wait_for_replay(&primary).unwrap();
    primary.stop_immediate().unwrap();
    standby.promote().unwrap();
    standby.psql("shop", &insert(3_000, "after the failover")).unwrap();
    job(&standby).run(&["sync", "--until", "now"]).expect(0);
    assert_equal(&standby, side(&target));
    // Whoever comes back as primary beside the new one.
    primary.start().unwrap();
    primary.psql("shop", &insert(4_000, "split brain")).unwrap();
    job(&primary).run(&["sync", "--until", "now"]).expect(6).says(&["timeline", "old primary"]);
    assert_equal(&standby, side(&target));
    target.psql(&drop_origin("promoted")).unwrap();
}
