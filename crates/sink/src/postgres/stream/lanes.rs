//! Which lane a change goes to, where `stream.lanes` asks for several.
//!
//! **Invariant:** where a change goes follows from the change and from the rule that the target stores for its table, and from
//! nothing else: not from the batch it came in, nor from the form its values are sent in. So after a crash the same changes
//! belong to the lanes that have committed already, however batches are cut then.
//!
//! **Invariant:** two changes in different lanes never concern the same row, nor equal values of a unique index. What cannot
//! keep that has no lane: a TRUNCATE, a key that moves from one lane to another, a part of a huge transaction. A batch that
//! holds such a change is applied by the first lane alone, in one transaction for everything.
//!
//! ```text
//! table with one unique index, its key      by the integers, uuids and texts among the key's columns
//! table whose changes say no key            by transaction: such a table has nothing but inserts
//! table with triggers that fire all the same  first lane, with all others of that kind
//! every other table                         one lane for the whole table
//! ```
//!
//! **Not here:** what the target stores of it (`record`), how lanes are driven (`crew`).
//!
//! PostgreSQL manual: "Logical Replication", "Replication Identity"; `CREATE INDEX`.

pub(super) mod crew;
pub(super) mod record;

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidemark_model::{
    Cell, Change, Lsn, Oid, Operation, StreamRelation, Transaction, TransactionHead, TupleData,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{Disposition, Error, Result};

/// From so many changes on several lanes are worth their commits; below, one transaction has it all. The storms of the
/// campaign have small batches, and must meet planted defects of lanes.
pub const LANES_FROM: usize = if cfg!(feature = "planted-bugs") { 8 } else { 256 };

/// How the rows of a table are spread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Rule {
    /// One lane has the table.
    Whole,
    /// The first lane has the table.
    First,
    /// By these columns, which belong to the key.
    Key(Vec<KeyColumn>),
}

/// A column whose value says the lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyColumn {
    pub(super) name: String,
    pub(super) class: Class,
}

/// Types whose values can be told apart in both forms, and are the same exactly where the target thinks so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Class {
    Integer,
    Uuid,
    /// `text` and `varchar` of a deterministic collation.
    Text,
}

impl Class {
    /// The class of a type, by its OID: they are the same on every server.
    pub(super) fn of(type_oid: Oid) -> Option<Self> {
        match type_oid {
            20 | 21 | 23 => Some(Self::Integer),
            2950 => Some(Self::Uuid),
            25 | 1043 => Some(Self::Text),
            _ => None,
        }
    }

    /// Appends a value in a form that does not depend on how it was sent; false where it cannot be told.
    fn put(self, cell: Cell<'_>, out: &mut Vec<u8>) -> bool {
        match (self, cell) {
            (Self::Integer, Cell::Text(text)) => {
                let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                number.map(|number: i64| out.extend(number.to_le_bytes())).is_some()
            }
            (Self::Integer, Cell::Binary(bytes)) => {
                let number = match *bytes {
                    [a, b] => i64::from(i16::from_be_bytes([a, b])),
                    [a, b, c, d] => i64::from(i32::from_be_bytes([a, b, c, d])),
                    _ => match <[u8; 8]>::try_from(bytes) {
                        Ok(bytes) => i64::from_be_bytes(bytes),
                        Err(_) => return false,
                    },
                };
                out.extend(number.to_le_bytes());
                true
            }
            (Self::Uuid, Cell::Binary(bytes)) => {
                out.extend(bytes);
                bytes.len() == 16
            }
            (Self::Uuid, Cell::Text(text)) => put_uuid(text, out),
            (Self::Text, Cell::Text(value) | Cell::Binary(value)) => {
                out.extend((value.len() as u64).to_le_bytes());
                out.extend(value);
                true
            }
            (_, Cell::Null | Cell::Unchanged) => false,
        }
    }
}

fn put_uuid(text: &[u8], out: &mut Vec<u8>) -> bool {
    let digits = text.iter().filter(|byte| **byte != b'-');
    let digits: Option<Vec<u8>> = digits
        .map(|byte| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let Some(digits) = digits.filter(|digits| digits.len() == 32) else { return false };
    out.extend(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]));
    true
}

