//! The Parquet lake as a [`Sink`].
//!
//! **Invariant:** a reader who reads what `_tidemark/commits/` lists sees a whole snapshot or nothing; files become visible whole,
//! durable before they are listed, and nothing that is not ours is ever removed or overwritten.
//!
//! ```text
//! <root>/_tidemark/job.json                             whose files these are, written before the first of them
//! <root>/<schema>/<table>/snapshot/<run>-<nnnnn>.parquet
//! <root>/_tidemark/commits/00000000000000000000.json    put-if-absent, last: the snapshot exists
//! <root>/<schema>/<table>/changes/...                   what follows: [`stream`]; tables that join: [`join`]
//! ```
//!
//! A run that dies before the commit leaves files that no commit lists. The next run of the same job finds `job.json` without a
//! commit, removes the files of the run that it names, in the directories that it names, and starts over: committed
//! chunks of a dead run do not count, which is the second half of what [`crate::contract`] calls durable. Whole tables do, where
//! a stream is to follow: [`unfinished`].
//!
//! **Not here:** values to Arrow (`columnar`), what the documents mean to readers (`docs/lake-format.md`).

mod check;
mod chunk;
mod encode;
mod failure;
mod file;
mod join;
mod layout;
mod manifest;
mod names;
mod options;
mod reading;
mod root;
mod stream;
mod table;
mod unfinished;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tidemark_columnar::map_column;
use tidemark_model::{
    ChunkSpec, Column, Cpu, Finding, RelationName, SelectColumn, TablePlan, TupleForm,
    Unrepresentable,
};
use tokio::sync::Semaphore;

use crate::{
    BeginChunk, Disposition, Error, NotEmpty, OpenStream, Result, Sink, SnapshotStart,
    SnapshotSummary, Stored, StreamStart, TableSummary,
};

pub use file::FileEntry;
pub use layout::{
    ColumnChoice, EncodedRowGroup, Layout, ROW_GROUP_ROWS, RowGroupEncoder, SAMPLE_ROWS,
};
pub use manifest::{
    Commit, CommitColumn, CommitTable, FORMAT_VERSION, Member, MemberState, OperationCounts,
    Replaced, Source,
};
pub use options::{Compression, ParquetOptions};
pub use reading::{Lake, StoredFile};
pub use root::Root;
pub use stream::{binary_is_safe, check_followed};

use manifest::{COMMITS, DOCUMENTS, JOB, JobDocument, JobTable, SNAPSHOT_COMMIT, WHOLE};
use table::Table;

/// What a table's rows must look like for a lake: the SELECT list and the form of COPY.
pub fn lake_plan(columns: &[Column], policy: Unrepresentable) -> (Vec<SelectColumn>, TupleForm) {
    let select = columns.iter().map(|column| SelectColumn {
        name: column.name.clone(),
        wire: map_column(column, policy).wire(),
    });
    (select.collect(), TupleForm::PgBinary)
}

/// Writes tables as Parquet files below a root.
pub struct ParquetSink {
    root: Root,
    options: ParquetOptions,
    cpu: Cpu,
    wide: Arc<Semaphore>,
    run: Mutex<Option<Arc<Run>>>,
}

/// A prepared run.
struct Run {
    start: SnapshotStart,
    tables: HashMap<RelationName, Arc<Table>>,
    is_finished: std::sync::atomic::AtomicBool,
    /// Where tables join: the lake is taken for as long as they are copied.
    taken: Mutex<Option<stream::Commits>>,
    /// Where it ends a snapshot that died.
    rest: Mutex<Option<unfinished::Rest>>,
}

impl Run {
    fn new(start: &SnapshotStart, tables: HashMap<RelationName, Arc<Table>>) -> Self {
        let (taken, rest) = (Mutex::default(), Mutex::default());
        Self { start: start.clone(), tables, is_finished: false.into(), taken, rest }
    }

