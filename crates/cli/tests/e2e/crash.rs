//! `kill -9` at any moment, and interrupts: the same command again ends with the same bytes as an undisturbed run.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tidemark_testkit::{Database, shared};

use crate::support::{
    Job, Running, assert_markers_true, assert_same, assert_source_clean, filled, loads, markers,
    phase, reached, run_of, say, side, wait_until,
};

const SEED: u64 = 0x7469_6465;

/// When a run is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// After this time.
    Time(Duration),
    /// As soon as so many chunks are in; a whole run has more than twenty.
    Markers(u64),
    /// As soon as the target says so.
    Phase(&'static str),
    /// As soon as an index is there.
    Index,
}

/// Kills a run at each of these moments, looks at what is there, and lets the same command finish.
fn kill_at(name: &str, moments: &[Moment]) {
    let source = filled();
    let mut killed = 0;
    for moment in moments {
        let target = shared().unwrap();
        let job = Job::new(name, &source.url(), &target.url());
        let mut running = job.start_sync();
        let began = Instant::now();
        let index = "SELECT count(*) > 0 FROM pg_index WHERE indrelid >= 16384 AND indrelid::regclass::text !~ 'tidemark'";
        let is_there = reached(&mut running, || match *moment {
            Moment::Time(time) => began.elapsed() >= time,
            Moment::Markers(count) => markers(side(&target), name) >= count,
            Moment::Phase(phase_name) => phase(side(&target), name) == phase_name,
            Moment::Index => target.psql(index).unwrap() == "t",
        });
        if is_there && !running.has_ended() {
            running.signal(Signal::KILL);
            killed += 1;
        }
        let ended = running.end();
        say(&format!("{moment:?}: exit {}, {} markers", ended.code, markers(side(&target), name)));
        assert_source_clean(side(&source));
        assert_markers_true(side(&source), side(&target), name);
        // Killed after its closing commit, it has nothing left to do; the same command would refuse to copy again.
        if ended.code != 0 && phase(side(&target), name) != "complete" {
            job.sync(&[]).expect(0);
        }
        assert_same(side(&source), side(&target));
    }
    let wanted = moments.len() * 2 / 3;
    assert!(killed >= wanted, "only {killed} runs were killed: the moments come too late");
}

#[test]
fn a_run_killed_while_it_prepares_is_finished_by_the_same_command() {
    let mut random = StdRng::seed_from_u64(SEED);
    println!("seed {SEED}");
    let mut moments: Vec<Moment> =
        (0..5).map(|_| Moment::Time(Duration::from_millis(random.random_range(5..900)))).collect();
    moments.extend([Moment::Phase("prepare"), Moment::Phase("snapshot")]);
    kill_at("killed-early", &moments);
}

#[test]
fn a_run_killed_while_rows_flow_or_at_its_end_is_finished_by_the_same_command() {
    let mut random = StdRng::seed_from_u64(SEED + 1);
    println!("seed {}", SEED + 1);
    let mut moments: Vec<Moment> =
        (0..4).map(|_| Moment::Markers(random.random_range(2..20))).collect();
    moments.extend([Moment::Markers(1), Moment::Index, Moment::Phase("finish")]);
    kill_at("killed-late", &moments);
}

#[test]
fn a_run_killed_again_and_again_is_finished_in_the_end() {
    let (source, target) = (filled(), shared().unwrap());
    let job = Job::new("again", &source.url(), &target.url());
    for count in [1, 5, 2] {
        let before = run_of(side(&target), "again");
        let mut running = job.start_sync();
        assert!(
            loads(&mut running, side(&target), "again", &before, count),
            "{}",
            running.stderr()
        );
        running.signal(Signal::KILL);
        running.end();
        assert_markers_true(side(&source), side(&target), "again");
    }
    job.sync(&[]).expect(0);
    assert_same(side(&source), side(&target));
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_goes_on() {
    let source = filled();
    for signal in [Signal::INT, Signal::TERM] {
        let target = shared().unwrap();
        let job = Job::new("stopped", &source.url(), &target.url());
        let mut running = job.start_sync();
        assert!(
            reached(&mut running, || markers(side(&target), "stopped") >= 2),
            "{}",
            running.stderr()
        );
        running.signal(signal);
        let stopped = Instant::now();
        running.end().expect(130).says(&["interrupted", "run the same command again"]);
        assert!(
            stopped.elapsed() < Duration::from_secs(8),
            "{signal:?} took {:?}",
            stopped.elapsed()
        );
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
pub(crate) struct Blocker<'a> {
    database: &'a Database,
    child: std::process::Child,
}

impl<'a> Blocker<'a> {
    pub(crate) fn start(database: &'a Database, sql: &str) -> Self {
        let mut command = database.cluster().psql_command(database.name());
        command.arg("-c").arg(format!("BEGIN; {sql}; SELECT pg_sleep(600)"));
        command.env("PGAPPNAME", "blocker");
        let child = command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'blocker' AND datname = current_database() AND wait_event = 'PgSleep'";
        wait_until("the blocker has its lock", || database.psql(sleeps).unwrap() == "1");
        Self { database, child }
    }

    pub(crate) fn end(&mut self) {
        // Its backend would sleep on without its client.
        let backend = "FROM pg_stat_activity WHERE application_name = 'blocker' AND datname = current_database()";
        self.database.psql(&format!("SELECT pg_terminate_backend(pid) {backend}")).unwrap();
        self.child.wait().ok();
        let is_left = format!("SELECT count(*) {backend}");
        wait_until("the blocker has let go", || self.database.psql(&is_left).unwrap() == "0");
    }
}

impl Drop for Blocker<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Kills a run once so many chunks are in; whether it was not done by then, as it may be on a slow machine.
pub(crate) fn kill_at_markers(
    mut running: Running,
    target: crate::support::Side<'_>,
    job: &str,
    before: &str,
    count: u64,
) -> bool {
    assert!(loads(&mut running, target, job, before, count), "{}", running.stderr());
    running.signal(Signal::KILL);
    running.end().code != 0
}
