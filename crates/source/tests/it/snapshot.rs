//! Snapshots without a slot: locks, loss of the holder, tables that go away.

use std::time::Duration;

use tidemark_model::ChunkRange;
use tidemark_source::{Disposition, Reader, Snapshot};
use tidemark_testkit::shared;

use crate::support::{options, rows_of, session, spec};

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_the_holders_state_and_nothing_stays_after_release() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").unwrap();
    let url = database.url();
    let snapshot = Snapshot::take(&spec(&url), &options(&url, &["public.t"]).await).await.unwrap();
    database.psql("INSERT INTO t VALUES (2)").unwrap();
    let rows = rows_of(&url, &snapshot.tables()[0], snapshot.id(), vec![ChunkRange::Whole]).await;
    assert_eq!(rows, ["1\n"]);
    assert!(snapshot.is_alive().await);
    assert!(snapshot.lsn().as_u64() > 0 && snapshot.read_snapshot().contains(':'));
    let id = snapshot.id().to_owned();
    snapshot.release().await;
    let error = Reader::open(&spec(&url), &id).await.err().unwrap();
    assert!(error.is_snapshot_gone(), "{error:?}");
    database.psql("DROP TABLE t").unwrap();
    let left = "SELECT count(*) FROM pg_publication; SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(database.psql(left).unwrap(), "0\n0");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_is_taken_after_the_locks() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").unwrap();
    let url = database.url();
    let mut options = options(&url, &["public.t"]).await;
    options.lock_timeout = Duration::from_secs(60);
    let blocker = session(&url).await;
    blocker
        .batch_execute("BEGIN; TRUNCATE public.t; INSERT INTO public.t VALUES (7), (8)")
        .await
        .unwrap();
    let spec = spec(&url);
    let take = Snapshot::take(&spec, &options);
    let unblock = async {
        let side = session(&url).await;
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'";
        while side.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::task::yield_now().await;
        }
        blocker.batch_execute("COMMIT").await.unwrap();
    };
    let (snapshot, ()) = tokio::join!(take, unblock);
    let snapshot = snapshot.unwrap();
    let rows = rows_of(&url, &snapshot.tables()[0], snapshot.id(), vec![ChunkRange::Whole]).await;
    assert_eq!(rows, ["7\n", "8\n"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_lock_is_given_up_and_its_holder_named() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE a (a int); CREATE TABLE b (a int)").unwrap();
    let url = database.url();
    let blocker = session(&url).await;
    blocker.batch_execute("BEGIN; LOCK TABLE public.b IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let error = Snapshot::take(&spec(&url), &options(&url, &["public.*"]).await).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Blocked);
    assert_eq!(error.object(), Some(r#""public"."b""#));
    assert!(
        error.way_out().unwrap().contains(&format!("process {}", blocker.backend_pid())),
        "{error:?}"
    );
    blocker.batch_execute("COMMIT").await.unwrap();
    Snapshot::take(&spec(&url), &options(&url, &["public.*"]).await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_and_renamed_tables_are_named_and_the_others_go_on() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE a (a int); CREATE TABLE b (a int); CREATE TABLE c (a int); CREATE TABLE d (a int)").unwrap();
    let url = database.url();
    let options = options(&url, &["public.*"]).await;
    database
        .psql("DROP TABLE a; ALTER TABLE b RENAME TO bb; DROP TABLE c; CREATE TABLE c (a int)")
        .unwrap();
    let snapshot = Snapshot::take(&spec(&url), &options).await.unwrap();
    let mut gone: Vec<&str> = snapshot.gone().iter().map(|name| name.name.as_str()).collect();
    gone.sort_unstable();
    assert_eq!(gone, ["a", "b", "c"]);
    assert_eq!(snapshot.tables().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_came_after_planning_is_not_left_out_silently() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE a (a int)").unwrap();
    let url = database.url();
    let options = options(&url, &["public.*"]).await;
    database.psql("ALTER TABLE a ADD COLUMN late int").unwrap();
    let error = Snapshot::take(&spec(&url), &options).await.unwrap_err();
    assert_eq!(
        (error.disposition(), error.object()),
        (Disposition::Retry, Some(r#""public"."a""#))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_holder_is_noticed_and_its_snapshot_is_gone() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE a (a int)").unwrap();
    let url = database.url();
    let snapshot = Snapshot::take(&spec(&url), &options(&url, &["public.a"]).await).await.unwrap();
    let watch = snapshot.watch();
    let pid = snapshot.holder_pids()[0];
    let kill = async { database.psql(&format!("SELECT pg_terminate_backend({pid})")).unwrap() };
    let (error, _) = tokio::join!(watch, kill);
    assert_eq!(error.disposition(), Disposition::SnapshotLost);
    assert!(!snapshot.is_alive().await);
    let error = Reader::open(&spec(&url), snapshot.id()).await.err().unwrap();
    assert!(error.is_snapshot_gone(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn timeouts_of_the_role_do_not_end_the_holder() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE a (a int)").unwrap();
    let url = database.url();
    for setting in ["idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout"] {
        database
            .psql(&format!("ALTER DATABASE {} SET {setting} = '1ms'", database.name()))
            .unwrap();
    }
    let options = options(&url, &["public.a"]).await;
    let snapshot = Snapshot::take(&spec(&url), &options).await.unwrap();
    let mut reader = Reader::open(&spec(&url), snapshot.id()).await.unwrap();
    // Longer than the role's limits by the server's own clock.
    session(&url).await.batch_execute("SELECT pg_sleep(0.2)").await.unwrap();
    assert!(snapshot.is_alive().await);
    let chunk = crate::support::chunk(&snapshot.tables()[0], snapshot.id(), ChunkRange::Whole);
    assert!(crate::support::lines(&mut reader, &chunk).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reader_is_replaced_while_the_holder_lives() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE a (a int); INSERT INTO a VALUES (1)").unwrap();
    let url = database.url();
    let snapshot = Snapshot::take(&spec(&url), &options(&url, &["public.a"]).await).await.unwrap();
    let mut reader = Reader::open(&spec(&url), snapshot.id()).await.unwrap();
    database
        .psql(&format!("SELECT pg_terminate_backend({}, 10000)", reader.backend_pid()))
        .unwrap();
    let chunk = crate::support::chunk(&snapshot.tables()[0], snapshot.id(), ChunkRange::Whole);
    let error = reader.copy(&chunk).await.err().unwrap();
    assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
    let mut reader = Reader::open(&spec(&url), snapshot.id()).await.unwrap();
    assert_eq!(crate::support::lines(&mut reader, &chunk).await, ["1\n"]);
}

/// An ALTER that waits for everybody's locks on `a`; it adds a column when it gets there.
fn alter_a(url: &str) -> tokio::task::JoinSet<()> {
    let spec = spec(url).with_application_name("application");
    let mut task = tokio::task::JoinSet::new();
    task.spawn(async move {
        let application = spec.connect().await.unwrap();
        application.batch_execute("ALTER TABLE public.a ADD COLUMN late int").await.unwrap();
    });
    task
}

async fn wait_for_a_waiter(url: &str) {
    let side = session(url).await;
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' \
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    while side.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_with_its_locks_reads_while_an_alter_waits_and_one_without_gives_up() {
    let database = shared().unwrap();
    database.psql("CREATE TABLE a (a int); INSERT INTO a VALUES (1)").unwrap();
    let url = database.url();
    let snapshot = Snapshot::take(&spec(&url), &options(&url, &["public.a"]).await).await.unwrap();
    let tables: Vec<_> = snapshot.tables().iter().collect();
    let mut early = Reader::open(&spec(&url), snapshot.id()).await.unwrap();
    early.lock(&tables).await.unwrap();
    let mut alter = alter_a(&url);
    wait_for_a_waiter(&url).await;
    let chunk = crate::support::chunk(&snapshot.tables()[0], snapshot.id(), ChunkRange::Whole);
    assert_eq!(crate::support::lines(&mut early, &chunk).await, ["1\n"]);
    let patience = Duration::from_millis(100);
    let mut late = Reader::open(&spec(&url), snapshot.id()).await.unwrap();
    late.wait_at_most(patience).await.unwrap();
    let error = late.lock(&tables).await.err().unwrap();
    assert!(error.is_snapshot_gone(), "only a new snapshot lets the ALTER through: {error:?}");
    assert!(error.to_string().contains(r#""public"."a""#), "{error}");
    assert!(error.way_out().unwrap().contains("(application) waits for it"), "{error:?}");
    let mut later = Reader::open(&spec(&url), snapshot.id()).await.unwrap();
    later.wait_at_most(patience).await.unwrap();
    let error = later.copy(&chunk).await.err().unwrap();
    assert!(error.is_snapshot_gone(), "{error:?}");
    drop(early);
    snapshot.release().await;
    alter.join_next().await.unwrap().unwrap();
}
