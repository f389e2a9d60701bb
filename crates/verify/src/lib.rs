//! Proves that two databases, or a database and a lake, hold the same rows, or finds where they do not.
//!
//! **Invariant:** a table is called identical only where every row of both sides was read and every leaf's count and sum are
//! equal; whatever was not read, or did not hold still, makes it incomplete, with the reason (`design.md` 3, invariant 8).
//! Rows are hashed by `digest`, which shares nothing with what moved them.
//!
//! ```text
//! pair: both catalogs -> Pair per table; findings, definitions: what the two are declared to be
//!   exact: both sides at one LSN of a job that follows  |  quiesced: each side at a moment of its own
//!     known, rounds: what need not be read again, and what is read at this point and at later ones
//!     lake: the same for a target of Parquet files, whose rows are summed as its commits describe them
//!     run: reading of both sides at once -> sums by leaf -> state: what is settled
//!       naming: the rows that differ, from the reading itself or read again -> lines
//! pair, side, scan: also for a delta, which reads both sides in the same way and hashes rows so that they compare
//! selftest: copies of a sample with planted differences, compared by the same
//! ```
//!
//! **Not here:** what a report looks like (`report`), which job is verified (`cli`).

mod again;
mod aside;
mod classify;
mod definitions;
mod exact;
mod findings;
mod known;
mod lake;
mod lines;
mod naming;
mod outcome;
mod pair;
mod quiesced;
mod reading;
mod repair;
mod rounds;
mod run;
mod scan;
mod selftest;
mod side;
mod spill;
mod state;

pub use exact::verify_at_barrier;
pub use findings::SchemaFinding;
pub use lines::Lines;
pub use naming::Named;
pub use outcome::{Barrier, Outcome, Point, SideReport, TableOutcome};
pub use pair::{Bounds, Half, Pair, Paired, pair};
pub use quiesced::verify_quiesced;
pub use repair::{How, Repaired, Suspect, repair};
pub use scan::{Piece, Take, TakeRows, Tools, plan, scan};
pub use selftest::{Missed, Selftest, Tried, cleanup_selftest, selftest};
pub use side::{Side, View};
pub use spill::{Spill, SpillWriter};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidemark_model::RelationName;
use tidemark_pipeline::Job;
use tidemark_report::Level;

/// What is verified, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// Both sides, the selection, filters, the memory.
    pub job: Job,
    /// How deep; `digest` names the rows that differ, `rows` looks at their columns too.
    pub level: Level,
    /// Sessions that read each side.
    pub readers: usize,
    /// Bytes a second that are read from both sides together; `None`: as fast as it goes.
    pub rate: Option<u64>,
    /// Of a job that follows: which leaves are read.
    pub reads: Reads,
    /// Of a job that follows: read snapshots are given up at about this age, and the rest is read under new ones.
    pub max_snapshot_age: Option<Duration>,
    /// For whoever watches.
    pub progress: Arc<Progress>,
    /// Takes the rows that differ.
    pub lines: Lines,
}

impl Request {
    /// Of everything, as fast as it goes, with as many readers as the job has.
    pub fn new(job: Job, level: Level, lines: Lines) -> Self {
        Self {
            readers: job.readers,
            job,
            level,
            rate: None,
            reads: Reads::All,
            max_snapshot_age: None,
            progress: Arc::default(),
            lines,
        }
    }
}

/// Where rows are put aside that do not fit into memory.
pub(crate) fn spill_directory(job: &Job) -> std::path::PathBuf {
    if job.state_dir.is_dir() { job.state_dir.clone() } else { std::env::temp_dir() }
}

/// Which leaves are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reads {
    /// All, on both sides.
    #[default]
    All,
    /// Those that the stream has touched since they were read last, by a verification or by the copy.
    Dirty,
}

/// How far a verification is. Counters are written by batch; reading them blocks nobody.
#[derive(Debug, Default)]
pub struct Progress {
    read: [AtomicU64; 2],
    expected: AtomicU64,
    readings: AtomicU64,
    read_again: AtomicU64,
    retries: AtomicU64,
    throttled_ms: AtomicU64,
}

impl Progress {
    /// Bytes of rows that were read from a side.
    pub fn read(&self, which: Which) -> u64 {
        self.read[which as usize].load(Ordering::Relaxed)
    }

    /// Chunks that were read again because a connection was lost.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Leaves that were read more than once.
    pub fn read_again(&self) -> u64 {
        self.read_again.load(Ordering::Relaxed)
    }

    /// For how long sessions waited because of the rate, all together.
    pub fn throttled(&self) -> Duration {
        Duration::from_millis(self.throttled_ms.load(Ordering::Relaxed))
    }

    /// About so many there are to read, by the sizes of the tables; what is read a second time counts again.
    pub fn expected(&self) -> u64 {
        self.expected.load(Ordering::Relaxed)
    }

    /// Number of the reading that runs, from 1; 0 before the first.
    pub fn reading(&self) -> u64 {
        self.readings.load(Ordering::Relaxed)
    }

    fn begin_reading(&self, bytes: u64) {
        self.expected.fetch_add(bytes, Ordering::Relaxed);
        self.readings.fetch_add(1, Ordering::Relaxed);
    }

    /// So much more is to be read than was thought.
    fn expect(&self, bytes: u64) {
        self.expected.fetch_add(bytes, Ordering::Relaxed);
    }

    fn add(&self, which: Which, bytes: u64) {
        self.read[which as usize].fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The side that something is said of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Which {
    /// Where the data came from.
    Source,
    /// Where it was moved to.
    Target,
}

impl Which {
    /// As it is written in a message.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

/// A table that is not compared, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Which.
    pub name: RelationName,
    /// Why.
    pub because: String,
}
