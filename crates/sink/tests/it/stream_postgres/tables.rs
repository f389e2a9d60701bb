//! What particular tables and columns ask for.

use tidemark_model::{DataType, RelationName};
use tidemark_sink::postgres::{PostgresOptions, PostgresSink, Triggers};
use tidemark_sink::{Disposition, NewColumn, Sink, StoredStage};
use tidemark_testkit::shared;

use super::pair::{Pair, batch, copies};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_snapshot_that_continues_is_followed_from_its_position() {
    let pair = Pair::new("stage", "CREATE TABLE t (id int PRIMARY KEY)", true).await;
    let sink = pair.sink();
    let stored = sink.stored().await.unwrap().unwrap();
    assert_eq!((stored.stage, stored.run.as_str()), (StoredStage::Follow, "r1"));
    let mut open = sink.open_stream(&pair.start("s1")).await.unwrap();
    assert_eq!(open.position, stored.end_lsn);
    assert_eq!(open.columns[&RelationName::new("public", "t")], ["id"]);
    let further = tidemark_model::Lsn::new(stored.end_lsn.as_u64() + 100);
    assert_eq!(open.writer.advance(further).await.unwrap().lsn(), further);
    assert_eq!(open.writer.positions().borrow().durable.lsn(), further);
    assert_eq!(pair.stored_lsn(), further);
    assert_eq!(open.writer.close().await.unwrap().lsn(), further);
    // Given back: the next one has it at once.
    let open = pair.open("s2").await.unwrap();
    assert_eq!(open.position, further);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_differ_in_case_only_are_told_apart_as_the_target_does() {
    let schema = "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
        CREATE TABLE t (id text COLLATE ci PRIMARY KEY, v int)";
    let mut pair = Pair::new("collation", schema, true).await;
    let mut open = pair.open("s1").await.unwrap();
    for changes in [
        "INSERT INTO t VALUES ('A', 1), ('B', 2), ('C', 3)",
        "UPDATE t SET id = 'a' WHERE id = 'A'",
        "BEGIN; DELETE FROM t WHERE id = 'a'; INSERT INTO t VALUES ('A', 4); COMMIT",
        "BEGIN; UPDATE t SET id = 'x' WHERE id = 'A'; UPDATE t SET id = 'a' WHERE id = 'B'; UPDATE t SET id = 'B' WHERE id = 'x'; COMMIT",
        "BEGIN; UPDATE t SET id = 'c', v = 5 WHERE id = 'C'; UPDATE t SET id = 'C', v = 6 WHERE id = 'c'; COMMIT",
        "DELETE FROM t WHERE id = 'b'",
    ] {
        pair.source.psql(changes).unwrap();
        pair.apply(&mut open.writer).await.unwrap();
        pair.assert_same(changes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_with_many_forms_are_found() {
    let schema = "CREATE TABLE n (id numeric PRIMARY KEY, v int); CREATE TABLE c (id char(5) PRIMARY KEY, v varchar(3)); \
        CREATE TYPE mood AS ENUM ('sad', 'it''s'); CREATE TABLE e (id mood PRIMARY KEY, v mood[]); \
        CREATE DOMAIN pos AS int CHECK (VALUE > 0); CREATE TABLE d (id pos PRIMARY KEY, at timestamptz, b bytea, u uuid, r int4range)";
    for is_binary in [true, false] {
        let mut pair = Pair::new("forms", schema, is_binary).await;
        let mut open = pair.open("s1").await.unwrap();
        for changes in [
            "INSERT INTO n VALUES (1.0, 1), (2.50, 2), ('NaN', 3); INSERT INTO c VALUES ('a', 'b  '), ('b', NULL); \
             INSERT INTO d VALUES (1, 'infinity', '\\x00ff', gen_random_uuid(), '[1,2)'), (2, '0001-01-01 BC', '', NULL, 'empty')",
            "UPDATE n SET id = 1.00 WHERE id = 1; UPDATE n SET v = 9; UPDATE c SET v = id; UPDATE d SET b = b || b, r = NULL",
            "BEGIN; UPDATE n SET v = 10 WHERE id = 1; DELETE FROM n WHERE id = 'NaN'; DELETE FROM c WHERE id = 'b'; DELETE FROM d WHERE id = 2; COMMIT",
        ] {
            pair.source.psql(changes).unwrap();
            pair.apply(&mut open.writer).await.unwrap();
            pair.assert_same(changes);
        }
        if !is_binary {
            // Arrays of a user's type carry its OID in binary: such tables are streamed as text.
            pair.source
                .psql("INSERT INTO e VALUES ('sad', '{sad,it''s}'); UPDATE e SET id = 'it''s'")
                .unwrap();
            pair.apply(&mut open.writer).await.unwrap();
            pair.assert_same("enums");
        }
        assert_eq!(open.writer.counters().exact_order, 0, "binary: {is_binary}");
        drop(open);
        pair.end_sessions();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_come_in_another_order_are_left_out_and_are_added() {
    let mut pair = Pair::with_target(
        "columns",
        "CREATE TABLE t (id int PRIMARY KEY, a text, b int)",
        "CREATE TABLE t (b int, own int DEFAULT 7, a text, id int PRIMARY KEY)",
        true,
    )
    .await;
    let mut open = pair.open("s1").await.unwrap();
    pair.source
        .psql("INSERT INTO t VALUES (1, 'x', 2), (2, 'y', 3); UPDATE t SET b = 5 WHERE id = 1")
        .unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    let rows = "SELECT string_agg(format('%s %s %s %s', id, a, b, own), ',' ORDER BY id) FROM t";
    assert_eq!(pair.target.psql(rows).unwrap().trim(), "1 x 5 7,2 y 3 7");
    // A new column is known before the first change that has it.
    let name = RelationName::new("public", "t");
    let mut column = pair.plans[0].columns[1].clone();
    column.name = "c\"d".to_owned();
    column.data_type = DataType::builtin(1043, "varchar");
    column.type_name = "character varying(9)".to_owned();
    let columns = [NewColumn { column, default: Some("'it''s'::character varying".to_owned()) }];
    open.writer.add_columns(&name, &columns).await.unwrap();
    open.writer.add_columns(&name, &columns).await.unwrap();
    pair.source
        .psql("ALTER TABLE t ADD \"c\"\"d\" varchar(9) DEFAULT 'it''s'; INSERT INTO t VALUES (3, 'z', 4, 'new'); UPDATE t SET a = 'q' WHERE id = 1")
        .unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    let rows = "SELECT string_agg(format('%s %s', id, \"c\"\"d\"), ',' ORDER BY id) FROM t";
    assert_eq!(pair.target.psql(rows).unwrap().trim(), "1 it's,2 it's,3 new");
    // One that nobody announced is not dropped in silence.
    pair.source
        .psql("ALTER TABLE t ADD surprise int; INSERT INTO t VALUES (4, 'z', 4, 'new', 1)")
        .unwrap();
    let error = pair.apply(&mut open.writer).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Refused);
    assert!(error.to_string().contains("\"surprise\""), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_default_or_type_is_not_run() {
    let mut pair = Pair::new("hostile", "CREATE TABLE t (id int PRIMARY KEY, a text)", true).await;
    let name = RelationName::new("public", "t");
    let column = pair.plans[0].columns[1].clone();
    let mut odd = column.clone();
    odd.type_name = "text; DROP TABLE t".to_owned();
    for new in [
        NewColumn {
            column: column.clone(),
            default: Some("(SELECT 'x' FROM pg_sleep(100))".to_owned()),
        },
        NewColumn { column, default: Some("'x'::text; DROP TABLE t".to_owned()) },
        NewColumn { column: odd, default: None },
    ] {
        let mut open = pair.open("s1").await.unwrap();
        let error = open.writer.add_columns(&name, &[new]).await.unwrap_err();
        assert_eq!(error.disposition, Disposition::Refused, "{error}");
        drop(open);
        pair.end_sessions();
    }
    let mut open = pair.open("s1").await.unwrap();
    pair.source.psql("INSERT INTO t VALUES (1, 'a')").unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    pair.assert_same("after hostile columns");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn triggers_fire_only_where_that_was_asked_for() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let with_trigger = format!(
        "{schema}; CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.v := NEW.v || '!'; RETURN NEW; END$$; \
         CREATE TRIGGER mark BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION mark()"
    );
    for (triggers, expected) in [(Triggers::Replica, "a"), (Triggers::AsIs, "a!")] {
        let mut pair = Pair::with_target("triggers", schema, &with_trigger, true).await;
        let sink = PostgresSink::new(PostgresOptions { triggers, ..pair.options() });
        let mut open = sink.open_stream(&pair.start("s1")).await.unwrap();
        pair.source.psql("INSERT INTO t VALUES (1, 'a')").unwrap();
        pair.apply(&mut open.writer).await.unwrap();
        assert_eq!(pair.target.psql("SELECT v FROM t").unwrap().trim(), expected);
        drop((open, sink));
        pair.end_sessions();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_on_the_target_carry_our_origin() {
    let mut pair = Pair::new("origin", "CREATE TABLE t (id int PRIMARY KEY)", true).await;
    pair.target
        .psql("CREATE PUBLICATION p FOR ALL TABLES; SELECT pg_create_logical_replication_slot('back', 'pgoutput')")
        .unwrap();
    let mut open = pair.open("s1").await.unwrap();
    pair.source.psql("INSERT INTO t VALUES (1)").unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    let origins = pair
        .target
        .psql(
            "SELECT count(*) FROM pg_logical_slot_get_binary_changes('back', NULL, NULL, 'proto_version', '1', 'publication_names', 'p') \
             WHERE position('tidemark_origin'::bytea IN data) > 0 AND substr(data, 1, 1) = 'O'",
        )
        .unwrap();
    pair.target.psql("SELECT pg_drop_replication_slot('back')").unwrap();
    assert_eq!(origins.trim(), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_jobs_name_in_two_databases_of_a_cluster_is_two_origins() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY)";
    let mut pair = Pair::new("twin", schema, true).await;
    let mut one = pair.open("s1").await.unwrap();
    let first = std::mem::replace(&mut pair.target, shared().unwrap());
    pair.target.psql(schema).unwrap();
    pair.snapshot("r2").await;
    let mut other = pair.open("s2").await.unwrap();
    pair.source.psql("INSERT INTO t VALUES (1)").unwrap();
    let transactions = pair.changes().await;
    for open in [&mut one, &mut other] {
        open.writer.accept(batch(copies(&transactions), false).await).await.unwrap();
        open.writer.flush().await.unwrap();
    }
    pair.assert_same("the second database");
    assert_eq!(first.psql("SELECT id FROM t").unwrap().trim(), "1");
    let origins = "SELECT count(*) FROM pg_replication_origin WHERE roname IN (SELECT 'tidemark_twin@' || oid FROM pg_database)";
    assert_eq!(first.psql(origins).unwrap().trim(), "2");
    // So that it goes with the pair.
    drop((one, other));
    pair.end_sessions();
    pair.target = first;
    pair.end_sessions();
    let drop_all = "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname LIKE 'tidemark\\_twin@%'";
    pair.target.psql(drop_all).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_row_is_written_once_per_batch() {
    let mut pair = Pair::new("hot", "CREATE TABLE t (id int PRIMARY KEY, v int)", true).await;
    let mut open = pair.open("s1").await.unwrap();
    pair.source.psql("INSERT INTO t VALUES (1, 0)").unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    pair.source
        .psql("DO $$BEGIN FOR i IN 1..3000 LOOP UPDATE t SET v = v + 1; END LOOP; END$$")
        .unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    pair.assert_same("a hot row");
    assert_eq!(open.writer.counters().changes, 3001);
    // The row's next version is the third: one insert, one update.
    pair.target.psql("UPDATE t SET v = v").unwrap();
    assert_eq!(pair.target.psql("SELECT ctid FROM t").unwrap().trim(), "(0,3)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_insert_of_a_row_whose_toast_was_not_sent_is_refused() {
    let mut pair = Pair::new("unsent", "CREATE TABLE t (id int PRIMARY KEY, big text)", true).await;
    let mut open = pair.open("s1").await.unwrap();
    pair.source
        .psql("ALTER TABLE t ALTER big SET STORAGE EXTERNAL; INSERT INTO t VALUES (1, repeat('x', 9000))")
        .unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    pair.source.psql("UPDATE t SET id = 2").unwrap();
    let mut transactions = pair.changes().await;
    // As a row filter would have made it.
    let change = &mut transactions[0].changes[0];
    if let tidemark_model::Operation::Update { new, .. } = change.operation.clone() {
        change.operation = tidemark_model::Operation::Insert { new };
    }
    open.writer.accept(batch(transactions, false).await).await.unwrap();
    let error = open.writer.flush().await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Refused);
    assert!(error.to_string().contains("\"big\""), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_a_key_is_not_read_once_for_each_row() {
    let schema = "CREATE TABLE t (a int, b text); ALTER TABLE t REPLICA IDENTITY FULL; \
        INSERT INTO t SELECT g / 2, 'b' FROM generate_series(1, 40000) g";
    let mut pair = Pair::new("keyless", schema, true).await;
    let mut open = pair.open("s1").await.unwrap();
    pair.source
        .psql("BEGIN; DELETE FROM t WHERE a < 5000 AND a % 3 = 0; UPDATE t SET b = NULL WHERE a > 15000; COMMIT")
        .unwrap();
    let started = std::time::Instant::now();
    pair.apply(&mut open.writer).await.unwrap();
    // 13,000 readings of 40,000 rows would take minutes.
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    assert_eq!(open.writer.counters().exact_order, 0);
    pair.assert_same("a table without a key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_looked_empty_when_it_was_analysed_is_not_read_once_for_each_row() {
    let schema = "CREATE TABLE t (id int, k text COLLATE \"C\", b text, PRIMARY KEY (id, k)); \
        ALTER TABLE t SET (autovacuum_enabled = off)";
    let mut pair = Pair::new("analysed", schema, true).await;
    let insert = "INSERT INTO t SELECT g, 'k', 'b' FROM generate_series(1, 20000) g";
    // What an attempt leaves that was rolled back: a file, and no row that anybody sees.
    pair.target.psql(&format!("BEGIN; {insert}; ROLLBACK; ANALYZE t")).unwrap();
    let mut open = pair.open("s1").await.unwrap();
    pair.source.psql(insert).unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    pair.source
        .psql("BEGIN; DELETE FROM t WHERE id % 10 = 0; UPDATE t SET b = 'c' WHERE id % 10 = 1; UPDATE t SET id = -id WHERE id % 10 = 2; COMMIT")
        .unwrap();
    pair.apply(&mut open.writer).await.unwrap();
    pair.assert_same("a table that was analysed while it looked empty");
    drop(open);
    let read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE relname = 't'";
    let read = loop {
        let read: u64 = pair.target.psql(read).unwrap().trim().parse().unwrap();
        if read >= 6000 {
            break read;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(read < 20_000, "{read} entries of the index were read for 6,000 rows");
}
