//! Beginning a stream at a target that holds the rows already, or most of them: what differs from the snapshot is moved, and
//! nothing else is copied.
//!
//! **Invariant:** what is compared on the source is the snapshot that the slot has exported, so that the stream begins exactly
//! where the target was brought to. Every table of the snapshot is brought there, or the stream does not begin.
//!
//! **Not here:** how rows are compared and moved (`migrate::delta`).

use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};
use tidemark_model::RelationName;
use tidemark_source::Snapshot;

use crate::{Job, Result};

/// What the target is brought to.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// The snapshot with which the stream begins, held by somebody else.
    pub snapshot: &'a Snapshot,
    /// The run that has the job's record on the target: only under it may anything be written.
    pub run: &'a str,
}

/// Brings the target's rows to a snapshot of the source.
pub trait Reconcile {
    /// Moves what differs in the tables of the snapshot; gives what was moved of each.
    ///
    /// # Errors
    /// A side was lost, or a table cannot be brought there; tables that were stay so.
    ///
    /// # Cancel safety
    /// Safe: the transaction of the table that was being moved is undone.
    fn reconcile<'a>(
        &'a self,
        job: &'a Job,
        moment: Moment<'a>,
    ) -> LocalBoxFuture<'a, Result<Vec<ReconciledTable>>>;
}

/// What was moved of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconciledTable {
    /// The table.
    pub relation: RelationName,
    /// Rows of the source, all of which were compared.
    pub rows: u64,
    /// Rows that the target did not have.
    pub new: u64,
    /// Rows that it had otherwise.
    pub modified: u64,
    /// Rows that it had and the source has not.
    pub deleted: u64,
}
