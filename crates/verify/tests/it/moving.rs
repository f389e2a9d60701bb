//! Jobs that follow, verified while both sides are written to.
//!
//! **Invariant:** the writer never rests during a verification, so that a verdict of two different moments would be a false
//! alarm; what differs was planted on the target by psql.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tidemark_model::Lsn;
use tidemark_pipeline::{Held, Job, Kind, Phase, Progress, SchemaMode, Target, ask_status, sync};
use tidemark_report::{Redaction, Verdict};
use tidemark_testkit::workload::{Writer, WriterOptions};
use tidemark_verify::{Outcome, Point, verify_at_barrier};
use tidemark_wire::ConnectSpec;
use tokio_util::sync::CancellationToken;

use crate::naming::Kept;
use crate::pairs::Restless;
use crate::repairs::{how, repaired, suspects};
use crate::support::Pair;

/// A job in a thread of its own, as another process would run it.
pub(crate) struct Follower {
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Follower {
    pub(crate) fn start(job: &Job) -> Self {
        let stop = CancellationToken::new();
        let (job, seen) = (job.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let progress = Arc::new(Progress::default());
            runtime.block_on(sync(&job, &progress, None, &seen)).unwrap();
        });
        Self { stop, thread: Some(thread) }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }

    pub(crate) fn stop(mut self) {
        self.stop.cancel();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

pub(crate) struct Moving {
    pub(crate) pair: Pair,
    _directory: TempDir,
}

impl Moving {
    pub(crate) fn new(name: &str) -> Self {
        let (mut pair, directory) = (Pair::new(), TempDir::new().unwrap());
        let job = &mut pair.request.job;
        job.name = name.to_owned();
        job.state_dir = directory.path().join("state");
        job.follows = true;
        if let Target::Postgres(target) = &mut job.target {
            target.schema = SchemaMode::Create;
        }
        let extra = "CREATE TABLE pet (id serial PRIMARY KEY, name text, body text); \
            INSERT INTO pet (name, body) SELECT 'n' || i, repeat(md5(i::text), 90) FROM generate_series(1, 3000) i; \
            CREATE TABLE keyless (day date, note text); ALTER TABLE keyless REPLICA IDENTITY FULL; \
            INSERT INTO keyless SELECT '2026-01-01', 'n' || i % 7 FROM generate_series(1, 3000) i";
        pair.source.psql(extra).unwrap();
        Self { pair, _directory: directory }
    }

    pub(crate) fn writer(&self) -> Writer {
        let options = WriterOptions { clients: 2, seed: 5, pause: Duration::from_millis(2) };
        Writer::start(self.pair.source.cluster(), self.pair.source.name(), &options).unwrap()
    }

    pub(crate) async fn follows(&self) {
        let state_dir = &self.pair.request.job.state_dir;
        loop {
            let status = ask_status(state_dir).await.unwrap();
            if status.is_some_and(|status| status.phase == Phase::Follow) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn verify(&self) -> Outcome {
        verify_at_barrier(&self.pair.request, &CancellationToken::new()).await.unwrap()
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database() AND NOT active";
        self.pair.source.psql(sql).ok();
        let origins = "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname LIKE '%@' || \
            (SELECT oid FROM pg_database WHERE datname = current_database())";
        self.pair.target.psql(origins).ok();
    }
}

/// Key changes, values out of line that stay, doubles that come and go.
const CHANGES: &str = "UPDATE pet SET id = id + 100000 WHERE id % 97 = 3 AND id < 100000; \
    UPDATE pet SET name = name || '.' WHERE id % 11 = 4; DELETE FROM pet WHERE id % 301 = 5; \
    INSERT INTO keyless SELECT '2026-01-01', 'n' || i % 7 FROM generate_series(1, 20) i; \
    DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE note = 'n3' LIMIT 15)";

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_never_rests_is_identical_at_every_point_and_what_was_planted_is_found() {
    let moving = Moving::new("moving");
    let writer = moving.writer();
    let follower = Follower::start(&moving.pair.request.job);
    moving.follows().await;
    let mut before = Lsn::ZERO;
    for round in 0..6 {
        moving.pair.source.psql(CHANGES).unwrap();
        let outcome = moving.verify().await;
        assert_eq!(outcome.verdict(), Verdict::Identical, "round {round}: {outcome:?}");
        let Some(Point::Barrier { lsn, pause, .. }) = outcome.point else { panic!("{outcome:?}") };
        assert!(lsn > before && pause < Duration::from_secs(5), "{outcome:?}");
        before = lsn;
    }
    // Nobody but us writes there, so that it stays.
    let planted = "UPDATE pet SET name = 'other' WHERE id = 1; DELETE FROM pet WHERE id IN (2, 2900); \
        INSERT INTO pet VALUES (-5, 'new', NULL); INSERT INTO keyless VALUES ('1999-01-01', 'planted'), ('1999-01-01', 'planted')";
    moving.pair.target.psql(planted).unwrap();
    let mut request = moving.pair.request.clone();
    let kept = Kept::new(&mut request, Redaction::None);
    let outcome = verify_at_barrier(&request, &CancellationToken::new()).await.unwrap();
    assert_eq!(kept.of("pet"), ["changed id=1", "extra id=-5", "missing id=2", "missing id=2900"]);
    assert_eq!(kept.of("keyless"), [r#"extra day="1999-01-01" note="planted" x2"#]);
    assert_eq!(kept.text().lines().count(), 5, "nothing else is named: {}", kept.text());
    let found = crate::support::table(&outcome, "pet");
    assert_eq!((outcome.verdict(), found.verdict), (Verdict::Different, Verdict::Different));
    writer.stop().unwrap();
    follower.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_planted_is_repaired_between_the_changes_of_the_stream() {
    let moving = Moving::new("repaired");
    let (source, target) = (&moving.pair.source, &moving.pair.target);
    // Out of line, so that a change of the name does not bring it.
    source
        .psql("ALTER TABLE pet ALTER body SET STORAGE EXTERNAL; UPDATE pet SET body = body || '.'")
        .unwrap();
    let writer = moving.writer();
    let mut follower = Some(Follower::start(&moving.pair.request.job));
    moving.follows().await;
    moving.verify().await;
    // Enough for several parts, in each of which the stream has something to bring.
    let planted = "UPDATE pet SET body = 'x' || id WHERE id <= 1500; DELETE FROM pet WHERE id % 50 = 2; \
        INSERT INTO pet SELECT -i, 'new' FROM generate_series(1, 9) i; DELETE FROM keyless WHERE note = 'n3'";
    let stop = CancellationToken::new();
    // While the job runs, and when it was stopped.
    for _ in 0..2 {
        target.psql(planted).unwrap();
        let mut request = moving.pair.request.clone();
        let kept = Kept::new(&mut request, Redaction::None);
        let before = verify_at_barrier(&request, &stop).await.unwrap();
        assert_eq!(before.verdict(), Verdict::Different);
        // A newer value is what is written, and what the stream brings of the others is not undone.
        source.psql("UPDATE pet SET name = 'later' WHERE id % 100 = 1").unwrap();
        let restless = Restless::start(
            &moving.pair,
            "UPDATE pet SET name = clock_timestamp()::text WHERE id % 5 = 1",
        );
        let how = how(&moving.pair, true, true).await;
        let (done, _) = repaired(&moving.pair.request, how, &suspects(&kept)).await;
        assert!(done.written > 1500 && done.left == 0, "{done:?}");
        drop(restless);
        let after = verify_at_barrier(&moving.pair.request, &stop).await.unwrap();
        assert_eq!(after.verdict(), Verdict::Identical, "{after:?}");
        if let Some(follower) = follower.take() {
            follower.stop();
        }
    }
    writer.stop().unwrap();
}

/// A TRUNCATE that the stream brings waits for the locks of a verification, which waits for the stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_empties_tables_again_and_again_is_never_waited_for_in_vain() {
    let moving = Moving::new("emptied");
    let follower = Follower::start(&moving.pair.request.job);
    moving.follows().await;
    let restless = Restless::start(&moving.pair, "TRUNCATE keyless");
    for _ in 0..4 {
        let stop = CancellationToken::new();
        let verifying = verify_at_barrier(&moving.pair.request, &stop);
        let ended = tokio::time::timeout(Duration::from_secs(60), verifying).await;
        match ended.expect("the stream and the verification wait for each other") {
            Ok(outcome) => assert_eq!(outcome.verdict(), Verdict::Identical, "{outcome:?}"),
            Err(error) => assert_eq!(error.kind, Kind::Unavailable, "{error:?}"),
        }
    }
    drop(restless);
    assert_eq!(moving.verify().await.verdict(), Verdict::Identical);
    follower.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_does_not_run_is_run_to_the_point() {
    let moving = Moving::new("stopped");
    let writer = moving.writer();
    let follower = Follower::start(&moving.pair.request.job);
    moving.follows().await;
    follower.stop();
    // The stream empties a table on its way to the point, which our own locks must not keep it from.
    moving.pair.source.psql("TRUNCATE keyless").unwrap();
    moving.pair.source.psql(CHANGES).unwrap();
    for _ in 0..2 {
        let outcome = moving.verify().await;
        assert_eq!(outcome.verdict(), Verdict::Identical, "{outcome:?}");
    }
    // What the stream does not carry is not called different.
    moving.pair.source.psql("CREATE UNLOGGED TABLE fast (a int)").unwrap();
    moving.pair.target.psql("CREATE UNLOGGED TABLE fast (a int)").unwrap();
    let outcome = moving.verify().await;
    assert_eq!(outcome.verdict(), Verdict::Incomplete, "{outcome:?}");
    assert!(outcome.skipped[0].because.contains("unlogged"), "{outcome:?}");
    writer.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_never_made_is_not_made_by_a_verification() {
    let moving = Moving::new("never");
    let error =
        verify_at_barrier(&moving.pair.request, &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Usage, "{error}");
    assert!(error.hint.unwrap().contains("--quiesced"));
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(moving.pair.target.psql(tables).unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_does_not_end_is_named_and_the_stream_goes_on() {
    let moving = Moving::new("open");
    let follower = Follower::start(&moving.pair.request.job);
    moving.follows().await;
    let client = ConnectSpec::parse(&moving.pair.source.url()).unwrap().connect().await.unwrap();
    client
        .batch_execute("BEGIN; INSERT INTO public.keyless VALUES ('2026-01-01', 'open')")
        .await
        .unwrap();
    let error =
        verify_at_barrier(&moving.pair.request, &CancellationToken::new()).await.unwrap_err();
    assert!(error.hint.as_deref().unwrap_or_default().contains("process"), "{error:?}");
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(moving.verify().await.verdict(), Verdict::Identical);
    follower.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_back_for_one_position_is_applied_before_the_stream_stands_at_a_later_one() {
    let moving = Moving::new("kept");
    let (pair, stop) = (&moving.pair, CancellationToken::new());
    let progress = Arc::new(Progress::default());
    let head = || -> Lsn {
        pair.source.psql("SELECT pg_current_wal_insert_lsn()").unwrap().trim().parse().unwrap()
    };
    let asks = async {
        while progress.view().phase != Phase::Follow {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for round in 0..5 {
            let mut held = Held::of_own(&progress).await.unwrap().unwrap();
            // WAL that is none of the job's, so that the stream comes to the position by what is behind it.
            pair.source
                .psql("CREATE TABLE IF NOT EXISTS beside (i int); INSERT INTO beside VALUES (1)")
                .unwrap();
            let before = head();
            pair.source
                .psql(&format!("INSERT INTO pet (id, name) VALUES ({}, 'late')", 900_000 + round))
                .unwrap();
            let behind = head();
            held.up_to(before).await.unwrap();
            // Asked again before whoever applies has looked.
            held.open();
            let mut held = Held::of_own(&progress).await.unwrap().unwrap();
            pair.source.psql("SELECT pg_logical_emit_message(true, 'test', 'goes on')").unwrap();
            held.up_to(behind).await.unwrap();
            let there = "SELECT count(*) FROM pet WHERE name = 'late'";
            assert_eq!(pair.target.psql(there).unwrap().trim(), (round + 1).to_string());
            held.open();
        }
        stop.cancel();
    };
    // In one task: nobody applies anything between two lines of `asks` that do not wait.
    let (synced, ()) = tokio::join!(sync(&pair.request.job, &progress, None, &stop), asks);
    synced.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn case_64_a_prepared_transaction_in_the_way_is_named_and_once_it_has_ended_both_sides_meet()
{
    let moving = Moving::new("twophase");
    let follower = Follower::start(&moving.pair.request.job);
    moving.follows().await;
    let source = &moving.pair.source;
    source
        .psql(
            "BEGIN; INSERT INTO pet (id, name) VALUES (-1, 'p'); PREPARE TRANSACTION 'in the way'",
        )
        .unwrap();
    let stop = CancellationToken::new();
    let error = verify_at_barrier(&moving.pair.request, &stop).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable, "{error:?}");
    assert!(
        error.hint.as_ref().unwrap().contains("prepared transaction 'in the way'"),
        "{error:?}"
    );
    source.psql("COMMIT PREPARED 'in the way'").unwrap();
    assert_eq!(moving.verify().await.verdict(), Verdict::Identical);
    follower.stop();
}
