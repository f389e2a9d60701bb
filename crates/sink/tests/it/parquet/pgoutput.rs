//! The stream of a real server, read by SQL functions and taken apart here, apart from the product's own reader.
//!
//! PostgreSQL manual: protocol, "Logical Replication Message Formats".

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tidemark_model::{
    Change, Key, Lsn, OldRow, Operation, RelationName, ReplicaIdentity, StreamColumn,
    StreamRelation, TablePlan, Transaction, TransactionHead, TupleData,
};
use tidemark_testkit::Database;

use crate::catalog::Catalog;
use crate::conformance::plan_of;

/// A slot and the publication of all tables.
pub(super) struct Feed<'d> {
    database: &'d Database,
    form: &'static str,
    relations: HashMap<u32, Arc<StreamRelation>>,
}

impl<'d> Feed<'d> {
    /// Makes publication and slot; binary or as text.
    pub(super) fn new(database: &'d Database, is_binary: bool) -> Self {
        let name = database.name();
        database
            .psql(&format!(
                "CREATE PUBLICATION p FOR ALL TABLES;
                 SELECT pg_create_logical_replication_slot('{name}', 'pgoutput');"
            ))
            .unwrap();
        let form = if is_binary { "true" } else { "false" };
        Self { database, form, relations: HashMap::new() }
    }

    /// Where the slot stands.
    pub(super) fn position(&self) -> Lsn {
        let name = self.database.name();
        let sql = format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{name}'"
        );
        self.database.psql(&sql).unwrap().parse().unwrap()
    }

    /// Everything that has come since.
    pub(super) fn drain(&mut self) -> Vec<Transaction> {
        // What was committed without waiting for the disk is not decoded before it is there.
        let flush = "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, '', '')";
        self.database.psql(flush).unwrap();
        let sql = format!(
            "SET datestyle = 'ISO, MDY'; SET intervalstyle = postgres; SET timezone = 'UTC';
             SET bytea_output = hex; SET extra_float_digits = 3;
             SELECT encode(data, 'hex') FROM pg_logical_slot_get_binary_changes('{}', NULL, NULL,
                 'proto_version', '1', 'publication_names', 'p', 'binary', '{}')",
            self.database.name(),
            self.form
        );
        let mut transactions = Vec::new();
        let mut changes = Vec::new();
        let mut xid = 0;
        for line in self.database.psql(&sql).unwrap().lines() {
            let mut message = unhex(line);
            match message.get_u8() {
                b'B' => {
                    message.advance(16);
                    xid = u64::from(message.get_u32());
                }
                b'C' => {
                    message.advance(1);
                    let commit_lsn = Lsn::new(message.get_u64());
                    let end_lsn = Lsn::new(message.get_u64());
                    let committed_at = message.get_i64();
                    let head = TransactionHead { xid, commit_lsn, end_lsn, committed_at };
                    let changes = std::mem::take(&mut changes);
                    transactions.push(Transaction { head, changes });
                }
                b'R' => self.relation(message),
                kind @ (b'I' | b'U' | b'D' | b'T') => changes.push(self.change(kind, message)),
                b'Y' | b'O' => {}
                other => panic!("an unknown message {}", char::from(other)),
            }
        }
        transactions
    }

    fn relation(&mut self, mut message: Bytes) {
        let oid = message.get_u32();
        let name = RelationName { schema: text(&mut message), name: text(&mut message) };
        let replica_identity = char::from(message.get_u8());
        let columns = (0..message.get_u16()).map(|_| StreamColumn {
            is_identity: message.get_u8() & 1 != 0,
            name: text(&mut message),
            type_oid: message.get_u32(),
            typmod: message.get_i32(),
        });
        let columns = columns.collect();
        let relation = StreamRelation { oid, name, replica_identity, columns };
        self.relations.insert(oid, Arc::new(relation));
    }

    fn change(&self, kind: u8, mut message: Bytes) -> Change {
        if kind == b'T' {
            let count = message.get_u32();
            let options = message.get_u8();
            let mut all = (0..count).map(|_| Arc::clone(&self.relations[&message.get_u32()]));
            let relation = all.next().unwrap();
            let operation = Operation::Truncate {
                with: all.collect(),
                cascade: options & 1 != 0,
                restart_identity: options & 2 != 0,
            };
            return Change { relation, operation };
        }
        let relation = Arc::clone(&self.relations[&message.get_u32()]);
        let mut tuple = || {
            let kind = message.get_u8();
            (kind, TupleData::split_from(&mut message).unwrap())
        };
        let old = |(kind, tuple)| match kind {
            b'K' => OldRow::Key(tuple),
            b'O' => OldRow::Full(tuple),
            other => panic!("an old row of kind {}", char::from(other)),
        };
        let operation = match kind {
            b'I' => Operation::Insert { new: tuple().1 },
            b'D' => Operation::Delete { old: old(tuple()) },
            _ => match tuple() {
                (b'N', new) => Operation::Update { old: None, new },
                before => Operation::Update { old: Some(old(before)), new: tuple().1 },
            },
        };
        Change { relation, operation }
    }
}

impl Drop for Feed<'_> {
    fn drop(&mut self) {
        let name = self.database.name();
        drop(self.database.psql(&format!("SELECT pg_drop_replication_slot('{name}')")));
    }
}

fn text(message: &mut Bytes) -> String {
    let end = message.iter().position(|byte| *byte == 0).unwrap();
    let text = String::from_utf8(message.split_to(end).to_vec()).unwrap();
    message.advance(1);
    text
}

fn unhex(line: &str) -> Bytes {
    let digits = line.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

/// The plan for a table of the database's schema `public`, with its key and identity.
pub(super) fn plan_from(database: &Database, catalog: &Catalog, table: &str) -> TablePlan {
    let one = |sql: &str| database.psql(sql).unwrap();
    let oid = one(&format!("SELECT '{table}'::regclass::oid")).parse().unwrap();
    let mut columns = catalog.columns(database, table);
    let keys = one(&format!(
        "SELECT a.attname FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k (attnum, n)
         JOIN pg_attribute a USING (attnum)
         WHERE i.indrelid = '{table}'::regclass AND a.attrelid = i.indrelid AND i.indisprimary ORDER BY k.n"
    ));
    let keys: Vec<String> = keys.lines().map(str::to_owned).collect();
    for column in &mut columns {
        let position = keys.iter().position(|key| *key == column.name);
        column.key_position = position.map(|position| u16::try_from(position).unwrap() + 1);
    }
    let mut plan = plan_of(oid, &RelationName::new("public", table), columns);
    let key = Key { index: "k".to_owned(), columns: keys, is_primary: true, is_deferrable: false };
    plan.relation.keys = if key.columns.is_empty() { Vec::new() } else { vec![key] };
    let identity = format!("SELECT relreplident FROM pg_class WHERE oid = {oid}");
    plan.relation.replica_identity = match one(&identity).as_str() {
        "f" => ReplicaIdentity::Full,
        _ => ReplicaIdentity::Default,
    };
    let (select, form) = tidemark_sink::parquet::lake_plan(&plan.columns, plan.unrepresentable);
    plan.select = select;
    plan.form = form;
    plan
}
