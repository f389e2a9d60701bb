//! How fast a PostgreSQL target takes changes that are in memory already: pgbench's transactions, three updates and an
//! insert each, in batches of 5,000 transactions.
//!
//! `cargo bench -p tidemark-sink --bench apply [-- TRANSACTIONS [BATCH [RUNS]]]` prints a line per run. The server is the testkit's, with its
//! `fsync = off`; the time is from the first `accept` to the last `flush`.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use tidemark_model::{
    Budget, Change, Column, DataType, Generated, Identity, Lsn, Operation, Persistence, Relation,
    RelationKind, RelationName, ReplicaIdentity, StreamBatch, StreamColumn, StreamRelation,
    TablePlan, Transaction, TransactionHead, TupleData, TupleForm, TypeKind, Unrepresentable,
};
use tidemark_sink::postgres::{PostgresOptions, PostgresSink, SchemaMode, Triggers};
use tidemark_sink::{NotEmpty, Sink, SnapshotStart, SnapshotSummary, StreamStart};
use tidemark_testkit::Cluster;
use tidemark_wire::ConnectSpec;

const ACCOUNTS: u64 = 1_000_000;
const TELLERS: u64 = 100;
const BRANCHES: u64 = 10;

const SCHEMA: &str = "
CREATE TABLE pgbench_accounts (aid int4 PRIMARY KEY, bid int4, abalance int4, filler char(84));
CREATE TABLE pgbench_tellers (tid int4 PRIMARY KEY, bid int4, tbalance int4, filler char(84));
CREATE TABLE pgbench_branches (bid int4 PRIMARY KEY, bbalance int4, filler char(88));
CREATE TABLE pgbench_history (tid int4, bid int4, aid int4, delta int4, mtime timestamp, filler char(22));
INSERT INTO pgbench_accounts SELECT g, 1, 0, '' FROM generate_series(1, 1000000) g;
INSERT INTO pgbench_tellers SELECT g, 1, 0, NULL FROM generate_series(1, 100) g;
INSERT INTO pgbench_branches SELECT g, 0, NULL FROM generate_series(1, 10) g;
";

type Columns = &'static [(&'static str, u32, &'static str)];

const TABLES: [(u32, &str, Columns); 4] = [
    (
        1,
        "pgbench_accounts",
        &[
            ("aid", 23, "int4"),
            ("bid", 23, "int4"),
            ("abalance", 23, "int4"),
            ("filler", 1042, "bpchar"),
        ],
    ),
    (
        2,
        "pgbench_tellers",
        &[
            ("tid", 23, "int4"),
            ("bid", 23, "int4"),
            ("tbalance", 23, "int4"),
            ("filler", 1042, "bpchar"),
        ],
    ),
    (
        3,
        "pgbench_branches",
        &[("bid", 23, "int4"), ("bbalance", 23, "int4"), ("filler", 1042, "bpchar")],
    ),
    (
        4,
        "pgbench_history",
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

fn type_name(short: &str) -> (&'static str, i32) {
    match short {
        "int4" => ("integer", -1),
        "timestamp" => ("timestamp without time zone", -1),
        _ => ("character(84)", 88),
    }
}

fn plan(oid: u32, name: &str, columns: Columns) -> TablePlan {
    let columns: Vec<Column> = columns
        .iter()
        .zip(1..)
        .map(|((column, type_oid, short), attnum)| {
            let (long, typmod) = match (name, *column) {
                ("pgbench_branches", "filler") => ("character(88)", 92),
                ("pgbench_history", "filler") => ("character(22)", 26),
                _ => type_name(short),
            };
            Column {
                attnum,
                name: (*column).to_owned(),
                data_type: DataType { kind: TypeKind::Base, ..DataType::builtin(*type_oid, short) },
                typmod,
                type_name: long.to_owned(),
                is_nullable: attnum != 1 || name == "pgbench_history",
                generated: Generated::No,
                identity: Identity::No,
                has_default: false,
                key_position: None,
                collation: None,
            }
        })
        .collect();
    TablePlan {
        relation: Relation {
            oid,
            name: RelationName::new("public", name),
            kind: RelationKind::Table,
            persistence: Persistence::Permanent,
            columns: columns.clone(),
            keys: Vec::new(),
            indexes: Vec::new(),
            replica_identity: ReplicaIdentity::Default,
            partition_root: None,
            inherits: Vec::new(),
            row_security_applies: false,
            can_select: true,
            row_estimate: 0,
            heap_bytes: 8192,
            toast_bytes: 0,
            extension: None,
        },
        columns,
        select: Vec::new(),
        form: TupleForm::PgBinary,
        filter: None,
        unrepresentable: Unrepresentable::Error,
    }
}

fn relation(oid: u32, name: &str, columns: Columns) -> Arc<StreamRelation> {
    let has_key = name != "pgbench_history";
    let columns = columns
        .iter()
        .enumerate()
        .map(|(index, (column, type_oid, _))| StreamColumn {
            name: (*column).to_owned(),
            type_oid: *type_oid,
            typmod: -1,
            is_identity: has_key && index == 0,
        })
        .collect();
    let name = RelationName::new("public", name);
    Arc::new(StreamRelation { oid, name, replica_identity: 'd', columns })
}

/// A row of these values; none is NULL.
fn tuple(values: &[Option<&[u8]>], buffer: &mut BytesMut) -> TupleData {
    buffer.put_u16(values.len() as u16);
    for value in values {
        match value {
            None => buffer.put_u8(b'n'),
            Some(value) => {
                buffer.put_u8(b'b');
                buffer.put_u32(value.len() as u32);
                buffer.put_slice(value);
            }
        }
    }
    let mut bytes: Bytes = buffer.split().freeze();
    TupleData::split_from(&mut bytes).unwrap()
}

/// pgbench's transactions, the same in each run.
fn transactions(count: u64, from: u64) -> Vec<Transaction> {
    let relations = TABLES.map(|(oid, name, columns)| relation(oid, name, columns));
    let mut buffer = BytesMut::with_capacity(1 << 20);
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ from;
    let mut random = |limit: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) % limit) as i32 + 1
    };
    let wide = [b' '; 84];
    (0..count)
        .map(|index| {
            let (aid, tid, bid) = (random(ACCOUNTS), random(TELLERS), random(BRANCHES));
            let (aid, tid, bid) = (aid.to_be_bytes(), tid.to_be_bytes(), bid.to_be_bytes());
            let balance = random(1_000_000).to_be_bytes();
            let at = (index as i64).to_be_bytes();
            let rows = [
                tuple(&[Some(&aid), Some(&bid), Some(&balance), Some(&wide)], &mut buffer),
                tuple(&[Some(&tid), Some(&bid), Some(&balance), None], &mut buffer),
                tuple(&[Some(&bid), Some(&balance), None], &mut buffer),
                tuple(
                    &[Some(&tid), Some(&bid), Some(&aid), Some(&balance), Some(&at), None],
                    &mut buffer,
                ),
            ];
            let changes = rows
                .into_iter()
                .zip(&relations)
                .map(|(new, relation)| Change {
                    relation: Arc::clone(relation),
                    operation: match relation.oid {
                        4 => Operation::Insert { new },
                        _ => Operation::Update { old: None, new },
                    },
                })
                .collect();
            let end_lsn = Lsn::new(1000 + from + index);
            let head =
                TransactionHead { xid: index, commit_lsn: end_lsn, end_lsn, committed_at: 0 };
            Transaction { head, changes }
        })
        .collect()
}

