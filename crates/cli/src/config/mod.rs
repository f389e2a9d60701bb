//! The configuration: what the user wrote, checked and typed.
//!
//! **Invariant:** a [`Config`] holds only values that were checked; flags win over the file, the file over defaults, and the
//! defaults stand in [`keys`] alone. An error names file, line, column and key, and shows no secret.
//!
//! ```text
//! text --positions--> known keys? --> RawConfig --expand, parse, check--> Config
//! ```
//!
//! **Not here:** what a connection string means (`wire`), which tables exist (`source`).

mod error;
pub mod example;
pub mod expand;
mod file;
mod glob;
pub mod keys;
mod load;
pub mod raw;
pub mod schema;
pub mod units;
pub mod url;
mod waves;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tidemark_model::{RelationName, Secret, Unrepresentable};

pub use error::ConfigError;
pub use glob::{Selection, TableGlob, is_system_schema};
pub use load::{Environment, Needs, load, load_with};
pub use url::TargetUrl;
pub use waves::{Wave, WaveOf};

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[job]`
    pub job: Job,
    /// `[source]`; there whenever [`Needs::Both`] was asked for.
    pub source: Option<Source>,
    /// `[target]`; there whenever [`Needs::Both`] was asked for.
    pub target: Option<Target>,
    /// `[select]`
    pub select: Selection,
    /// Every `[[table]]`, each relation once.
    pub tables: Vec<Table>,
    /// Every `[[wave]]`; none where all tables are moved together, and in a configuration of one wave.
    pub waves: Vec<Wave>,
    /// The wave that `--wave` names.
    pub wave: Option<String>,
    /// The wave that this is the configuration of.
    pub part: Option<WaveOf>,
    /// `[snapshot]`
    pub snapshot: Snapshot,
    /// `[stream]`
    pub stream: Stream,
    /// `[parquet]`
    pub parquet: Parquet,
    /// `[limits]`
    pub limits: Limits,
    /// `[verify]`
    pub verify: Verify,
    /// `[cutover]`
    pub cutover: Cutover,
    /// `[delta]`
    pub delta: Delta,
    /// `serve.listen`
    pub listen: Option<SocketAddr>,
    /// Where each value comes from, for `config check`; without secrets.
    pub in_force: Vec<InForce>,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
}

/// `[verify]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verify {
    /// How deep it looks.
    pub level: Level,
    /// Connections that read each side; none: as many as `snapshot.readers`.
    pub jobs: Option<u32>,
    /// Bytes a second from both sides; none: as fast as it goes.
    pub rate: Option<u64>,
    /// What does not count.
    pub allow: Vec<Allow>,
    /// What is hidden of the rows that differ.
    pub redact: Redact,
}

/// `[cutover]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cutover {
    /// The stream may be so far behind.
    pub max_lag: Duration,
    /// Then everything is taken back.
    pub max_write_block: Duration,
    /// Values of sequences that are left out.
    pub sequence_margin: u64,
    /// How writes are kept out.
    pub fence: Fence,
    /// A hook has so long.
    pub hook_timeout: Duration,
    /// How the application is told where to write.
    pub switch: Hook,
}

/// How somebody outside is told of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hook {
    /// Nobody is.
    None,
    /// By a command.
    Command(Vec<String>),
    /// By a POST to this URL.
    Url(Secret),
}

/// How writes are kept out of the side that is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fence {
    /// Read-only by default.
    ReadOnly,
    /// By the user's own means: what keeps them out, what lets them in again.
    Hooks(Hook, Hook),
}

/// `[delta]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta {
    /// Rows that the target does not have.
    pub new: DeltaAction,
    /// Rows that are others than the target's.
    pub modified: DeltaAction,
    /// Rows that the source does not have any more.
    pub deleted: DeltaAction,
    /// Rows that the target refused the last time.
    pub failed: DeltaAction,
    /// Rows that another filter lets through or keeps out.
    pub unfiltered: DeltaAction,
}

/// What a delta does with rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DeltaAction {
    /// Move them.
    Apply,
    /// Count them; the next run finds them again.
    Report,
    /// Leave them, and say nothing of them.
    Skip,
}

/// How deep a verification looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// Definitions.
    Schema,
    /// And numbers of rows.
    Count,
    /// And sums over every row; the rows that differ are named.
    Digest,
    /// And every column of the rows that differ.
    Rows,
}

/// What does not count as a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Allow {
    /// Equal values in another representation.
    Equivalent,
    /// Values that a declared mapping cannot carry in full.
    Lossy,
}

/// What is hidden of the rows that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Redact {
    /// Nothing.
    None,
    /// Values outside the key.
    Values,
    /// Values and keys.
    Keys,
}

/// `[job]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The job's name, `[a-z0-9]([a-z0-9-]{0,19})`.
    pub name: String,
    /// The state directory as given; relative to the working directory.
    pub state_dir: PathBuf,
}

