//! Changes of rows on their way from the stream to a target.
//!
//! **Invariant:** a [`TupleData`] was checked when it was made: its cells lie inside its bytes and are as many as it says,
//! so that reading it cannot fail. A change carries the description of its relation as it was when the change was made.
//!
//! Values stay as the source wrote them; nothing here decodes them. Positions are end LSNs: the first byte after a
//! transaction's commit record.
//!
//! PostgreSQL manual: protocol, "Logical Replication Message Formats".

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{Lsn, Oid, RelationName, Reservation};

/// A relation as a Relation message of the stream describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRelation {
    /// `pg_class.oid` on the source; what identifies the relation, whatever it is called.
    pub oid: Oid,
    /// Its name at the time of the change.
    pub name: RelationName,
    /// What old rows hold: `d`, `n`, `f` or `i` as in `pg_class.relreplident`.
    pub replica_identity: char,
    /// The columns in the order of the cells.
    pub columns: Vec<StreamColumn>,
}

/// One column of a [`StreamRelation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamColumn {
    /// Unquoted name.
    pub name: String,
    /// `pg_type.oid` on the source.
    pub type_oid: Oid,
    /// `atttypmod`, -1 without one.
    pub typmod: i32,
    /// Whether it belongs to the replica identity; FULL flags every column.
    pub is_identity: bool,
}

/// One value of a row in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    /// SQL NULL; in an old row that holds only a key, also every column outside the key.
    Null,
    /// A TOASTed value that the change left as it was; the source did not send it.
    Unchanged,
    /// As the type's output function writes it.
    Text(&'a [u8]),
    /// As the type's send function writes it.
    Binary(&'a [u8]),
}

/// The cells are not what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a malformed row in the stream: {0}")]
pub struct MalformedTuple(&'static str);

/// One row of the stream: TupleData of the manual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TupleData {
    /// The cells, without the count before them.
    cells: Bytes,
    columns: u16,
}

impl Cell<'_> {
    /// Appends it in the form of TupleData.
    ///
    /// # Panics
    /// A value of 4 GiB or more, which no stream has.
    pub fn put(self, out: &mut impl BufMut) {
        let (kind, value) = match self {
            Cell::Null => return out.put_u8(b'n'),
            Cell::Unchanged => return out.put_u8(b'u'),
            Cell::Text(value) => (b't', value),
            Cell::Binary(value) => (b'b', value),
        };
        out.put_u8(kind);
        out.put_u32(u32::try_from(value.len()).expect("a value of the stream is below 1 GB"));
        out.put_slice(value);
    }
}

impl TupleData {
    /// A row of these cells.
    ///
    /// # Panics
    /// More than 65,535 cells; a table has at most 1600 columns.
    pub fn of<'a>(cells: impl ExactSizeIterator<Item = Cell<'a>>) -> Self {
        let columns = u16::try_from(cells.len()).expect("a row has at most 1600 columns");
        let mut bytes = BytesMut::new();
        cells.for_each(|cell| cell.put(&mut bytes));
        Self { cells: bytes.freeze(), columns }
    }

    /// Takes a TupleData off the front of `message`, checking every cell.
    ///
    /// # Errors
    /// A length that is negative or leads out of the message, or an unknown kind of cell.
    pub fn split_from(message: &mut Bytes) -> Result<Self, MalformedTuple> {
        if message.len() < 2 {
            return Err(MalformedTuple("it ends before its number of columns"));
        }
        let columns = u16::try_from(message.get_i16())
            .map_err(|_| MalformedTuple("a negative number of columns"))?;
        let mut end = 0_usize;
        for _ in 0..columns {
            let kind = *message.get(end).ok_or(MalformedTuple("it ends inside a cell"))?;
            end += 1;
            match kind {
                b'n' | b'u' => {}
                b't' | b'b' => {
                    let header = message
                        .get(end..end + 4)
                        .and_then(|bytes| bytes.try_into().ok())
                        .map(i32::from_be_bytes)
                        .ok_or(MalformedTuple("it ends inside a cell"))?;
                    let length =
                        usize::try_from(header).map_err(|_| MalformedTuple("a negative length"))?;
                    end += 4 + length;
                    if end > message.len() {
                        return Err(MalformedTuple("a length leads out of the message"));
                    }
                }
                _ => return Err(MalformedTuple("an unknown kind of cell")),
            }
        }
        Ok(Self { cells: message.split_to(end), columns })
    }

    /// Number of cells.
    #[expect(clippy::len_without_is_empty, reason = "a count of columns, not a collection")]
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// Bytes that the cells take.
    pub fn byte_len(&self) -> usize {
        self.cells.len()
    }

    /// The cells in column order.
    pub fn cells(&self) -> Cells<'_> {
        Cells { rest: &self.cells }
    }
}

