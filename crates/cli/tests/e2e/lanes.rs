//! `stream.lanes` from the command line: killed between the commits of two lanes, and gone on with however many lanes.
//!
//! **Invariant:** equality is the oracle's; that the lanes stood apart when the run was killed is asked of the target, not
//! assumed.

use rustix::process::Signal;
use tempfile::TempDir;

use crate::follow::{Pair, passes};
use crate::joining::Open;
use crate::support::{Job, reached, wait_until};

/// Lets the first lane, whose position is the job's, wait at its COMMIT for whoever has the lock, once the others have
/// committed theirs. A position that passes without rows of ours (the cluster has other tests') is let through.
const HELD_UP: &str = "CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS \
    $$ BEGIN \
      IF EXISTS (SELECT FROM tidemark.lane WHERE job = NEW.job AND end_lsn >= NEW.end_lsn) THEN \
        PERFORM pg_advisory_xact_lock(77); \
      END IF; \
      RETURN NULL; \
    END $$; \
    CREATE CONSTRAINT TRIGGER hold_up AFTER UPDATE ON tidemark.progress DEFERRABLE INITIALLY DEFERRED \
    FOR EACH ROW WHEN (OLD.end_lsn < NEW.end_lsn) EXECUTE FUNCTION hold_up(); \
    ALTER TABLE tidemark.progress ENABLE ALWAYS TRIGGER hold_up";
const LET_GO: &str = "DROP TRIGGER hold_up ON tidemark.progress; DROP FUNCTION hold_up";
const AHEAD: &str = "SELECT count(*) FROM tidemark.lane l JOIN tidemark.progress p USING (job) \
    WHERE job = 'lanes' AND l.end_lsn > p.end_lsn";
const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity \
    WHERE application_name LIKE 'tidemark%' AND datname = current_database()";

/// Every kind of change in tables with a key, without one, and with values out of line: enough of them for several lanes.
fn changes(round: u32) -> String {
    format!(
        "BEGIN; UPDATE pet SET legs = legs + 1 WHERE id % 3 <> {round}; DELETE FROM pet WHERE id % 50 = {round}; \
         INSERT INTO pet (mood, tags, legs) SELECT 'glad', '{{r{round}}}', i FROM generate_series(1, 300) i; \
         INSERT INTO keyless SELECT date '2026-01-01' + i % 9, 'r{round}' FROM generate_series(1, 300) i; \
         DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE note = 'n{round}' LIMIT 40); \
         UPDATE orders SET o_comment = 'r{round}' WHERE o_orderkey % 40 = {round}; COMMIT"
    )
}

/// What one lane has to do alone.
const ALONE: &str = "UPDATE pet SET id = id + 1000000 WHERE id % 70 = 1; TRUNCATE keyless";

/// Kills a run while the other lanes have what the first one has not.
#[track_caller]
fn killed_apart(pair: &Pair, job: &Job, lanes: u32, round: u32) {
    pair.target.psql(HELD_UP).unwrap();
    let lock = "SELECT pg_current_xact_id(); SELECT pg_advisory_xact_lock(77)";
    let lock = Open::begin(&pair.target, "lock", lock);
    pair.source.psql(&changes(round)).unwrap();
    let mut running = job.start(&["sync"]);
    let others = (lanes - 1).to_string();
    let is_apart = reached(&mut running, || pair.target.psql(AHEAD).unwrap() == others);
    assert!(is_apart, "{}", running.stderr());
    running.signal(Signal::KILL);
    running.end().expect(137);
    // Else the first lane's session commits when it is let go.
    let end = SESSIONS.replace("count(*)", "count(pg_terminate_backend(pid))");
    pair.target.psql(&end).unwrap();
    wait_until("the sessions are gone", || pair.target.psql(SESSIONS).unwrap() == "0");
    assert_eq!(pair.target.psql(AHEAD).unwrap(), others, "the lanes stand apart");
    lock.commit();
    pair.target.psql(LET_GO).unwrap();
}

#[test]
fn a_run_killed_between_two_lanes_goes_on_with_one_lane_or_several_and_ends_equal() {
    let pair = Pair::new("lanes");
    let state = TempDir::new().unwrap();
    let with = |lanes: u32| {
        let file = format!("[snapshot]\nreaders = 2\n[stream]\nlanes = {lanes}\n");
        pair.job().configured(&file).state_at(&state.path().join("state"))
    };
    with(3).run(&["sync", "--until", "now"]).expect(0);
    // Before, after, and whether the run that makes up for it is killed, too.
    for (round, (before, after, again)) in (1..).zip([(3, 1, false), (3, 2, true), (2, 4, false)]) {
        killed_apart(&pair, &with(before), before, round);
        pair.source.psql(ALONE).unwrap();
        pair.source.psql(&changes(round + 10)).unwrap();
        if again {
            let job = with(after);
            let mut running = job.start(&["sync"]);
            passes(&mut running, &pair.source, &pair.target);
            running.signal(Signal::KILL);
            running.end().expect(137);
        }
        with(after).run(&["sync", "--until", "now"]).expect(0);
        assert_eq!(pair.target.psql(AHEAD).unwrap(), "0");
        pair.assert_equal();
    }
}
