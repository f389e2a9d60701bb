//! Two runs of one job: only one of them moves anything.

use rustix::process::Signal;
use tempfile::TempDir;
use tidemark_testkit::shared;

use crate::crash::kill_at_markers;
use crate::support::{Job, assert_same, filled, loads, markers, reached, run_of, side};

#[test]
fn a_second_run_with_the_same_state_directory_is_refused() {
    let (source, target) = (filled(), shared().unwrap());
    let job = Job::new("twice", &source.url(), &target.url());
    let mut running = job.start_sync();
    assert!(reached(&mut running, || markers(side(&target), "twice") >= 1), "{}", running.stderr());
    running.signal(Signal::STOP);
    job.sync(&[]).expect(9).says(&["way out"]);
    running.signal(Signal::CONT);
    running.end().expect(0);
    assert_same(side(&source), side(&target));
}

#[test]
fn a_second_run_from_another_machine_is_refused_while_the_first_lives() {
    let (source, target) = (filled(), shared().unwrap());
    let first = Job::new("remote", &source.url(), &target.url());
    let mut running = first.start_sync();
    assert!(
        reached(&mut running, || markers(side(&target), "remote") >= 1),
        "{}",
        running.stderr()
    );
    // The keys of the big table wait, so that the first run goes on for as long as it takes.
    let hold =
        crate::crash::Blocker::start(&target, "LOCK TABLE lineitem IN SHARE UPDATE EXCLUSIVE MODE");
    let elsewhere = TempDir::new().unwrap();
    let second =
        Job::new("remote", &source.url(), &target.url()).state_at(&elsewhere.path().join("state"));
    second.sync(&[]).expect(9).says(&["another instance", "--job"]);
    drop(hold);
    running.end().expect(0);
    assert_same(side(&source), side(&target));
}

#[test]
fn a_run_right_after_a_killed_one_is_not_refused() {
    let (source, target) = (filled(), shared().unwrap());
    let first = Job::new("dead", &source.url(), &target.url());
    kill_at_markers(first.start_sync(), side(&target), "dead", "", 1);
    let elsewhere = TempDir::new().unwrap();
    let second =
        Job::new("dead", &source.url(), &target.url()).state_at(&elsewhere.path().join("state"));
    second.sync(&[]).expect(0);
    assert_same(side(&source), side(&target));
}

#[test]
fn a_run_that_stood_still_is_taken_over_and_does_no_damage_when_it_goes_on() {
    let (source, target) = (filled(), shared().unwrap());
    let first = Job::new("frozen", &source.url(), &target.url());
    let mut running = first.start_sync();
    assert!(
        reached(&mut running, || markers(side(&target), "frozen") >= 1),
        "{}",
        running.stderr()
    );
    running.signal(Signal::STOP);
    let before = run_of(side(&target), "frozen");
    let elsewhere = TempDir::new().unwrap();
    let second =
        Job::new("frozen", &source.url(), &target.url()).state_at(&elsewhere.path().join("state"));
    let mut taking = second.start_sync();
    assert!(loads(&mut taking, side(&target), "frozen", &before, 1), "{}", taking.stderr());
    running.signal(Signal::CONT);
    let ran = running.end();
    assert!([8, 9].contains(&ran.code), "{ran:?}");
    taking.end().expect(0);
    assert_same(side(&source), side(&target));
}
