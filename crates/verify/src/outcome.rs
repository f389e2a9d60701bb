//! What was found out of a pair of databases.
//!
//! **Invariant:** the verdict of the whole is the worst of its parts; what was skipped, or not looked at, leaves it unknown.

use std::time::Duration;

use tidemark_model::{Lsn, RelationName, RowSum};

use crate::findings::SchemaFinding;
use crate::side::Side;
use crate::{Level, Skipped};

/// The moments at which the sides were held against each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Both sides as of this position of the source.
    Barrier {
        /// Everything that committed before it, and nothing else, is in both snapshots.
        lsn: Lsn,
        /// For how long nothing was applied because of it.
        pause: Duration,
    },
    /// Each side at a moment of its own, while neither was to change.
    Quiesced,
}

/// What is known of a table in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The same rows, to the bit.
    Identical,
    /// The same values in other representations.
    Equivalent,
    /// Not the same.
    Different,
    /// Not known.
    Incomplete,
}

/// What was found out.
#[derive(Debug)]
pub struct Outcome {
    /// How deep it was looked.
    pub level: Level,
    /// When.
    pub point: Point,
    /// The sides as they were read last.
    pub source: SideReport,
    /// The same of the target.
    pub target: SideReport,
    /// Every pair of tables, by name.
    pub tables: Vec<TableOutcome>,
    /// Tables that only one side has.
    pub alone: Vec<RelationName>,
    /// Tables that were not compared.
    pub skipped: Vec<Skipped>,
    /// Definitions.
    pub findings: Vec<SchemaFinding>,
    /// Leaves that were read more than once.
    pub leaves_read_again: u64,
    /// The digests' key, by its identifier.
    pub key_id: String,
    /// Bytes of rows that were read from both sides.
    pub bytes: u64,
    /// From the first connection to the last row.
    pub duration: Duration,
}

/// Which database a side is, and when it was read.
#[derive(Debug, Clone)]
pub struct SideReport {
    /// `server_version`.
    pub version: String,
    /// The cluster.
    pub system_identifier: u64,
    /// The database's name.
    pub database: String,
    /// Noted just before the first read snapshot; none where no row was read.
    pub lsn: Option<Lsn>,
    /// `pg_current_snapshot()` of it.
    pub read_snapshot: Option<String>,
}

/// One pair of tables.
#[derive(Debug, Clone)]
pub struct TableOutcome {
    /// The name on both sides.
    pub name: RelationName,
    /// What is known.
    pub verdict: Verdict,
    /// Why nothing is, where that is so and not because of the level.
    pub because: Option<String>,
    /// The source's rows.
    pub source: RowSum,
    /// The target's rows.
    pub target: RowSum,
    /// The sums of each leaf, the source's and the target's, in the order of the key.
    pub leaves: Vec<(RowSum, RowSum)>,
    /// Leaves whose rows differ.
    pub different: Vec<u32>,
    /// Leaves of which nothing is known.
    pub unsettled: Vec<u32>,
    /// How often its rows were read.
    pub readings: u32,
}

impl Outcome {
    /// The verdict of the whole: the worst of all, and nothing at all is not known.
    pub fn verdict(&self) -> Verdict {
        let has = |verdict| self.tables.iter().any(|table| table.verdict == verdict);
        if has(Verdict::Different) || !self.alone.is_empty() {
            return Verdict::Different;
        }
        let is_whole = self.skipped.is_empty() && !self.tables.is_empty();
        if has(Verdict::Incomplete) || !is_whole {
            return Verdict::Incomplete;
        }
        if has(Verdict::Equivalent) { Verdict::Equivalent } else { Verdict::Identical }
    }
}

pub(crate) fn side_report(side: &Side, view: Option<(Lsn, String)>) -> SideReport {
    let server = &side.catalog.server;
    let (lsn, read_snapshot) = view.unzip();
    SideReport {
        version: server.version.clone(),
        system_identifier: server.system_identifier,
        database: server.database.clone(),
        lsn,
        read_snapshot,
    }
}
