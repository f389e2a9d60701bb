//! Several lanes: what stands between two of their commits, and what must not be spread.

use std::collections::HashSet;
use std::time::Duration;

use tidemark_model::{Lsn, Transaction};
use tidemark_sink::postgres::{PostgresOptions, PostgresSink, Triggers};
use tidemark_sink::{Disposition, OpenStream, Sink, StreamWriter};
use tidemark_wire::{Client, ConnectSpec};

use super::pair::{Pair, batch, copies};

const SCHEMA: &str = "
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE log (at int, line text);
CREATE TABLE bag (a int, b text); ALTER TABLE bag REPLICA IDENTITY FULL;
CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE);
";

/// A COMMIT of the lane that has row `id` waits for the advisory lock 4711.
fn hold(id: usize) -> String {
    format!(
        "CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS \
           'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER hold AFTER UPDATE ON t DEFERRABLE INITIALLY DEFERRED \
           FOR EACH ROW WHEN (NEW.id = {id}) EXECUTE FUNCTION hold(); \
         ALTER TABLE t ENABLE ALWAYS TRIGGER hold"
    )
}

async fn open(pair: &Pair, lanes: usize) -> OpenStream {
    pair.laned(lanes).open_stream(&pair.start("r1")).await.unwrap()
}

async fn client(pair: &Pair) -> Client {
    let client = ConnectSpec::parse(&pair.target.url()).unwrap().connect().await.unwrap();
    client.batch_execute("SET search_path = public").await.unwrap();
    client
}