    /// Takes over what the run has of the lake; dropped, it is free for others.
    fn take(&self) -> Option<stream::Commits> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The same, of a snapshot that died.
    fn take_rest(&self) -> Option<unfinished::Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ParquetSink {
    /// A sink for this root; nothing is touched before [`Sink::prepare`].
    pub fn new(root: Root, options: ParquetOptions, cpu: Cpu) -> Self {
        Self { root, options, cpu, wide: Arc::new(Semaphore::new(1)), run: Mutex::new(None) }
    }

    fn run(&self) -> Result<Arc<Run>> {
        let run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        run.clone().ok_or_else(|| {
            Error::new(Disposition::Internal, "write to a lake before it was prepared")
        })
    }

    fn table(&self, relation: &RelationName) -> Result<Arc<Table>> {
        self.run()?.tables.get(relation).cloned().ok_or_else(|| {
            Error::new(Disposition::Internal, "write a table that the run does not have")
                .on(relation)
        })
    }

    /// Refuses to commit once another run, or another copy for it, has taken the lake over: it has removed this one's files.
    async fn still_ours(&self, (run, copy): (&str, Option<&str>)) -> Result<JobDocument> {
        let owner = match self.root.read(JOB).await? {
            Some(bytes) => Some(self.parse::<JobDocument>(JOB, &bytes)?),
            None => None,
        };
        let last = |owner: &JobDocument| owner.joining.last().map(|last| last.run.clone());
        let is_ours = |owner: &JobDocument| owner.run == run && last(owner).as_deref() == copy;
        if let Some(owner) = owner.filter(is_ours) {
            return Ok(owner);
        }
        Err(Error::new(Disposition::Held, format!("commit the snapshot to the lake {}", self.root))
            .hint("another run of the job has taken the lake over; let it finish, or run again when it has ended"))
    }

    /// Makes the snapshot visible.
    async fn put_snapshot(&self, document: &Commit) -> Result<()> {
        if self.root.put_new(SNAPSHOT_COMMIT, to_json(document)).await? {
            return Ok(());
        }
        // Ours, if the answer to an earlier attempt was lost, or if a run that died after it was all whole had sent it.
        let found = self.root.read(SNAPSHOT_COMMIT).await?.unwrap_or_default();
        let found: Commit = self.parse(SNAPSHOT_COMMIT, &found)?;
        let is_listed = |table: &CommitTable| found.tables.contains(table);
        let is_same = found.run == document.run
            && found.job == document.job
            && found.tables.len() == document.tables.len()
            && document.tables.iter().all(is_listed);
        if is_same {
            return Ok(());
        }
        let attempt = format!("commit the snapshot to the lake {}", self.root);
        Err(Error::new(Disposition::Refused, attempt)
            .hint("another run committed a snapshot here in the meantime"))
    }

    /// Makes sure that what is there may go, and removes it.
    async fn clear(&self, job: &str) -> Result<()> {
        // A process that follows a source into this lake holds it.
        let _lock = stream::Lock::take_if_there(&self.root)?;
        if self.options.not_empty == NotEmpty::Append {
            return Err(self
                .refuse("append to")
                .hint("a lake cannot be appended to yet: use refuse or truncate"));
        }
        if let Some(bytes) = self.root.read(SNAPSHOT_COMMIT).await? {
            let commit: Commit = self.parse(SNAPSHOT_COMMIT, &bytes)?;
            self.require_own(job, &commit.job, commit.format_version)?;
            if self.options.not_empty != NotEmpty::Truncate {
                return Err(self.refuse("write to").hint(
                    "it already holds a snapshot: name another directory, or say --target-not-empty truncate --yes",
                ));
            }
            return self.truncate().await;
        }
        match self.root.read(JOB).await? {
            Some(bytes) => {
                let left: JobDocument = self.parse(JOB, &bytes)?;
                self.require_own(job, &left.job, left.format_version)?;
                self.remove_leftovers(&left).await
            }
            None if self.root.is_empty().await? => Ok(()),
            None => Err(self
                .refuse("write to")
                .hint("there are files here that are not ours: name an empty or a new directory")),
        }
    }

    fn require_own(&self, job: &str, found: &str, format_version: u32) -> Result<()> {
        if found != job {
            return Err(self.refuse("write to").hint(format!("it belongs to job \"{found}\"")));
        }
        if format_version > FORMAT_VERSION {
            return Err(self.refuse("write to").hint("a newer version of tidemark wrote it"));
        }
        Ok(())
    }

    fn refuse(&self, verb: &str) -> Error {
        Error::new(Disposition::Usage, format!("{verb} the lake {}", self.root))
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|error| {
            let attempt = format!("understand {path} of the lake {}", self.root);
            Error::new(Disposition::Usage, attempt).because(error)
        })
    }

    /// Takes every commit away, newest first, then the files that they listed: at no time does a commit list what is gone.
    async fn truncate(&self) -> Result<()> {
        let mut commits = self.root.file_names(COMMITS).await?;
        commits.retain(|name| name.ends_with(".json") && !name.starts_with('.'));
        commits.sort_unstable_by(|a, b| b.cmp(a));
        for name in commits {
            let path = format!("{COMMITS}/{name}");
            let Some(bytes) = self.root.read(&path).await? else { continue };
            let commit: Commit = self.parse(&path, &bytes)?;
            self.root.remove(&path).await?;
            for file in commit.tables.iter().flat_map(|table| &table.files) {
                self.require_inside(&path, &file.path)?;
                self.root.remove(&file.path).await?;
            }
        }
        // What a truncation that was killed here left behind is of the run that `job.json` still names.
        match self.root.read(JOB).await? {
            Some(bytes) => self.remove_leftovers(&self.parse(JOB, &bytes)?).await,
            None => Ok(()),
        }
    }

