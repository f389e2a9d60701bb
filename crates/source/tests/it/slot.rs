//! Snapshots that a stream continues from: publication, slot, the window between slot and locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tidemark_model::ChunkRange;
use tidemark_source::{
    Disposition, Given, SlotOptions, Snapshot, SnapshotOptions, check_given_slot, cleanup, names,
    read_catalog,
};
use tidemark_testkit::Cluster;

use crate::support::{options, rows_of, session, spec};

const NOTHING_LEFT: &str =
    "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)";

fn cluster(schema: &str) -> Cluster {
    let cluster = Cluster::start_default().unwrap();
    cluster.psql("postgres", schema).unwrap();
    cluster
}

async fn slot_options(cluster: &Cluster, globs: &[&str]) -> SnapshotOptions {
    let mut options = options(&cluster.url("postgres"), globs).await;
    options.slot = Some(SlotOptions {
        is_given: false,
        slot: names::slot_name("my-job"),
        publication: names::publication_name("my-job"),
        failover: false,
    });
    options
}

/// Runs SQL in the window between slot and locks, in the attempts up to `last`.
fn in_window(
    options: &mut SnapshotOptions,
    cluster: &Arc<Cluster>,
    sql: &'static str,
    last: u32,
) -> Arc<AtomicU32> {
    let attempts = Arc::new(AtomicU32::new(0));
    let (cluster, seen) = (Arc::clone(cluster), Arc::clone(&attempts));
    options.after_export = Some(Arc::new(move |number| {
        seen.store(number, Ordering::SeqCst);
        if number <= last {
            cluster.psql("postgres", sql).unwrap();
        }
        Box::pin(async {})
    }));
    attempts
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_and_stream_together_are_the_truth_under_load() {
    let cluster = Arc::new(cluster("CREATE TABLE t (id bigserial PRIMARY KEY, worker int)"));
    let url = cluster.url("postgres");
    let mut writers = tokio::task::JoinSet::new();
    let stop = Arc::new(AtomicU32::new(0));
    for worker in 0..4 {
        let (url, stop) = (url.clone(), Arc::clone(&stop));
        writers.spawn(async move {
            let client = session(&url).await;
            while stop.load(Ordering::SeqCst) == 0 {
                client
                    .execute("INSERT INTO public.t (worker) VALUES ($1)", &[&worker])
                    .await
                    .unwrap();
            }
        });
    }
    let snapshot =
        Snapshot::take(&spec(&url), &slot_options(&cluster, &["public.t"]).await).await.unwrap();
    let copied =
        rows_of(&url, &snapshot.tables()[0], snapshot.id(), vec![ChunkRange::Whole]).await.len();
    stop.store(1, Ordering::SeqCst);
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    // Commits may be asynchronous here, and decoding sees only what is flushed: this commit flushes all before it.
    let flush = "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'test', 'end')";
    cluster.psql("postgres", flush).unwrap();
    let streamed = cluster
        .psql(
            "postgres",
            "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('tidemark_my_job', NULL, NULL, \
             'proto_version', '1', 'publication_names', 'tidemark_my_job') WHERE get_byte(data, 0) = ascii('I')",
        )
        .unwrap();
    let total = cluster.psql("postgres", "SELECT count(*) FROM t").unwrap();
    assert_eq!(copied + streamed.parse::<usize>().unwrap(), total.parse::<usize>().unwrap());
    let point =
        cluster.psql("postgres", "SELECT confirmed_flush_lsn FROM pg_replication_slots").unwrap();
    assert_eq!(point, snapshot.lsn().to_string());
    snapshot.release().await;
    let done = cleanup(&spec(&url), "my-job", Given::default()).await.unwrap();
    assert!(done.iter().all(|line| line.starts_with("dropped")), "{done:?}");
    assert_eq!(cluster.psql("postgres", NOTHING_LEFT).unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_beside_a_slot_that_somebody_made_meets_it_and_leaves_it_alone() {
    let cluster = Arc::new(cluster("CREATE TABLE t (id bigserial PRIMARY KEY, worker int)"));
    let url = cluster.url("postgres");
    let make = "SELECT pg_create_logical_replication_slot('made_by_dba', 'pgoutput'); INSERT INTO t (worker) VALUES (-1)";
    cluster.psql("postgres", make).unwrap();
    let mut writers = tokio::task::JoinSet::new();
    let stop = Arc::new(AtomicU32::new(0));
    for worker in 0..4 {
        let (url, stop) = (url.clone(), Arc::clone(&stop));
        writers.spawn(async move {
            let client = session(&url).await;
            while stop.load(Ordering::SeqCst) == 0 {
                let insert = "INSERT INTO public.t (worker) VALUES ($1)";
                client.execute(insert, &[&worker]).await.unwrap();
            }
        });
    }
    let mut options = slot_options(&cluster, &["public.t"]).await;
    let slot = options.slot.as_mut().unwrap();
    (slot.slot, slot.is_given) = ("made_by_dba".into(), true);
    let snapshot = Snapshot::take(&spec(&url), &options).await.unwrap();
    let copied =
        rows_of(&url, &snapshot.tables()[0], snapshot.id(), vec![ChunkRange::Whole]).await.len();
    stop.store(1, Ordering::SeqCst);
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let flush = "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'test', 'end')";
    cluster.psql("postgres", flush).unwrap();
    // As a stream that begins at the snapshot's position does.
    let streamed = cluster
        .psql(
            "postgres",
            &format!(
                "SELECT count(*) FROM (SELECT pg_replication_slot_advance('made_by_dba', '{}')) AS moved, LATERAL \
                 (SELECT data FROM pg_logical_slot_peek_binary_changes('made_by_dba', NULL, NULL, \
                  'proto_version', '1', 'publication_names', 'tidemark_my_job') WHERE get_byte(data, 0) = ascii('I')) AS it",
                snapshot.lsn()
            ),
        )
        .unwrap();
    let total = cluster.psql("postgres", "SELECT count(*) FROM t").unwrap();
    assert_eq!(copied + streamed.parse::<usize>().unwrap(), total.parse::<usize>().unwrap());
    assert!(copied > 0);
    snapshot.release().await;
    let slots = "SELECT string_agg(slot_name, ',') FROM pg_replication_slots";
    cluster.wait_for("postgres", slots, "made_by_dba").unwrap();
    let given = Given { slot: Some("made_by_dba"), publication: None };
    let done = cleanup(&spec(&url), "my-job", given).await.unwrap();
    assert!(done[0].contains("left") && done[0].contains("made_by_dba"), "{done:?}");
    assert_eq!(cluster.psql("postgres", slots).unwrap(), "made_by_dba");
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM pg_publication").unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_slot_that_is_not_there_or_not_for_us_is_named_and_nothing_is_made() {
    let cluster = cluster("CREATE TABLE t (id int PRIMARY KEY)");
    cluster.create_database("other").unwrap();
    let physical = "SELECT pg_create_physical_replication_slot('of_bytes')";
    cluster.psql("postgres", physical).unwrap();
    let elsewhere = "SELECT pg_create_logical_replication_slot('elsewhere', 'pgoutput')";
    cluster.psql("other", elsewhere).unwrap();
    let url = cluster.url("postgres");
    let client = session(&url).await;
    for (name, why) in
        [("nowhere", "no such slot"), ("of_bytes", "physical"), ("elsewhere", "database \"other\"")]
    {
        let mut options = slot_options(&cluster, &["public.t"]).await;
        let slot = options.slot.as_mut().unwrap();
        (slot.slot, slot.is_given) = (name.into(), true);
        let error = Snapshot::take(&spec(&url), &options).await.unwrap_err();
        assert_eq!(error.disposition(), Disposition::Usage, "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
        assert!(error.way_out().unwrap().contains(name), "{error:?}");
        let finding = check_given_slot(&client, name).await.unwrap().unwrap();
        assert!(finding.message.contains(why), "{finding:?}");
    }
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM pg_publication").unwrap(), "0");
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM pg_replication_slots").unwrap(), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alter_behind_the_holder_is_let_through_and_the_slot_taken_again() {
    let cluster = Arc::new(cluster("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int)"));
    cluster.psql("postgres", "ALTER TABLE b REPLICA IDENTITY FULL").unwrap();
    let url = cluster.url("postgres");
    let mut options = slot_options(&cluster, &["public.*"]).await;
    options.lock_timeout = Duration::from_secs(3);
    // The holder has a and waits for b until an ALTER of a stands behind it.
    let holds = "BEGIN; LOCK TABLE b IN ACCESS EXCLUSIVE MODE; DO $do$ BEGIN FOR i IN 1..3000 LOOP \
        EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'a'::regclass AND mode = 'AccessExclusiveLock'); \
        PERFORM pg_sleep(0.01); END LOOP; END $do$; COMMIT";
    let alters = "DO $do$ BEGIN FOR i IN 1..3000 LOOP \
        EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'b'::regclass AND mode = 'AccessShareLock'); \
        PERFORM pg_sleep(0.01); END LOOP; END $do$; SET application_name = 'migration'; ALTER TABLE a ADD COLUMN late int";
    let mut others = Vec::new();
    options.after_export = Some({
        let cluster = Arc::clone(&cluster);
        let started = Arc::new(AtomicU32::new(0));
        let (send, threads) = std::sync::mpsc::channel();
        others.push(threads);
        Arc::new(move |_| {
            if started.fetch_add(1, Ordering::SeqCst) == 0 {
                for sql in [holds, alters] {
                    let cluster = Arc::clone(&cluster);
                    send.send(std::thread::spawn(move || cluster.psql("postgres", sql))).unwrap();
                }
                let locked = "SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'b'::regclass AND granted)";
                cluster.wait_for("postgres", locked, "t").unwrap();
            }
            Box::pin(async {})
        })
    });
    let error = Snapshot::take(&spec(&url), &options).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
    assert!(error.way_out().unwrap().contains("(migration)"), "{error:?}");
    for thread in others.iter().flat_map(std::sync::mpsc::Receiver::try_iter) {
        thread.join().unwrap().unwrap();
    }
    assert_eq!(cluster.psql("postgres", NOTHING_LEFT).unwrap(), "0");
    let again = slot_options(&cluster, &["public.*"]).await;
    Snapshot::take(&spec(&url), &again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vacuum_that_keeps_the_publication_waiting_is_waited_for_and_named() {
    let cluster = Arc::new(cluster("CREATE TABLE t (id int PRIMARY KEY)"));
    let mut options = slot_options(&cluster, &["public.t"]).await;
    options.lock_timeout = Duration::from_millis(200);
    let url = cluster.url("postgres");
    let other = session(&url).await;
    // The same lock as VACUUM's.
    let lock = "SET application_name = 'vacuum'; BEGIN; LOCK TABLE public.t IN SHARE UPDATE EXCLUSIVE MODE";
    other.batch_execute(lock).await.unwrap();
    options.lock_attempts = 2;
    let error = Snapshot::take(&spec(&url), &options).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Blocked, "{error:?}");
    assert!(error.way_out().unwrap().contains("(vacuum)"), "{error:?}");
    assert_eq!(cluster.psql("postgres", NOTHING_LEFT).unwrap(), "0");
    options.lock_attempts = 10;
    let waits =
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 't'::regclass)";
    let (url, options) = (&url, &options);
    let taken = async { Snapshot::take(&spec(url), options).await.unwrap() };
    let let_go = async {
        for expected in ["t", "f"] {
            let cluster = Arc::clone(&cluster);
            let waited = move || cluster.wait_for("postgres", waits, expected);
            tokio::task::spawn_blocking(waited).await.unwrap().unwrap();
        }
        other.batch_execute("COMMIT").await.unwrap();
    };
    let (snapshot, ()) = tokio::join!(taken, let_go);
    assert_eq!(snapshot.tables().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_in_the_window_starts_the_slot_again() {
    for sql in [
        "TRUNCATE t; INSERT INTO t VALUES (7, 7)",
        "VACUUM FULL t",
        "CLUSTER t USING t_pkey",
        "ALTER TABLE t ALTER a TYPE bigint; ALTER TABLE t ALTER a TYPE int",
    ] {
        let cluster = Arc::new(cluster(
            "CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t VALUES (1, 1)",
        ));
        let url = cluster.url("postgres");
        let mut options = slot_options(&cluster, &["public.t"]).await;
        let attempts = in_window(&mut options, &cluster, sql, 1);
        let snapshot = Snapshot::take(&spec(&url), &options).await.unwrap();
        assert_eq!(attempts.load(Ordering::SeqCst), 2, "{sql}");
        let rows =
            rows_of(&url, &snapshot.tables()[0], snapshot.id(), vec![ChunkRange::Whole]).await;
        assert_eq!(rows.len(), 1, "{sql}");
        let slots = "SELECT count(*) || ' ' || min(confirmed_flush_lsn) FROM pg_replication_slots";
        assert_eq!(
            cluster.psql("postgres", slots).unwrap(),
            format!("1 {}", snapshot.lsn()),
            "{sql}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rewritten_every_time_is_named_and_nothing_is_left() {
    let cluster = Arc::new(cluster("CREATE TABLE t (id int PRIMARY KEY)"));
    let mut options = slot_options(&cluster, &["public.t"]).await;
    let attempts = in_window(&mut options, &cluster, "TRUNCATE t", 9);
    let error = Snapshot::take(&spec(&cluster.url("postgres")), &options).await.unwrap_err();
    assert_eq!(attempts.load(Ordering::SeqCst), 3);
    assert_eq!(
        (error.disposition(), error.object()),
        (Disposition::SourceCannotContinue, Some("public.t"))
    );
    assert_eq!(cluster.psql("postgres", NOTHING_LEFT).unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_dropped_in_the_window_is_left_out_of_the_next_attempt() {
    let cluster = Arc::new(cluster(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)",
    ));
    let mut options = slot_options(&cluster, &["public.*"]).await;
    in_window(&mut options, &cluster, "DROP TABLE u", 1);
    let snapshot = Snapshot::take(&spec(&cluster.url("postgres")), &options).await.unwrap();
    assert_eq!((snapshot.tables().len(), snapshot.gone().len()), (1, 1));
    assert_eq!(
        cluster.psql("postgres", "SELECT tablename FROM pg_publication_tables").unwrap(),
        "t"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_not_given_takes_slot_and_publication_back() {
    let cluster = Arc::new(cluster("CREATE TABLE t (id int PRIMARY KEY)"));
    let url = cluster.url("postgres");
    let mut options = slot_options(&cluster, &["public.t"]).await;
    let blocker = Arc::new(session(&url).await);
    let held = Arc::clone(&blocker);
    options.after_export = Some(Arc::new(move |_| {
        let held = Arc::clone(&held);
        Box::pin(async move { held.batch_execute("BEGIN; LOCK TABLE public.t").await.unwrap() })
    }));
    let error = Snapshot::take(&spec(&url), &options).await.unwrap_err();
    assert_eq!(
        (error.disposition(), error.object()),
        (Disposition::Blocked, Some(r#""public"."t""#))
    );
    assert_eq!(cluster.psql("postgres", NOTHING_LEFT).unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_waits_names_who_it_waits_for() {
    let cluster = cluster("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (a int)");
    let url = cluster.url("postgres");
    let options = slot_options(&cluster, &["public.t"]).await;
    cluster
        .psql("postgres", "BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION 'stuck'")
        .unwrap();
    let error = Snapshot::take(&spec(&url), &options).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Blocked, "{error:?}");
    assert!(error.way_out().unwrap().contains("prepared transaction 'stuck'"), "{error:?}");
    assert_eq!(cluster.psql("postgres", NOTHING_LEFT).unwrap(), "0");
    cluster.psql("postgres", "ROLLBACK PREPARED 'stuck'").unwrap();
    Snapshot::take(&spec(&url), &options).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_ours_must_be_of_exactly_these_tables() {
    let cluster = cluster(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE keyless (a int)",
    );
    let url = cluster.url("postgres");
    let options = slot_options(&cluster, &["public.t"]).await;
    for (publication, complaint) in [
        ("FOR ALL TABLES", "FOR ALL TABLES"),
        ("FOR TABLE t, u", "also publishes \"public\".\"u\""),
        ("FOR TABLE u", "does not publish \"public\".\"t\""),
        ("FOR TABLE t WITH (publish = 'insert')", "leaves out"),
    ] {
        cluster
            .psql("postgres", &format!("CREATE PUBLICATION tidemark_my_job {publication}"))
            .unwrap();
        let error = Snapshot::take(&spec(&url), &options).await.unwrap_err();
        assert!(error.to_string().contains(complaint), "{error}");
        let left = "SELECT (SELECT count(*) FROM pg_publication) || ' ' || (SELECT count(*) FROM pg_replication_slots)";
        assert_eq!(cluster.psql("postgres", left).unwrap(), "1 0", "it is not ours to drop");
        cluster.psql("postgres", "DROP PUBLICATION tidemark_my_job").unwrap();
    }
    cluster.psql("postgres", "CREATE PUBLICATION tidemark_my_job FOR TABLE t").unwrap();
    drop(Snapshot::take(&spec(&url), &options).await.unwrap());
    let error = Snapshot::take(&spec(&url), &options).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Usage, "the slot is there: {error:?}");
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM pg_replication_slots").unwrap(), "1");
    cleanup(&spec(&url), "my-job", Given::default()).await.unwrap();
    let keyless = slot_options(&cluster, &["public.keyless"]).await;
    let error = Snapshot::take(&spec(&url), &keyless).await.unwrap_err();
    assert_eq!(
        (error.disposition(), error.object()),
        (Disposition::Refused, Some(r#""public"."keyless""#))
    );
    cluster.psql("postgres", "DELETE FROM keyless").unwrap();
    assert_eq!(cluster.psql("postgres", NOTHING_LEFT).unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_at_wal_level_replica_is_refused_with_the_setting() {
    let cluster = Cluster::builder().setting("wal_level", "replica").start().unwrap();
    cluster.psql("postgres", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let url = cluster.url("postgres");
    let mut options = slot_options(&cluster, &["public.t"]).await;
    let error = Snapshot::take(&spec(&url), &options).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Refused);
    assert!(error.way_out().unwrap().contains("wal_level = logical"));
    assert_eq!(cluster.psql("postgres", NOTHING_LEFT).unwrap(), "0");
    options.slot = None;
    options.lock_timeout = Duration::from_secs(5);
    Snapshot::take(&spec(&url), &options).await.unwrap();
    assert_eq!(read_catalog(&session(&url).await).await.unwrap().server.wal_level, "replica");
}
