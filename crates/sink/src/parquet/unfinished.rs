//! A first snapshot that died: which of its tables a lake has whole, and how another run ends it.
//!
//! **Invariant:** a table is whole if and only if its document in `_tidemark/whole/` is there, of the copy that `job.json`
//! names last for it. The document is written after the table's files are durable, and lists them. Who copies a table anew names
//! its copy in `job.json` first: whatever an earlier one still writes for the table does not count from then on.
//!
//! ```text
//! first run   files of a table -> whole/<run>-<oid>.json                         for each table that is in
//! next run    job.json names the copy of the others -> their documents and files are removed -> they are copied
//!             files of a table -> whole/<copy>-<oid>.json                        it may die, too
//! the end     commit 0: what every document lists, as of the first run's position; then the documents go
//! ```
//!
//! What does not fit is [`Disposition::Unfit`]: the job begins anew.
//!
//! `docs/adr/2026-11-21-a-snapshot-goes-on-after-a-crash.md` proves it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use tidemark_model::{Oid, Persistence, RelationName, TablePlan};

use super::manifest::{
    self, COMMITS, Commit, CommitTable, DOCUMENTS, FORMAT_VERSION, FormerJoin, JOB, JobDocument,
    SNAPSHOT_COMMIT, WHOLE,
};
use super::root::{Root, is_unfinished_document};
use super::stream::{self, Lock};
use super::table::Table;
use super::{ParquetSink, Run, commit_table, job_table, source_of, to_json};
use crate::{
    Disposition, Error, Join, Result, SnapshotStart, SnapshotSummary, StoredTable, TableSummary,
};

/// Documents that are read at once.
const READS: usize = 16;

/// What says that a table is whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct WholeTable {
    format_version: u32,
    job: String,
    /// How the table's files begin.
    run: String,
    /// `pg_class.oid` on the source.
    oid: Oid,
    /// What the commit of the snapshot will list.
    table: CommitTable,
}

impl WholeTable {
    fn relation(&self) -> RelationName {
        RelationName::new(&self.table.schema, &self.table.name)
    }

    fn path(&self) -> String {
        manifest::whole_path(&self.run, self.oid)
    }
}

/// A snapshot that is being ended: nobody else writes to the lake meanwhile.
pub(super) struct Rest {
    _lock: Lock,
    /// The tables that were whole.
    kept: Vec<WholeTable>,
}

/// The tables that a snapshot which died has left whole.
pub(super) async fn whole(root: &Root, job: &JobDocument) -> Result<Vec<StoredTable>> {
    let stored = |whole: WholeTable| StoredTable {
        name: whole.relation(),
        oid: whole.oid,
        join: whole.table.join,
    };
    Ok(documents(root, job).await?.into_iter().map(stored).collect())
}

/// The documents that count.
async fn documents(root: &Root, job: &JobDocument) -> Result<Vec<WholeTable>> {
    let mut names = root.file_names(WHOLE).await?;
    names.retain(|name| name.ends_with(".json") && !name.starts_with('.'));
    names.sort_unstable();
    let read = names.into_iter().map(|name| async move {
        let path = format!("{WHOLE}/{name}");
        let Some(bytes) = root.read(&path).await? else { return Ok::<_, Error>(None) };
        let found = serde_json::from_slice::<WholeTable>(&bytes);
        if let Err(error) = &found {
            tracing::warn!(path, %error, "not understood; its table does not count as whole");
        }
        Ok(found.ok().filter(|found| found.path() == path))
    });
    let found: Vec<_> = futures::stream::iter(read).buffered(READS).try_collect().await?;
    let mut found: Vec<WholeTable> = found.into_iter().flatten().collect();
    found.retain(|whole| whole.job == job.job && whole.run == copy_of(job, &whole.relation()));
    Ok(found)
}

/// The copy that a table's rows are of: the last one that was to write them.
fn copy_of<'a>(job: &'a JobDocument, relation: &RelationName) -> &'a str {
    let directory = manifest::snapshot_directory(relation);
    let copies = job.joining.iter().rev();
    let mut copies = copies.filter(|copy| copy.directories.contains(&directory));
    copies.next().map_or(&job.run, |copy| &copy.run)
}

/// Whose files of a table are to stay.
fn by_directory(kept: &[WholeTable]) -> HashMap<String, &str> {
    let directory = |whole: &WholeTable| manifest::snapshot_directory(&whole.relation());
    kept.iter().map(|whole| (directory(whole), whole.run.as_str())).collect()
}

