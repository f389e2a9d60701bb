//! How fast a backlog of changes becomes change files: the rows of pgbench, in binary form, into a directory.
//!
//! A transaction is three updates and an insert over four tables, as pgbench writes them. What is measured is everything
//! from the first batch to the commit that lists the last file.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidemark_model::{
    Budget, Change, Column, Cpu, DataType, Generated, Identity, Key, Lsn, Operation, Persistence,
    Relation, RelationKind, RelationName, ReplicaIdentity, RowSum, StreamBatch, StreamColumn,
    StreamRelation, TablePlan, Transaction, TransactionHead, TupleData, TupleForm, Unrepresentable,
};
use tidemark_sink::parquet::{ParquetOptions, ParquetSink, Root, lake_plan};
use tidemark_sink::{Sink as _, SnapshotStart, SnapshotSummary, StreamStart, TableSummary};

const TRANSACTIONS: u64 = 200_000;
const CHANGES: u64 = 4 * TRANSACTIONS;
/// As many as fill about 8 MiB.
const PER_BATCH: u64 = 8_000;

/// A table: its name, whether the first column is its key, its columns with OIDs.
type Table = (&'static str, bool, &'static [(&'static str, u32, &'static str)]);

const TABLES: [Table; 4] = [
    (
        "accounts",
        true,
        &[
            ("aid", 23, "int4"),
            ("bid", 23, "int4"),
            ("abalance", 23, "int4"),
            ("filler", 1042, "bpchar"),
        ],
    ),
    (
        "tellers",
        true,
        &[
            ("tid", 23, "int4"),
            ("bid", 23, "int4"),
            ("tbalance", 23, "int4"),
            ("filler", 1042, "bpchar"),
        ],
    ),
    (
        "branches",
        true,
        &[("bid", 23, "int4"), ("bbalance", 23, "int4"), ("filler", 1042, "bpchar")],
    ),
    (
        "history",
        false,
        &[
            ("tid", 23, "int4"),
            ("bid", 23, "int4"),
            ("aid", 23, "int4"),
            ("delta", 23, "int4"),
            ("mtime", 1114, "timestamp"),
            ("filler", 1042, "bpchar"),
        ],
    ),
];

fn plan(oid: u32, (name, has_key, columns): Table) -> TablePlan {
    let columns: Vec<_> = (1..)
        .zip(columns)
        .map(|(attnum, (name, oid, type_name))| Column {
            attnum,
            name: (*name).to_owned(),
            data_type: DataType::builtin(*oid, type_name),
            typmod: -1,
            type_name: (*type_name).to_owned(),
            is_nullable: true,
            generated: Generated::No,
            identity: Identity::No,
            has_default: false,
            key_position: (has_key && attnum == 1).then_some(1),
            collation: None,
        })
        .collect();
    let key = Key {
        index: "k".to_owned(),
        columns: vec![columns[0].name.clone()],
        is_primary: true,
        is_deferrable: false,
    };
    let (select, form) = lake_plan(&columns, Unrepresentable::Error);
    assert_eq!(form, TupleForm::PgBinary);
    let relation = Relation {
        oid,
        name: RelationName::new("public", name),
        kind: RelationKind::Table,
        persistence: Persistence::Permanent,
        columns: columns.clone(),
        keys: if has_key { vec![key] } else { Vec::new() },
        indexes: Vec::new(),
        replica_identity: ReplicaIdentity::Default,
        partition_root: None,
        inherits: Vec::new(),
        row_security_applies: false,
        can_select: true,
        row_estimate: 0,
        heap_bytes: 0,
        toast_bytes: 0,
        extension: None,
    };
    let (filter, unrepresentable) = (None, Unrepresentable::Error);
    TablePlan { relation, columns, select, form, filter, unrepresentable }
}

fn relation(plan: &TablePlan) -> Arc<StreamRelation> {
    let columns = plan.columns.iter().map(|column| StreamColumn {
        name: column.name.clone(),
        type_oid: column.data_type.oid,
        typmod: -1,
        is_identity: column.key_position.is_some(),
    });
    Arc::new(StreamRelation {
        oid: plan.relation.oid,
        name: plan.relation.name.clone(),
        replica_identity: 'd',
        columns: columns.collect(),
    })
}

fn tuple(cells: &[Option<&[u8]>]) -> TupleData {
    let mut bytes = BytesMut::new();
    bytes.put_u16(u16::try_from(cells.len()).unwrap());
    for cell in cells {
        match cell {
            None => bytes.put_u8(b'n'),
            Some(value) => {
                bytes.put_u8(b'b');
                bytes.put_u32(u32::try_from(value.len()).unwrap());
                bytes.put_slice(value);
            }
        }
    }
    TupleData::split_from(&mut bytes.freeze()).unwrap()
}

