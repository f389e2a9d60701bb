//! The keys of rows that the stream has changed, out of the spool: what a half-copied table needs to go on.
//!
//! **Invariant:** for each table either every key, old and new, of every change of it that ended at or before the asked
//! position is given, or the reason why not. Keys of later changes and keys that come twice do no harm.
//!
//! Read while the queue is held: the spool then has everything from the target's position on, and nothing of it goes. Memory
//! is bounded: with too many keys the table is given up.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidemark_model::{
    Cell, Change, Generated, Lsn, Oid, Operation, Relation, StreamRelation, TablePlan, TupleData,
    TupleForm,
};
use tidemark_sink::TouchedKeys;
use tidemark_source::{Decoded, Relations, RowKind};

use super::body::messages;
use super::queue::Queue;
use super::spool::Spooled;
use crate::snapshot::{Touched, touched_key};
use crate::{Error, Kind, Result};

/// How often is looked how far the stream has come.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A half-copied table goes on by chunk where no more than this, or than the table, is still to be received.
const WORTH_WAITING: u64 = 256 << 20;
/// What a key takes besides its bytes, until it is part of the statements that read its row.
const KEY_BYTES: u64 = 160;

/// The keys of one table as they are gathered.
struct Table {
    /// Names and types of the columns that the stream has, in its order.
    columns: Vec<(String, Oid)>,
    names: Vec<String>,
    /// Which of the columns make up the key, in its order.
    key: Vec<usize>,
    form: Option<TupleForm>,
    /// Each as a row of COPY.
    keys: HashSet<Box<[u8]>>,
    because: Option<&'static str>,
}

impl Table {
    fn new(relation: &Relation) -> Option<Self> {
        let names = touched_key(relation)?.to_vec();
        let plain = relation.columns.iter().filter(|column| column.generated == Generated::No);
        let columns: Vec<_> =
            plain.map(|column| (column.name.clone(), column.data_type.oid)).collect();
        let place = |name: &String| columns.iter().position(|(column, _)| column == name);
        let key = names.iter().map(place).collect::<Option<Vec<usize>>>()?;
        Some(Self { columns, names, key, form: None, keys: HashSet::new(), because: None })
    }

    /// Adds the keys of a change; gives the bytes that they take.
    fn add(&mut self, change: &Change) -> Result<u64, &'static str> {
        self.is_described(&change.relation)?;
        match &change.operation {
            Operation::Insert { new } => self.add_row(new, None),
            Operation::Update { old: Some(old), new } => {
                Ok(self.add_row(old.tuple(), None)? + self.add_row(new, Some(old.tuple()))?)
            }
            Operation::Update { old: None, new } => self.add_row(new, None),
            Operation::Delete { old } => self.add_row(old.tuple(), None),
            Operation::Truncate { .. } => Err("it was truncated meanwhile"),
        }
    }

    /// Whether the columns are what they are now, and old rows have the key.
    fn is_described(&self, relation: &StreamRelation) -> Result<(), &'static str> {
        let described = relation.columns.iter().map(|column| (&column.name, column.type_oid));
        if !described.eq(self.columns.iter().map(|(name, oid)| (name, *oid))) {
            return Err("its columns were others for a while");
        }
        match self.key.iter().all(|place| relation.columns[*place].is_identity) {
            true => Ok(()),
            false => Err("its replica identity was another one for a while"),
        }
    }

    /// Adds the key of a row. A value that an update left where it is, outside the row, is that of the old row.
    fn add_row(&mut self, row: &TupleData, old: Option<&TupleData>) -> Result<u64, &'static str> {
        let cells: Vec<Cell<'_>> = row.cells().collect();
        let before: Vec<Cell<'_>> = old.map(|old| old.cells().collect()).unwrap_or_default();
        let mut key = BytesMut::new();
        for (index, &place) in self.key.iter().enumerate() {
            let cell = match cells.get(place) {
                Some(Cell::Unchanged) => before.get(place),
                cell => cell,
            };
            let (form, value) = match cell {
                Some(Cell::Text(value)) => (TupleForm::PgText, *value),
                Some(Cell::Binary(value)) => (TupleForm::PgBinary, *value),
                _ => return Err("the stream has a change without its key"),
            };
            if *self.form.get_or_insert(form) != form {
                return Err("the stream has its keys in two forms");
            }
            match form {
                TupleForm::PgBinary => add_binary(&mut key, (index, self.key.len()), value),
                TupleForm::PgText => add_text(&mut key, (index, self.key.len()), value),
            }
        }
        let bytes = key.len() as u64 + KEY_BYTES;
        Ok(if self.keys.insert(key.as_ref().into()) { bytes } else { 0 })
    }

    fn finish(self) -> Result<(u64, TouchedKeys), String> {
        if let Some(because) = self.because {
            return Err(because.to_owned());
        }
        let mut rows = BytesMut::with_capacity(self.keys.iter().map(|key| key.len()).sum());
        self.keys.iter().for_each(|key| rows.extend_from_slice(key));
        let form = self.form.unwrap_or(TupleForm::PgText);
        let keys = TouchedKeys { columns: self.names, form, rows: rows.freeze() };
        Ok((self.keys.len() as u64, keys))
    }
}

