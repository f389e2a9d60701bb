//! A source and a target, both real, with what `pgoutput` says of the source's changes between them.
//!
//! The changes are fetched by `pg_logical_slot_get_binary_changes` and read by a small parser of its own, so that these
//! tests need no replication connection; the two databases are compared by the testkit's oracle.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tidemark_model::{
    Budget, Change, Column, DataType, Generated, Identity, Lsn, OldRow, Operation, Persistence,
    Relation, RelationKind, RelationName, ReplicaIdentity, SelectColumn, StreamBatch, StreamColumn,
    StreamRelation, TablePlan, Transaction, TransactionHead, TupleData, TupleForm, TypeKind,
    Unrepresentable, Wire,
};
use tidemark_sink::postgres::{PostgresOptions, PostgresSink, SchemaMode, Triggers};
use tidemark_sink::{
    NotEmpty, OpenStream, Result, Sink, SnapshotStart, SnapshotSummary, StreamStart, StreamWriter,
};
use tidemark_testkit::{Database, oracle, shared};
use tidemark_wire::{Client, ConnectSpec};

/// What the target's record says of the source.
pub(crate) const SYSTEM: u64 = 7_350_000_000_000_000_001;

/// Two databases with the same tables, a slot on the one and a job on the other.
pub(crate) struct Pair {
    pub(crate) source: Database,
    pub(crate) target: Database,
    pub(crate) job: String,
    pub(crate) plans: Arc<Vec<TablePlan>>,
    is_binary: bool,
    client: Client,
    relations: HashMap<u32, Arc<StreamRelation>>,
}

impl Pair {
    /// Runs `schema` on both sides, then makes slot, publication and the record of a finished snapshot.
    pub(crate) async fn new(job: &str, schema: &str, is_binary: bool) -> Self {
        Self::with_target(job, schema, schema, is_binary).await
    }

    /// The same with other tables on the target.
    pub(crate) async fn with_target(
        job: &str,
        schema: &str,
        target_schema: &str,
        is_binary: bool,
    ) -> Self {
        let (source, target) = (shared().unwrap(), shared().unwrap());
        source.psql(schema).unwrap();
        target.psql(target_schema).unwrap();
        source
            .psql(&format!(
                "CREATE PUBLICATION p FOR ALL TABLES; SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
                slot(job)
            ))
            .unwrap();
        let client = ConnectSpec::parse(&source.url()).unwrap().connect().await.unwrap();
        client.batch_execute("SET synchronous_commit = on").await.unwrap();
        let plans = Arc::new(plans(&client).await);
        let pair = Self {
            source,
            target,
            job: job.to_owned(),
            plans,
            is_binary,
            client,
            relations: HashMap::new(),
        };
        pair.snapshot("r1").await;
        pair
    }

    /// A sink of its own, as a new process has it.
    pub(crate) fn sink(&self) -> PostgresSink {
        PostgresSink::new(self.options())
    }

    pub(crate) fn options(&self) -> PostgresOptions {
        PostgresOptions {
            spec: ConnectSpec::parse(&self.target.url()).unwrap(),
            job: self.job.clone(),
            schema: SchemaMode::Exists,
            not_empty: NotEmpty::Append,
            triggers: Triggers::Replica,
            follows: true,
            lanes: 1,
            lanes_from: tidemark_sink::postgres::LANES_FROM,
            build_jobs: 1,
            restore_tool: |_| "pg_restore".into(),
            tool_version: "test".to_owned(),
            wave: None,
        }
    }

    /// A sink with so many lanes, which are used for every batch that can be spread.
    pub(crate) fn laned(&self, lanes: usize) -> PostgresSink {
        PostgresSink::new(PostgresOptions { lanes, lanes_from: 1, ..self.options() })
    }

