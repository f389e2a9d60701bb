//! What can go wrong with the state directory.
//!
//! **Invariant:** every message names the file or directory, and the way out where there is one.

use std::io;
use std::path::PathBuf;

use tidemark_model::{ChunkId, Oid};

/// Why the ledger could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process holds the job.
    #[error(
        "another instance holds the state directory \"{directory}\"{}",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Held {
        /// The state directory.
        directory: PathBuf,
        /// The process, if it has written its number.
        pid: Option<u32>,
    },
    /// The directory is not safe to keep state in.
    #[error("refuse the state directory \"{directory}\": {reason}")]
    UnsafeDirectory {
        /// The state directory.
        directory: PathBuf,
        /// Why, as a clause.
        reason: &'static str,
    },
    /// A file of the state directory is not a plain file of ours.
    #[error("refuse \"{path}\": {reason}")]
    UnsafeFile {
        /// The file.
        path: PathBuf,
        /// Why, as a clause.
        reason: &'static str,
    },
    /// The directory belongs to another job.
    #[error(
        "the state directory \"{directory}\" belongs to job \"{found}\", not to \"{wanted}\": give each job its own"
    )]
    OtherJob {
        /// The state directory.
        directory: PathBuf,
        /// The job that made it.
        found: String,
        /// The job that was asked for.
        wanted: String,
    },
    /// There is no ledger yet.
    #[error("there is no ledger in \"{directory}\": nothing has run with this state directory")]
    Missing {
        /// The state directory.
        directory: PathBuf,
    },
    /// The file cannot be read as a ledger.
    #[error(
        "the ledger \"{path}\" is damaged or not ours: move it away and run again (the target's own markers say what is done)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite said, if it was SQLite.
        source: Option<rusqlite::Error>,
    },
    /// The file was written by a later version.
    #[error(
        "the ledger \"{path}\" has version {found}, this program knows up to {known}: use the newer program"
    )]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// The file's version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// No run has begun.
    #[error("the ledger \"{path}\" holds no run")]
    NoRun {
        /// The file.
        path: PathBuf,
    },
    /// A chunk or an end of a relation that was never added.
    #[error("the ledger holds no relation with OID {oid}")]
    UnknownRelation {
        /// The relation's OID on the source.
        oid: Oid,
    },
    /// A chunk came twice with different rows.
    #[error("chunk {chunk} of the relation with OID {oid} is recorded with other counts or sums")]
    ChunkDiffers {
        /// The relation's OID on the source.
        oid: Oid,
        /// The chunk.
        chunk: ChunkId,
    },
    /// A number is too large for the file.
    #[error("{what} does not fit the ledger")]
    TooLarge {
        /// Which number.
        what: &'static str,
    },
    /// The file system refused.
    #[error("{doing} \"{path}\"")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// SQLite refused.
    #[error("{doing} in the ledger \"{path}\"")]
    Sqlite {
        /// What was attempted.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
}
