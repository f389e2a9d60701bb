//! Pairs of databases and verifications of them.

use std::time::Duration;

use tidemark_pipeline::{
    Job, NotEmpty, PostgresTarget, SchemaMode, StreamJob, TableOptions, Target, Triggers,
};
use tidemark_report::Level;
use tidemark_source::Selection;
use tidemark_testkit::{Database, shared};
use tidemark_verify::{Lines, Outcome, Request, TableOutcome, verify_quiesced};
use tidemark_wire::ConnectSpec;
use tokio_util::sync::CancellationToken;

/// Two databases that nobody else uses.
pub(crate) struct Pair {
    pub(crate) source: Database,
    pub(crate) target: Database,
    pub(crate) request: Request,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let (source, target) = (shared().unwrap(), shared().unwrap());
        let request = request(&source.url(), &target.url());
        Self { source, target, request }
    }

    /// The same on both sides.
    pub(crate) fn both(&self, sql: &str) {
        self.source.psql(sql).unwrap();
        self.target.psql(sql).unwrap();
    }

    pub(crate) async fn verify(&self) -> Outcome {
        verify_quiesced(&self.request, &CancellationToken::new()).await.unwrap()
    }

    pub(crate) async fn table(&self, name: &str) -> TableOutcome {
        table(&self.verify().await, name)
    }
}

pub(crate) fn request(source: &str, target: &str) -> Request {
    let job = Job {
        name: "verify".to_owned(),
        state_dir: "unused".into(),
        source: ConnectSpec::parse(source).unwrap(),
        target: Target::Postgres(PostgresTarget {
            spec: ConnectSpec::parse(target).unwrap(),
            schema: SchemaMode::Exists,
            triggers: Triggers::Replica,
            not_empty: NotEmpty::Refuse,
        }),
        selection: Selection::default(),
        tables: Vec::<TableOptions>::new(),
        readers: 2,
        chunk_bytes: 256 * 1024,
        lock_timeout: Duration::from_secs(5),
        memory: 64 << 20,
        follows: false,
        stream: StreamJob::default(),
        tool_version: "test".to_owned(),
        wave: None,
    };
    Request::new(job, Level::Digest, Lines::nowhere())
}

pub(crate) fn table(outcome: &Outcome, name: &str) -> TableOutcome {
    let found = outcome.tables.iter().find(|table| table.name.name == name);
    found.unwrap_or_else(|| panic!("{name}: {outcome:?}")).clone()
}