async fn follow(
    sink: &PostgresSink,
    plans: &Arc<Vec<TablePlan>>,
) -> Box<dyn tidemark_sink::StreamWriter> {
    let start = SnapshotStart {
        job: "bench".to_owned(),
        run: "r".to_owned(),
        snapshot_id: "1".to_owned(),
        lsn: Lsn::new(1),
        system_identifier: 1,
        database: "bench".to_owned(),
        source_version: 150_000,
        tables: Arc::clone(plans),
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
    sink.finish(&SnapshotSummary { lsn: Lsn::new(1), tables: Vec::new() }).await.unwrap();
    let start = StreamStart {
        stopped: Vec::new(),
        job: "bench".to_owned(),
        run: "s".to_owned(),
        system_identifier: 1,
        timeline: 1,
        database: "bench".to_owned(),
        source_version: 150_000,
        tables: Arc::clone(plans),
    };
    sink.open_stream(&start).await.unwrap().writer
}

/// CPU seconds of a process: busy machines stretch the time, not these.
fn cpu_seconds(pid: &str) -> f64 {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks =
        after_name.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

#[tokio::main]
async fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|text| text.parse().ok()).collect();
    let number = |index: usize, default: u64| numbers.get(index).copied().unwrap_or(default);
    let (count, size, runs) = (number(0, 200_000), number(1, 5_000), number(2, 3));
    let cluster = Cluster::builder()
        .setting("shared_buffers", "512MB")
        .setting("max_wal_size", "8GB")
        .start()
        .unwrap();
    cluster.psql("postgres", SCHEMA).unwrap();
    cluster.psql("postgres", "VACUUM ANALYZE").unwrap();
    let plans: Arc<Vec<TablePlan>> =
        Arc::new(TABLES.map(|(oid, name, columns)| plan(oid, name, columns)).to_vec());
    let sink = PostgresSink::new(PostgresOptions {
        spec: ConnectSpec::parse(&cluster.url("postgres")).unwrap(),
        job: "bench".to_owned(),
        schema: SchemaMode::Exists,
        not_empty: NotEmpty::Append,
        triggers: Triggers::Replica,
        follows: true,
        lanes: 1,
        lanes_from: tidemark_sink::postgres::LANES_FROM,
        build_jobs: 1,
        restore_tool: |_| "pg_restore".into(),
        tool_version: "bench".to_owned(),
        wave: None,
    });
    let mut writer = follow(&sink, &plans).await;
    let budget = Budget::new(1 << 40);
    for run in 0..runs {
        cluster.psql("postgres", "TRUNCATE pgbench_history").unwrap();
        cluster.psql("postgres", "VACUUM").unwrap();
        cluster.psql("postgres", "CHECKPOINT").unwrap();
        let mut rest = transactions(count, run * count).into_iter();
        let mut batches = Vec::new();
        loop {
            let transactions: Vec<Transaction> = rest.by_ref().take(size as usize).collect();
            if transactions.is_empty() {
                break;
            }
            let reservation = budget.reserve(1024).await;
            batches.push(StreamBatch { transactions, continues: false, reservation });
        }
        let before = writer.counters().exact_order;
        let backends = cluster
            .psql(
                "postgres",
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'tidemark_bench'",
            )
            .unwrap();
        let cpu =
            || -> (f64, f64) { (cpu_seconds("self"), backends.lines().map(cpu_seconds).sum()) };
        let (client, server) = cpu();
        let start = Instant::now();
        for batch in batches {
            writer.accept(batch).await.unwrap();
        }
        writer.flush().await.unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let (client, server) = (cpu().0 - client, cpu().1 - server);
        println!(
            "apply/pgbench batch={size}: {} changes in {seconds:.2} s, {:.0} changes/s, CPU {client:.2} s ours, {server:.2} s the server's, {} batches in exact order",
            count * 4,
            (count * 4) as f64 / seconds,
            writer.counters().exact_order - before,
        );
    }
    writer.close().await.unwrap();
}
