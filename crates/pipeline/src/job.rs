//! What a job is: plain data, made by the command line from flags and configuration.
//!
//! **Invariant:** a `Job` is valid by itself: names and sizes were checked before it was made.

use std::path::PathBuf;
use std::time::Duration;

use tidemark_model::{RelationName, Unrepresentable};
use tidemark_sink::NotEmpty;
use tidemark_sink::parquet::{Compression, Root};
use tidemark_sink::postgres::{SchemaMode, Triggers};
use tidemark_source::Selection;
use tidemark_wire::ConnectSpec;

pub use crate::stream::DdlPolicy;

/// One job.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name: `[a-z0-9]([a-z0-9-]{0,19})`.
    pub name: String,
    /// Where ledger, control socket and schema archive live.
    pub state_dir: PathBuf,
    /// The source.
    pub source: ConnectSpec,
    /// The target.
    pub target: Target,
    /// Which tables.
    pub selection: Selection,
    /// What is special about some of them.
    pub tables: Vec<TableOptions>,
    /// Connections that read the source at once.
    pub readers: usize,
    /// Heap and TOAST bytes of one chunk.
    pub chunk_bytes: u64,
    /// How long a lock on a source table is waited for, each time.
    pub lock_timeout: Duration,
    /// Bytes of rows on their way, all queues together.
    pub memory: u64,
    /// Whether the source is followed after the snapshot; readiness asks for more then.
    pub follows: bool,
    /// How the source is followed.
    pub stream: StreamJob,
    /// This program's version.
    pub tool_version: String,
    /// The job is a wave of another one.
    pub wave: Option<Wave>,
}

/// A part of a job's tables that is moved and taken over by itself, and is a job of its own otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wave {
    /// Its name.
    pub name: String,
    /// The name of the job that it is a part of.
    pub job: String,
    /// The names of the jobs that the other waves are.
    pub others: Vec<String>,
}

impl Job {
    /// What a command is given that is about this wave alone, behind its name; nothing where there are no waves.
    pub fn wave_option(&self) -> String {
        self.wave.as_ref().map_or_else(String::new, |wave| format!(" --wave {}", wave.name))
    }

    /// Whether the target's tables are made from the source's schema.
    pub(crate) fn creates(&self) -> bool {
        match &self.target {
            Target::Postgres(target) => target.schema == SchemaMode::Create,
            Target::Lake(_) => false,
        }
    }
}

/// How the source is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamJob {
    /// A publication that somebody else made; ours otherwise.
    pub publication: Option<String>,
    /// A slot that somebody else made; ours otherwise.
    pub slot: Option<String>,
    /// Make the slot a failover slot (17 and later).
    pub failover: bool,
    /// How long transactions are gathered at most while the target is busy.
    pub batch_delay: Duration,
    /// The most bytes of changes in one commit on the target.
    pub batch_bytes: u64,
    /// How many sessions apply the stream to a PostgreSQL target side by side.
    pub lanes: usize,
    /// What becomes of changed definitions.
    pub ddl: DdlPolicy,
    /// A lake writes what it has gathered so often.
    pub commit_interval: Duration,
    /// Whether a long backlog is read in rounds before the stream begins.
    pub catch_up: bool,
    /// A message into an idle source so often, so that its slot moves.
    pub heartbeat: Option<Duration>,
    /// WAL that the source may keep because of us before the spool is acknowledged.
    pub source_wal: u64,
    /// Bytes that the spool may take.
    pub spool: u64,
    /// What happens when both are full.
    pub on_full: OnFull,
    /// How the target gets the rows that the stream begins with.
    pub beginning: Beginning,
}

/// How the target gets the rows that a stream begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Beginning {
    /// They are copied.
    #[default]
    Copied,
    /// It has them: nothing is copied. Only where that was proven, and nobody writes to either.
    Adopted,
    /// It has most of them: they are compared with the source's, and what differs is moved.
    Reconciled,
}

impl Beginning {
    /// Whether no chunk comes.
    pub(crate) fn copies_nothing(self) -> bool {
        self != Self::Copied
    }
}

impl Default for StreamJob {
    fn default() -> Self {
        Self {
            publication: None,
            slot: None,
            failover: false,
            batch_delay: Duration::from_millis(200),
            batch_bytes: 64 << 20,
            lanes: 1,
            ddl: DdlPolicy::Additive,
            commit_interval: Duration::from_secs(10),
            catch_up: true,
            heartbeat: None,
            source_wal: 16 << 30,
            spool: 64 << 30,
            on_full: OnFull::Wait,
            beginning: Beginning::default(),
        }
    }
}

/// What happens when the source keeps too much WAL and the spool is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFull {
    /// The stream waits; the source keeps its WAL.
    #[default]
    Wait,
    /// The slot is dropped, so that the source lives; a new snapshot is needed.
    DropSlot,
}

/// Where the rows go.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "a job has one target and is cloned a handful of times"
)]
pub enum Target {
    /// Another PostgreSQL.
    Postgres(PostgresTarget),
    /// Parquet files.
    Lake(LakeTarget),
}

/// A PostgreSQL target.
#[derive(Debug, Clone)]
pub struct PostgresTarget {
    /// How it is reached.
    pub spec: ConnectSpec,
    /// Where its tables come from.
    pub schema: SchemaMode,
    /// Triggers while loading.
    pub triggers: Triggers,
    /// What a target with contents means.
    pub not_empty: NotEmpty,
}

/// A Parquet target.
#[derive(Debug, Clone)]
pub struct LakeTarget {
    /// Directory or bucket.
    pub root: Root,
    /// Compression of pages.
    pub compression: Compression,
    /// A file is closed when it has this size.
    pub file_bytes: u64,
    /// What a target with contents means; a lake knows `Refuse` and `Truncate`.
    pub not_empty: NotEmpty,
}

/// What the user said about one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableOptions {
    /// The table; its two parts, because a dot may be part of either.
    pub name: RelationName,
    /// Only rows for which this SQL expression is true.
    pub filter: Option<String>,
    /// Only these columns.
    pub columns: Option<Vec<String>>,
    /// Values without a lake form.
    pub unrepresentable: Unrepresentable,
}
