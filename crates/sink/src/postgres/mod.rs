//! The PostgreSQL target.
//!
//! **Invariant:** a chunk's rows and its marker in `tidemark.chunk` are written by one transaction, so that after any
//! crash the markers say exactly which chunks are there. Only the session that holds the job's advisory lock writes.
//!
//! The way of a run:
//!
//! ```text
//! prepare   control: lock, end a killed run's sessions    begin: what is there    restore: pre-data half of the schema
//! chunks    load: BEGIN, [TRUNCATE], COPY, marker, COMMIT
//! tables    build: indexes, keys, ANALYZE
//! finish    build: foreign keys   restore: post-data half   sequences, views   phase: markers counted, record closed
//! stream    stream: net effect per key, a few statements per table, position in the same transaction
//! delta     delta: rows of a table and the generation of what is known of them in one transaction
//! ```
//!
//! **Not here:** reading the source's schema (`source::dump`, `source::schema`).

mod begin;
mod beside;
mod build;
mod check;
mod control;
mod delta;
mod form;
mod half;
mod join;
mod load;
mod origin;
mod phase;
mod record;
mod restore;
mod session;
mod stream;
mod unfinished;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tidemark_model::{ChunkSpec, Finding, Oid, RelationName, TablePlan};
use tidemark_wire::ConnectSpec;
use tokio::sync::{Mutex, OnceCell};

use crate::{
    BeginChunk, Committed, Disposition, Error, Join, KeptChunk, NotEmpty, OpenStream, Result, Sink,
    SnapshotStart, SnapshotSummary, Stored, StreamStart, TouchedKeys,
};

pub use control::{cleanup, closed_run};
pub use delta::{DeltaTable, DeltaTarget, DeltaWriter, RefusedRow};
pub use form::{binary_is_safe, copy_form};
pub use record::{JobRecord, read_job_record};
pub use stream::LANES_FROM;

use build::Builder;
use control::Control;
use load::Loader;
use session::Sessions;

/// Where the target's tables come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaMode {
    /// They are created from the source's schema.
    Create,
    /// They are there already and are checked column by column.
    Exists,
}

/// What happens to the target's triggers and rules while rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Triggers {
    /// `session_replication_role = replica`: only those marked ENABLE REPLICA or ALWAYS fire.
    #[default]
    Replica,
    /// They fire as for any other writer.
    AsIs,
}

/// How the target is reached and treated.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// The target.
    pub spec: ConnectSpec,
    /// The job's name.
    pub job: String,
    /// Where the tables come from.
    pub schema: SchemaMode,
    /// What a target with contents means.
    pub not_empty: NotEmpty,
    /// Triggers while loading.
    pub triggers: Triggers,
    /// Whether a stream follows the snapshot; readiness asks for more then.
    pub follows: bool,
    /// How many sessions apply the stream side by side; more than one asks for `Triggers::Replica`.
    pub lanes: usize,
    /// Batches of fewer changes are left to one of them; [`LANES_FROM`] where nothing else is known.
    pub lanes_from: usize,
    /// How many indexes and keys are built at once.
    pub build_jobs: usize,
    /// The `pg_restore` for a source of this major version, where the schema is created.
    pub restore_tool: fn(u32) -> PathBuf,
    /// This program's version, for the job record.
    pub tool_version: String,
    /// The job is one of several that make their parts of the schema here.
    pub wave: Option<WaveOf>,
}

/// The jobs that are the waves of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaveOf {
    /// The name of the job that they are parts of.
    pub job: String,
    /// Those beside this one.
    pub others: Vec<String>,
}

/// The PostgreSQL target.
pub struct PostgresSink {
    options: Arc<PostgresOptions>,
    sessions: Sessions,
    run: OnceCell<Run>,
    /// What the stream has of the job, from run to run of it in this process.
    hold: Mutex<stream::Hold>,
}

/// What `prepare` sets up for the rest of the run.
struct Run {
    start: SnapshotStart,
    /// The mode in force: a target that already has every table is never created again.
    mode: SchemaMode,
    /// The filtered table of contents of the schema archive.
    contents: Option<restore::Contents>,
    control: Arc<Control>,
    load: Loader,
    build: Builder,
    owner: load::Owner,
    /// What is done once all tables are as of one moment.
    owed: Vec<String>,
    /// Chunks of a first snapshot that died.
    kept: half::Kept,
}

