//! What is not read again, of jobs that follow.
//!
//! **Invariant:** what must be read follows from what was done to the source and to the target by psql; how much was read is
//! what the servers have sent.

use tempfile::TempDir;
use tidemark_model::Lsn;
use tidemark_report::{Level, Verdict};
use tidemark_verify::{Outcome, Point, Reads, TableOutcome, Which, verify_at_barrier};
use tokio_util::sync::CancellationToken;

use crate::moving::{Follower, Moving};
use crate::support::table;

/// A table of a hundred leaves.
const LEAFY: &str = "CREATE TABLE leafy (id int PRIMARY KEY, other int NOT NULL UNIQUE, body text); \
    INSERT INTO leafy SELECT i, -i, repeat(md5(i::text), 8) FROM generate_series(1, 20000) i; ANALYZE; ";

/// Verdicts, and why, without the leaves.
fn verdicts(outcome: &Outcome) -> Vec<String> {
    let said = |table: &TableOutcome| {
        let TableOutcome { name, verdict, because, readings, .. } = table;
        let (source, target) = (table.source.count, table.target.count);
        format!("{name} {verdict:?} {because:?} {readings} {source} {target} {:?}", table.different)
    };
    outcome.tables.iter().map(said).collect()
}

/// A table of some leaves, and a job that follows it.
struct Leafy {
    // It ends before its databases go.
    follower: Option<Follower>,
    moving: Moving,
}

impl Leafy {
    async fn new(name: &str, more: &str) -> Self {
        let moving = Moving::new(name);
        moving.pair.source.psql(&format!("{LEAFY}{more}")).unwrap();
        let mut leafy = Self { moving, follower: None };
        leafy.start().await;
        leafy
    }

    async fn start(&mut self) {
        self.follower = Some(Follower::start(&self.moving.pair.request.job));
        self.moving.follows().await;
    }

    fn stop(&mut self) {
        self.follower.take().unwrap().stop();
    }

    fn source(&self, sql: &str) {
        self.moving.pair.source.psql(sql).unwrap();
    }

    fn target(&self, sql: &str) {
        self.moving.pair.target.psql(sql).unwrap();
    }

    /// The outcome and the bytes that were read on each side.
    async fn verify(&mut self, reads: Reads) -> (Outcome, [u64; 2]) {
        let request = &mut self.moving.pair.request;
        request.reads = reads;
        request.progress = std::sync::Arc::default();
        let outcome = verify_at_barrier(request, &CancellationToken::new()).await.unwrap();
        let read = [Which::Source, Which::Target].map(|which| request.progress.read(which));
        (outcome, read)
    }

    /// Brings both sides to one point, of which nothing is kept.
    async fn meets(&mut self) {
        self.moving.pair.request.level = Level::Count;
        let (outcome, _) = self.verify(Reads::All).await;
        self.moving.pair.request.level = Level::Digest;
        assert!(outcome.point.is_some());
    }