/// The cells of a [`TupleData`] in column order.
#[derive(Debug, Clone)]
pub struct Cells<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    fn next(&mut self) -> Option<Cell<'a>> {
        let (&kind, rest) = self.rest.split_first()?;
        if matches!(kind, b'n' | b'u') {
            self.rest = rest;
            return Some(if kind == b'n' { Cell::Null } else { Cell::Unchanged });
        }
        let (header, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*header) as usize)?;
        self.rest = rest;
        Some(if kind == b't' { Cell::Text(value) } else { Cell::Binary(value) })
    }
}

/// What a change carries of the row before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldRow {
    /// Only the columns of the replica identity hold values; the others are null placeholders (`hazards.md` C44).
    Key(TupleData),
    /// The whole row: REPLICA IDENTITY FULL.
    Full(TupleData),
}

impl OldRow {
    /// The cells, whatever they hold.
    pub fn tuple(&self) -> &TupleData {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => tuple,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// A new row.
    Insert {
        /// The row.
        new: TupleData,
    },
    /// A changed row.
    Update {
        /// The row before: there when the identity's columns changed or are all columns.
        old: Option<OldRow>,
        /// The row after; may have [`Cell::Unchanged`] cells.
        new: TupleData,
    },
    /// A row that is gone.
    Delete {
        /// The row before.
        old: OldRow,
    },
    /// All rows are gone, of this relation and of those that one statement emptied with it.
    Truncate {
        /// The other relations of the statement, in its order; the change's own is not among them.
        with: Vec<Arc<StreamRelation>>,
        /// `CASCADE` was said.
        cascade: bool,
        /// `RESTART IDENTITY` was said.
        restart_identity: bool,
    },
}

/// One change of one relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The relation as it was at the time of the change.
    pub relation: Arc<StreamRelation>,
    /// What happened.
    pub operation: Operation,
}

/// Which transaction of the source, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionHead {
    /// The top-level transaction id, extended to 64 bits with its epoch.
    pub xid: u64,
    /// Start of the commit record: an ordering of commits, never stored as a position.
    pub commit_lsn: Lsn,
    /// First byte after the commit record: the only position that is ever stored or compared.
    pub end_lsn: Lsn,
    /// Commit time in microseconds since 2000-01-01 UTC, by the source's clock.
    pub committed_at: i64,
}

/// A transaction of the source, or a part of one.
#[derive(Debug)]
pub struct Transaction {
    /// Which.
    pub head: TransactionHead,
    /// Its changes in source order.
    pub changes: Vec<Change>,
}

/// Whole transactions in commit order, or a part of one that is larger than a batch.
///
/// A target commits after a batch whose `continues` is false, and never after another one.
#[derive(Debug)]
pub struct StreamBatch {
    /// The transactions in commit order; never empty, though each may be without changes.
    pub transactions: Vec<Transaction>,
    /// There is exactly one transaction here and it goes on in the next batch. The head is the same in all parts, but for
    /// the end LSN of one that is applied while it comes: before the last part that is only known to be beyond the start of
    /// the commit record.
    pub continues: bool,
    /// Memory that the batch holds; dropped when it is no longer needed.
    pub reservation: Reservation,
}

impl StreamBatch {
    /// The end of the last transaction: the position that belongs to the batch.
    pub fn end_lsn(&self) -> Lsn {
        self.transactions.last().map_or(Lsn::ZERO, |transaction| transaction.head.end_lsn)
    }

    /// Number of changes in it.
    pub fn change_count(&self) -> usize {
        self.transactions.iter().map(|transaction| transaction.changes.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> Bytes {
        Bytes::copy_from_slice(bytes)
    }

    #[test]
    fn cells_are_read_as_they_were_sent_and_what_follows_stays() {
        let mut all = message(b"\0\x04nub\0\0\0\x02\x01\x02t\0\0\0\x01xREST");
        let tuple = TupleData::split_from(&mut all).unwrap();
        assert_eq!(&all[..], b"REST");
        assert_eq!(tuple.len(), 4);
        let cells: Vec<_> = tuple.cells().collect();
        let expected = [Cell::Null, Cell::Unchanged, Cell::Binary(&[1, 2]), Cell::Text(b"x")];
        assert_eq!(cells, expected);
    }

    #[test]
    fn lying_lengths_are_refused() {
        for bytes in [
            &b""[..],
            b"\0",
            b"\xff\xff",
            b"\0\x01",
            b"\0\x01t",
            b"\0\x01t\0\0\0",
            b"\0\x01t\0\0\0\x02x",
            b"\0\x01t\xff\xff\xff\xffx",
            b"\0\x01b\x7f\xff\xff\xffx",
            b"\0\x01z",
            b"\xff\xffn",
        ] {
            assert!(TupleData::split_from(&mut message(bytes)).is_err(), "{bytes:?}");
        }
    }
}
