//! Which rows of a batch go to which table, and their order.
//!
//! **Invariant:** `_seq` counts the rows of a transaction over all tables without a gap, from 0, whatever batches it comes
//! in; the same transaction gets the same numbers when it is sent again. An update of a table without a key is two rows.

use std::collections::HashMap;

use tidemark_model::{Change, Oid, Operation, RelationName, Reservation, Transaction};

use crate::{Disposition, Error, Result};

/// A batch while its rows are being taken.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) transactions: Vec<Transaction>,
    /// Given back with the last of the rows.
    pub(super) _reservation: Reservation,
}

/// One change of one table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pick {
    pub(super) transaction: u32,
    pub(super) change: u32,
    /// Of its first row.
    pub(super) seq: i64,
}

/// The tables of a stream by the OID of the source.
#[derive(Debug, Default)]
pub(super) struct Routes {
    by_oid: HashMap<Oid, usize>,
    is_keyless: Vec<bool>,
}

impl Routes {
    pub(super) fn new(tables: impl Iterator<Item = (Oid, bool)>) -> Self {
        let mut routes = Self::default();
        for (index, (oid, is_keyless)) in tables.enumerate() {
            routes.by_oid.insert(oid, index);
            routes.is_keyless.push(is_keyless);
        }
        routes
    }

    /// Sorts the changes by table. `first_seq` is the first free number of the first transaction; the last one's is returned.
    pub(super) fn split(
        &self,
        transactions: &[Transaction],
        first_seq: i64,
    ) -> Result<(Vec<Vec<Pick>>, i64)> {
        let mut picks = vec![Vec::new(); self.is_keyless.len()];
        let mut seq = first_seq;
        for (transaction_index, transaction) in transactions.iter().enumerate() {
            if transaction_index > 0 {
                seq = 0;
            }
            for (change_index, change) in transaction.changes.iter().enumerate() {
                let pick = |seq| Pick {
                    // A batch is bounded in bytes, far below 2^32 changes.
                    transaction: transaction_index as u32,
                    change: change_index as u32,
                    seq,
                };
                if let Operation::Truncate { .. } = change.operation {
                    for table in self.truncated(change)? {
                        picks[table].push(pick(seq));
                        seq += 1;
                    }
                    continue;
                }
                let table = self.table(change.relation.oid, &change.relation.name)?;
                picks[table].push(pick(seq));
                let is_pair =
                    self.is_keyless[table] && matches!(change.operation, Operation::Update { .. });
                seq += if is_pair { 2 } else { 1 };
            }
        }
        Ok((picks, seq))
    }

    fn table(&self, oid: Oid, name: &RelationName) -> Result<usize> {
        self.by_oid.get(&oid).copied().ok_or_else(|| {
            let attempt = "write a change of a table that the stream does not have";
            Error::new(Disposition::Internal, attempt).on(name)
        })
    }

    /// A TRUNCATE may name tables that are not followed.
    fn truncated(&self, change: &Change) -> Result<Vec<usize>> {
        let mut tables = vec![self.table(change.relation.oid, &change.relation.name)?];
        if let Operation::Truncate { with, .. } = &change.operation {
            tables.extend(with.iter().filter_map(|other| self.by_oid.get(&other.oid)));
        }
        Ok(tables)
    }
}