impl PostgresSink {
    /// A target that is not yet connected to.
    pub fn new(options: PostgresOptions) -> Self {
        let sessions = Sessions::new(&options);
        Self { options: Arc::new(options), sessions, run: OnceCell::new(), hold: Mutex::default() }
    }

    /// In tables with triggers of their own, loading must not fire them unless that was asked for.
    async fn triggers_are_quiet(&self, client: &tidemark_wire::Client) -> Result<()> {
        if self.options.triggers == Triggers::AsIs || session::may_replicate(client).await? {
            return Ok(());
        }
        Err(Error::new(Disposition::Refused, "switch the target's triggers off while loading")
            .hint("tidemark check names the GRANT, or set target.triggers = \"as-is\""))
    }

    /// The part of `prepare` that is about tables that join.
    async fn prepare_join(
        &self,
        control: Arc<Control>,
        start: &SnapshotStart,
        join: &Join,
    ) -> Result<Run> {
        // A table that is copied again has its triggers already.
        self.triggers_are_quiet(control.client()).await?;
        let joining = join::begin(&control, &self.options, start, join).await?;
        let mut contents = None;
        if !joining.to_make.is_empty() {
            let only = Some(&joining.to_make);
            let part = restore::Part { only, ..restore::Part::default() };
            let list = restore::Contents::read(&self.options, start, part).await?;
            let made = restore::pre_data(&self.options, &list, false, restore::is_atomic(start));
            if let Err(error) = made.await {
                return Err(
                    join::with_default_partitions(control.client(), start, join, error).await
                );
            }
            contents = Some(list);
        }
        let start = join::without_what_is_there(control.client(), start).await?;
        let (mode, owner) = (self.options.schema, joining.owner);
        Ok(Run {
            load: Loader::new(&self.options, &self.sessions, &start, mode, owner.clone()),
            build: Builder::new(&self.options, &self.sessions, &start, mode, None),
            start,
            mode,
            contents,
            control,
            owner,
            owed: Vec::new(),
            kept: half::Kept::new(),
        })
    }

    /// The part of `prepare` that is about a first snapshot that died: its `whole` tables stay, the others join.
    async fn prepare_rest(
        &self,
        control: Arc<Control>,
        start: &SnapshotStart,
        (join, whole): (&Join, &[TablePlan]),
    ) -> Result<Run> {
        let unfinished::Begun { mode, owner, kept } =
            unfinished::begin(&control, &self.options, start, join, whole).await?;
        let (contents, owed) = match mode {
            SchemaMode::Create => {
                let beside = beside::Beside::of(&self.options, control.client(), start).await?;
                let part = beside.as_ref().map(beside::Beside::part).unwrap_or_default();
                let list = restore::Contents::read(&self.options, start, part).await?;
                (Some(list), unfinished::owed(start))
            }
            SchemaMode::Exists => {
                self.triggers_are_quiet(control.client()).await?;
                (None, Vec::new())
            }
        };
        let start = join::without_what_is_there(control.client(), start).await?;
        let mark = self.mark(&owner, Some(&join.point));
        Ok(Run {
            load: Loader::new(&self.options, &self.sessions, &start, mode, owner.clone()),
            build: Builder::new(&self.options, &self.sessions, &start, mode, Some(mark)),
            start,
            mode,
            contents,
            control,
            owner,
            owed,
            kept,
        })
    }

    fn mark(
        &self,
        owner: &load::Owner,
        point: Option<&tidemark_model::JoinPoint>,
    ) -> unfinished::Mark {
        let job = self.options.job.clone();
        unfinished::Mark { job, owner: owner.clone(), point: point.cloned() }
    }