/// The lane of what hashes to this; stored positions rely on it, so it never changes.
fn lane_of(bytes: &[u8], table: Oid, count: usize) -> usize {
    let mut seed = u64::from(table);
    if crate::plant::is_planted("lane-by-run") {
        seed += u64::from(std::process::id());
    }
    (xxh3_64_with_seed(bytes, seed) % count as u64) as usize
}

/// How changes of one description of a relation find their lane.
#[derive(Debug)]
enum Way {
    Lane(usize),
    Transaction,
    /// The cells of the rule's columns.
    Key(Vec<(usize, Class)>),
}

/// Tells the lane of each change.
#[derive(Debug)]
pub(super) struct Splitter {
    count: usize,
    rules: HashMap<Oid, Rule>,
    ways: HashMap<Oid, (Arc<StreamRelation>, Way)>,
    scratch: Vec<u8>,
}

impl Splitter {
    /// `rules` by OID on the source; a table without one is in no lane.
    pub(super) fn new(count: usize, rules: HashMap<Oid, Rule>) -> Self {
        Self { count, rules, ways: HashMap::new(), scratch: Vec::new() }
    }

    /// The lane of a change; none where it must be applied by one lane for all.
    fn lane(&mut self, change: &Change, end_lsn: Lsn) -> Option<usize> {
        if matches!(change.operation, Operation::Truncate { .. }) {
            return None;
        }
        let oid = change.relation.oid;
        let rule = self.rules.get(&oid)?;
        let known =
            self.ways.get(&oid).is_some_and(|(known, _)| Arc::ptr_eq(known, &change.relation));
        if !known {
            let way = way(rule, &change.relation, self.count);
            self.ways.insert(oid, (Arc::clone(&change.relation), way));
        }
        let (_, way) = self.ways.get(&oid)?;
        let cells = match way {
            Way::Lane(lane) => return Some(*lane),
            Way::Transaction => {
                return Some(lane_of(&end_lsn.as_u64().to_le_bytes(), oid, self.count));
            }
            Way::Key(cells) => cells,
        };
        let scratch = &mut self.scratch;
        let mut of = |row: &TupleData, older: Option<&TupleData>| {
            key(cells, row, older, scratch).then(|| lane_of(scratch, oid, self.count))
        };
        match &change.operation {
            Operation::Insert { new } => of(new, None),
            Operation::Delete { old } => of(old.tuple(), None),
            Operation::Update { old: None, new } => of(new, None),
            Operation::Update { old: Some(old), new } => {
                let lane = of(old.tuple(), None)?;
                (of(new, Some(old.tuple()))? == lane).then_some(lane)
            }
            Operation::Truncate { .. } => None,
        }
    }

    /// Gives each lane its changes; all of them back where one lane has to apply them or would have to anyway.
    pub(super) fn split(
        &mut self,
        transactions: Vec<Transaction>,
    ) -> std::result::Result<Split, Vec<Transaction>> {
        let mut order = Vec::with_capacity(transactions.len());
        let mut used = vec![false; self.count];
        for transaction in &transactions {
            let mut lanes = Vec::with_capacity(transaction.changes.len());
            for change in &transaction.changes {
                let Some(lane) = self.lane(change, transaction.head.end_lsn) else {
                    return Err(transactions);
                };
                used[lane] = true;
                lanes.push(lane as u8);
            }
            order.push((transaction.head, lanes));
        }
        if used.iter().filter(|used| **used).count() < 2 {
            return Err(transactions);
        }
        let mut parts: Vec<Vec<Transaction>> = (0..self.count).map(|_| Vec::new()).collect();
        for (transaction, (head, lanes)) in transactions.into_iter().zip(&order) {
            for (change, lane) in transaction.changes.into_iter().zip(lanes) {
                let part = &mut parts[usize::from(*lane)];
                match part.last_mut() {
                    Some(last) if last.head.end_lsn == head.end_lsn => last.changes.push(change),
                    _ => part.push(Transaction { head: *head, changes: vec![change] }),
                }
            }
        }
        Ok(Split { parts, order })
    }
}

