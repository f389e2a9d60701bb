//! A large transaction that is applied while the rest of it still comes, although its end is not known: alone in a backlog,
//! overtaken by another, partly rolled back, killed.
//!
//! **Invariant:** equality is the oracle's; that a transaction was begun ahead, or taken back, is what the run itself says
//! of its xid.

use rustix::process::Signal;

use crate::follow::{Pair, follows, passes};
use crate::joining::Open;
use crate::support::{Job, reached};

/// A transaction of four batches is large, and the source sends it in small blocks while it decodes.
const SMALL: &str = "[stream]\ncatch_up = false\nbatch_bytes = \"64KiB\"\n";
const BEGUN: &str = "a large transaction is applied while it comes";
/// Some MiB: more than comes in one reading of the socket.
const MANY: &str = "UPDATE pet SET legs = legs + 1; INSERT INTO keyless SELECT '2026-01-01', repeat('x', 90) || i FROM generate_series(1, 40000) i";
const MORE: &str = "INSERT INTO keyless SELECT '2026-01-02', repeat('y', 90) || i FROM generate_series(1, 40000) i";
const OTHER: &str = "INSERT INTO pet (mood, legs) VALUES ('sad', 3)";

/// A copied pair, whose source streams what it decodes beyond 64 kB.
fn copied(name: &'static str) -> (Pair, Job) {
    let pair = Pair::new(name);
    let set = "ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'";
    pair.source.psql(&set.replace("{}", pair.source.name())).unwrap();
    let job = pair.job().configured(SMALL);
    job.run(&["sync", "--until", "now"]).expect(0);
    (pair, job)
}

/// What a run says that follows already, and looks away while the source commits: the beginning of it waits in the socket.
#[track_caller]
fn looks_away(pair: &Pair, job: &Job, meanwhile: impl FnOnce()) -> String {
    let mut running = job.start(&["-v", "sync"]);
    follows(&mut running, &pair.target, pair.name());
    passes(&mut running, &pair.source, &pair.target);
    running.signal(Signal::STOP);
    meanwhile();
    running.signal(Signal::CONT);
    passes(&mut running, &pair.source, &pair.target);
    running.signal(Signal::INT);
    running.end().expect(0).stderr
}

#[test]
fn a_large_one_alone_in_a_backlog_is_begun_before_its_end_has_come() {
    let (pair, job) = copied("alone");
    let said = looks_away(&pair, &job, || {
        let sql = format!("BEGIN; {MANY}; DELETE FROM pet WHERE id % 3 = 0; COMMIT");
        pair.source.psql(&sql).unwrap();
        pair.source.psql(OTHER).unwrap();
    });
    assert!(said.contains(BEGUN) && said.contains("is_decided=false"), "{said}");
    assert!(!said.contains("trying again"), "{said}");
    pair.assert_equal();
}

#[test]
fn one_that_another_overtakes_is_taken_back_and_arrives_behind_it() {
    let (pair, job) = copied("overtaken");
    let said = looks_away(&pair, &job, || {
        let mut large = Open::begin(&pair.source, "large", MANY);
        pair.source.psql(OTHER).unwrap();
        large.more(MORE);
        large.commit();
    });
    assert!(said.contains(BEGUN), "{said}");
    assert!(said.contains("another transaction committed before it"), "{said}");
    pair.assert_equal();
}

#[test]
fn one_of_which_a_part_is_rolled_back_arrives_without_it() {
    let (pair, job) = copied("savepoint");
    let said = looks_away(&pair, &job, || {
        let sql = format!(
            "BEGIN; {MANY}; SAVEPOINT a; {MORE}; ROLLBACK TO a; DELETE FROM pet WHERE id % 3 = 0; COMMIT"
        );
        pair.source.psql(&sql).unwrap();
    });
    assert!(said.contains(BEGUN), "{said}");
    assert!(said.contains("a part of it was rolled back"), "{said}");
    pair.assert_equal();
}

#[test]
fn one_that_is_still_open_is_not_begun_and_one_that_is_rolled_back_leaves_nothing() {
    let (pair, job) = copied("open");
    let mut running = job.start(&["-v", "sync"]);
    let open = Open::begin(&pair.source, "open", MANY);
    pair.source.psql(OTHER).unwrap();
    let count = || pair.target.psql("SELECT count(*) FROM pet WHERE legs = 3 AND tags IS NULL");
    assert!(reached(&mut running, || count().unwrap() == "1"), "{}", running.stderr());
    assert!(!running.stderr().contains(BEGUN), "{}", running.stderr());
    drop(open);
    pair.source.psql(OTHER).unwrap();
    assert!(reached(&mut running, || count().unwrap() == "2"), "{}", running.stderr());
    running.signal(Signal::INT);
    running.end().expect(0);
    pair.assert_equal();
}

#[test]
fn a_run_that_dies_in_the_middle_of_one_leaves_nothing_of_it_and_the_next_applies_it() {
    let (pair, job) = copied("middle");
    let before = pair.target.psql("SELECT count(*), sum(legs) FROM pet").unwrap();
    pair.source.psql(&format!("BEGIN; {MANY}; UPDATE orders SET o_comment = 'z'; COMMIT")).unwrap();
    let locked = "SELECT pg_current_xact_id(); LOCK TABLE orders IN EXCLUSIVE MODE";
    let lock = Open::begin(&pair.target, "lock", locked);
    let mut running = job.start(&["-v", "sync"]);
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'orders'::regclass";
    let is_waiting = reached(&mut running, || pair.target.psql(waits).unwrap() != "0");
    assert!(is_waiting, "{}", running.stderr());
    running.signal(Signal::KILL);
    running.end().expect(137);
    drop(lock);
    assert_eq!(pair.target.psql("SELECT count(*), sum(legs) FROM pet").unwrap(), before);
    job.run(&["sync", "--until", "now"]).expect(0);
    pair.assert_equal();
}
