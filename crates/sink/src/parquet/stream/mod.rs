//! What follows a snapshot: change files and the commits that list them.
//!
//! **Invariant:** the position of the last commit is where the lake stands. Everything that committed on the source before it
//! is in files that commits list, exactly once; files that no commit lists are nothing to a reader, and whoever takes the job
//! over removes them once their writer can no longer list them.
//!
//! ```text
//! <root>/<schema>/<table>/changes/<run>-<commit>-<nnnnn>.parquet     rows with `_op`, `_commit_lsn`, `_seq`, ..
//! <root>/_tidemark/commits/<commit>.json                             put-if-absent, dense: one per flush, join, reset, start
//! <root>/_tidemark/lock                                              local roots: locked while a process follows
//! ```
//!
//! ```text
//! batch -> rows by table (`rows`) -> COPY BINARY tuples (`frame`) -> Arrow, as in a snapshot (`lane`) -> row groups -> files
//! flush: rest of the rows -> files closed -> commit (`commits`)                                            (all: `writer`)
//! ```
//!
//! **Not here:** what readers make of it (`docs/lake-format.md`, `docs/guides/reading-the-lake.md`).

mod commits;
mod files;
mod forms;
mod frame;
mod heads;
mod lane;
mod lock;
mod roster;
mod rows;
mod table;
mod turn;
mod writer;

use tidemark_model::{Cpu, Lsn, RelationName};

use super::manifest::{
    Commit, CommitTable, FORMAT_VERSION, JOB, JobDocument, Member, SNAPSHOT_COMMIT,
};
use super::options::ParquetOptions;
use super::root::Root;
use super::unfinished;
use crate::{
    Disposition, Error, OpenStream, Result, Stored, StoredStage, StoredTable, StreamStart,
};

pub(super) use commits::{Commits, last as last_commit, read as read_commit};
pub use forms::binary_is_safe;
pub(super) use lock::Lock;
pub(super) use roster::{first, joined};
pub use table::check_followed;
pub(super) use table::refuse_unfollowable;
pub(super) use turn::Turn;

use roster::Roster;
use writer::LakeWriter;

/// Where a lake stands.
pub(super) async fn stored(root: &Root) -> Result<Option<Stored>> {
    if let Some(bytes) = root.read(SNAPSHOT_COMMIT).await? {
        let snapshot: Commit = commits::parse(root, SNAPSHOT_COMMIT, &bytes)?;
        if !snapshot.continues {
            return Ok(Some(stored_by(snapshot, StoredStage::Complete, None)));
        }
        let name = |table: &CommitTable| RelationName::new(&table.schema, &table.name);
        let copied = snapshot.tables.iter().map(name).collect();
        let last = commits::last(root, snapshot).await?;
        let tables = Roster::of(root, &last).await?.whole();
        let stored = stored_by(last, StoredStage::Follow, tables);
        return Ok(Some(Stored { copied: Some(copied), ..stored }));
    }
    let Some(bytes) = root.read(JOB).await? else { return Ok(None) };
    let left: JobDocument = commits::parse(root, JOB, &bytes)?;
    if left.format_version > FORMAT_VERSION {
        let attempt = format!("go on with the lake {root}");
        return Err(
            Error::new(Disposition::Usage, attempt).hint("a newer version of tidemark wrote it")
        );
    }
    let tables = match left.snapshot_lsn {
        Some(_) => Some(unfinished::whole(root, &left).await?),
        None => None,
    };
    let source = left.source.unwrap_or_default();
    Ok(Some(Stored {
        run: left.run,
        stage: StoredStage::Snapshot,
        end_lsn: left.snapshot_lsn.unwrap_or(Lsn::ZERO),
        system_identifier: source.system_identifier,
        database: source.database,
        timeline: None,
        tables,
        copied: None,
        stopped: Vec::new(),
        epoch: None,
    }))
}

/// The tables that a lake has or has had as of a commit; `None` where it does not tell.
pub(super) async fn members_of(root: &Root, last: &Commit) -> Result<Option<Vec<Member>>> {
    let roster = Roster::of(root, last).await?;
    Ok(roster.at.map(|_| roster.members))
}

/// The tables that a lake which follows has or has had, and that a user can give up, with whether they are there to be given
/// up; `None` where there is no such lake or where it does not tell.
pub(super) async fn members(root: &Root) -> Result<Option<Vec<Member>>> {
    let Some(bytes) = root.read(SNAPSHOT_COMMIT).await? else { return Ok(None) };
    let snapshot: Commit = commits::parse(root, SNAPSHOT_COMMIT, &bytes)?;
    if !snapshot.continues {
        return Ok(None);
    }
    let roster = Roster::of(root, &commits::last(root, snapshot).await?).await?;
    Ok(roster.at.map(|_| roster.members))
}

fn stored_by(commit: Commit, stage: StoredStage, tables: Option<Vec<StoredTable>>) -> Stored {
    Stored {
        run: commit.run,
        stage,
        end_lsn: commit.end_lsn,
        system_identifier: commit.source.system_identifier,
        database: commit.source.database,
        timeline: commit.source.timeline,
        tables,
        copied: None,
        stopped: Vec::new(),
        epoch: None,
    }
}

/// Takes a lake for a stream.
pub(super) async fn open(
    root: &Root,
    options: &ParquetOptions,
    cpu: &Cpu,
    start: &StreamStart,
) -> Result<OpenStream> {
    let commits = Commits::take(root, Turn::Stream(start)).await?;
    let tables = table::compile(&start.tables, &commits)?;
    let position = commits.position();
    let columns = tables.iter().map(|table| (table.name().clone(), table.column_names()));
    let columns = columns.collect();
    let writer = LakeWriter::new(commits, tables, options, cpu);
    Ok(OpenStream {
        writer: Box::new(writer),
        position,
        columns,
        takes_undecided: false,
        epoch: None,
    })
}