fn way(rule: &Rule, relation: &StreamRelation, count: usize) -> Way {
    let whole = || Way::Lane(lane_of(&[], relation.oid, count));
    match rule {
        Rule::First => return Way::Lane(0),
        _ if !relation.columns.iter().any(|column| column.is_identity) => return Way::Transaction,
        Rule::Whole => return whole(),
        Rule::Key(_) => {}
    }
    let Rule::Key(columns) = rule else { return whole() };
    let cell = |wanted: &KeyColumn| {
        let place = relation.columns.iter().position(|column| column.name == wanted.name)?;
        let column = &relation.columns[place];
        let fits = column.is_identity && Class::of(column.type_oid) == Some(wanted.class);
        fits.then_some((place, wanted.class))
    };
    let cells: Option<Vec<_>> = columns.iter().map(cell).collect();
    cells.map_or_else(whole, Way::Key)
}

/// The values that say the lane; what an update did not send is as in the older row.
fn key(
    cells: &[(usize, Class)],
    row: &TupleData,
    older: Option<&TupleData>,
    out: &mut Vec<u8>,
) -> bool {
    out.clear();
    cells.iter().all(|(place, class)| {
        let value = match (row.cells().nth(*place), older) {
            (Some(Cell::Unchanged), Some(older)) => older.cells().nth(*place),
            (value, _) => value,
        };
        value.is_some_and(|value| class.put(value, out))
    })
}

/// Each transaction with the lane of each of its changes.
pub(super) type Order = Vec<(TransactionHead, Vec<u8>)>;

/// A batch by lanes.
#[derive(Debug)]
pub(super) struct Split {
    /// For each lane its changes, in source order.
    pub(super) parts: Vec<Vec<Transaction>>,
    /// Which change is whose.
    pub(super) order: Order,
}

impl Split {
    /// The batch as it was.
    pub(super) fn join(
        parts: impl Iterator<Item = Vec<Transaction>>,
        order: Order,
    ) -> Vec<Transaction> {
        let mut lanes: Vec<_> = parts
            .map(|part| part.into_iter().flat_map(|transaction| transaction.changes))
            .collect();
        let transaction = |(head, places): (TransactionHead, Vec<u8>)| {
            let changes = places.iter().filter_map(|lane| lanes[usize::from(*lane)].next());
            Transaction { head, changes: changes.collect() }
        };
        order.into_iter().map(transaction).collect()
    }
}

/// What was begun in lanes and not ended in all of them: some have committed beyond the job's position.
#[derive(Debug)]
pub(super) struct Redo {
    /// As the lanes were then.
    splitter: Splitter,
    /// Up to where each lane has everything.
    ahead: Vec<Lsn>,
    /// Up to where one of them has.
    pub(super) until: Lsn,
}

impl Redo {
    fn new(splitter: Splitter, lanes: &[(usize, Lsn)]) -> Self {
        let mut ahead = vec![Lsn::ZERO; splitter.count];
        for (lane, lsn) in lanes {
            if let Some(place) = ahead.get_mut(*lane) {
                *place = *lsn;
            }
        }
        let until = lanes.iter().map(|(_, lsn)| *lsn).max().unwrap_or(Lsn::ZERO);
        Self { splitter, ahead, until }
    }

    /// Takes out what lanes have that are ahead. The rest is applied by one lane for all.
    ///
    /// # Errors
    /// A change that no lane can have had.
    pub(super) fn pass_over(&mut self, transactions: &mut [Transaction]) -> Result<()> {
        let Self { splitter, ahead, until } = self;
        for transaction in transactions {
            let end_lsn = transaction.head.end_lsn;
            if end_lsn > *until {
                break;
            }
            let mut failed = None;
            transaction.changes.retain(|change| {
                // A table that joined since was in no lane.
                if !splitter.rules.contains_key(&change.relation.oid) {
                    return true;
                }
                match splitter.lane(change, end_lsn) {
                    Some(lane) => ahead[lane] < end_lsn,
                    None => {
                        failed = Some(Arc::clone(&change.relation));
                        true
                    }
                }
            });
            if let Some(relation) = failed {
                return Err(no_lane(&relation, end_lsn));
            }
        }
        Ok(())
    }
}

fn no_lane(relation: &StreamRelation, end_lsn: Lsn) -> Error {
    Error::new(
        Disposition::Internal,
        format!("bring the lanes together: the transaction that ends at {end_lsn} has a change that was in no lane"),
    )
    .on(&relation.name)
    .hint("the target's records of the job were changed: take a new snapshot (tidemark cleanup, then sync)")
}

#[cfg(test)]
mod tests;