    /// The part of `finish` that is about a first snapshot that died. What reads more than one table is owed until `settle`.
    async fn finish_rest(&self, run: &Run, whole: &[TablePlan]) -> Result<()> {
        unfinished::enter_finish(&run.control, &self.options.job, &run.owner).await?;
        // A process that died here may have made a part of it.
        if let Some(contents) = &run.contents {
            let _turn = beside::Turn::take(&self.options, &self.sessions).await?;
            restore::post_data(&self.options, contents, true).await?;
        }
        run.build.foreign_keys_unchecked().await?;
        if let Some(contents) = &run.contents {
            restore::after_foreign_keys(&self.options, contents, true).await?;
        }
        run.build.sequences().await?;
        let turn = beside::Turn::take(&self.options, &self.sessions).await?;
        self.event_triggers(run, true).await?;
        if run.mode == SchemaMode::Exists {
            // Rows of two moments: what refers to a row may be there before it.
            check::keys_are_unique(run.control.client(), &run.start.tables).await?;
            check::keys_are_unique(run.control.client(), whole).await?;
            tracing::warn!(
                "the target's foreign keys were not checked: its tables are of one moment only once the stream has passed the join"
            );
        }
        unfinished::complete(&run.control, &run.start, &run.owner, (whole, &run.owed)).await?;
        drop(turn);
        Ok(())
    }

    /// What would fire on everything before it, also on what other waves still make.
    async fn event_triggers(&self, run: &Run, again: bool) -> Result<()> {
        let Some(contents) = &run.contents else { return Ok(()) };
        if beside::is_any_at_work(&self.options, run.control.client()).await? {
            return Ok(());
        }
        let again = again || self.options.wave.is_some();
        restore::event_triggers(&self.options, contents, again).await
    }

    /// The part of `finish` that is about tables that join. Materialized views are not filled anew, and what reads more than
    /// one table holds only once the stream has passed the join: foreign keys stay NOT VALID until `settle`.
    async fn finish_join(&self, run: &Run, join: &Join) -> Result<()> {
        if let Some(contents) = &run.contents {
            restore::post_data(&self.options, contents, false).await?;
        }
        run.build.foreign_keys_unchecked().await?;
        if let Some(contents) = &run.contents {
            restore::after_foreign_keys(&self.options, contents, false).await?;
        }
        run.build.sequences().await?;
        let owed = match run.mode {
            SchemaMode::Create => unfinished::owed_keys(&run.start),
            SchemaMode::Exists => Vec::new(),
        };
        join::joined(&run.control, &run.start, join, &owed).await
    }

    fn set_run(&self, run: Run) -> Result<()> {
        self.run.set(run).map_err(|_| {
            Error::new(Disposition::Internal, "prepare a PostgreSQL target a second time")
        })
    }

    fn run(&self) -> Result<&Run> {
        self.run.get().ok_or_else(|| {
            Error::new(Disposition::Internal, "use a PostgreSQL target before it was prepared")
        })
    }
}

#[async_trait]
impl Sink for PostgresSink {
    async fn check(&self, tables: &[TablePlan]) -> Result<Vec<Finding>> {
        check::check(&self.options, &self.sessions, tables).await
    }

    async fn prepare(&self, start: &SnapshotStart) -> Result<()> {
        let control = Arc::new(Control::open(&self.options, &self.sessions, &start.run).await?);
        self.hold.lock().await.control = Some(Arc::clone(&control));
        if let Some(join) = &start.joins {
            let run = match &join.completes {
                Some(whole) => self.prepare_rest(control, start, (join, whole)).await?,
                None => self.prepare_join(control, start, join).await?,
            };
            return self.set_run(run);
        }
        let turn = beside::Turn::take(&self.options, &self.sessions).await?;
        let beside = match self.options.schema {
            SchemaMode::Create => {
                beside::Beside::of_others(&self.options, control.client(), start).await?
            }
            SchemaMode::Exists => None,
        };
        let begun = control.begin(&self.options, start, beside.is_some()).await?;
        let mut contents = None;
        match begun.mode {
            SchemaMode::Create => {
                let part = beside.as_ref().map(beside::Beside::part).unwrap_or_default();
                let list = restore::Contents::read(&self.options, start, part).await?;
                if !begun.replaces_own {
                    control.set_schema_state("making", None).await?;
                }
                let atomic = restore::is_atomic(start);
                restore::pre_data(&self.options, &list, begun.replaces_own, atomic).await?;
                control.set_schema_state("made", start.schema_digest.as_deref()).await?;
                contents = Some(list);
            }
            SchemaMode::Exists => {
                self.triggers_are_quiet(control.client()).await?;
                control.set_schema_digest(start.schema_digest.as_deref()).await?;
            }
        }
        drop(turn);
        let owner = begun.owner;
        control.set_phase(&owner, "snapshot").await?;
        // Only a slot's stream could go on from it.
        let mark = start.continues.then(|| self.mark(&owner, None));
        let run = Run {
            load: Loader::new(&self.options, &self.sessions, start, begun.mode, owner.clone()),
            build: Builder::new(&self.options, &self.sessions, start, begun.mode, mark),
            start: start.clone(),
            mode: begun.mode,
            contents,
            control,
            owner,
            owed: Vec::new(),
            kept: half::Kept::new(),
        };
        self.set_run(run)
    }

