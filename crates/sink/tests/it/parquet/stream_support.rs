//! Batches made by hand, and a reader of change files that knows them by the commits alone.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int64Type, UInt64Type};
use arrow_array::{Array as _, RecordBatch};
use bytes::{BufMut as _, Bytes, BytesMut};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tidemark_model::{
    Budget, Cell, Change, Lsn, OldRow, Operation, ReplicaIdentity, StreamBatch, StreamColumn,
    StreamRelation, TablePlan, Transaction, TransactionHead, TupleData,
};
use tidemark_sink::parquet::{Commit, CommitTable};
use tidemark_sink::{OpenStream, Result, Sink, SnapshotStart, StreamStart, StreamWriter};

use crate::conformance::{self, JOB, Target, spec, start, summary};

/// Where the snapshot of all these tests ends.
pub(super) const SNAPSHOT: u64 = 0x16_B374_D848;

/// What opens a stream of these tables.
pub(super) fn stream_start(run: &str, plans: &[TablePlan]) -> StreamStart {
    StreamStart {
        stopped: Vec::new(),
        job: JOB.to_owned(),
        run: run.to_owned(),
        system_identifier: 7_350_000_000_000_000_001,
        timeline: 1,
        database: "shop".to_owned(),
        source_version: 150_004,
        tables: Arc::new(plans.to_vec()),
    }
}

/// A finished snapshot of empty tables that a stream continues from.
pub(super) async fn snapshot(sink: &dyn Sink, run: &str, plans: &[TablePlan]) {
    snapshot_with(sink, run, plans, 0).await;
}

/// The same, with this many rows in the first table, whose ids count from 0.
pub(super) async fn snapshot_with(sink: &dyn Sink, run: &str, plans: &[TablePlan], rows: i64) {
    let begun = SnapshotStart { continues: true, ..start(run, plans) };
    sink.prepare(&begun).await.unwrap();
    if rows > 0 {
        conformance::write(sink, &spec(run, &plans[0], 0), 0..rows).await.unwrap();
    }
    for plan in plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    let counts: Vec<_> = (plans.iter().enumerate())
        .map(|(index, plan)| (plan, if index == 0 { rows.unsigned_abs() } else { 0 }))
        .collect();
    sink.finish(&summary(&counts)).await.unwrap();
}

/// Opens the stream as a new process would.
pub(super) async fn open(
    target: &dyn Target,
    run: &str,
    plans: &[TablePlan],
) -> Result<OpenStream> {
    target.sink().open_stream(&stream_start(run, plans)).await
}

/// The table as a Relation message describes it.
pub(super) fn relation(plan: &TablePlan) -> Arc<StreamRelation> {
    let is_full = plan.relation.replica_identity == ReplicaIdentity::Full;
    let columns = plan.relation.columns.iter().map(|column| StreamColumn {
        name: column.name.clone(),
        type_oid: column.data_type.oid,
        typmod: column.typmod,
        is_identity: is_full || column.key_position.is_some(),
    });
    Arc::new(StreamRelation {
        oid: plan.relation.oid,
        name: plan.relation.name.clone(),
        replica_identity: if is_full { 'f' } else { 'd' },
        columns: columns.collect(),
    })
}

/// A row.
pub(super) fn tuple(cells: &[Cell<'_>]) -> TupleData {
    let mut bytes = BytesMut::new();
    bytes.put_u16(u16::try_from(cells.len()).unwrap());
    for cell in cells {
        let (kind, value) = match cell {
            Cell::Null => (b'n', None),
            Cell::Unchanged => (b'u', None),
            Cell::Text(value) => (b't', Some(value)),
            Cell::Binary(value) => (b'b', Some(value)),
        };
        bytes.put_u8(kind);
        if let Some(value) = value {
            bytes.put_u32(u32::try_from(value.len()).unwrap());
            bytes.put_slice(value);
        }
    }
    TupleData::split_from(&mut bytes.freeze()).unwrap()
}

/// A row of `(id int8, body text)` in binary form.
pub(super) fn row(id: i64, body: &str) -> TupleData {
    tuple(&[Cell::Binary(&id.to_be_bytes()), Cell::Binary(body.as_bytes())])
}

/// The same with a body that was not sent.
pub(super) fn row_without_body(id: i64) -> TupleData {
    tuple(&[Cell::Binary(&id.to_be_bytes()), Cell::Unchanged])
}

/// An old row that holds only the id; what stands in the place of the rest is not a value.
pub(super) fn key(id: i64) -> OldRow {
    OldRow::Key(tuple(&[Cell::Binary(&id.to_be_bytes()), Cell::Binary(b"nothing")]))
}

pub(super) fn insert(relation: &Arc<StreamRelation>, new: TupleData) -> Change {
    Change { relation: Arc::clone(relation), operation: Operation::Insert { new } }
}

pub(super) fn update(
    relation: &Arc<StreamRelation>,
    old: Option<OldRow>,
    new: TupleData,
) -> Change {
    Change { relation: Arc::clone(relation), operation: Operation::Update { old, new } }
}

pub(super) fn delete(relation: &Arc<StreamRelation>, old: OldRow) -> Change {
    Change { relation: Arc::clone(relation), operation: Operation::Delete { old } }
}

pub(super) fn truncate(relation: &Arc<StreamRelation>, with: &[&Arc<StreamRelation>]) -> Change {
    let with = with.iter().map(|other| Arc::clone(other)).collect();
    let operation = Operation::Truncate { with, cascade: false, restart_identity: false };
    Change { relation: Arc::clone(relation), operation }
}

/// A transaction that ends so many bytes behind the snapshot.
pub(super) fn transaction(end: u64, changes: Vec<Change>) -> Transaction {
    let head = TransactionHead {
        xid: 1000 + end,
        commit_lsn: Lsn::new(SNAPSHOT + end - 1),
        end_lsn: Lsn::new(SNAPSHOT + end),
        committed_at: 1_000_000 * i64::try_from(end).unwrap(),
    };
    Transaction { head, changes }
}

pub(super) fn lsn(end: u64) -> Lsn {
    Lsn::new(SNAPSHOT + end)
}

pub(super) fn batch(transactions: Vec<Transaction>, continues: bool) -> StreamBatch {
    let reservation = Budget::new(1 << 20).try_reserve(1024).unwrap();
    StreamBatch { transactions, continues, reservation }
}

/// Gives a writer whole transactions.
pub(super) async fn send(
    writer: &mut Box<dyn StreamWriter>,
    transactions: Vec<Transaction>,
) -> Result<()> {
    writer.accept(batch(transactions, false)).await
}

/// A row of a change file of `(id int8, body text)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) op: String,
    /// Behind the snapshot.
    pub(super) end: u64,
    pub(super) seq: i64,
    pub(super) xid: u64,
    pub(super) old_key: Option<i64>,
    pub(super) unchanged: Vec<String>,
    pub(super) id: Option<i64>,
    pub(super) body: Option<String>,
}