/// Asks until the answer is true.
async fn wait_for(client: &Client, question: &str) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !client.query_one(question, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(tokio::time::Instant::now() < deadline, "it never came: {question}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lanes that are beyond the job's position.
fn ahead(pair: &Pair) -> String {
    let lanes = "SELECT coalesce(string_agg(lane::text, ',' ORDER BY lane), '') FROM tidemark.lane l, tidemark.progress p WHERE l.end_lsn > p.end_lsn";
    pair.target.psql(lanes).unwrap().trim().to_owned()
}

/// Transactions of every kind that can be spread.
fn script(round: usize) -> String {
    let mut script = String::new();
    for part in 0..10 {
        let from = round * 1000 + part * 10;
        script.push_str(&format!(
            "BEGIN; INSERT INTO t SELECT g, 'new' FROM generate_series({from}, {from} + 9) g; \
             INSERT INTO log SELECT g, 'l' FROM generate_series(1, 3) g; \
             UPDATE t SET v = v || '.{round}.{part}' WHERE id % 10 = {part}; \
             DELETE FROM t WHERE id = {from} + 3; \
             INSERT INTO bag SELECT g % 2, 'b' FROM generate_series(1, 4) g; \
             DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = 1 LIMIT 1); \
             INSERT INTO uniq VALUES ({from}, {from}), ({from} + 1, {from} + 1); \
             UPDATE uniq SET u = -1 WHERE id = {from}; UPDATE uniq SET u = {from} WHERE id = {from} + 1; \
             UPDATE uniq SET u = {from} + 1 WHERE id = {from}; COMMIT;\n"
        ));
    }
    script
}

async fn send(writer: &mut Box<dyn StreamWriter>, transactions: &[Transaction], size: usize) {
    for some in transactions.chunks(size) {
        writer.accept(batch(copies(some), false).await).await.unwrap();
    }
    writer.flush().await.unwrap();
}

/// One lane's COMMIT is held, the others commit as far as they may, then the held one dies. Says which lanes were ahead.
async fn cut_between_commits(
    pair: &Pair,
    writer: &mut Box<dyn StreamWriter>,
    all: &[Transaction],
    id: usize,
) -> String {
    let holder = client(pair).await;
    holder.query("SELECT pg_advisory_lock(4711)", &[]).await.unwrap();
    holder.batch_execute(&hold(id)).await.unwrap();
    writer.accept(batch(copies(all), false).await).await.unwrap();
    let waits = "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted";
    wait_for(&holder, waits).await;
    // The first lane's COMMIT comes when the others are through, another one's beside them.
    wait_for(
        &holder,
        "SELECT count(*) > 0 FROM tidemark.lane l, tidemark.progress p WHERE l.end_lsn > p.end_lsn",
    )
    .await;
    holder
        .query("SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted", &[])
        .await
        .unwrap();
    let error = writer.flush().await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Retry, "{error}");
    holder.batch_execute("DROP TRIGGER hold ON t").await.unwrap();
    ahead(pair)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_some_lanes_have_committed_is_neither_lost_nor_doubled_whoever_goes_on() {
    let mut pair = Pair::new("lanes-cut", SCHEMA, true).await;
    let mut seen = HashSet::new();
    let mut open_stream = open(&pair, 3).await;
    pair.source.cluster().run_script(pair.source.name(), &script(0)).unwrap();
    pair.apply(&mut open_stream.writer).await.unwrap();
    for round in 1..=40 {
        pair.source.cluster().run_script(pair.source.name(), &script(round)).unwrap();
        let before = pair.stored_lsn();
        let all = pair.changes().await;
        // A row that was there before: each of them is updated.
        let id = match round * 7 % 100 {
            gone if gone % 10 == 3 => gone + 1,
            id => id,
        };
        let lanes = cut_between_commits(&pair, &mut open_stream.writer, &all, id).await;
        eprintln!("round {round}: ahead are {lanes}");
        assert_eq!(pair.stored_lsn(), before, "the job's position waits for every lane");
        assert!(["1,2", "1", "2"].contains(&lanes.as_str()), "{lanes}");
        drop(open_stream);
        pair.end_sessions();
        // With any number of lanes, batches cut in any way, and once more cut short.
        let next = [3, 1, 2, 5, 3][round % 5];
        open_stream = open(&pair, next).await;
        assert_eq!(open_stream.position, before);
        let size = [1, 100, 3, 4, 7][round % 5];
        let half = if round % 2 == 0 { all.len() / 2 } else { 0 };
        send(&mut open_stream.writer, &all[..half], size).await;
        if half > 0 {
            drop(open_stream);
            pair.end_sessions();
            open_stream = open(&pair, next).await;
            assert_eq!(open_stream.position, all[half - 1].head.end_lsn);
        }
        send(&mut open_stream.writer, &all[half..], size).await;
        pair.assert_same(&format!("round {round}, {lanes} were ahead"));
        seen.insert(lanes);
        drop(open_stream);
        pair.end_sessions();
        open_stream = open(&pair, 3).await;
        if ["1,2", "1", "2"].iter().all(|lanes| seen.contains(*lanes)) && round >= 5 {
            return;
        }
    }
    panic!("not every lane was cut: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_that_stood_apart_are_used_again_once_they_are_together() {
    let mut pair = Pair::new("lanes-again", SCHEMA, false).await;
    let mut stream = open(&pair, 3).await;
    pair.source.cluster().run_script(pair.source.name(), &script(0)).unwrap();
    pair.apply(&mut stream.writer).await.unwrap();
    pair.source.cluster().run_script(pair.source.name(), &script(1)).unwrap();
    let all = pair.changes().await;
    cut_between_commits(&pair, &mut stream.writer, &all, 5).await;
    drop(stream);
    pair.end_sessions();
    // What decides how rows are spread has changed meanwhile; what was begun is ended as it was begun.
    pair.target.psql("ALTER TABLE t ADD UNIQUE (v, id)").unwrap();
    let mut stream = open(&pair, 2).await;
    send(&mut stream.writer, &all, 3).await;
    assert_eq!(stream.writer.counters().in_lanes, 0);
    let rule = "SELECT lanes FROM tidemark.relation WHERE relation_name = 't'";
    assert_eq!(
        pair.target.psql(rule).unwrap().trim(),
        r#"{"key":[{"name":"id","class":"integer"}]}"#
    );
    pair.source.cluster().run_script(pair.source.name(), &script(2)).unwrap();
    let more = pair.changes().await;
    send(&mut stream.writer, &more, 100).await;
    assert_eq!(stream.writer.counters().in_lanes, 1);
    assert_eq!(pair.target.psql(rule).unwrap().trim(), "\"whole\"");
    assert_eq!(pair.target.psql("SELECT count(*) FROM tidemark.lane").unwrap().trim(), "1");
    pair.assert_same("after the lanes were used again");
    stream.writer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_spread_is_applied_by_one_lane_at_once() {
    let schema = format!(
        "{SCHEMA} CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES t); \
         CREATE TABLE ranges (id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&))"
    );
    let mut pair = Pair::new("lanes-alone", &schema, true).await;
    let mut stream = open(&pair, 4).await;
    pair.source
        .psql("INSERT INTO t SELECT g, 'a' FROM generate_series(1, 40) g; INSERT INTO child SELECT g, g FROM generate_series(1, 40) g; INSERT INTO ranges SELECT g, int4range(g, g + 1) FROM generate_series(1, 40) g")
        .unwrap();
    pair.apply(&mut stream.writer).await.unwrap();
    let counters = stream.writer.counters();
    assert_eq!((counters.in_lanes, counters.commits), (1, 1));
    let mut alone = 0;
    for (statement, goes_alone) in [
        ("TRUNCATE log", true),
        ("DELETE FROM child WHERE id > 20; UPDATE t SET id = id + 100 WHERE id > 20", true),
        ("DELETE FROM child WHERE id > 10; DELETE FROM t WHERE id > 100", false),
        // Neither a parent and its child, nor rows under an exclusion constraint or a second key, get in each other's way.
        (
            "INSERT INTO t SELECT g, 'p' FROM generate_series(201, 240) g; INSERT INTO child SELECT g, g FROM generate_series(201, 240) g",
            false,
        ),
        (
            "UPDATE ranges SET r = int4range(lower(r) - 100, upper(r) - 100); UPDATE t SET v = 'b'",
            false,
        ),
        ("INSERT INTO uniq SELECT g, g FROM generate_series(1, 9) g; UPDATE t SET v = 'c'", false),
        (
            "DELETE FROM uniq WHERE id = 1; UPDATE uniq SET u = 1 WHERE id = 2; UPDATE t SET v = 'd'",
            false,
        ),
        // All of it is one lane's anyway.
        ("INSERT INTO bag SELECT 1, 'x' FROM generate_series(1, 5)", true),
    ] {
        pair.source.psql(statement).unwrap();
        let before = stream.writer.counters().in_lanes;
        pair.apply(&mut stream.writer).await.unwrap();
        pair.assert_same(statement);
        let is_alone = stream.writer.counters().in_lanes == before;
        assert_eq!(is_alone, goes_alone, "{statement}");
        alone += u32::from(is_alone);
    }
    assert_eq!(alone, 3);
    stream.writer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_of_a_run_that_was_taken_over_commits_nothing_more() {
    for table in ["lane", "progress"] {
        let mut pair = Pair::new("lanes-fence", SCHEMA, true).await;
        let mut stream = open(&pair, 3).await;
        pair.source.psql("INSERT INTO t SELECT g, 'a' FROM generate_series(1, 30) g").unwrap();
        pair.apply(&mut stream.writer).await.unwrap();
        let before = pair.stored_lsn();
        pair.target.psql(&format!("UPDATE tidemark.{table} SET epoch = epoch + 1")).unwrap();
        pair.source.psql("UPDATE t SET v = 'b'").unwrap();
        let error = pair.apply(&mut stream.writer).await.unwrap_err();
        assert_eq!(error.disposition, Disposition::Held, "{table}: {error}");
        drop(stream);
        pair.end_sessions();
        assert_eq!(pair.target.psql("SELECT count(*) FROM t WHERE v = 'b'").unwrap().trim(), "0");
        assert_eq!((pair.stored_lsn(), ahead(&pair)), (before, String::new()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_waits_for_another_session_takes_all_lanes_back() {
    let mut pair = Pair::new("lanes-wait", SCHEMA, true).await;
    let mut stream = open(&pair, 3).await;
    pair.source.psql("INSERT INTO t SELECT g, 'a' FROM generate_series(1, 30) g").unwrap();
    pair.apply(&mut stream.writer).await.unwrap();
    // Has the row of one lane and waits for those of the others: no server sees that circle.
    let other = client(&pair).await;
    other.batch_execute("BEGIN; UPDATE t SET v = v WHERE id = 1").await.unwrap();
    pair.source.psql("UPDATE t SET v = 'b'").unwrap();
    let all = pair.changes().await;
    stream.writer.accept(batch(copies(&all), false).await).await.unwrap();
    let watcher = client(&pair).await;
    wait_for(&watcher, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted").await;
    other.batch_execute("SET lock_timeout = '20s'; UPDATE t SET v = v; COMMIT").await.unwrap();
    stream.writer.flush().await.unwrap();
    pair.assert_same("after the other session was through");
    assert_eq!(stream.writer.counters().in_lanes, 1, "the batch was taken back");
    stream.writer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_lanes_cannot_apply_is_named_by_the_one_that_tries_it_alone() {
    let refusing = SCHEMA.replace("v text)", "v text CHECK (v <> 'secret4711'))");
    let mut pair = Pair::with_target("lanes-poison", SCHEMA, &refusing, true).await;
    let mut stream = open(&pair, 3).await;
    let before = pair.stored_lsn();
    pair.source
        .psql("INSERT INTO t SELECT g, CASE g WHEN 17 THEN 'secret4711' ELSE 'a' END FROM generate_series(1, 30) g")
        .unwrap();
    let error = pair.apply(&mut stream.writer).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Refused);
    assert!(error.to_string().contains("insert") && !error.to_string().contains("4711"), "{error}");
    drop(stream);
    pair.end_sessions();
    assert_eq!(pair.target.psql("SELECT count(*) FROM t").unwrap().trim(), "0");
    assert_eq!((pair.stored_lsn(), ahead(&pair)), (before, String::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn triggers_that_fire_all_the_same_have_their_tables_in_the_first_lane() {
    let mut pair = Pair::new("lanes-triggers", SCHEMA, true).await;
    pair.target
        .psql("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
               CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f(); ALTER TABLE t ENABLE ALWAYS TRIGGER f")
        .unwrap();
    let stream = open(&pair, 2).await;
    let rules = "SELECT string_agg(relation_name || ' ' || lanes, ', ' ORDER BY relation_name) FROM (SELECT * FROM tidemark.relation ORDER BY relation_name) r";
    assert_eq!(
        pair.target.psql(rules).unwrap().trim(),
        r#"bag "whole", log "whole", t "first", uniq "whole""#
    );
    drop(stream);
    pair.end_sessions();
    // Where they all fire, lanes are refused.
    let options = PostgresOptions { triggers: Triggers::AsIs, lanes: 2, ..pair.options() };
    let refused = PostgresSink::new(options).open_stream(&pair.start("r1")).await;
    let Err(error) = refused else { panic!("it went well") };
    assert_eq!(error.disposition, Disposition::Usage);
    assert!(error.hint.unwrap().contains("stream.lanes = 1"));
    let _ = pair.changes().await;
    assert_eq!(pair.stored_lsn(), Lsn::new(1));
}

/// The lane that has its beginning would commit it together with a part of its end only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_transaction_that_came_in_parts_is_applied_where_its_beginning_is() {
    let mut pair = Pair::new("lanes-parts", SCHEMA, true).await;
    let mut stream = open(&pair, 4).await;
    pair.source.psql("INSERT INTO t SELECT g, 'a' FROM generate_series(1, 600) g").unwrap();
    let mut whole = pair.changes().await;
    let head = whole[0].head;
    let rest = whole[0].changes.split_off(200);
    stream.writer.accept(batch(whole, true).await).await.unwrap();
    let rest = vec![Transaction { head, changes: rest }];
    stream.writer.accept(batch(rest, false).await).await.unwrap();
    assert_eq!(stream.writer.flush().await.unwrap().lsn(), head.end_lsn);
    assert_eq!((ahead(&pair).as_str(), stream.writer.counters().in_lanes), ("", 0));
    for sql in ["UPDATE t SET v = 'b'", "DELETE FROM t WHERE id % 3 = 0"] {
        pair.source.psql(sql).unwrap();
        pair.apply(&mut stream.writer).await.unwrap();
        pair.assert_same(sql);
    }
    assert_eq!(stream.writer.counters().in_lanes, 2);
    stream.writer.close().await.unwrap();
}