    async fn remove_leftovers(&self, left: &JobDocument) -> Result<()> {
        for directory in [DOCUMENTS, COMMITS] {
            for name in self.root.file_names(directory).await? {
                if root::is_unfinished_document(&name) {
                    self.root.remove(&format!("{directory}/{name}")).await?;
                }
            }
        }
        // Before the files that they list.
        for name in self.root.file_names(WHOLE).await? {
            self.root.remove(&format!("{WHOLE}/{name}")).await?;
        }
        for directory in &left.directories {
            self.require_inside(JOB, directory)?;
            for name in self.root.file_names(directory).await? {
                let is_left = manifest::is_file_of_run(&name, &left.run)
                    || manifest::is_change_file(&name, &left.run, None)
                    || left.joining.iter().any(|copy| manifest::is_file_of_run(&name, &copy.run))
                    || left.former.iter().any(|former| {
                        manifest::is_change_file(&name, &former.run, Some(former.commit))
                    });
                if is_left {
                    self.root.remove(&format!("{directory}/{name}")).await?;
                }
            }
        }
        Ok(())
    }

    /// A document that was tampered with must not make us remove files elsewhere.
    fn require_inside(&self, document: &str, path: &str) -> Result<()> {
        let segments: Vec<_> = path.split('/').collect();
        let is_ours = (3..=4).contains(&segments.len())
            && matches!(segments[2], "snapshot" | "changes")
            && segments
                .iter()
                .all(|segment| !segment.is_empty() && !matches!(*segment, "." | ".."));
        if is_ours {
            return Ok(());
        }
        let attempt = format!("understand {document} of the lake {}", self.root);
        Err(Error::new(Disposition::Usage, attempt).hint("it names a path that we never write"))
    }

    fn commit_tables(&self, run: &Run, summary: &SnapshotSummary) -> Result<Vec<CommitTable>> {
        let sums: HashMap<_, _> =
            summary.tables.iter().map(|table| (&table.relation, table)).collect();
        let tables = run.start.tables.iter().map(|plan| {
            let name = &plan.relation.name;
            let summary = sums.get(name).ok_or_else(|| {
                Error::new(Disposition::Internal, "finish a run without this table's summary")
                    .on(name)
            })?;
            commit_table(plan, self.table(name)?.as_ref(), summary)
        });
        tables.collect()
    }

    fn commit_document(&self, run: &Run, summary: &SnapshotSummary) -> Result<Commit> {
        let start = &run.start;
        Ok(Commit {
            format_version: FORMAT_VERSION,
            commit: 0,
            kind: "snapshot".to_owned(),
            job: start.job.clone(),
            run: start.run.clone(),
            end_lsn: summary.lsn,
            source: source_of(start),
            created_at: jiff::Timestamp::now().to_string(),
            continues: start.continues,
            tables: self.commit_tables(run, summary)?,
            roster: start.continues.then_some(0),
            members: start.continues.then(|| stream::first(&start.tables, &start.run)),
        })
    }

    fn hold(&self, run: Run) {
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(run));
    }

    /// The files of a run for its tables, which are opened with their first rows.
    fn tables_of(&self, start: &SnapshotStart) -> Result<HashMap<RelationName, Arc<Table>>> {
        let table = |plan: &TablePlan| {
            let table = Table::new(&self.root, &start.run, plan, &self.options)?;
            Ok((plan.relation.name.clone(), Arc::new(table)))
        };
        start.tables.iter().map(table).collect()
    }
}

fn job_table(plan: &TablePlan) -> JobTable {
    JobTable::new(&plan.relation.name, &plan.columns)
}

fn source_of(start: &SnapshotStart) -> Source {
    Source {
        system_identifier: start.system_identifier.to_string(),
        database: start.database.clone(),
        server_version: start.source_version,
        timeline: None,
    }
}

fn commit_table(plan: &TablePlan, table: &Table, summary: &TableSummary) -> Result<CommitTable> {
    let name = &plan.relation.name;
    let files = table.files()?;
    let rows: u64 = files.iter().map(|file| file.rows).sum();
    if rows != summary.rows_in || rows != summary.rows_out {
        let attempt = format!(
            "finish: the files hold {rows} rows, the source sent {} and {} were counted in",
            summary.rows_out, summary.rows_in
        );
        return Err(Error::new(Disposition::Internal, attempt).on(name));
    }
    let replaced = summary.replaced.iter();
    Ok(CommitTable {
        schema: name.schema.clone(),
        name: name.name.clone(),
        columns: manifest::commit_columns(&plan.columns, &table.program.schema()),
        key: plan.relation.primary_key().map(|key| key.columns.clone()).unwrap_or_default(),
        filter: plan.filter.clone(),
        rows,
        digest: Some(summary.sum),
        operations: None,
        replaced: replaced
            .map(|(column, values)| Replaced { column: column.clone(), values: *values })
            .collect(),
        files,
        join: None,
    })
}