/// One value of a row of COPY BINARY.
fn add_binary(row: &mut BytesMut, (index, count): (usize, usize), value: &[u8]) {
    if index == 0 {
        row.extend_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
    }
    row.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
    row.extend_from_slice(value);
}

/// One value of a row of COPY's text.
fn add_text(row: &mut BytesMut, (index, count): (usize, usize), value: &[u8]) {
    for byte in value {
        match byte {
            b'\\' => row.extend_from_slice(b"\\\\"),
            b'\n' => row.extend_from_slice(b"\\n"),
            b'\r' => row.extend_from_slice(b"\\r"),
            b'\t' => row.extend_from_slice(b"\\t"),
            other => row.extend_from_slice(&[*other]),
        }
    }
    row.extend_from_slice(if index + 1 == count { b"\n" } else { b"\t" });
}

/// Whether it is worth waiting until the stream has come to `up_to`, instead of copying tables of so many bytes anew.
pub(super) fn is_worth_waiting(table_bytes: u64, received: Lsn, up_to: Lsn) -> bool {
    up_to.bytes_since(received) <= table_bytes.max(WORTH_WAITING)
}

/// Waits until the stream has come to `up_to`; gives why it will not, where what comes has no room.
async fn arrives(queue: &Queue, up_to: Lsn) -> Result<(), String> {
    loop {
        if queue.has_received(up_to) {
            return Ok(());
        }
        if queue.is_full() {
            return Err("the spool is full before the stream has come to the new snapshot".into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The tables as what has been read of the stream leaves them.
struct Gathering {
    relations: Relations,
    tables: HashMap<Oid, Table>,
    bytes: u64,
}

impl Gathering {
    /// Takes one message of a transaction, or a description; those of other tables are not even decoded.
    fn take(&mut self, message: &Bytes) -> Result<()> {
        let kind = message.first().and_then(|tag| RowKind::from_tag(*tag));
        let Some(kind) = kind else { return Err(malformed()) };
        if kind == RowKind::Truncate {
            // Number of tables, flags, tables.
            let truncated = message.get(6..).unwrap_or_default().chunks_exact(4);
            for oid in truncated.filter_map(oid_of) {
                self.give_up(oid, "it was truncated meanwhile");
            }
            return Ok(());
        }
        let oid = message.get(1..5).and_then(oid_of);
        let Some(table) = oid.and_then(|oid| self.tables.get_mut(&oid)) else { return Ok(()) };
        let decoded = self.relations.decode(kind, message.slice(1..));
        if let Decoded::Change(change) = decoded.map_err(|cause| malformed().because(cause))? {
            self.bytes += match table.add(&change) {
                Ok(bytes) => bytes,
                Err(because) => {
                    let oid = change.relation.oid;
                    self.give_up(oid, because);
                    0
                }
            };
        }
        Ok(())
    }

    fn give_up(&mut self, oid: Oid, because: &'static str) {
        if let Some(table) = self.tables.get_mut(&oid) {
            table.because.get_or_insert(because);
            table.keys.clear();
        }
    }
}

fn oid_of(bytes: &[u8]) -> Option<Oid> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

fn malformed() -> Error {
    Error::new(Kind::Internal, "read what the stream has changed: a message is not understood")
}

/// Gathers the keys of these tables from everything up to `up_to`, once that has come; `position` is where the spool has to
/// begin. More than `memory` bytes of them are not gathered.
///
/// # Errors
/// The spool cannot be read.
pub(super) async fn gather(
    queue: &Queue,
    tables: &[&TablePlan],
    (position, up_to): (Lsn, Lsn),
    memory: u64,
) -> Result<Touched> {
    let all = |because: &str| {
        let table = |plan: &&TablePlan| (plan.relation.oid, Err(because.to_owned()));
        tables.iter().map(table).collect()
    };
    if let Err(because) = arrives(queue, up_to).await {
        return Ok(all(&because));
    }
    let Some(mut reader) = queue.reread(position) else {
        return Ok(all("what was received does not begin at the old snapshot"));
    };
    let table = |plan: &&TablePlan| Some((plan.relation.oid, Table::new(&plan.relation)?));
    let found = tables.iter().filter_map(table).collect();
    let mut gathering = Gathering { relations: Relations::new(), tables: found, bytes: 0 };
    while let Some(spooled) = queue.read_again(&mut reader)? {
        let mut body = match spooled {
            Spooled::Relation(message) => {
                gathering.take(&message)?;
                continue;
            }
            Spooled::Transaction(head, _) if head.end_lsn > up_to => break,
            Spooled::Transaction(_, body) => body,
        };
        while let Some(block) = tokio::task::block_in_place(|| body.next()).map_err(disk)? {
            for message in messages(&block) {
                gathering.take(&message)?;
            }
            if gathering.bytes > memory {
                return Ok(all("more rows have changed since than there is memory for"));
            }
        }
    }
    let tables = gathering.tables.into_iter();
    Ok(tables.map(|(oid, table)| (oid, table.finish())).collect())
}

fn disk(cause: std::io::Error) -> Error {
    Error::new(Kind::Unavailable, "read the spool").because(cause)
}

#[cfg(test)]
mod tests;