/// `[source]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The connection string.
    pub url: Secret,
    /// A publication that somebody else made.
    pub publication: Option<String>,
    /// A slot that somebody else made.
    pub slot: Option<String>,
    /// Make a failover slot.
    pub failover: bool,
}

/// `[target]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it is.
    pub url: TargetUrl,
    /// Who makes the schema.
    pub schema: SchemaMode,
    /// Whether triggers fire.
    pub triggers: Triggers,
}

/// Who makes the schema of a PostgreSQL target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaMode {
    /// We do.
    Create,
    /// It is there.
    Exists,
}

/// Whether triggers fire while loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Triggers {
    /// They do not: `session_replication_role = replica`.
    Replica,
    /// As for any application.
    AsIs,
}

/// One `[[table]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The relation.
    pub name: RelationName,
    /// The row filter, an SQL expression to be put in parentheses.
    pub filter: Option<String>,
    /// The chosen columns, each once; `None` means all.
    pub columns: Option<Vec<String>>,
    /// What happens to values without a lake form.
    pub unrepresentable: Unrepresentable,
}

/// `[snapshot]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Connections that read at the same time, at least one.
    pub readers: u32,
    /// Size of a chunk.
    pub chunk_bytes: u64,
    /// How long to wait for a table's lock.
    pub lock_timeout: Duration,
}

/// `[stream]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// How long transactions are gathered while the target is busy.
    pub batch_delay: Duration,
    /// Size at which a commit is large enough.
    pub batch_bytes: u64,
    /// How many sessions apply.
    pub lanes: u32,
    /// What happens to changed definitions.
    pub ddl: Ddl,
    /// Whether a long backlog is read in rounds.
    pub catch_up: bool,
    /// How often a message is written on the source.
    pub heartbeat: Option<Duration>,
}

/// What happens when a followed table is altered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ddl {
    /// New columns are carried over.
    Additive,
    /// New columns are carried over, else the table stops.
    StopTable,
    /// The job stops.
    Stop,
}

/// `[parquet]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parquet {
    /// Compression of pages.
    pub compression: Compression,
    /// Size at which a file is closed.
    pub file_bytes: u64,
    /// How often changes are committed while following.
    pub commit_interval: Duration,
}

/// Compression of Parquet pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Zstandard.
    Zstd,
    /// LZ4.
    Lz4,
    /// Snappy.
    Snappy,
    /// None.
    None,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Memory for rows on their way, in bytes.
    pub memory: u64,
    /// WAL that the source may keep because of us.
    pub source_wal: u64,
    /// Disk for the spool.
    pub spool: u64,
    /// What happens when both are full.
    pub on_full: OnFull,
}

/// What happens when the source keeps too much and the spool is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// The stream waits.
    Wait,
    /// The slot is dropped.
    DropSlot,
}

/// One value that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// `section.key`, with an index for `[[table]]`.
    pub key: String,
    /// The value as TOML, redacted.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// The file.
    File,
    /// Neither.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "flag",
            Self::File => "file",
            Self::Default => "default",
        })
    }
}

/// Says why a job's name does not fit, if it does not.
pub fn check_job_name(name: &str) -> Result<(), String> {
    check_name("a job name", name)
}

/// The same of any name of which objects on a server are made.
fn check_name(what: &str, name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 20 || name.starts_with('-') || !name.chars().all(fits) {
        return Err(format!(
            "{name:?} is not {what}: 1 to 20 of a-z, 0-9 and -, not beginning with -, as in \"{}\"",
            fitted_job_name(name)
        ));
    }
    Ok(())
}

/// Makes a name fit: small letters, `-` for everything else, at most 20 characters.
pub fn fitted_job_name(text: &str) -> String {
    let fitted: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let fitted = fitted.trim_matches('-');
    let fitted = fitted.get(..20).unwrap_or(fitted).trim_end_matches('-');
    if fitted.is_empty() { "job".to_owned() } else { fitted.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fitted_name_is_a_job_name() {
        for (text, name) in [
            ("shop", "shop"),
            ("My_Shop 2", "my-shop-2"),
            ("__x__", "x"),
            ("äöü", "job"),
            ("a-very-long-database-name-indeed", "a-very-long-database"),
            ("1234567890123456789-x", "1234567890123456789"),
        ] {
            assert_eq!(fitted_job_name(text), name);
            assert_eq!(check_job_name(name), Ok(()));
        }
    }

    #[test]
    fn a_wrong_job_name_is_refused_with_one_that_fits() {
        for wrong in ["", "-a", "A", "a_b", "a b", "123456789012345678901"] {
            assert!(check_job_name(wrong).is_err(), "{wrong}");
        }
        assert!(check_job_name("My Shop").unwrap_err().contains("\"my-shop\""));
    }
}
