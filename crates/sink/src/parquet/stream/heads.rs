//! The columns of a change file that are not the table's.
//!
//! **Invariant:** after each row all of them hold the same number of rows.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, Int64Array, ListArray, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field};
use tidemark_model::TransactionHead;

/// Microseconds from 1970-01-01 to 2000-01-01.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// What a row says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) operation: u8,
    pub(super) seq: i64,
    pub(super) transaction: TransactionHead,
}

/// The columns on their way.
#[derive(Debug)]
pub(super) struct Heads {
    operations: Vec<u8>,
    commit_lsn: Vec<u64>,
    seq: Vec<i64>,
    commit_ts: Vec<i64>,
    xid: Vec<u64>,
    unchanged_ends: Vec<i32>,
    unchanged: Vec<String>,
}

impl Heads {
    pub(super) fn new() -> Self {
        Self {
            operations: Vec::new(),
            commit_lsn: Vec::new(),
            seq: Vec::new(),
            commit_ts: Vec::new(),
            xid: Vec::new(),
            unchanged_ends: vec![0],
            unchanged: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, head: Head) {
        self.operations.push(head.operation);
        self.commit_lsn.push(head.transaction.end_lsn.as_u64());
        self.seq.push(head.seq);
        self.commit_ts.push(head.transaction.committed_at.saturating_add(EPOCH_MICROS));
        self.xid.push(head.transaction.xid);
        // At most as many as values in a batch of rows.
        self.unchanged_ends.push(self.unchanged.len() as i32);
    }

    /// Names a column whose value the row that is pushed next does not have.
    pub(super) fn push_unchanged(&mut self, column: &str) {
        self.unchanged.push(column.to_owned());
    }

    /// The columns in front of `_old_key`, and `_unchanged`.
    pub(super) fn into_columns(self) -> (Vec<ArrayRef>, ArrayRef) {
        let Self { operations, commit_lsn, seq, commit_ts, xid, unchanged_ends, unchanged } = self;
        let ends = OffsetBuffer::from_repeated_length(1, operations.len());
        let operations = StringArray::new(ends, Buffer::from_vec(operations), None);
        let front: Vec<ArrayRef> = vec![
            Arc::new(operations),
            Arc::new(UInt64Array::from(commit_lsn)),
            Arc::new(Int64Array::from(seq)),
            Arc::new(TimestampMicrosecondArray::from(commit_ts).with_timezone("UTC")),
            Arc::new(UInt64Array::from(xid)),
        ];
        let item = Arc::new(Field::new_list_field(DataType::Utf8, false));
        let names = Arc::new(StringArray::from(unchanged));
        let ends = OffsetBuffer::new(ScalarBuffer::from(unchanged_ends));
        (front, Arc::new(ListArray::new(item, ends, names, None)))
    }
}
