//! What the stream makes of a lake: rows, commits, positions.

use tidemark_model::{Cell, OldRow, RelationName, ReplicaIdentity, TablePlan};
use tidemark_sink::{Disposition, NewColumn, StoredStage};

use super::lake::{LocalLake, ObjectLake};
use super::support::{
    Row, batch, change_batches, changes, commits, debris, delete, insert, key, lsn, open, relation,
    row, row_without_body, send, snapshot, snapshot_with, stream_start, transaction, truncate,
    tuple, update,
};
use crate::conformance::{self, Target, column, plan, start};

fn orders() -> TablePlan {
    plan(101, &RelationName::new("public", "orders"))
}

fn items() -> TablePlan {
    plan(102, &RelationName::new("public", "Items"))
}

/// `(id int8, body text)` without a key, with REPLICA IDENTITY FULL.
pub(super) fn log() -> TablePlan {
    let mut plan = plan(103, &RelationName::new("public", "log"));
    plan.relation.keys.clear();
    plan.relation.replica_identity = ReplicaIdentity::Full;
    for column in plan.columns.iter_mut().chain(&mut plan.relation.columns) {
        column.key_position = None;
    }
    plan
}

fn full(id: i64, body: &str) -> OldRow {
    OldRow::Full(row(id, body))
}

