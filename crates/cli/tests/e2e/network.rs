//! Connections cut in the middle, replies that are lost, servers that stop.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tidemark_testkit::proxy::{Cut, Direction, Fault, Proxy};
use tidemark_testkit::{Cluster, Database, oracle, shared};

use crate::support::{
    Job, assert_same, assert_source_clean, fill, filled, loads, markers, reached, run_of, say, side,
};

const CUTS: u32 = 20;
const SEED: u64 = 0x7469_6465;
/// Many small chunks, so that no chunk meets cut after cut.
const SMALL: &str = "[snapshot]\nreaders = 2\nchunk_bytes = \"64KiB\"\n";

/// Cuts one direction of a run again and again once rows flow; the run must recover by itself.
fn cut_again_and_again(name: &str, direction: Direction, on_source: bool, span: u64) {
    let (source, target) = (filled(), shared().unwrap());
    let proxy = Proxy::start(if on_source { source.cluster() } else { target.cluster() }).unwrap();
    let (from, to) = match on_source {
        true => (proxy.url(&source.url()), target.url()),
        false => (source.url(), proxy.url(&target.url())),
    };
    let job = Job::new(name, &from, &to).configured(SMALL);
    let seed = SEED + span;
    say(&format!("seed {seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let mut cuts = 0;
    // A cut that meets the session that holds the job ends the run with 8; the same command goes on.
    for _ in 0..6 {
        let before = run_of(side(&target), name);
        let mut running = job.start_sync();
        let run_before = cuts;
        loads(&mut running, side(&target), name, &before, 1);
        while cuts < CUTS && !running.has_ended() {
            let at = random.random_range(0..span);
            let how = if random.random() { Cut::Rst } else { Cut::Fin };
            let before = proxy.fired();
            proxy.fault(direction, Fault::CutAfter(at, how));
            if reached(&mut running, || proxy.fired() > before) {
                cuts += 1;
            }
        }
        proxy.heal();
        let ran = running.end();
        say(&format!("exit {} after {} cuts: {}", ran.code, cuts - run_before, ran.error()));
        if ran.code == 0 {
            break;
        }
        ran.expect(8);
    }
    assert_same(side(&source), side(&target));
    assert_source_clean(side(&source));
    assert!(cuts >= CUTS / 4, "only {cuts} cuts");
}

#[test]
fn cuts_of_what_the_source_sends_are_recovered_from() {
    cut_again_and_again("cut-rows-out", Direction::ToClient, true, 900_000);
}

#[test]
fn cuts_of_what_the_source_is_told_are_recovered_from() {
    cut_again_and_again("cut-queries", Direction::ToServer, true, 2_000);
}

#[test]
fn cuts_of_what_the_target_is_sent_are_recovered_from() {
    cut_again_and_again("cut-rows-in", Direction::ToServer, false, 900_000);
}

#[test]
fn cuts_of_what_the_target_answers_are_recovered_from() {
    cut_again_and_again("cut-answers", Direction::ToClient, false, 3_000);
}

#[test]
fn a_lost_reply_to_commit_leaves_no_chunk_twice() {
    for cut in [Cut::Rst, Cut::Fin] {
        let (source, target) = (filled(), shared().unwrap());
        let proxy = Proxy::start(target.cluster()).unwrap();
        let job = Job::new("commit", &source.url(), &proxy.url(&target.url())).configured(SMALL);
        let mut running = job.start_sync();
        assert!(reached(&mut running, || markers(side(&target), "commit") >= 1));
        for _ in 0..5 {
            let before = proxy.fired();
            proxy.fault(Direction::ToClient, Fault::LoseReply("COMMIT", cut));
            reached(&mut running, || proxy.fired() > before);
        }
        assert!(proxy.fired() >= 1);
        running.end().expect(0);
        assert_same(side(&source), side(&target));
    }
}

#[test]
fn a_target_that_crashes_in_mid_load_is_loaded_by_the_same_command() {
    let source = filled();
    let target = Cluster::start_default().unwrap();
    target.create_database("copy").unwrap();
    let job = Job::new("crash", &source.url(), &target.url("copy")).configured(SMALL);
    let mut running = job.start_sync();
    assert!(reached(&mut running, || markers((&target, "copy"), "crash") >= 2));
    target.stop_immediate().unwrap();
    running.end().expect(8);
    target.start().unwrap();
    job.sync(&[]).expect(0);
    assert_same(side(&source), (&target, "copy"));
    assert_source_clean(side(&source));
}

#[test]
fn a_source_that_crashes_ends_the_run_with_8_and_is_copied_by_the_same_command() {
    let source = Cluster::start_default().unwrap();
    source.create_database("shop").unwrap();
    fill(&source, "shop");
    let target: Database = shared().unwrap();
    let job = Job::new("crash", &source.url("shop"), &target.url()).configured(SMALL);
    let mut running = job.start_sync();
    assert!(reached(&mut running, || markers(side(&target), "crash") >= 2));
    source.stop_immediate().unwrap();
    running.end().expect(8);
    source.start().unwrap();
    job.sync(&[]).expect(0);
    assert_same((&source, "shop"), side(&target));
    assert_source_clean((&source, "shop"));
}

/// Transactions of their own, more than are applied before the crash.
const BACKLOG: &str = "DO $$ BEGIN FOR i IN 1..6000 LOOP \
    UPDATE pet SET legs = legs + 1 WHERE id = 1 + i % 50; INSERT INTO keyless VALUES ('2025-01-01', repeat('x', 200)); COMMIT; \
    END LOOP; END $$";

/// Each transaction takes a moment on the target, so that there always is another batch waiting, however slow the source.
const SLOW_TARGET: &str = "CREATE FUNCTION takes_a_moment() RETURNS trigger LANGUAGE plpgsql AS $$ \
    BEGIN PERFORM pg_sleep(0.15); RETURN NEW; END $$; \
    CREATE TRIGGER takes_a_moment BEFORE UPDATE ON tidemark.progress FOR EACH ROW EXECUTE FUNCTION takes_a_moment(); \
    ALTER TABLE tidemark.progress ENABLE ALWAYS TRIGGER takes_a_moment";

#[test]
fn a_target_that_crashes_in_a_backlog_gets_what_was_not_on_its_disk_again() {
    let source = filled();
    source.psql("ALTER TABLE keyless REPLICA IDENTITY FULL").unwrap();
    // What was committed without waiting stays in memory.
    let target = Cluster::builder().setting("wal_writer_delay", "10s").start().unwrap();
    target.create_database("copy").unwrap();
    let small = "[stream]\ncatch_up = false\nbatch_bytes = \"64KiB\"\n";
    let job = Job::new("backlog", &source.url(), &target.url("copy")).configured(small);
    job.run(&["sync", "--until", "now"]).expect(0);
    target.psql("copy", SLOW_TARGET).unwrap();
    let stored = "SELECT end_lsn - '0/0' FROM tidemark.progress";
    let position = || target.psql("copy", stored).unwrap().parse::<u64>().unwrap();
    let mut has_lost = false;
    for _ in 0..6 {
        source.psql(BACKLOG).unwrap();
        let mut running = job.start(&["sync"]);
        // One commit in two seconds waits for the disk: of several in a row most do not.
        for _ in 0..3 {
            let before = position();
            assert!(reached(&mut running, || position() > before), "{}", running.stderr());
        }
        let seen = position();
        target.stop_immediate().unwrap();
        running.signal(Signal::KILL);
        running.end().expect(137);
        target.start().unwrap();
        has_lost |= position() < seen;
        if has_lost {
            break;
        }
    }
    assert!(has_lost, "every commit was on disk at once");
    target.psql("copy", "DROP FUNCTION takes_a_moment CASCADE").unwrap();
    job.run(&["sync", "--until", "now"]).expect(0);
    let found = oracle::data_diff(side(&source), (&target, "copy")).unwrap();
    let rows: Vec<_> = found.iter().filter(|found| found.kind == "rows").collect();
    assert!(rows.is_empty(), "{rows:?}");
    job.run(&["cleanup", "--yes"]).expect(0);
}