    /// Waits until the target has what the source has just written, new columns included.
    async fn arrives(&self) {
        let pair = &self.moving.pair;
        pair.source.psql("INSERT INTO pet (name) VALUES ('last')").unwrap();
        let last = "SELECT max(id) FROM pet WHERE name = 'last'";
        while pair.target.psql(last).unwrap() != pair.source.psql(last).unwrap() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn dirty(&mut self) -> (TableOutcome, [u64; 2]) {
        let (outcome, read) = self.verify(Reads::Dirty).await;
        (table(&outcome, "leafy"), read)
    }

    /// A verification of everything, after which all is known.
    async fn prove(&mut self) -> (Lsn, u64) {
        let (outcome, [read, _]) = self.verify(Reads::All).await;
        assert_eq!(outcome.verdict(), Verdict::Identical, "{:?}", verdicts(&outcome));
        assert_eq!(table(&outcome, "leafy").oldest_leaf, None);
        let Some(Point::Barrier { lsn, .. }) = outcome.point else { panic!("{:?}", outcome.point) };
        (lsn, read)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_copy_only_the_target_is_read_and_a_difference_there_is_found() {
    let mut leafy = Leafy::new("fresh", "").await;
    let (outcome, [of_source, of_target]) = leafy.verify(Reads::Dirty).await;
    assert_eq!(outcome.verdict(), Verdict::Identical, "{:?}", verdicts(&outcome));
    let found = table(&outcome, "leafy");
    assert!(
        found.leaves.len() > 50 && found.source.count == 20_000,
        "{:?} {:?}",
        found.because,
        found.different
    );
    assert!(found.oldest_leaf.is_some());
    // Numbers have a value form, which the copy has not summed.
    assert!(of_source * 20 < of_target, "{of_source} of {of_target} bytes");
    leafy.stop();

    let mut leafy = Leafy::new("freshbad", "").await;
    leafy.target("UPDATE leafy SET body = 'other' WHERE id = 777");
    let (found, [of_source, of_target]) = leafy.dirty().await;
    assert_eq!(found.verdict, Verdict::Different, "{:?} {:?}", found.because, found.different);
    assert_eq!(found.different.len(), 1);
    assert_eq!(found.named.unwrap().rows.changed, 1);
    assert!(of_source * 5 < of_target, "{of_source} of {of_target} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_stream_has_touched_is_read_again() {
    let mut leafy = Leafy::new("touched", "").await;
    let (proven, whole) = leafy.prove().await;
    let (found, read) = leafy.dirty().await;
    assert_eq!(
        (found.verdict, read),
        (Verdict::Identical, [0, 0]),
        "{:?} {:?}",
        found.because,
        found.different
    );
    assert_eq!((found.oldest_leaf, found.source.count), (Some(proven), 20_000));
    for sql in [
        "UPDATE leafy SET body = 'new' WHERE id = 5000",
        "INSERT INTO leafy VALUES (30000, -30000, 'new')",
        "DELETE FROM leafy WHERE id = 6000",
        "UPDATE leafy SET id = 40000 WHERE id = 100",
    ] {
        leafy.source(sql);
        let (found, [one, other]) = leafy.dirty().await;
        assert_eq!(found.verdict, Verdict::Identical, "{sql}: {:?}", found.different);
        assert!(one > 0 && one * 10 < whole && other * 10 < whole, "{sql}: {one} {other} {whole}");
    }
    // The row was in the first leaf and is in the last one.
    leafy.source("UPDATE leafy SET id = 50000 WHERE id = 101");
    leafy.meets().await;
    leafy.target("INSERT INTO leafy VALUES (101, 101, 'it was left')");
    let (found, _) = leafy.dirty().await;
    assert_eq!(found.verdict, Verdict::Different, "{:?} {:?}", found.because, found.different);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_is_found_in_what_was_touched_and_what_others_wrote_elsewhere_by_reading_all()
{
    let mut leafy = Leafy::new("other", "").await;
    leafy.prove().await;
    leafy.target("UPDATE leafy SET body = 'other' WHERE id IN (5001, 15000)");
    leafy.source("UPDATE leafy SET body = 'new' WHERE id = 5000");
    let (found, _) = leafy.dirty().await;
    assert_eq!(found.verdict, Verdict::Different, "{:?} {:?}", found.because, found.different);
    assert_eq!((found.different.len(), found.named.unwrap().rows.changed), (1, 1));
    let (outcome, _) = leafy.verify(Reads::All).await;
    assert_eq!(table(&outcome, "leafy").different.len(), 2);
    // A leaf that was found different stays unknown until it is the same.
    let (found, _) = leafy.dirty().await;
    assert_eq!(
        (found.verdict, found.different.len()),
        (Verdict::Different, 2),
        "{:?} {:?}",
        found.because,
        found.different
    );
    let last = found.last_proven.unwrap().0;
    leafy.source("UPDATE leafy SET body = 'healed' WHERE id IN (5001, 15000)");
    let (found, _) = leafy.dirty().await;
    assert_eq!(found.verdict, Verdict::Identical, "{:?} {:?}", found.because, found.different);
    assert!(found.last_proven.unwrap().0 > last);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_touched_while_nobody_verifies_or_after_a_restart_is_read_again() {
    let mut leafy = Leafy::new("restart", "").await;
    leafy.prove().await;
    leafy.stop();
    leafy.source("UPDATE leafy SET body = 'while it was stopped' WHERE id = 5000");
    // Run by the verification itself.
    let (found, [one, _]) = leafy.dirty().await;
    assert!(
        found.verdict == Verdict::Identical && one > 0,
        "{one} {:?} {:?}",
        found.verdict,
        found.different
    );
    leafy.start().await;
    leafy.source("UPDATE leafy SET body = 'after' WHERE id = 5000");
    leafy.meets().await;
    leafy.stop();
    leafy.start().await;
    leafy.target("UPDATE leafy SET body = 'planted' WHERE id = 5000");
    let (found, _) = leafy.dirty().await;
    assert_eq!(found.verdict, Verdict::Different, "{:?} {:?}", found.because, found.different);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_no_trace_in_rows_makes_everything_unknown() {
    let more = "CREATE TYPE mood AS ENUM ('calm', 'wild'); ALTER TABLE leafy ADD mood mood DEFAULT 'calm'; ANALYZE";
    let mut leafy = Leafy::new("traceless", more).await;
    leafy.prove().await;
    // The label of each row is another one; the target does not know it.
    leafy.source("ALTER TYPE mood RENAME VALUE 'calm' TO 'quiet'");
    let (found, _) = leafy.dirty().await;
    assert_eq!(found.verdict, Verdict::Different, "{:?} {:?}", found.because, found.different);
    leafy.target("ALTER TYPE mood RENAME VALUE 'calm' TO 'quiet'");
    leafy.prove().await;
    for sql in [
        "TRUNCATE leafy; INSERT INTO leafy SELECT i, -i, 'b' FROM generate_series(1, 20000) i",
        "ALTER TABLE leafy ADD more int; UPDATE leafy SET more = 1 WHERE id = 1",
        "ALTER TABLE leafy ALTER body TYPE text USING body || body; UPDATE leafy SET body = 'bb'",
    ] {
        leafy.source(sql);
        leafy.arrives().await;
        let (found, _) = leafy.dirty().await;
        assert_eq!((found.verdict, found.oldest_leaf), (Verdict::Identical, None), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_replica_identity_does_not_have_leaves_nothing_known_of_its_table() {
    let more = "ALTER TABLE leafy REPLICA IDENTITY USING INDEX leafy_other_key";
    let mut leafy = Leafy::new("identity", more).await;
    leafy.prove().await;
    // The stream does not tell where the row was before.
    leafy.source("UPDATE leafy SET id = 40000 WHERE id = 100");
    leafy.meets().await;
    leafy.target("INSERT INTO leafy VALUES (100, 100, 'it was left')");
    let (found, _) = leafy.dirty().await;
    assert_eq!(found.verdict, Verdict::Different, "{:?} {:?}", found.because, found.different);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ran_with_another_state_directory_leaves_nothing_known() {
    let mut leafy = Leafy::new("elsewhere", "").await;
    let (_, whole) = leafy.prove().await;
    leafy.stop();
    let (ours, theirs) = (leafy.moving.pair.request.job.state_dir.clone(), TempDir::new().unwrap());
    leafy.moving.pair.request.job.state_dir = theirs.path().join("state");
    leafy.start().await;
    leafy.source("UPDATE leafy SET body = 'elsewhere' WHERE id = 5000");
    leafy.target("UPDATE leafy SET body = 'planted' WHERE id = 9000");
    let (found, [one, _]) = leafy.dirty().await;
    assert!(
        found.verdict == Verdict::Different && one * 10 > whole * 9,
        "{one} {:?} {:?}",
        found.verdict,
        found.different
    );
    leafy.stop();
    leafy.target("UPDATE leafy SET body = (SELECT repeat(md5('9000'), 8)) WHERE id = 9000");
    leafy.moving.pair.request.job.state_dir = ours;
    leafy.start().await;
    let (found, [one, _]) = leafy.dirty().await;
    assert!(
        found.verdict == Verdict::Identical && one * 10 > whole * 9,
        "{one} {:?} {:?}",
        found.verdict,
        found.different
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_that_are_not_to_grow_old_are_taken_again_and_all_is_the_same_at_the_last() {
    let moving = Moving::new("rounds");
    moving.pair.source.psql(LEAFY).unwrap();
    let writer = moving.writer();
    let mut leafy = Leafy { moving, follower: None };
    leafy.start().await;
    // On a busy machine a fixed age would be too young for anything to be read.
    let (at_once, _) = leafy.verify(Reads::All).await;
    let age = (at_once.duration / 3).max(std::time::Duration::from_millis(200));
    leafy.moving.pair.request.max_snapshot_age = Some(age);
    let (outcome, _) = leafy.verify(Reads::All).await;
    assert_eq!(outcome.verdict(), Verdict::Identical, "{:?}", verdicts(&outcome));
    let Some(Point::Barrier { lsn, ref earlier, .. }) = outcome.point else { panic!() };
    assert!(!earlier.is_empty() && earlier.iter().all(|barrier| barrier.lsn < lsn), "{earlier:?}");
    let found = table(&outcome, "leafy");
    assert_eq!(found.source.count, 20_000);
    leafy.target("UPDATE leafy SET body = 'planted' WHERE id IN (700, 19000)");
    let (outcome, _) = leafy.verify(Reads::All).await;
    let found = table(&outcome, "leafy");
    assert_eq!(
        (found.verdict, found.different.len()),
        (Verdict::Different, 2),
        "{:?} {:?}",
        found.because,
        found.different
    );
    assert_eq!(found.named.unwrap().rows.changed, 2);
    writer.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_without_statistics_are_cut_by_the_first_verification_that_has_some() {
    let moving = Moving::new("uncut");
    let sql = "CREATE TABLE leafy (id int PRIMARY KEY, body text); ALTER TABLE leafy SET (autovacuum_enabled = off); \
        INSERT INTO leafy SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 20000) i";
    moving.pair.source.psql(sql).unwrap();
    let mut leafy = Leafy { moving, follower: None };
    leafy.start().await;
    let (outcome, _) = leafy.verify(Reads::Dirty).await;
    assert_eq!(table(&outcome, "leafy").leaves.len(), 1);
    leafy.source("ANALYZE leafy");
    let (outcome, _) = leafy.verify(Reads::All).await;
    let found = table(&outcome, "leafy");
    assert!(
        found.verdict == Verdict::Identical && found.leaves.len() > 50,
        "{:?} {:?}",
        found.because,
        found.different
    );
    leafy.source("UPDATE leafy SET body = 'new' WHERE id = 5000");
    let (found, [one, other]) = leafy.dirty().await;
    assert_eq!(found.verdict, Verdict::Identical);
    assert!(one > 0 && one < 200_000 && other < 200_000, "{one} {other}");
}

/// Another verification may have cut the table anew while this one ran.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_proven_of_other_leaves_does_not_count() {
    let mut leafy = Leafy::new("othercut", "").await;
    leafy.prove().await;
    let path = leafy.moving.pair.request.job.state_dir.join("ledger.sqlite");
    let ledger = rusqlite::Connection::open(path).unwrap();
    // The same number of them.
    let moved = "UPDATE relation SET leaf_bounds = replace(leaf_bounds, '[\"1\",', '[\"0\",') WHERE name = 'leafy'";
    assert_eq!(ledger.execute(moved, ()).unwrap(), 1);
    let (found, [one, other]) = leafy.dirty().await;
    assert_eq!(found.verdict, Verdict::Identical);
    // What was copied of the source is of no cut that a verification has made.
    assert!(other > 1_000_000, "{one} {other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_follow_a_table_that_grows_when_everything_is_read() {
    let mut leafy = Leafy::new("grown", "").await;
    leafy.prove().await;
    leafy.source(
        "INSERT INTO leafy SELECT i, -i, repeat(md5(i::text), 8) FROM generate_series(50001, 90000) i; ANALYZE leafy",
    );
    let touch = "UPDATE leafy SET body = 'new' WHERE id = 70000";
    leafy.prove().await;
    leafy.source(touch);
    let (found, [one, other]) = leafy.dirty().await;
    assert_eq!(found.verdict, Verdict::Identical);
    assert!(one > 0 && one < 500_000 && other < 500_000, "{one} {other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_scattered_leaves_are_read_by_few_statements() {
    let mut leafy = Leafy::new("scattered", "").await;
    let more = "INSERT INTO leafy SELECT i, -i, repeat(md5(i::text), 8) FROM generate_series(20001, 200000) i; ANALYZE leafy";
    leafy.source(more);
    let (_, all) = leafy.prove().await;
    leafy.source("UPDATE leafy SET body = 'new' WHERE id % 1500 = 7");
    leafy.target("UPDATE leafy SET body = 'other' WHERE id = 150008");
    let (found, [one, other]) = leafy.dirty().await;
    // 130 leaves of some 800, which is more than one statement reads.
    assert!(one > all / 20 && one < all * 2 / 3 && other < all * 2 / 3, "{one} {other} of {all}");
    assert_eq!((found.verdict, found.named.unwrap().rows.changed), (Verdict::Different, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_to_the_target_before_its_leaf_is_marked() {
    let mut leafy = Leafy::new("marked", "").await;
    leafy.prove().await;
    let path = leafy.moving.pair.request.job.state_dir.join("ledger.sqlite");
    let ledger = rusqlite::Connection::open(path).unwrap();
    ledger.execute_batch("BEGIN IMMEDIATE").unwrap();
    leafy.source("INSERT INTO leafy VALUES (30000, -30000, 'new')");
    let there = "SELECT count(*) FROM leafy WHERE id = 30000";
    for _ in 0..50 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert_eq!(leafy.moving.pair.target.psql(there).unwrap().trim(), "0");
    }
    ledger.execute_batch("ROLLBACK").unwrap();
    drop(ledger);
    leafy.arrives().await;
    let (found, [one, _]) = leafy.dirty().await;
    assert!(found.verdict == Verdict::Identical && one > 0, "{one}");
}