/// The commits in order, which must be dense.
pub(super) fn commits(files: &BTreeMap<String, Bytes>) -> Vec<Commit> {
    let listed = files.iter().filter(|(name, _)| name.starts_with("_tidemark/commits/0"));
    let commits: Vec<Commit> =
        listed.map(|(_, bytes)| serde_json::from_slice(bytes).unwrap()).collect();
    for (number, commit) in (0..).zip(&commits) {
        assert_eq!(commit.commit, number, "commits are dense");
    }
    let mut ends = commits.windows(2).map(|pair| (pair[0].end_lsn, pair[1].end_lsn));
    assert!(ends.all(|(before, after)| before <= after), "positions never go back");
    commits
}

fn of_table<'c>(commit: &'c Commit, plan: &TablePlan) -> Option<&'c CommitTable> {
    let name = &plan.relation.name;
    commit.tables.iter().find(|table| table.schema == name.schema && table.name == name.name)
}

/// The record batches of the change files that the commits list for a table, in order.
pub(super) fn change_batches(
    files: &BTreeMap<String, Bytes>,
    plan: &TablePlan,
) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    for commit in commits(files).iter().filter(|commit| commit.kind == "changes") {
        let Some(table) = of_table(commit, plan) else { continue };
        let mut rows = 0;
        for file in &table.files {
            let bytes = files[&file.path].clone();
            assert_eq!(bytes.len() as u64, file.bytes, "{}", file.path);
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
            let read: Vec<_> = reader.map(|batch| batch.unwrap()).collect();
            let count: usize = read.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(count as u64, file.rows, "{}", file.path);
            rows += count as u64;
            batches.extend(read);
        }
        let counts = table.operations.unwrap();
        assert_eq!((table.rows, counts.i + counts.u + counts.d + counts.t), (rows, rows));
    }
    batches
}

/// The rows of the change files of a table `(id int8, body text)`, in order.
pub(super) fn changes(files: &BTreeMap<String, Bytes>, plan: &TablePlan) -> Vec<Row> {
    let mut rows = Vec::new();
    for batch in change_batches(files, plan) {
        let column = |name: &str| batch.column_by_name(name).unwrap();
        let old_keys = batch.column_by_name("_old_key").map(|column| column.as_struct().clone());
        for index in 0..batch.num_rows() {
            let old_key = old_keys.as_ref().filter(|keys| keys.is_valid(index));
            let unchanged = column("_unchanged").as_list::<i32>().value(index);
            let id = column("id").as_primitive::<Int64Type>();
            let body = column("body").as_string::<i32>();
            rows.push(Row {
                op: column("_op").as_string::<i32>().value(index).to_owned(),
                end: column("_commit_lsn").as_primitive::<UInt64Type>().value(index) - SNAPSHOT,
                seq: column("_seq").as_primitive::<Int64Type>().value(index),
                xid: column("_xid").as_primitive::<UInt64Type>().value(index),
                old_key: old_key.map(|key| key.column(0).as_primitive::<Int64Type>().value(index)),
                unchanged: (unchanged.as_string::<i32>().iter().flatten())
                    .map(str::to_owned)
                    .collect(),
                id: id.is_valid(index).then(|| id.value(index)),
                body: body.is_valid(index).then(|| body.value(index).to_owned()),
            });
        }
    }
    let order: Vec<_> = rows.iter().map(|row| (row.end, row.seq)).collect();
    assert!(order.is_sorted(), "rows are in the order of the source: {order:?}");
    let distinct: HashSet<_> = order.iter().collect();
    assert_eq!(distinct.len(), order.len(), "no row is there twice");
    rows
}

/// Files that no commit lists, apart from the documents.
pub(super) fn debris(files: &BTreeMap<String, Bytes>) -> Vec<String> {
    let listed: BTreeSet<String> = commits(files)
        .into_iter()
        .flat_map(|commit| commit.tables)
        .flat_map(|table| table.files)
        .map(|file| file.path)
        .collect();
    let is_document = |name: &str| {
        name == "_tidemark/job.json"
            || name == "_tidemark/lock"
            || (name.starts_with("_tidemark/commits/0") && name.ends_with(".json"))
    };
    let unlisted = files.keys().filter(|name| !is_document(name) && !listed.contains(*name));
    unlisted.cloned().collect()
}