fn to_json<T: serde::Serialize>(document: &T) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec_pretty(document).expect("our documents have no maps with odd keys");
    bytes.push(b'\n');
    bytes
}

#[async_trait]
impl Sink for ParquetSink {
    async fn check(&self, tables: &[TablePlan]) -> Result<Vec<Finding>> {
        let bytes =
            tables.iter().map(|plan| plan.relation.heap_bytes + plan.relation.toast_bytes).sum();
        let mut findings = check::check_root(&self.root, self.options.not_empty, bytes).await?;
        findings.extend(tables.iter().flat_map(check::check_table));
        Ok(findings)
    }

    async fn prepare(&self, start: &SnapshotStart) -> Result<()> {
        let tables = self.tables_of(start)?;
        if start.continues {
            // Before anything is copied that could not be followed then.
            stream::refuse_unfollowable(&start.tables)?;
        }
        if let Some(join) = &start.joins {
            return match &join.completes {
                Some(whole) => self.begin_rest(start, (join, whole), tables).await,
                None => self.begin_join(start, join, tables).await,
            };
        }
        let directory = |plan: &TablePlan| manifest::snapshot_directory(&plan.relation.name);
        self.clear(&start.job).await?;
        let document = JobDocument {
            format_version: FORMAT_VERSION,
            job: start.job.clone(),
            run: start.run.clone(),
            created_at: jiff::Timestamp::now().to_string(),
            directories: start.tables.iter().map(directory).collect(),
            snapshot_lsn: start.continues.then_some(start.lsn),
            source: Some(source_of(start)),
            tables: start.tables.iter().map(job_table).collect(),
            former: Vec::new(),
            joining: Vec::new(),
        };
        self.root.put(JOB, to_json(&document)).await?;
        self.hold(Run::new(start, tables));
        Ok(())
    }

    async fn begin_chunk(&self, spec: &ChunkSpec) -> Result<BeginChunk> {
        let table = self.table(&spec.relation)?;
        if spec.run != self.run()?.start.run {
            return Err(Error::new(Disposition::Internal, "write a chunk of another run")
                .on(&spec.relation));
        }
        if let Some(committed) = table.committed(spec.chunk) {
            return Ok(BeginChunk::AlreadyCommitted(committed));
        }
        let wide = Arc::clone(&self.wide);
        let writer = chunk::ParquetChunk::new(table, spec.chunk, self.cpu.clone(), wide);
        Ok(BeginChunk::Write(Box::new(writer)))
    }

    async fn table_loaded(&self, relation: &RelationName) -> Result<()> {
        self.table(relation)?.close().await
    }

    async fn table_whole(&self, summary: &TableSummary) -> Result<()> {
        let run = self.run()?;
        let joins = run.start.joins.as_ref();
        // What nothing continues from begins anew, and so does a table that joins a job that follows.
        match run.start.continues && joins.is_none_or(|join| join.completes.is_some()) {
            true => self.note_whole(&run, summary).await,
            false => Ok(()),
        }
    }

    async fn finish(&self, summary: &SnapshotSummary) -> Result<()> {
        use std::sync::atomic::Ordering;
        let run = self.run()?;
        if let Some(join) = &run.start.joins {
            return match join.completes {
                Some(_) => self.finish_rest(&run, join, summary).await,
                None => self.finish_join(&run, join, summary).await,
            };
        }
        let document = self.commit_document(&run, summary)?;
        if run.is_finished.load(Ordering::Acquire) {
            return Err(Error::new(Disposition::Internal, "finish a run twice"));
        }
        self.still_ours((&run.start.run, None)).await?;
        self.put_snapshot(&document).await?;
        run.is_finished.store(true, Ordering::Release);
        Ok(())
    }

    async fn refuse_if_held(&self) -> Result<()> {
        stream::Lock::take_if_there(&self.root).map(drop)
    }

    async fn stored(&self) -> Result<Option<Stored>> {
        stream::stored(&self.root).await
    }

    async fn forget(&self, job: &str, tables: &[RelationName]) -> Result<Vec<RelationName>> {
        join::forget(&self.root, job, tables).await
    }

    fn let_go(&self) {
        let run = self.run.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(run.map(|run| (run.take(), run.take_rest())));
    }

    async fn open_stream(&self, start: &StreamStart) -> Result<OpenStream> {
        stream::open(&self.root, &self.options, &self.cpu, start).await
    }
}