fn unfit(because: impl Into<String>) -> Error {
    Error::new(
        Disposition::Unfit,
        format!("go on with the snapshot that was left unfinished: {}", because.into()),
    )
}

impl ParquetSink {
    /// Notes that a table is whole, whose files are durable.
    pub(super) async fn note_whole(&self, run: &Run, summary: &TableSummary) -> Result<()> {
        let plans = &run.start.tables;
        let plan = plans.iter().find(|plan| plan.relation.name == summary.relation);
        let plan = plan.ok_or_else(|| {
            Error::new(Disposition::Internal, "note a table that the run does not have")
                .on(&summary.relation)
        })?;
        if plan.relation.persistence == Persistence::Unlogged {
            // No WAL tells what came after, whatever it is later.
            return Ok(());
        }
        let mut table = commit_table(plan, self.table(&summary.relation)?.as_ref(), summary)?;
        table.join = run.start.joins.as_ref().map(|join| join.point.clone());
        let whole = WholeTable {
            format_version: FORMAT_VERSION,
            job: run.start.job.clone(),
            run: run.start.run.clone(),
            oid: plan.relation.oid,
            table,
        };
        self.root.put(&whole.path(), to_json(&whole)).await
    }

    /// Takes the lake over from a run that died, and everything away that is not of a whole table.
    pub(super) async fn begin_rest(
        &self,
        start: &SnapshotStart,
        (join, whole): (&Join, &[TablePlan]),
        tables: HashMap<RelationName, Arc<Table>>,
    ) -> Result<()> {
        let lock = Lock::take(&self.root)?;
        let mut job = self.left_by(start, join).await?;
        let kept = self.kept(&job, whole).await?;
        let keeps: HashSet<_> =
            kept.iter().map(|whole| manifest::snapshot_directory(&whole.relation())).collect();
        for plan in start.tables.iter() {
            let directory = manifest::snapshot_directory(&plan.relation.name);
            if !job.directories.contains(&directory) {
                job.directories.push(directory);
            }
        }
        // Also those that are not chosen any more: what is removed below is not whole from here on.
        let others = job.directories.iter().filter(|directory| !keeps.contains(*directory));
        let directories = others.cloned().collect();
        job.joining.push(FormerJoin { run: start.run.clone(), directories });
        job.format_version = FORMAT_VERSION;
        job.tables = whole.iter().chain(start.tables.iter()).map(job_table).collect();
        self.root.put(JOB, to_json(&job)).await?;
        // The documents first, so that none lists a file that is gone.
        self.remove_documents(&kept).await?;
        self.remove_files(&job, &by_directory(&kept)).await?;
        let run = Run::new(start, tables);
        *run.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Rest { _lock: lock, kept });
        self.hold(run);
        Ok(())
    }

    /// Whose snapshot it was. Nobody has ended it or begun another one meanwhile.
    async fn left_by(&self, start: &SnapshotStart, join: &Join) -> Result<JobDocument> {
        if self.root.exists(SNAPSHOT_COMMIT).await? {
            let attempt = format!("end the snapshot of the lake {}", self.root);
            return Err(Error::new(Disposition::Unavailable, attempt)
                .hint("it was ended meanwhile: run the same command again"));
        }
        let Some(bytes) = self.root.read(JOB).await? else {
            return Err(unfit("the lake has no record of it any more"));
        };
        let job: JobDocument = self.parse(JOB, &bytes)?;
        self.require_own(&start.job, &job.job, job.format_version)?;
        if job.run != join.run || job.snapshot_lsn != Some(join.position) {
            return Err(unfit("the lake's record is another run's by now"));
        }
        Ok(job)
    }

    /// What the documents say of the tables that stay, compared with what is there and with how the tables are now.
    async fn kept(&self, job: &JobDocument, whole: &[TablePlan]) -> Result<Vec<WholeTable>> {
        let found = documents(&self.root, job).await?;
        let mut found: HashMap<_, _> =
            found.into_iter().map(|whole| (whole.relation(), whole)).collect();
        let mut kept = Vec::with_capacity(whole.len());
        for plan in whole {
            let name = &plan.relation.name;
            let table = found.remove(name).filter(|found| found.oid == plan.relation.oid);
            let table = table.ok_or_else(|| unfit("a table is not whole any more").on(name))?;
            let program = Table::new(&self.root, &table.run, plan, &self.options)?.program;
            let columns = manifest::commit_columns(&plan.columns, &program.schema());
            if columns != table.table.columns {
                return Err(unfit("definitions on the source have changed since it was begun, or which columns are chosen").on(name));
            }
            kept.push(table);
        }
        for whole in &kept {
            self.is_there(whole).await?;
        }
        Ok(kept)
    }

    /// Whether somebody has removed files of a whole table.
    async fn is_there(&self, whole: &WholeTable) -> Result<()> {
        let name = whole.relation();
        let directory = manifest::snapshot_directory(&name);
        let there: HashSet<_> = self.root.file_names(&directory).await?.into_iter().collect();
        let is_there = |path: &str| {
            path.strip_prefix(&directory)
                .and_then(|rest| rest.strip_prefix('/'))
                .is_some_and(|file| there.contains(file))
        };
        match whole.table.files.iter().find(|file| !is_there(&file.path)) {
            Some(file) => Err(unfit(format!("{} is not there any more", file.path)).on(&name)),
            None => Ok(()),
        }
    }

    /// Removes what says of other tables that they are whole, and documents that were not written to their end.
    async fn remove_documents(&self, kept: &[WholeTable]) -> Result<()> {
        let paths: HashSet<_> = kept.iter().map(WholeTable::path).collect();
        for name in self.root.file_names(WHOLE).await? {
            let path = format!("{WHOLE}/{name}");
            if !paths.contains(&path) {
                self.root.remove(&path).await?;
            }
        }
        for directory in [DOCUMENTS, COMMITS] {
            for name in self.root.file_names(directory).await? {
                if is_unfinished_document(&name) {
                    self.root.remove(&format!("{directory}/{name}")).await?;
                }
            }
        }
        Ok(())
    }

    /// Removes the files of the job's runs but for those of the one that is to stay, by directory.
    async fn remove_files(&self, job: &JobDocument, stays: &HashMap<String, &str>) -> Result<()> {
        let mut runs: Vec<&str> = job.joining.iter().map(|copy| copy.run.as_str()).collect();
        runs.push(&job.run);
        for directory in &job.directories {
            self.require_inside(JOB, directory)?;
            let stays = stays.get(directory).copied();
            for name in self.root.file_names(directory).await? {
                let mut gone = runs.iter().filter(|run| Some(**run) != stays);
                if gone.any(|run| manifest::is_file_of_run(&name, run)) {
                    self.root.remove(&format!("{directory}/{name}")).await?;
                }
            }
        }
        Ok(())
    }

    /// Makes the snapshot of what was whole and of what has joined. It is the one that the first run began.
    pub(super) async fn finish_rest(
        &self,
        run: &Run,
        join: &Join,
        summary: &SnapshotSummary,
    ) -> Result<()> {
        let mut joined = self.commit_tables(run, summary)?;
        joined.iter_mut().for_each(|table| table.join = Some(join.point.clone()));
        let rest = run.take_rest().ok_or_else(|| {
            Error::new(Disposition::Internal, "end a snapshot that has ended or failed")
        })?;
        let kept = rest.kept.iter().map(|whole| {
            let member = stream::joined(&whole.relation(), whole.oid, 0, &whole.run);
            manifest::Member { join: whole.table.join.clone(), ..member }
        });
        let new = stream::first(&run.start.tables, &run.start.run);
        let new = (new.into_iter())
            .map(|member| manifest::Member { join: Some(join.point.clone()), ..member });
        let members = kept.chain(new).collect();
        let tables = rest.kept.iter().map(|whole| whole.table.clone()).chain(joined).collect();
        let document = Commit {
            format_version: FORMAT_VERSION,
            commit: 0,
            kind: "snapshot".to_owned(),
            job: run.start.job.clone(),
            run: join.run.clone(),
            end_lsn: join.position,
            source: source_of(&run.start),
            created_at: jiff::Timestamp::now().to_string(),
            continues: true,
            tables,
            roster: Some(0),
            members: Some(members),
        };
        let job = self.still_ours((&join.run, Some(&run.start.run))).await?;
        let mut stays = by_directory(&rest.kept);
        for plan in run.start.tables.iter() {
            let directory = manifest::snapshot_directory(&plan.relation.name);
            stays.insert(directory, &run.start.run);
        }
        // What the run that died had sent may have come to its end only after it was looked for.
        self.remove_files(&job, &stays).await?;
        self.put_snapshot(&document).await?;
        run.is_finished.store(true, Ordering::Release);
        Ok(())
    }
}
