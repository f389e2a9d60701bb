//! A standby as the source: read like any other server, although it may end our sessions (`hazards.md` A17).

use tidemark_testkit::{Cluster, oracle, shared};

use crate::crash::Blocker;
use crate::support::{Job, fill, markers, reached, run_of, side, wait_until};

fn primary() -> Cluster {
    let primary = Cluster::start_default().unwrap();
    primary.create_database("shop").unwrap();
    fill(&primary, "shop");
    primary
}

#[test]
fn a_standby_is_copied_and_check_says_what_it_is() {
    let (primary, target) = (primary(), shared().unwrap());
    let standby = primary.standby().unwrap();
    standby.wait_for_replay(&primary).unwrap();
    let job = Job::new("standby", &standby.url("shop"), &target.url());
    let check = job.run(&["check", "--snapshot-only"]).expect(0);
    assert!(check.stdout.contains("standby"), "{}", check.stdout);
    assert!(check.stdout.contains("hot_standby_feedback"), "{}", check.stdout);
    job.sync(&[]).expect(0);
    oracle::assert_same((&standby, "shop"), side(&target));
}

#[test]
fn replay_that_ends_the_snapshot_of_a_standby_begins_the_run_again() {
    let (primary, target) = (primary(), shared().unwrap());
    let standby = primary.standby().unwrap();
    standby.configure_setting("max_standby_streaming_delay", "0").unwrap();
    standby.wait_for("shop", "SHOW max_standby_streaming_delay", "0").unwrap();
    standby.wait_for_replay(&primary).unwrap();
    let job = Job::new("replay", &standby.url("shop"), &target.url());
    let mut running = job.start_sync();
    let has_pet = "SELECT to_regclass('pet') IS NOT NULL";
    assert!(reached(&mut running, || target.psql(has_pet).unwrap() == "t"), "{}", running.stderr());
    // The run stands still until the replay has ended its snapshot.
    let mut blocker = Blocker::start(&target, "LOCK TABLE pet");
    assert!(
        reached(&mut running, || markers(side(&target), "replay") >= 1),
        "{}",
        running.stderr()
    );
    let first = run_of(side(&target), "replay");
    primary
        .psql("shop", "BEGIN; TRUNCATE pet; INSERT INTO pet (mood) VALUES ('sad'); COMMIT")
        .unwrap();
    wait_until("the replay has ended a session", || {
        standby.log().contains("conflict with recovery")
    });
    blocker.end();
    running.end().expect(0);
    assert_ne!(run_of(side(&target), "replay"), first);
    standby.wait_for_replay(&primary).unwrap();
    oracle::assert_same((&standby, "shop"), side(&target));
}