    /// Records a finished snapshot that a stream continues from; the rows are there already.
    pub(crate) async fn snapshot(&self, run: &str) {
        let sink = self.sink();
        let start = SnapshotStart {
            job: self.job.clone(),
            run: run.to_owned(),
            snapshot_id: "1".to_owned(),
            lsn: Lsn::new(1),
            system_identifier: SYSTEM,
            database: "shop".to_owned(),
            source_version: 150_000,
            tables: Arc::clone(&self.plans),
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
        drop(sink);
    }

    pub(crate) fn start(&self, run: &str) -> StreamStart {
        StreamStart {
            stopped: Vec::new(),
            job: self.job.clone(),
            run: run.to_owned(),
            system_identifier: SYSTEM,
            timeline: 1,
            database: "shop".to_owned(),
            source_version: 150_000,
            tables: Arc::clone(&self.plans),
        }
    }

    /// A writer of a new sink.
    pub(crate) async fn open(&self, run: &str) -> Result<OpenStream> {
        self.sink().open_stream(&self.start(run)).await
    }

    /// What the source has committed since the last call.
    pub(crate) async fn changes(&mut self) -> Vec<Transaction> {
        // Decoding goes as far as the WAL is flushed: one commit that waits takes those before it along.
        let flush = "SELECT pg_current_xact_id(), pg_logical_emit_message(true, 'test', '')";
        self.client.batch_execute(flush).await.unwrap();
        let rows = self
            .client
            .query(
                "SELECT data FROM pg_logical_slot_get_binary_changes($1::text::name, NULL, NULL, \
                 'proto_version', '1', 'publication_names', 'p', 'binary', $2)",
                &[&slot(&self.job), &self.is_binary.to_string()],
            )
            .await
            .unwrap();
        let mut transactions = Vec::new();
        for row in rows {
            self.message(Bytes::copy_from_slice(row.get(0)), &mut transactions);
        }
        transactions
    }

    fn message(&mut self, mut message: Bytes, transactions: &mut Vec<Transaction>) {
        match message.get_u8() {
            b'B' => {
                let commit_lsn = Lsn::new(message.get_u64());
                let committed_at = message.get_i64();
                let xid = u64::from(message.get_u32());
                let head = TransactionHead { xid, commit_lsn, end_lsn: commit_lsn, committed_at };
                transactions.push(Transaction { head, changes: Vec::new() });
            }
            b'C' => {
                message.advance(9);
                transactions.last_mut().unwrap().head.end_lsn = Lsn::new(message.get_u64());
            }
            b'R' => {
                let relation = relation(&mut message);
                self.relations.insert(relation.oid, Arc::new(relation));
            }
            kind @ (b'I' | b'U' | b'D') => {
                let relation = Arc::clone(&self.relations[&message.get_u32()]);
                let operation = row_change(kind, &mut message);
                transactions.last_mut().unwrap().changes.push(Change { relation, operation });
            }
            b'T' => {
                let count = message.get_u32();
                let options = message.get_u8();
                let mut all: Vec<_> =
                    (0..count).map(|_| Arc::clone(&self.relations[&message.get_u32()])).collect();
                let relation = all.remove(0);
                let operation = Operation::Truncate {
                    with: all,
                    cascade: options & 1 != 0,
                    restart_identity: options & 2 != 0,
                };
                transactions.last_mut().unwrap().changes.push(Change { relation, operation });
            }
            _ => {}
        }
    }

    /// Applies everything that the source has committed, as one batch.
    pub(crate) async fn apply(&mut self, writer: &mut Box<dyn StreamWriter>) -> Result<Lsn> {
        let transactions = self.changes().await;
        let batch = batch(transactions, false).await;
        let lsn = batch.end_lsn();
        writer.accept(batch).await?;
        assert_eq!(writer.flush().await?.lsn(), lsn);
        Ok(lsn)
    }

    /// Fails unless both databases hold the same rows.
    #[track_caller]
    pub(crate) fn assert_same(&self, what: &str) {
        let source = (self.source.cluster(), self.source.name());
        let mut found =
            oracle::data_diff(source, (self.target.cluster(), self.target.name())).unwrap();
        found.retain(|difference| difference.kind != "sequence"); // no stream carries them
        let lines: String = found.iter().fold(String::new(), |mut lines, difference| {
            writeln!(lines, "{difference}").unwrap();
            lines
        });
        assert!(found.is_empty(), "{what}: {lines}");
    }

    /// Ends the job's sessions on the target, as they end with the process.
    pub(crate) fn end_sessions(&self) {
        self.target
            .psql(&format!(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = '{}'",
                slot(&self.job)
            ))
            .unwrap();
    }

    /// The position that the target stores.
    pub(crate) fn stored_lsn(&self) -> Lsn {
        let text = self.target.psql("SELECT end_lsn FROM tidemark.progress").unwrap();
        text.trim().parse().unwrap()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Slots and origins belong to the cluster and would run out. A panic in a test must not become an abort here.
        self.target
            .psql(&format!(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
                 WHERE application_name = '{0}' AND datname = current_database(); \
                 SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin \
                 WHERE split_part(roname, '.', 1) = '{0}@' || (SELECT oid FROM pg_database WHERE datname = current_database())",
                slot(&self.job)
            ))
            .ok();
        self.source.psql(&format!("SELECT pg_drop_replication_slot('{}')", slot(&self.job))).ok();
    }
}

fn slot(job: &str) -> String {
    tidemark_model::names::slot_name(job)
}

/// The same transactions again, as a source sends them again.
pub(crate) fn copies(transactions: &[Transaction]) -> Vec<Transaction> {
    let copy = |one: &Transaction| Transaction { head: one.head, changes: one.changes.clone() };
    transactions.iter().map(copy).collect()
}

/// A batch of these transactions.
pub(crate) async fn batch(transactions: Vec<Transaction>, continues: bool) -> StreamBatch {
    let reservation = Budget::new(1 << 20).reserve(1).await;
    StreamBatch { transactions, continues, reservation }
}

fn string(message: &mut Bytes) -> String {
    let end = message.iter().position(|byte| *byte == 0).unwrap();
    let text = String::from_utf8(message.split_to(end).to_vec()).unwrap();
    message.advance(1);
    text
}

fn relation(message: &mut Bytes) -> StreamRelation {
    let oid = message.get_u32();
    let name = RelationName::new(string(message), string(message));
    let replica_identity = char::from(message.get_u8());
    let count = message.get_u16();
    let columns = (0..count)
        .map(|_| {
            let is_identity = message.get_u8() & 1 != 0;
            let name = string(message);
            StreamColumn {
                name,
                type_oid: message.get_u32(),
                typmod: message.get_i32(),
                is_identity,
            }
        })
        .collect();
    StreamRelation { oid, name, replica_identity, columns }
}

fn row_change(kind: u8, message: &mut Bytes) -> Operation {
    let mut old = None;
    let mut new = None;
    while message.has_remaining() {
        let kind = message.get_u8();
        let tuple = TupleData::split_from(message).unwrap();
        match kind {
            b'K' => old = Some(OldRow::Key(tuple)),
            b'O' => old = Some(OldRow::Full(tuple)),
            _ => new = Some(tuple),
        }
    }
    match kind {
        b'I' => Operation::Insert { new: new.unwrap() },
        b'U' => Operation::Update { old, new: new.unwrap() },
        _ => Operation::Delete { old: old.unwrap() },
    }
}

/// The source's tables, as `source` would have read them.
async fn plans(client: &Client) -> Vec<TablePlan> {
    let rows = client
        .query(
            "SELECT c.oid, c.relname::text, a.attnum, a.attname::text, t.oid, t.typname::text, tn.nspname::text, \
             format_type(t.oid, a.atttypmod), a.atttypmod, a.attnotnull, a.attgenerated <> '', a.attidentity::text \
             FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
             JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace tn ON tn.oid = t.typnamespace \
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r') ORDER BY c.oid, a.attnum",
            &[],
        )
        .await
        .unwrap();
    let mut plans: Vec<TablePlan> = Vec::new();
    for row in rows {
        let oid = row.get(0);
        if plans.last().is_none_or(|plan| plan.relation.oid != oid) {
            plans.push(empty_plan(oid, row.get(1)));
        }
        let generated: bool = row.get(10);
        let data_type = DataType {
            oid: row.get(4),
            schema: row.get(6),
            name: row.get(5),
            kind: TypeKind::Base,
            has_binary: true,
            extension: None,
        };
        let column = Column {
            attnum: row.get(2),
            name: row.get(3),
            data_type,
            typmod: row.get(8),
            type_name: row.get(7),
            is_nullable: !row.get::<_, bool>(9),
            generated: if generated { Generated::Stored } else { Generated::No },
            identity: if row.get::<_, &str>(11) == "a" { Identity::Always } else { Identity::No },
            has_default: false,
            key_position: None,
            collation: None,
        };
        let plan = plans.last_mut().unwrap();
        plan.relation.columns.push(column.clone());
        if !generated {
            plan.select.push(SelectColumn { name: column.name.clone(), wire: Wire::Own });
            plan.columns.push(column);
        }
    }
    plans
}

fn empty_plan(oid: u32, name: &str) -> TablePlan {
    TablePlan {
        relation: Relation {
            oid,
            name: RelationName::new("public", name),
            kind: RelationKind::Table,
            persistence: Persistence::Permanent,
            columns: Vec::new(),
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
        columns: Vec::new(),
        select: Vec::new(),
        form: TupleForm::PgText,
        filter: None,
        unrepresentable: Unrepresentable::Error,
    }
}
