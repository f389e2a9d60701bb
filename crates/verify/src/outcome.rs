//! What was found out of a pair of databases.
//!
//! **Invariant:** the verdict of the whole is the worst of its parts; what was skipped, or not looked at, leaves it unknown.

use std::time::{Duration, SystemTime};

use tidemark_model::{Lsn, RelationName, RowSum};
use tidemark_report::{Level, Verdict};

use crate::Skipped;
use crate::findings::SchemaFinding;
use crate::naming::Named;
use crate::side::Side;

/// The moments at which the sides were held against each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Point {
    /// Both sides as of this position of the source.
    Barrier {
        /// Everything that committed before it, and nothing else, is in both snapshots.
        lsn: Lsn,
        /// For how long nothing was applied because of it.
        pause: Duration,
        /// When the target stood there.
        at: SystemTime,
        /// For how long the snapshots were held.
        held: Duration,
        /// Where leaves were read before, of what was not to grow as old as it takes to read all: they are the same at
        /// `lsn`, too, since the stream has not touched them.
        earlier: Vec<Barrier>,
    },
    /// Each side at a moment of its own, while neither was to change.
    Quiesced,
}

/// Where both sides met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Barrier {
    /// The position.
    pub lsn: Lsn,
    /// For how long nothing was applied because of it.
    pub pause: Duration,
    /// When.
    pub at: SystemTime,
    /// For how long the snapshots were held.
    pub held: Duration,
}

/// What was found out.
#[derive(Debug)]
pub struct Outcome {
    /// How deep it was looked.
    pub level: Level,
    /// When; none where no row was read.
    pub point: Option<Point>,
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
    /// The digests' key, by its identifier.
    pub key_id: String,
    /// From the first connection to the last row.
    pub duration: Duration,
}

/// Which database a side is, and when it was read.
#[derive(Debug, Clone)]
pub struct SideReport {
    /// `server_version`; of a lake, the version of its format and the commit that was read.
    pub version: String,
    /// The cluster; none of a lake.
    pub system_identifier: Option<u64>,
    /// The database's name; none of a lake.
    pub database: Option<String>,
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
    /// The source's position at the last of them.
    pub lsn: Option<Lsn>,
    /// The position of the oldest reading that the verdict stands on, where some leaves were not read again because the stream
    /// has not touched them since.
    pub oldest_leaf: Option<Lsn>,
    /// Position and time (milliseconds since 1970) of the last verification that found the whole table the same, this one
    /// included; none where there was none, or nobody kept it.
    pub last_proven: Option<(Lsn, i64)>,
    /// The columns that a row is known by; none: rows are compared as a multiset.
    pub key_columns: Vec<String>,
    /// The rows that differ; none where they were not looked for, or not all found.
    pub named: Option<Named>,
    /// Why they were not all found.
    pub unnamed: Option<String>,
    /// Rows with values that a declared mapping to the lake cannot carry; none where there is no such mapping.
    pub lossy: Option<u64>,
}

impl Outcome {
    /// The verdict of the whole: the worst of all, and nothing at all is not known.
    pub fn verdict(&self) -> Verdict {
        let tables = self.tables.iter().map(|table| table.verdict);
        let alone = self.alone.iter().map(|_| Verdict::Different);
        let skipped = self.skipped.iter().map(|_| Verdict::Incomplete);
        Verdict::of_all(tables.chain(alone).chain(skipped))
    }
}

pub(crate) fn side_report(side: &Side, view: Option<(Lsn, String)>) -> SideReport {
    let server = &side.catalog.server;
    let (lsn, read_snapshot) = view.unzip();
    SideReport {
        version: server.version.clone(),
        system_identifier: Some(server.system_identifier),
        database: Some(server.database.clone()),
        lsn,
        read_snapshot,
    }
}