/// The row that a change file must hold.
fn expected(op: &str, (end, seq): (u64, i64), id: i64, body: Option<&str>) -> Row {
    Row {
        op: op.to_owned(),
        end,
        seq,
        xid: 1000 + end,
        old_key: None,
        unchanged: Vec::new(),
        id: Some(id),
        body: body.map(str::to_owned),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_of_a_table_with_a_key_is_a_row() {
    let lake = LocalLake::new();
    let plans = [orders(), items()];
    snapshot(&*lake.sink(), "r1", &plans).await;
    let mut opened = open(&lake, "r1", &plans).await.unwrap();
    assert_eq!(opened.position, lsn(0));
    let (orders, items) = (relation(&plans[0]), relation(&plans[1]));
    let writer = &mut opened.writer;
    let first = vec![
        insert(&orders, row(1, "one")),
        insert(&items, row(7, "seven")),
        update(&orders, None, row(1, "uno")),
        update(&orders, Some(key(1)), row_without_body(2)),
        update(&orders, Some(key(2)), row(2, "due")),
    ];
    send(writer, vec![transaction(10, first)]).await.unwrap();
    let second = vec![delete(&orders, key(2)), truncate(&items, &[&orders])];
    send(writer, vec![transaction(20, second), transaction(30, Vec::new())]).await.unwrap();
    assert_eq!(writer.flush().await.unwrap().lsn(), lsn(30));

    let files = lake.files();
    let moved = Row {
        old_key: Some(1),
        unchanged: vec!["body".to_owned()],
        ..expected("u", (10, 3), 2, None)
    };
    let gone = Row { old_key: Some(2), ..expected("d", (20, 0), 2, None) };
    let emptied = |seq| Row { id: None, ..expected("t", (20, seq), 0, None) };
    assert_eq!(
        changes(&files, &plans[0]),
        [
            expected("i", (10, 0), 1, Some("one")),
            expected("u", (10, 2), 1, Some("uno")),
            moved,
            expected("u", (10, 4), 2, Some("due")),
            gone,
            emptied(2),
        ]
    );
    assert_eq!(changes(&files, &plans[1]), [expected("i", (10, 1), 7, Some("seven")), emptied(1)]);
    let commits = commits(&files);
    let kinds: Vec<_> = commits.iter().map(|commit| commit.kind.as_str()).collect();
    assert_eq!(kinds, ["snapshot", "position", "changes"]);
    assert!(commits[0].continues && commits[2].source.timeline == Some(1));
    assert_eq!(commits[2].tables[0].key, ["id"]);
    assert_eq!(debris(&files), [""; 0]);
    let counters = opened.writer.counters();
    assert_eq!((counters.transactions, counters.changes, counters.commits), (3, 7, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_of_a_table_without_a_key_is_two_rows_with_all_values() {
    let lake = LocalLake::new();
    let plans = [log(), orders()];
    snapshot(&*lake.sink(), "r1", &plans).await;
    let mut opened = open(&lake, "r1", &plans).await.unwrap();
    let (log, orders) = (relation(&plans[0]), relation(&plans[1]));
    let work = vec![
        update(&log, Some(full(1, "one")), row_without_body(2)),
        insert(&orders, row(5, "five")),
        delete(&log, full(2, "one")),
    ];
    send(&mut opened.writer, vec![transaction(10, work)]).await.unwrap();
    opened.writer.close().await.unwrap();
    let files = lake.files();
    assert_eq!(
        changes(&files, &plans[0]),
        [
            expected("d", (10, 0), 1, Some("one")),
            expected("i", (10, 1), 2, Some("one")),
            expected("d", (10, 3), 2, Some("one")),
        ]
    );
    assert_eq!(changes(&files, &plans[1]), [expected("i", (10, 2), 5, Some("five"))]);
    assert!(change_batches(&files, &plans[0])[0].column_by_name("_old_key").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_old_row_fills_what_was_not_sent_and_tells_a_changed_key() {
    let lake = LocalLake::new();
    let mut plan = orders();
    plan.relation.replica_identity = ReplicaIdentity::Full;
    let plans = [plan];
    snapshot(&*lake.sink(), "r1", &plans).await;
    let mut opened = open(&lake, "r1", &plans).await.unwrap();
    let orders = relation(&plans[0]);
    let work = vec![
        update(&orders, Some(full(1, "kept")), row_without_body(1)),
        update(&orders, Some(full(1, "kept")), row_without_body(3)),
        delete(&orders, full(3, "kept")),
    ];
    send(&mut opened.writer, vec![transaction(10, work)]).await.unwrap();
    opened.writer.flush().await.unwrap();
    let moved = Row { old_key: Some(1), ..expected("u", (10, 1), 3, Some("kept")) };
    let gone = Row { old_key: Some(3), ..expected("d", (10, 2), 3, Some("kept")) };
    let expected = [expected("u", (10, 0), 1, Some("kept")), moved, gone];
    assert_eq!(changes(&lake.files(), &plans[0]), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_in_parts_is_numbered_through_and_committed_once() {
    let lake = LocalLake::new();
    let plans = [orders()];
    snapshot(&*lake.sink(), "r1", &plans).await;
    let mut opened = open(&lake, "r1", &plans).await.unwrap();
    let orders = relation(&plans[0]);
    let writer = &mut opened.writer;
    for part in 0..4 {
        let work = (part * 100..part * 100 + 100).map(|id| insert(&orders, row(id, "x")));
        let part = batch(vec![transaction(10, work.collect())], part < 3);
        let is_open = part.continues;
        writer.accept(part).await.unwrap();
        if is_open {
            assert_eq!(commits(&lake.files()).len(), 2, "a part is never committed");
        }
    }
    send(writer, vec![transaction(20, vec![insert(&orders, row(1000, "y"))])]).await.unwrap();
    writer.flush().await.unwrap();
    let rows = changes(&lake.files(), &plans[0]);
    let numbers: Vec<_> = rows.iter().map(|row| (row.end, row.seq)).collect();
    let mut expected: Vec<_> = (0..400).map(|seq| (10, seq)).collect();
    expected.push((20, 0));
    assert_eq!(numbers, expected);
    assert_eq!(commits(&lake.files()).len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_follow_is_refused_and_the_writer_is_dead() {
    let plans = [orders()];
    let orders = relation(&plans[0]);
    let one = |end| transaction(end, vec![insert(&orders, row(1, "x"))]);
    let wrong: [Vec<_>; 4] = [
        vec![batch(vec![one(10)], false), batch(vec![one(10)], false)],
        vec![batch(vec![one(20), one(10)], false)],
        vec![batch(vec![one(10)], true), batch(vec![one(20)], false)],
        vec![batch(Vec::new(), false)],
    ];
    for batches in wrong {
        let lake = LocalLake::new();
        snapshot(&*lake.sink(), "r1", &plans).await;
        let mut opened = open(&lake, "r1", &plans).await.unwrap();
        let mut outcome = Ok(());
        for batch in batches {
            outcome = opened.writer.accept(batch).await;
        }
        assert_eq!(outcome.unwrap_err().disposition, Disposition::Internal);
        assert!(send(&mut opened.writer, vec![one(90)]).await.is_err());
        assert!(opened.writer.flush().await.is_err());
        assert_eq!(commits(&lake.files()).len(), 2);
    }
    let lake = LocalLake::new();
    snapshot(&*lake.sink(), "r1", &plans).await;
    let mut opened = open(&lake, "r1", &plans).await.unwrap();
    opened.writer.accept(batch(vec![one(10)], true)).await.unwrap();
    assert!(opened.writer.flush().await.is_err(), "a part cannot be made durable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_position_moves_with_commits_and_by_itself() {
    let lake = LocalLake::new();
    let plans = [orders()];
    let sink = lake.sink();
    assert_eq!(sink.stored().await.unwrap(), None);
    let begun = tidemark_sink::SnapshotStart { continues: true, ..start("r1", &plans) };
    sink.prepare(&begun).await.unwrap();
    let stored = sink.stored().await.unwrap().unwrap();
    assert_eq!((stored.stage, stored.end_lsn), (StoredStage::Snapshot, lsn(0)));
    assert_eq!(stored.system_identifier, "7350000000000000001");
    sink.table_loaded(&plans[0].relation.name).await.unwrap();
    sink.finish(&conformance::summary(&[(&plans[0], 0)])).await.unwrap();
    let stored = sink.stored().await.unwrap().unwrap();
    assert_eq!((stored.stage, stored.end_lsn), (StoredStage::Follow, lsn(0)));

    let mut opened = open(&lake, "r2", &plans).await.unwrap();
    let positions = opened.writer.positions();
    let orders = relation(&plans[0]);
    let work = vec![transaction(10, vec![insert(&orders, row(1, "x"))])];
    send(&mut opened.writer, work).await.unwrap();
    assert_eq!(positions.borrow().applied, lsn(0), "what is not committed is not applied");
    assert_eq!(opened.writer.advance(lsn(15)).await.unwrap().lsn(), lsn(15));
    assert_eq!(positions.borrow().durable.lsn(), lsn(15));
    assert_eq!(opened.writer.advance(lsn(5)).await.unwrap().lsn(), lsn(15));
    assert_eq!(opened.writer.advance(lsn(99)).await.unwrap().lsn(), lsn(99));
    assert_eq!(opened.writer.flush().await.unwrap().lsn(), lsn(99));
    let stored = lake.sink().stored().await.unwrap().unwrap();
    assert_eq!((stored.run.as_str(), stored.end_lsn), ("r2", lsn(99)));
    assert_eq!(stored.timeline, Some(1));
    let kinds: Vec<_> = commits(&lake.files()).into_iter().map(|commit| commit.kind).collect();
    assert_eq!(kinds, ["snapshot", "position", "changes", "position"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lake_that_is_not_to_be_followed_is_refused_and_stays() {
    let plans = [orders()];
    let lake = LocalLake::new();
    assert!(open(&lake, "r1", &plans).await.is_err(), "there is no lake");
    let begun = tidemark_sink::SnapshotStart { continues: true, ..start("r1", &plans) };
    lake.sink().prepare(&begun).await.unwrap();
    assert!(open(&lake, "r1", &plans).await.is_err(), "there is no snapshot");

    let alone = LocalLake::new();
    conformance::finish_run(&alone, "r1", &[orders(), items()], 0..3).await;
    let stored = alone.sink().stored().await.unwrap().unwrap();
    assert_eq!(stored.stage, StoredStage::Complete);
    let error = open(&alone, "r2", &plans).await.err().unwrap();
    assert!(error.hint.is_some() && error.disposition == Disposition::Refused);

    let lake = LocalLake::new();
    snapshot(&*lake.sink(), "r1", &plans).await;
    let before = lake.files();
    let good = stream_start("r2", &plans);
    for wrong in [
        tidemark_sink::StreamStart { job: "other".to_owned(), ..good.clone() },
        tidemark_sink::StreamStart { system_identifier: 1, ..good.clone() },
        tidemark_sink::StreamStart { database: "other".to_owned(), ..good.clone() },
    ] {
        let error = lake.sink().open_stream(&wrong).await.err().unwrap();
        assert!(error.hint.is_some(), "{error:?}");
    }
    assert_eq!(lake.files(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_are_added_are_in_later_files_and_known_to_the_next_run() {
    let lake = LocalLake::new();
    let plans = [orders()];
    snapshot(&*lake.sink(), "r1", &plans).await;
    let mut opened = open(&lake, "r1", &plans).await.unwrap();
    let name = &plans[0].relation.name;
    assert_eq!(opened.columns[name], ["id", "body"]);
    let old = relation(&plans[0]);
    let work = transaction(10, vec![insert(&old, row(1, "old"))]);
    send(&mut opened.writer, vec![work]).await.unwrap();

    let new = NewColumn { column: column(3, "qty", 23, "int4", true), default: Some("5".into()) };
    for _ in 0..2 {
        opened.writer.add_columns(name, std::slice::from_ref(&new)).await.unwrap();
    }
    let mut wider = orders();
    wider.columns.push(new.column.clone());
    wider.relation.columns.push(new.column.clone());
    let later = relation(&wider);
    let three = |id: i64| {
        tuple(&[
            Cell::Binary(&id.to_be_bytes()),
            Cell::Binary(b"new"),
            Cell::Binary(&9_i32.to_be_bytes()),
        ])
    };
    let mixed = vec![insert(&later, three(2)), insert(&old, row(3, "late"))];
    send(&mut opened.writer, vec![transaction(20, mixed)]).await.unwrap();
    opened.writer.close().await.unwrap();
    let files = lake.files();
    let last = commits(&files).pop().unwrap();
    assert_eq!(last.tables[0].files.len(), 2, "a file has one schema");
    let names: Vec<_> = last.tables[0].columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["id", "body", "qty"]);
    assert_eq!(last.tables[0].columns[2].default.as_deref(), Some("5"));
    let batches = change_batches(&files, &plans[0]);
    assert!(batches[0].column_by_name("qty").is_none());
    let qty = batches[1].column_by_name("qty").unwrap();
    assert_eq!((batches[1].num_rows(), qty.null_count()), (2, 1));

    let opened = open(&lake, "r2", &[wider]).await.unwrap();
    assert_eq!(opened.columns[name], ["id", "body", "qty"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_be_lost_is_refused_and_names_relation_and_column() {
    let lake = LocalLake::new();
    let mut generated = column(3, "total", 23, "int4", true);
    generated.generated = tidemark_model::Generated::Stored;
    let mut with_generated = items();
    with_generated.columns.push(generated);
    let plans = [orders(), with_generated, log()];
    snapshot(&*lake.sink(), "r1", &plans).await;
    let (orders, items, log) = (relation(&plans[0]), relation(&plans[1]), relation(&plans[2]));
    let mut retyped = (*orders).clone();
    retyped.columns[1].type_oid = 23;
    let mut other_key = (*orders).clone();
    other_key.columns[0].is_identity = false;
    let bad_text = tuple(&[Cell::Text(b"1x"), Cell::Null]);
    for (number, (change, word)) in [
        (insert(&orders, row_without_body(1)), "body"),
        (insert(&orders, bad_text), "id"),
        (insert(&std::sync::Arc::new(retyped), row(1, "x")), "body"),
        (delete(&std::sync::Arc::new(other_key), key(1)), "key"),
        (insert(&items, row(1, "x")), "total"),
        (update(&log, None, row(1, "x")), "old row"),
        (delete(&log, key(1)), "key"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut opened = open(&lake, &format!("s{number}"), &plans).await.unwrap();
        let relation = change.relation.name.clone();
        let sent = send(&mut opened.writer, vec![transaction(10, vec![change])]).await;
        let error = match sent {
            Err(error) => error,
            Ok(()) => opened.writer.flush().await.unwrap_err(),
        };
        let source = error.source.as_ref().map(ToString::to_string).unwrap_or_default();
        assert_eq!(error.relation, Some(relation), "{error}");
        assert!(format!("{error} {source}").contains(word), "{error} {source}");
        assert!(error.to_string().contains(&lsn(10).to_string()), "{error}");
    }
    let mut opened = open(&lake, "t1", &plans).await.unwrap();
    let new = NewColumn { column: column(4, "c", 23, "int4", true), default: Some("1".into()) };
    assert!(opened.writer.add_columns(&plans[2].relation.name, &[new]).await.is_err());
    drop(opened);
    assert!(changes(&lake.files(), &plans[0]).is_empty());

    let reserved = orders_with(column(3, "_OP", 23, "int4", true));
    let lake = LocalLake::new();
    // Before anything is copied, and anything is there.
    let begun = tidemark_sink::SnapshotStart { continues: true, ..start("r1", &[reserved]) };
    let error = lake.sink().prepare(&begun).await.unwrap_err();
    assert!(error.to_string().contains("_OP"), "{error}");
    assert!(lake.files().is_empty());
}

fn orders_with(column: tidemark_model::Column) -> TablePlan {
    let mut plan = orders();
    plan.columns.push(column.clone());
    plan.relation.columns.push(column);
    plan
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_share_of_memory_and_small_files_change_nothing() {
    let mut lake = LocalLake::new();
    lake.options.memory = 1;
    lake.options.file_bytes = 64 << 10;
    let plans = [orders(), items()];
    snapshot(&*lake.sink(), "r1", &plans).await;
    let mut opened = open(&lake, "r1", &plans).await.unwrap();
    let tables = [relation(&plans[0]), relation(&plans[1])];
    for end in 1..=60_u64 {
        let base = i64::try_from(end).unwrap() * 1000;
        let work = (base..base + 500).map(|id| {
            let noise = id.unsigned_abs().wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let words = (1..=12).map(|word| format!("{:x}", noise.wrapping_mul(word * 2 + 1)));
            let body: String = words.collect();
            insert(&tables[usize::from(id % 2 == 0)], row(id, &body))
        });
        send(&mut opened.writer, vec![transaction(end, work.collect())]).await.unwrap();
    }
    let counters = opened.writer.counters();
    opened.writer.close().await.unwrap();
    let files = lake.files();
    for plan in &plans {
        assert_eq!(changes(&files, plan).len(), 15_000);
    }
    assert!(counters.commits > 0, "a writer commits by itself when enough has come");
    assert_eq!(debris(&files), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_a_batch_is_given_back_before_it_is_durable() {
    let lake = LocalLake::new();
    let plans = [orders()];
    snapshot(&*lake.sink(), "r1", &plans).await;
    let mut opened = open(&lake, "r1", &plans).await.unwrap();
    let orders = relation(&plans[0]);
    let budget = tidemark_model::Budget::new(1 << 20);
    for end in 1..=20 {
        let reservation = budget.reserve(1 << 20).await;
        let transactions = vec![transaction(end, vec![insert(&orders, row(1, "x"))])];
        let batch = tidemark_model::StreamBatch { transactions, continues: false, reservation };
        opened.writer.accept(batch).await.unwrap();
    }
    assert_eq!(commits(&lake.files()).len(), 2, "nothing was flushed");
}

/// The same stream into every kind of lake.
async fn streams_into(
    lake: &dyn Target,
    files: impl AsyncFn() -> std::collections::BTreeMap<String, bytes::Bytes>,
) {
    let plans = [orders(), items()];
    snapshot_with(&*lake.sink(), "r1", &plans, 10).await;
    let tables = [relation(&plans[0]), relation(&plans[1])];
    let mut end = 0;
    for run in ["r1", "r2", "r3"] {
        let mut opened = open(lake, run, &plans).await.unwrap();
        assert_eq!(opened.position, lsn(end));
        for _ in 0..3 {
            end += 1;
            let id = 100 + i64::try_from(end).unwrap();
            let work = tables.iter().map(|table| insert(table, row(id, "x"))).collect();
            send(&mut opened.writer, vec![transaction(end, work)]).await.unwrap();
            assert_eq!(opened.writer.flush().await.unwrap().lsn(), lsn(end));
        }
        opened.writer.close().await.unwrap();
    }
    let files = files().await;
    for plan in &plans {
        let ends: Vec<_> = changes(&files, plan).iter().map(|row| row.end).collect();
        assert_eq!(ends, (1..=9).collect::<Vec<_>>());
    }
    assert_eq!(debris(&files), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_into_a_directory() {
    let lake = LocalLake::new();
    streams_into(&lake, async || lake.files()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_into_memory() {
    let lake = ObjectLake::in_memory();
    streams_into(&lake, async || lake.files().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_into_s3() {
    let Some(lake) = ObjectLake::on_s3().await else { return };
    streams_into(&lake, async || lake.files().await).await;
}
