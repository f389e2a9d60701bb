//! Two clusters, jobs between their databases, and runs of them.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tidemark_pipeline::{
    Compression, Error, Job, LakeTarget, NotEmpty, PostgresTarget, Progress, Report, SchemaMode,
    Target, Triggers, snapshot_only,
};
use tidemark_sink::parquet::Root;
use tidemark_source::Selection;
use tidemark_testkit::{Cluster, Version, oracle};
use tidemark_wire::ConnectSpec;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Source and target of all tests of this process.
static CLUSTERS: OnceLock<(Cluster, Cluster)> = OnceLock::new();
static NEXT: AtomicU32 = AtomicU32::new(1);

/// The source has the version of `TIDEMARK_PG`; a target must be 14 or later, and its definitions are compared as text.
fn clusters() -> &'static (Cluster, Cluster) {
    CLUSTERS.get_or_init(|| {
        let target = Version::from_env().max(Version::V15);
        let source = Cluster::builder().setting("max_connections", "100").start();
        let target = Cluster::builder().version(target).setting("max_connections", "100").start();
        (source.unwrap(), target.unwrap())
    })
}

/// A job from a database of the source cluster to a database of the target cluster, or to a directory.
pub(crate) struct Fixture {
    pub(crate) source: &'static Cluster,
    pub(crate) target: &'static Cluster,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) directory: TempDir,
    pub(crate) job: Job,
}

impl Fixture {
    /// Two empty databases.
    pub(crate) fn new() -> Self {
        Self::with_options("", "")
    }

    /// Two empty databases made with these options of CREATE DATABASE.
    pub(crate) fn with_options(source_options: &str, target_options: &str) -> Self {
        let (source, target) = clusters();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (from, to) = (format!("from_{number}"), format!("to_{number}"));
        source.create_database_with(&from, source_options).unwrap();
        target.create_database_with(&to, target_options).unwrap();
        let directory = TempDir::new().unwrap();
        let job = Job {
            name: format!("it{number}"),
            state_dir: directory.path().join("state"),
            source: ConnectSpec::parse(&source.url(&from)).unwrap(),
            target: Target::Postgres(PostgresTarget {
                spec: ConnectSpec::parse(&target.url(&to)).unwrap(),
                schema: SchemaMode::Create,
                triggers: Triggers::Replica,
                not_empty: NotEmpty::Refuse,
            }),
            selection: Selection::default(),
            tables: Vec::new(),
            readers: 3,
            chunk_bytes: 256 * 1024,
            lock_timeout: Duration::from_secs(5),
            memory: 64 << 20,
            follows: false,
            stream: tidemark_pipeline::StreamJob::default(),
            tool_version: "test".to_owned(),
            wave: None,
        };
        Self { source, target, from, to, directory, job }
    }

    /// The same source, to Parquet files.
    pub(crate) fn into_lake(mut self) -> Self {
        self.job.target = Target::Lake(LakeTarget {
            root: Root::local(self.lake_path()),
            compression: Compression::Zstd { level: 1 },
            file_bytes: 64 << 20,
            not_empty: NotEmpty::Refuse,
        });
        self
    }

    /// Where a lake of this job is.
    pub(crate) fn lake_path(&self) -> std::path::PathBuf {
        self.directory.path().join("lake")
    }

    /// Only what these globs choose.
    pub(crate) fn choose(mut self, globs: &[&str]) -> Self {
        let include = globs.iter().map(|glob| (*glob).to_owned()).collect();
        self.job.selection = Selection::new(include, Vec::new());
        self
    }

    /// SQL on the source.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.source.psql(&self.from, sql).unwrap()
    }

    /// SQL on the target.
    pub(crate) fn target_sql(&self, sql: &str) -> String {
        self.target.psql(&self.to, sql).unwrap()
    }

    /// Runs the job to its end.
    pub(crate) fn run(&self) -> Result<Report, Error> {
        run(&self.job)
    }

    /// Runs the job, which must succeed.
    #[track_caller]
    pub(crate) fn copy(&self) -> Report {
        match self.run() {
            Ok(report) => report,
            Err(error) => panic!("{}", chain(&error)),
        }
    }

    /// Rows and sequences are the same on both sides, by the oracle.
    #[track_caller]
    pub(crate) fn assert_same_data(&self) {
        let found = oracle::data_diff((self.source, &self.from), (self.target, &self.to)).unwrap();
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "{} differences:\n{}", lines.len(), lines.join("\n"));
    }

    /// Rows, sequences and definitions are the same on both sides, by the oracle; a target of a later version has other
    /// definitions (13 knows no multiranges, 15 gives every range one): rows and sequences only.
    #[track_caller]
    pub(crate) fn assert_same(&self) {
        if self.source.version() != self.target.version() {
            return self.assert_same_data();
        }
        oracle::assert_same((self.source, &self.from), (self.target, &self.to));
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.source.drop_database(&self.from).ok();
        self.target.drop_database(&self.to).ok();
    }
}

/// An error with its findings and causes in one line.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    for finding in &error.findings {
        text.push_str(&format!("; {} {}: {}", finding.code, finding.object, finding.message));
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}

/// A runtime as the program has one.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Runs a job to its end.
pub(crate) fn run(job: &Job) -> Result<Report, Error> {
    let progress = std::sync::Arc::new(Progress::default());
    let stop = CancellationToken::new();
    runtime().block_on(Box::pin(snapshot_only(job, &progress, &stop)))
}

/// The Python that reads Parquet: `TIDEMARK_PYTHON`, else the one that `scripts/test` makes.
pub(crate) fn python() -> Option<std::path::PathBuf> {
    if let Some(path) = std::env::var_os("TIDEMARK_PYTHON") {
        return Some(path.into());
    }
    let made = Path::new("/var/cache/tidemark/python/bin/python");
    made.exists().then(|| made.to_owned())
}