    fn kept_chunks(&self, relation: Oid) -> Vec<KeptChunk> {
        self.run.get().and_then(|run| run.kept.get(&relation)).cloned().unwrap_or_default()
    }

    async fn take_out(
        &self,
        relation: &RelationName,
        keys: TouchedKeys,
    ) -> Result<Vec<Vec<String>>> {
        let run = self.run()?;
        run.control.alive()?;
        let pool = session::Pool::new(&self.sessions, session::Purpose::Load);
        half::take_out(&pool, (&self.options.job, &run.owner), relation, keys).await
    }

    async fn begin_table_anew(&self, relation: &RelationName) -> Result<()> {
        let run = self.run()?;
        run.control.alive()?;
        half::begin_anew(&run.control, &run.start, relation).await
    }

    async fn begin_chunk(&self, spec: &ChunkSpec) -> Result<BeginChunk> {
        let run = self.run()?;
        run.control.alive()?;
        if let Some(rows) = run.load.committed(spec).await? {
            return Ok(BeginChunk::AlreadyCommitted(Committed { rows, replaced: Vec::new() }));
        }
        Ok(BeginChunk::Write(Box::new(run.load.writer(spec))))
    }

    async fn table_loaded(&self, relation: &RelationName) -> Result<()> {
        let run = self.run()?;
        run.control.alive()?;
        run.build.table(relation).await
    }

    async fn finish(&self, summary: &SnapshotSummary) -> Result<()> {
        let run = self.run()?;
        run.control.alive()?;
        run.control.expect_markers(summary).await?;
        if let Some(join) = &run.start.joins {
            return match &join.completes {
                Some(whole) => self.finish_rest(run, whole).await,
                None => self.finish_join(run, join).await,
            };
        }
        run.control.set_phase(&run.owner, "finish").await?;
        if run.start.adopts {
            return run.control.complete(&run.start, &run.owner, summary).await;
        }
        // The links between partitions' indexes come with the post-data half; a foreign key may need the key they make.
        if let Some(contents) = &run.contents {
            let _turn = beside::Turn::take(&self.options, &self.sessions).await?;
            restore::post_data(&self.options, contents, false).await?;
        }
        run.build.foreign_keys().await?;
        if let Some(contents) = &run.contents {
            restore::after_foreign_keys(&self.options, contents, false).await?;
        }
        run.build.sequences().await?;
        run.build.materialized_views().await?;
        let turn = beside::Turn::take(&self.options, &self.sessions).await?;
        self.event_triggers(run, false).await?;
        if run.mode == SchemaMode::Exists {
            check::keys_hold(run.control.client(), &run.start.tables).await?;
        }
        run.control.complete(&run.start, &run.owner, summary).await?;
        drop(turn);
        Ok(())
    }

    async fn refuse_if_held(&self) -> Result<()> {
        control::refuse_if_held(&self.options, &self.sessions).await
    }

    async fn stored(&self) -> Result<Option<Stored>> {
        stream::stored(&self.sessions, &self.options.job).await
    }

    async fn forget(&self, _job: &str, tables: &[RelationName]) -> Result<Vec<RelationName>> {
        join::forget(&self.options, &self.sessions, tables).await
    }

    async fn settle(&self) -> Result<()> {
        match self.options.schema {
            SchemaMode::Create => join::settle(&self.options, &self.sessions).await,
            SchemaMode::Exists => Ok(()),
        }
    }

    async fn open_stream(&self, start: &StreamStart) -> Result<OpenStream> {
        let mut hold = self.hold.lock().await;
        stream::open(&self.options, &self.sessions, start, &mut hold).await
    }
}
