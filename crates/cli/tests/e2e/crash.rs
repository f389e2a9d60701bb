//! `kill -9` at any moment, and interrupts: the same command again ends with the same bytes as an undisturbed run.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tidemark_testkit::shared;

use crate::support::{
    Job, Running, assert_markers_true, assert_same, assert_source_clean, filled, markers, phase, reached, side, wait_until,
};

/// When a run is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// After this share of an undisturbed run's time.
    Share(f64),
    /// As soon as so many chunks are in.
    Markers(u64),
    /// As soon as the target says so.
    Phase(&'static str),
}

const MOMENTS: [Moment; 13] = [
    Moment::Share(0.05),
    Moment::Share(0.15),
    Moment::Share(0.25),
    Moment::Phase("prepare"),
    Moment::Phase("snapshot"),
    Moment::Markers(1),
    Moment::Markers(3),
    Moment::Share(0.55),
    Moment::Markers(9),
    Moment::Share(0.7),
    Moment::Share(0.85),
    Moment::Phase("finish"),
    Moment::Share(0.95),
];

#[test]
fn a_run_killed_at_any_moment_is_finished_by_the_same_command() {
    let source = filled();
    let target = shared().unwrap();
    let job = Job::new("killed", &source.url(), &target.url());
    let began = Instant::now();
    job.sync(&[]).expect(0);
    let whole = began.elapsed();
    drop(target);
    let mut killed = 0;
    for moment in MOMENTS {
        let target = shared().unwrap();
        let job = Job::new("killed", &source.url(), &target.url());
        let mut running = job.start_sync();
        let began = Instant::now();
        let is_there = reached(&mut running, || match moment {
            Moment::Share(share) => began.elapsed() >= whole.mul_f64(share),
            Moment::Markers(count) => markers(side(&target), "killed") >= count,
            Moment::Phase(name) => phase(side(&target), "killed") == name,
        });
        if is_there && !running.has_ended() {
            running.signal(Signal::KILL);
            killed += 1;
        }
        let ended = running.end();
        println!("{moment:?}: exit {}, {} markers", ended.code, markers(side(&target), "killed"));
        assert_source_clean(side(&source));
        assert_markers_true(side(&source), side(&target), "killed");
        if ended.code != 0 {
            job.sync(&[]).expect(0);
        }
        assert_same(side(&source), side(&target));
    }
    assert!(killed >= 8, "only {killed} runs were killed: the moments come too late");
}

#[test]
fn a_run_killed_again_and_again_is_finished_in_the_end() {
    let (source, target) = (filled(), shared().unwrap());
    let job = Job::new("again", &source.url(), &target.url());
    for count in [1, 5, 2] {
        let before = run_of(side(&target));
        let mut running = job.start_sync();
        reached(&mut running, || run_of(side(&target)) != before && markers(side(&target), "again") >= count);
        running.signal(Signal::KILL);
        running.end();
        assert_markers_true(side(&source), side(&target), "again");
    }
    job.sync(&[]).expect(0);
    assert_same(side(&source), side(&target));
}

fn run_of((cluster, database): crate::support::Side<'_>) -> String {
    cluster.psql(database, "SELECT run FROM tidemark.progress").unwrap_or_default()
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_goes_on() {
    let source = filled();
    for signal in [Signal::INT, Signal::TERM] {
        let target = shared().unwrap();
        let job = Job::new("stopped", &source.url(), &target.url());
        let mut running = job.start_sync();
        assert!(reached(&mut running, || markers(side(&target), "stopped") >= 2), "{}", running.stderr());
        running.signal(signal);
        let stopped = Instant::now();
        running.end().expect(130).says(&["interrupted", "run the same command again"]);
        assert!(stopped.elapsed() < Duration::from_secs(8), "{signal:?} took {:?}", stopped.elapsed());
        assert_source_clean(side(&source));
        assert_markers_true(side(&source), side(&target), "stopped");
        job.sync(&[]).expect(0);
        assert_same(side(&source), side(&target));
    }
}

#[test]
fn an_interrupt_while_a_lock_is_waited_for_is_heard() {
    let (source, target) = (filled(), shared().unwrap());
    let mut blocker = Blocker::start(&source, "LOCK TABLE region");
    let job = Job::new("waiting", &source.url(), &target.url());
    let mut running = job.start_sync();
    let waits = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE d.datname = current_database() AND NOT granted";
    assert!(reached(&mut running, || source.psql(waits).unwrap() != "0"), "{}", running.stderr());
    running.signal(Signal::INT);
    running.end().expect(130);
    blocker.end();
    assert_source_clean(side(&source));
}

/// A session that holds a lock.
pub(crate) struct Blocker {
    child: std::process::Child,
}

impl Blocker {
    pub(crate) fn start(database: &tidemark_testkit::Database, sql: &str) -> Self {
        let mut command = database.cluster().psql_command(database.name());
        command.arg("-c").arg(format!("BEGIN; {sql}; SELECT pg_sleep(600)"));
        command.env("PGAPPNAME", "blocker");
        let child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'blocker' AND datname = current_database() AND wait_event = 'PgSleep'";
        wait_until("the blocker has its lock", || database.psql(sleeps).unwrap() == "1");
        Self { child }
    }

    pub(crate) fn end(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        self.end();
    }
}

/// Kills a run once so many chunks are in.
pub(crate) fn kill_at_markers(mut running: Running, target: crate::support::Side<'_>, job: &str, count: u64) {
    assert!(reached(&mut running, || markers(target, job) >= count), "{}", running.stderr());
    running.signal(Signal::KILL);
    running.end();
}
