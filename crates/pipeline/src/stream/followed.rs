//! Which changes of the stream are the job's, table by table.
//!
//! **Invariant (2 of `design.md` 3):** of a table that joined, a change is passed over if and only if its transaction is one
//! that the table's read snapshot shows: its rows were copied. The transaction is known by its top-level id with its epoch;
//! positions play no part in it, because commits become visible in another order than they stand in the WAL.
//!
//! Descriptions are passed over with the changes: what a transaction says that the snapshot shows may be older than the
//! columns that were copied. One that stands by itself belongs to transactions that were applied before. The lock that the
//! snapshot is taken under keeps definitions from changing between it and the last row, so that the first transaction that
//! counts either finds the columns as they were copied or comes with a new description.

use std::collections::HashMap;

use rustc_hash::FxHashMap;
use tidemark_model::{JoinPoint, Oid, ReadSnapshot, TablePlan};

use super::plant::is_planted;

/// The followed tables, with the snapshots of those that joined where the stream has not been yet.
#[derive(Debug)]
pub(crate) struct Followed(FxHashMap<Oid, Option<ReadSnapshot>>);

impl Followed {
    pub(crate) fn new(plans: &[TablePlan], joins: &HashMap<Oid, JoinPoint>) -> Self {
        let table = |plan: &TablePlan| {
            let oid = plan.relation.oid;
            (oid, joins.get(&oid).map(|join| join.snapshot.clone()))
        };
        Self(plans.iter().map(table).collect())
    }

    /// Whether what a transaction says of a table counts; `None` for what belongs to no transaction.
    pub(crate) fn takes(&self, oid: Oid, xid: Option<u64>) -> bool {
        match (self.0.get(&oid), xid) {
            (None, _) => false,
            (Some(None), _) => true,
            (Some(Some(_)), None) => false,
            (Some(Some(_)), Some(_)) if is_planted("join-takes-all") => true,
            (Some(Some(snapshot)), Some(xid)) if is_planted("join-forgets-open") => {
                // As if all that began before its end had ended.
                let text = snapshot.to_string();
                let end = text.split(':').nth(1).and_then(|end| end.parse::<u64>().ok());
                end.is_some_and(|end| xid >= end)
            }
            (Some(Some(snapshot)), Some(xid)) => !snapshot.shows(xid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_joined_takes_what_its_snapshot_does_not_show_and_others_take_all() {
        let snapshots = [(1, None), (2, Some("10:20:15".parse().unwrap()))];
        let followed = Followed(snapshots.into_iter().collect());
        let taken = |oid| -> Vec<u64> {
            [9, 14, 15, 19, 20].into_iter().filter(|xid| followed.takes(oid, Some(*xid))).collect()
        };
        assert_eq!(taken(1), [9, 14, 15, 19, 20]);
        assert_eq!(taken(2), [15, 20]);
        assert_eq!(taken(3), [0; 0]);
        assert!(followed.takes(1, None) && !followed.takes(2, None));
    }
}
