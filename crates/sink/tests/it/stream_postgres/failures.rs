//! What a target refuses, loses or takes away while changes are applied.

use std::error::Error as _;

use tidemark_model::{Lsn, Severity};
use tidemark_sink::postgres::{PostgresOptions, PostgresSink};
use tidemark_sink::{Disposition, Error, Sink, StoredStage};
use tidemark_testkit::proxy::{Cut, Direction, Fault, Proxy};
use tidemark_wire::{Client, ConnectSpec};

use super::pair::{Pair, batch, copies};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

/// Everything that a person can see of an error.
fn shown(error: &Error) -> String {
    let mut text = format!("{error} / {:?}", error.hint);
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(" / {error} / {error:?}"));
        cause = error.source();
    }
    text
}

fn failed<T>(result: Result<T, Error>) -> Error {
    match result {
        Ok(_) => panic!("it went well"),
        Err(error) => error,
    }
}

fn values(pair: &Pair) -> String {
    pair.target
        .psql("SELECT coalesce(string_agg(v, ',' ORDER BY id), '') FROM t")
        .unwrap()
        .trim()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_the_target_refuses_is_named_without_its_values_and_nothing_is_applied() {
    let refusing = "CREATE TABLE t (id int PRIMARY KEY, v text CHECK (v <> 'secret4711'))";
    let mut pair = Pair::with_target("poison", TABLE, refusing, true).await;
    let mut open = pair.open("s1").await.unwrap();
    pair.source.psql("INSERT INTO t VALUES (1, 'a'); INSERT INTO t VALUES (2, 'b')").unwrap();
    let before = pair.apply(&mut open.writer).await.unwrap();
    pair.source
        .psql("BEGIN; INSERT INTO t VALUES (3, 'c'); UPDATE t SET v = 'secret4711' WHERE id = 2; COMMIT")
        .unwrap();
    let transactions = pair.changes().await;
    let end_lsn = transactions[0].head.end_lsn;
    open.writer.accept(batch(copies(&transactions), false).await).await.unwrap();
    let error = failed(open.writer.flush().await);
    assert_eq!(error.disposition, Disposition::Refused);
    assert_eq!(error.relation.as_ref().unwrap().name, "t");
    let shown = shown(&error);
    for part in ["update", "key columns \"id\"", &end_lsn.to_string(), "23514"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    assert!(!shown.contains("4711"), "{shown}");
    assert_eq!(values(&pair), "a,b");
    assert_eq!(pair.stored_lsn(), before);
    // Dead from here on.
    assert_eq!(failed(open.writer.flush().await).disposition, Disposition::Internal);
    // Mended, it goes on from the same position.
    drop(open);
    pair.end_sessions();
    pair.target.psql("ALTER TABLE t DROP CONSTRAINT t_v_check").unwrap();
    let mut open = pair.open("s2").await.unwrap();
    assert_eq!(open.position, before);
    open.writer.accept(batch(transactions, false).await).await.unwrap();
    assert_eq!(open.writer.flush().await.unwrap().lsn(), end_lsn);
    pair.assert_same("after the table was mended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_not_there_ends_the_stream() {
    for change in [
        "UPDATE t SET v = 'x' WHERE id = 2",
        "DELETE FROM t WHERE id = 2",
        "UPDATE t SET id = 9 WHERE id = 2",
    ] {
        let mut pair = Pair::new("missing", TABLE, false).await;
        let mut open = pair.open("s1").await.unwrap();
        pair.source.psql("INSERT INTO t VALUES (1, 'a'), (2, 'b')").unwrap();
        let before = pair.apply(&mut open.writer).await.unwrap();
        pair.target.psql("DELETE FROM t WHERE id = 2").unwrap();
        pair.source
            .psql(&format!("BEGIN; UPDATE t SET v = 'z' WHERE id = 1; {change}; COMMIT"))
            .unwrap();
        let error = failed(pair.apply(&mut open.writer).await);
        assert_eq!(error.disposition, Disposition::Refused, "{change}");
        assert!(shown(&error).contains("the target has 0 such rows"), "{}", shown(&error));
        assert_eq!(values(&pair), "a", "{change}");
        assert_eq!(pair.stored_lsn(), before);
    }
}

fn through(proxy: &Proxy, pair: &Pair) -> PostgresOptions {
    let spec = ConnectSpec::parse(&proxy.url(&pair.target.url())).unwrap();
    PostgresOptions { spec, ..pair.options() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_commit_is_settled_by_the_stored_position() {
    let mut pair = Pair::new("lost-reply", TABLE, true).await;
    let proxy = Proxy::start(pair.target.cluster()).unwrap();
    let sink = PostgresSink::new(through(&proxy, &pair));
    let mut open = sink.open_stream(&pair.start("s1")).await.unwrap();
    pair.source.psql("INSERT INTO t VALUES (1, 'a')").unwrap();
    let transactions = pair.changes().await;
    let end_lsn = transactions[0].head.end_lsn;
    proxy.fault(Direction::ToClient, Fault::LoseReply("COMMIT", Cut::Rst));
    open.writer.accept(batch(transactions, false).await).await.unwrap();
    let error = failed(open.writer.flush().await);
    assert_eq!(proxy.fired(), 1);
    assert_eq!(error.disposition, Disposition::Retry, "{}", shown(&error));
    // The same sink, in the same run: the commit had gone through.
    let mut open = sink.open_stream(&pair.start("s1")).await.unwrap();
    assert_eq!(open.position, end_lsn);
    pair.source.psql("UPDATE t SET v = 'b'").unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    pair.assert_same("after the lost answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_before_commit_leaves_nothing() {
    let mut pair = Pair::new("cut", TABLE, true).await;
    let proxy = Proxy::start(pair.target.cluster()).unwrap();
    let sink = PostgresSink::new(through(&proxy, &pair));
    let mut open = sink.open_stream(&pair.start("s1")).await.unwrap();
    let before = open.position;
    pair.source
        .psql("INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 500) g")
        .unwrap();
    let transactions = pair.changes().await;
    proxy.fault(Direction::ToServer, Fault::CutAfter(200_000, Cut::Rst));
    open.writer.accept(batch(copies(&transactions), false).await).await.unwrap();
    let error = failed(open.writer.flush().await);
    assert_eq!(error.disposition, Disposition::Retry, "{}", shown(&error));
    let mut open = sink.open_stream(&pair.start("s1")).await.unwrap();
    assert_eq!(open.position, before);
    assert_eq!(values(&pair), "");
    open.writer.accept(batch(transactions, false).await).await.unwrap();
    open.writer.flush().await.unwrap();
    pair.assert_same("after the cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_was_taken_over_commits_nothing_more() {
    let mut pair = Pair::new("fence", TABLE, true).await;
    let mut open = pair.open("s1").await.unwrap();
    // A second instance is turned away while the first one lives.
    assert_eq!(failed(pair.open("s2").await).disposition, Disposition::Held);
    // The first one was stopped, its lock was lost, the second one put its epoch there.
    pair.target.psql("UPDATE tidemark.progress SET epoch = epoch + 1").unwrap();
    pair.source.psql("INSERT INTO t VALUES (1, 'a')").unwrap();
    let error = failed(pair.apply(&mut open.writer).await);
    assert_eq!(error.disposition, Disposition::Held, "{}", shown(&error));
    assert_eq!(values(&pair), "");
    assert_eq!(pair.stored_lsn(), Lsn::new(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_a_transaction_are_seen_only_with_the_last_one() {
    let mut pair = Pair::new("parts", TABLE, true).await;
    let mut open = pair.open("s1").await.unwrap();
    pair.source
        .psql("BEGIN; INSERT INTO t VALUES (1, 'a'); INSERT INTO t VALUES (2, 'b'); COMMIT")
        .unwrap();
    let mut first = pair.changes().await.remove(0);
    let rest =
        tidemark_model::Transaction { head: first.head, changes: first.changes.split_off(1) };
    let again = copies(std::slice::from_ref(&first));
    open.writer.accept(batch(vec![first], true).await).await.unwrap();
    // A part is not the whole: there is nothing to be durable yet.
    assert_eq!(failed(open.writer.flush().await).disposition, Disposition::Internal);
    assert_eq!(values(&pair), "");
    drop(open);
    pair.end_sessions();
    let mut open = pair.open("s2").await.unwrap();
    assert_eq!(open.position, Lsn::new(1));
    open.writer.accept(batch(again, true).await).await.unwrap();
    let end_lsn = rest.head.end_lsn;
    open.writer.accept(batch(vec![rest], false).await).await.unwrap();
    assert_eq!(open.writer.flush().await.unwrap().lsn(), end_lsn);
    assert_eq!(open.writer.counters().commits, 1);
    pair.assert_same("after the last part");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_applied_is_not_taken_again() {
    let mut pair = Pair::new("order", TABLE, true).await;
    let mut open = pair.open("s1").await.unwrap();
    pair.source.psql("INSERT INTO t VALUES (1, 'a')").unwrap();
    let transactions = pair.changes().await;
    open.writer.accept(batch(copies(&transactions), false).await).await.unwrap();
    open.writer.flush().await.unwrap();
    let error = failed(open.writer.accept(batch(transactions, false).await).await);
    assert_eq!(error.disposition, Disposition::Internal);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_on_the_target_is_tried_again() {
    let mut pair = Pair::new("deadlock", TABLE, true).await;
    let mut open = pair.open("s1").await.unwrap();
    pair.source.psql("INSERT INTO t SELECT g, 'a' FROM generate_series(1, 2) g").unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    pair.source
        .psql("UPDATE t SET v = 'b' WHERE id = 1; UPDATE t SET v = 'b' WHERE id = 2")
        .unwrap();
    let other = ConnectSpec::parse(&pair.target.url()).unwrap().connect().await.unwrap();
    // Whoever asks first notices: the one that is to give way is not this one.
    other
        .batch_execute("SET deadlock_timeout = '1h'; BEGIN; UPDATE public.t SET v = v WHERE id = 2")
        .await
        .unwrap();
    let transactions = pair.changes().await;
    let end_lsn = transactions.last().unwrap().head.end_lsn;
    open.writer.accept(batch(transactions, false).await).await.unwrap();
    let cluster = pair.target.cluster();
    let waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'tidemark_deadlock'";
    cluster.wait_for(pair.target.name(), waiting, "t").unwrap();
    other.batch_execute("UPDATE public.t SET v = v WHERE id = 1; COMMIT").await.unwrap();
    assert_eq!(open.writer.flush().await.unwrap().lsn(), end_lsn);
    assert_eq!(open.writer.counters().exact_order, 0);
    pair.assert_same("after the deadlock");
    assert!(cluster.log().contains("deadlock detected"), "there was no deadlock");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncate_empties_the_set_and_never_what_lies_beyond() {
    let schema = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a)";
    let mut pair = Pair::with_target(
        "truncate",
        schema,
        &format!("{schema}; CREATE TABLE reports (b int REFERENCES b)"),
        true,
    )
    .await;
    let mut open = pair.open("s1").await.unwrap();
    pair.source.psql("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 1)").unwrap();
    let before = pair.apply(&mut open.writer).await.unwrap();
    pair.target.psql("INSERT INTO reports VALUES (1)").unwrap();
    pair.source.psql("BEGIN; TRUNCATE a CASCADE; INSERT INTO a VALUES (7); COMMIT").unwrap();
    let transactions = pair.changes().await;
    open.writer.accept(batch(copies(&transactions), false).await).await.unwrap();
    let error = failed(open.writer.flush().await);
    assert_eq!(error.disposition, Disposition::Refused);
    assert!(shown(&error).contains("apply a truncate"), "{}", shown(&error));
    assert_eq!(pair.stored_lsn(), before);
    assert_eq!(pair.target.psql("SELECT count(*) FROM reports").unwrap().trim(), "1");
    drop(open);
    pair.end_sessions();
    pair.target.psql("DROP TABLE reports").unwrap();
    let mut open = pair.open("s2").await.unwrap();
    open.writer.accept(batch(transactions, false).await).await.unwrap();
    open.writer.flush().await.unwrap();
    pair.assert_same("after the truncate");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_not_the_sources_is_refused() {
    let pair = Pair::new("compare", TABLE, true).await;
    let start = pair.start("s1");
    let other = [
        tidemark_sink::StreamStart { system_identifier: 5, ..start.clone() },
        tidemark_sink::StreamStart { database: "other".to_owned(), ..start.clone() },
    ];
    for start in other {
        assert_eq!(failed(pair.sink().open_stream(&start).await).disposition, Disposition::Usage);
    }
    let sink = pair.sink();
    let later = tidemark_sink::StreamStart { timeline: 3, ..start.clone() };
    sink.open_stream(&later).await.unwrap().writer.close().await.unwrap();
    assert_eq!(failed(pair.sink().open_stream(&start).await).disposition, Disposition::Usage);
    assert_eq!(sink.stored().await.unwrap().unwrap().timeline, Some(3));
    pair.target.psql("UPDATE tidemark.progress SET phase = 'complete'").unwrap();
    assert_eq!(failed(pair.sink().open_stream(&later).await).disposition, Disposition::Usage);
    let unknown =
        PostgresSink::new(PostgresOptions { job: "unknown".to_owned(), ..pair.options() });
    assert!(unknown.stored().await.unwrap().is_none());
    assert_eq!(failed(unknown.open_stream(&later).await).disposition, Disposition::Usage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_an_older_version_is_read_and_goes_on() {
    let mut pair = Pair::new("older", TABLE, true).await;
    pair.target
        .psql("ALTER TABLE tidemark.progress DROP COLUMN epoch, DROP COLUMN source_timeline")
        .unwrap();
    let stored = pair.sink().stored().await.unwrap().unwrap();
    assert_eq!((stored.stage, stored.timeline), (StoredStage::Follow, None));
    let mut open = pair.open("s1").await.unwrap();
    pair.source.psql("INSERT INTO t VALUES (1, 'a')").unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    pair.assert_same("with a record of an older version");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_without_a_place_for_an_origin_is_told_before_anything_moves() {
    let cluster = tidemark_testkit::Cluster::builder();
    let setting = match tidemark_testkit::Version::from_env() >= tidemark_testkit::Version::V18 {
        true => "max_active_replication_origins",
        false => "max_replication_slots",
    };
    let cluster = cluster.setting(setting, "1").start().unwrap();
    let spec = ConnectSpec::parse(&cluster.url("postgres")).unwrap();
    let pair = Pair::new("places", TABLE, true).await;
    let sink = PostgresSink::new(PostgresOptions { spec, ..pair.options() });
    let found = || async {
        let found = sink.check(&[]).await.unwrap();
        found.into_iter().find(|finding| finding.code == "target-origins")
    };
    assert_eq!(found().await, None);
    let make = "SELECT pg_replication_origin_create('somebody')";
    cluster.psql("postgres", make).unwrap();
    assert_eq!(found().await, None, "one that was never used has no place");
    let used = "SELECT pg_replication_origin_advance('somebody', '0/1')";
    cluster.psql("postgres", used).unwrap();
    let finding = found().await.unwrap();
    assert_eq!(finding.severity, Severity::Blocking);
    assert!(finding.message.contains(setting), "{finding:?}");
    // Who may not look at the places is warned.
    cluster.psql("postgres", "CREATE ROLE reader LOGIN").unwrap();
    let spec = ConnectSpec::parse(&cluster.url_as("reader", "", "postgres")).unwrap();
    let sink = PostgresSink::new(PostgresOptions { spec, ..pair.options() });
    let found = sink.check(&[]).await.unwrap();
    let finding = found.iter().find(|finding| finding.code == "target-origins").unwrap();
    assert_eq!(finding.severity, Severity::Warning);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_rights_is_told_the_grants() {
    let mut pair = Pair::new("grants", TABLE, true).await;
    pair.target
        .psql(
            "CREATE ROLE applier LOGIN; ALTER SCHEMA tidemark OWNER TO applier; ALTER TABLE t OWNER TO applier; \
             ALTER TABLE tidemark.progress OWNER TO applier; ALTER TABLE tidemark.chunk OWNER TO applier; \
             ALTER TABLE tidemark.relation OWNER TO applier; ALTER TABLE tidemark.lane OWNER TO applier",
        )
        .unwrap();
    let database = pair.target.name();
    let url = pair.target.cluster().url_as("applier", "", database);
    let grant = |text: &str| pair.target.psql(text).unwrap();
    grant(&format!("GRANT CREATE ON DATABASE {database} TO applier"));
    let spec = ConnectSpec::parse(&url).unwrap();
    let open = || async {
        let sink = PostgresSink::new(PostgresOptions { spec: spec.clone(), ..pair.options() });
        let open = sink.open_stream(&pair.start("s1")).await;
        drop(sink);
        pair.end_sessions();
        open
    };
    let blocking = || async {
        let sink = PostgresSink::new(PostgresOptions { spec: spec.clone(), ..pair.options() });
        let mut found = sink.check(&pair.plans).await.unwrap();
        found.retain(|finding| finding.severity == Severity::Blocking);
        found.into_iter().map(|finding| finding.fix.unwrap()).collect::<Vec<_>>()
    };
    let error = failed(open().await);
    assert_eq!(error.disposition, Disposition::Refused);
    let hint = error.hint.unwrap();
    assert!(hint.contains("GRANT SET ON PARAMETER session_replication_role"), "{hint}");
    let fixes = blocking().await;
    assert!(fixes.iter().any(|fix| fix.contains("session_replication_role")), "{fixes:?}");
    let origins = fixes.iter().find(|fix| fix.contains("pg_replication_origin")).unwrap().clone();
    grant("GRANT SET ON PARAMETER session_replication_role TO applier");
    let error = failed(open().await);
    assert_eq!(error.disposition, Disposition::Refused);
    let hint = error.hint.unwrap();
    assert!(
        hint.contains("GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text)"),
        "{hint}"
    );
    // What `check` has said before is all that is needed.
    grant(&origins[origins.find("GRANT").unwrap()..]);
    assert_eq!(blocking().await, [""; 0]);
    let sink = PostgresSink::new(PostgresOptions { spec, ..pair.options() });
    let mut open = sink.open_stream(&pair.start("s1")).await.unwrap();
    pair.source.psql("INSERT INTO t VALUES (1, 'a')").unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    open.writer.close().await.unwrap();
    pair.assert_same("with the grants that were named");
    pair.target
        .psql(&format!(
            "REASSIGN OWNED BY applier TO postgres; DROP OWNED BY applier; \
        REVOKE ALL ON DATABASE {} FROM applier; DROP ROLE applier",
            pair.target.name()
        ))
        .unwrap();
}

/// Somebody on the target who keeps a table to themselves until dropped.
async fn keeper(pair: &Pair, table: &str) -> Client {
    let client = ConnectSpec::parse(&pair.target.url()).unwrap().connect().await.unwrap();
    client.batch_execute(&format!("BEGIN; LOCK TABLE public.{table}")).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_another_batch_waits_behind_is_durable_with_that_one() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)";
    let mut pair = Pair::new("awaited", schema, true).await;
    let mut open = pair.open("s1").await.unwrap();
    pair.source.psql("INSERT INTO t VALUES (0, 'known'); INSERT INTO u VALUES (0)").unwrap();
    let before = pair.apply(&mut open.writer).await.unwrap();
    pair.source.psql("INSERT INTO t VALUES (1, 'first')").unwrap();
    let first = pair.changes().await;
    pair.source.psql("INSERT INTO u VALUES (1)").unwrap();
    let second = pair.changes().await;
    let (first_end, second_end) =
        (first.last().unwrap().head.end_lsn, second.last().unwrap().head.end_lsn);
    let (keeps_t, keeps_u) = (keeper(&pair, "t").await, keeper(&pair, "u").await);
    open.writer.accept(batch(first, false).await).await.unwrap();
    let second = batch(second, false).await;
    // The first one ends only when the second one waits.
    let freed = async { keeps_t.batch_execute("COMMIT").await.unwrap() };
    let (accepted, ()) = futures::join!(open.writer.accept(second), freed);
    accepted.unwrap();
    let seen = *open.writer.positions().borrow();
    assert_eq!((seen.applied, seen.durable.lsn()), (first_end, before));
    keeps_u.batch_execute("COMMIT").await.unwrap();
    assert_eq!(open.writer.flush().await.unwrap().lsn(), second_end);
    pair.assert_same("both");
}