/// The transaction that ends there.
fn transaction(number: u64, relations: &[Arc<StreamRelation>]) -> Transaction {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        i32::try_from(state % below).unwrap().to_be_bytes()
    };
    let (aid, tid, bid) = (random(2_000_000), random(200), random(20));
    let (balance, delta, filler) = (random(100_000), random(5_000), [b' '; 84]);
    let mtime = i64::try_from(number).unwrap() * 713 + 800_000_000_000_000;
    let rows = [
        tuple(&[Some(&aid), Some(&bid), Some(&balance), Some(&filler)]),
        tuple(&[Some(&tid), Some(&bid), Some(&balance), None]),
        tuple(&[Some(&bid), Some(&balance), None]),
        tuple(&[
            Some(&tid),
            Some(&bid),
            Some(&aid),
            Some(&delta),
            Some(&mtime.to_be_bytes()),
            None,
        ]),
    ];
    let changes = relations.iter().zip(rows).enumerate().map(|(index, (relation, new))| Change {
        relation: Arc::clone(relation),
        operation: match index {
            3 => Operation::Insert { new },
            _ => Operation::Update { old: None, new },
        },
    });
    let head = TransactionHead {
        xid: number,
        commit_lsn: Lsn::new(number * 500 + 100),
        end_lsn: Lsn::new(number * 500 + 148),
        committed_at: mtime,
    };
    Transaction { head, changes: changes.collect() }
}

async fn snapshot(sink: &ParquetSink, plans: &[TablePlan]) {
    let start = SnapshotStart {
        job: "bench".to_owned(),
        run: "r1".to_owned(),
        snapshot_id: String::new(),
        lsn: Lsn::new(1),
        system_identifier: 1,
        database: "bench".to_owned(),
        source_version: 150_000,
        tables: Arc::new(plans.to_vec()),
        schema: Arc::default(),
        schema_archive: None,
        excluded: Arc::default(),
        above: Arc::default(),
        continues: true,
        adopts: false,
        joins: None,
        schema_digest: None,
    };
    sink.prepare(&start).await.unwrap();
    let tables = plans.iter().map(|plan| TableSummary {
        relation: plan.relation.name.clone(),
        rows_out: 0,
        rows_in: 0,
        bytes: 0,
        sum: RowSum::default(),
        replaced: Vec::new(),
    });
    let summary = SnapshotSummary { lsn: start.lsn, tables: tables.collect() };
    for plan in plans {
        sink.table_loaded(&plan.relation.name).await.unwrap();
    }
    sink.finish(&summary).await.unwrap();
}

/// Writes the whole backlog and says how long that took.
async fn drain(plans: &[TablePlan], cpu: &Cpu) -> Duration {
    let directory = tempfile::TempDir::new().unwrap();
    let root = Root::local(directory.path().join("lake"));
    let sink = ParquetSink::new(root, ParquetOptions::default(), cpu.clone());
    snapshot(&sink, plans).await;
    let relations: Vec<_> = plans.iter().map(relation).collect();
    let budget = Budget::new(64 << 20);
    let batches: Vec<_> = (0..TRANSACTIONS / PER_BATCH)
        .map(|batch| {
            let numbers = batch * PER_BATCH + 1..=(batch + 1) * PER_BATCH;
            numbers.map(|number| transaction(number, &relations)).collect::<Vec<_>>()
        })
        .collect();
    let start = StreamStart {
        stopped: Vec::new(),
        job: "bench".to_owned(),
        run: "r1".to_owned(),
        system_identifier: 1,
        timeline: 1,
        database: "bench".to_owned(),
        source_version: 150_000,
        tables: Arc::new(plans.to_vec()),
    };
    let mut writer = sink.open_stream(&start).await.unwrap().writer;
    let began = Instant::now();
    for transactions in batches {
        let reservation = budget.reserve(8 << 20).await;
        writer.accept(StreamBatch { transactions, continues: false, reservation }).await.unwrap();
    }
    black_box(writer.flush().await.unwrap());
    began.elapsed()
}

fn benches(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let plans: Vec<_> = (1..).zip(TABLES).map(|(oid, table)| plan(oid, table)).collect();
    let mut group = criterion.benchmark_group("changes");
    group.throughput(Throughput::Elements(CHANGES)).sample_size(10);
    for threads in [1, 2] {
        let cpu = Cpu::new(threads).unwrap();
        group.bench_function(format!("pgbench/{threads} threads"), |bencher| {
            bencher.iter_custom(|times| {
                (0..times).map(|_| runtime.block_on(drain(&plans, &cpu))).sum()
            });
        });
    }
    group.finish();
}

criterion_group!(change_benches, benches);
criterion_main!(change_benches);
