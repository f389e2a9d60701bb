//! The last moment of a run: what the target says is what the exit code says.
//!
//! **Invariant:** the closing commit is held up by a trigger on the target's record, so that the moment is exact.

use rustix::process::Signal;
use tidemark_testkit::proxy::{Cut, Direction, Fault, Proxy};
use tidemark_testkit::{Database, shared};

use crate::crash::Blocker;
use crate::support::{Job, Running, assert_same, filled, phase, reached, side, wait_until};

const HELD_UP: &str = "
CREATE FUNCTION tidemark.hold_up() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NEW; END';
CREATE TRIGGER hold_up BEFORE UPDATE ON tidemark.progress FOR EACH ROW
  WHEN (NEW.phase = 'complete' AND OLD.phase <> 'complete') EXECUTE FUNCTION tidemark.hold_up()";

/// A second run that waits inside its closing commit, and what it waits for.
fn at_its_end<'a>(
    name: &str,
    source: &Database,
    target: &'a Database,
    proxy: &Proxy,
) -> (Job, Running, Blocker<'a>) {
    let job = Job::new(name, &source.url(), &proxy.url(&target.url()));
    job.sync(&[]).expect(0);
    target.psql(HELD_UP).unwrap();
    let blocker = Blocker::start(target, "SELECT pg_advisory_lock(4711)");
    let truncate = ["sync", "--snapshot-only", "-v", "--target-not-empty", "truncate", "--yes"];
    let mut running = job.start(&truncate);
    let waits = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
        WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted AND l.objid = 4711";
    assert!(reached(&mut running, || target.psql(waits).unwrap() == "1"), "{}", running.stderr());
    (job, running, blocker)
}

#[test]
fn a_lost_answer_to_the_closing_commit_is_no_failure() {
    let (source, target) = (filled(), shared().unwrap());
    let proxy = Proxy::start(target.cluster()).unwrap();
    let (_job, running, mut blocker) = at_its_end("lost", &source, &target, &proxy);
    proxy.fault(Direction::ToClient, Fault::LoseReply("UPDATE 1", Cut::Rst));
    blocker.end();
    running.end().expect(0);
    assert_eq!(proxy.fired(), 1);
    assert_eq!(phase(side(&target), "lost"), "complete");
    assert_same(side(&source), side(&target));
}

#[test]
fn an_interrupt_after_the_closing_commit_is_a_success() {
    let (source, target) = (filled(), shared().unwrap());
    let proxy = Proxy::start(target.cluster()).unwrap();
    let (_job, running, mut blocker) = at_its_end("late", &source, &target, &proxy);
    // The commit goes through, and its answer stays under way.
    proxy.fault(Direction::ToClient, Fault::BlackHole);
    blocker.end();
    wait_until("it is complete", || phase(side(&target), "late") == "complete");
    running.signal(Signal::INT);
    wait_until("the signal is heard", || running.stderr().contains("stopping"));
    proxy.heal();
    running.end().expect(0);
    assert_same(side(&source), side(&target));
}

#[test]
fn an_interrupt_before_the_closing_commit_leaves_it_undone() {
    let (source, target) = (filled(), shared().unwrap());
    let proxy = Proxy::start(target.cluster()).unwrap();
    let (job, running, mut blocker) = at_its_end("early", &source, &target, &proxy);
    running.signal(Signal::INT);
    running.end().expect(130).says(&["interrupted", "run the same command again"]);
    blocker.end();
    assert_eq!(phase(side(&target), "early"), "finish");
    job.sync(&[]).expect(0);
    assert_same(side(&source), side(&target));
}
