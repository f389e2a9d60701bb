//! What the commits of a lake say its tables are.
//!
//! **Invariant:** a table is what the last commit that is not of kind `changes` lists of it, and the changes after it, up to
//! the commit that is looked at; nothing that a later commit lists counts (`docs/lake-format.md`).

use std::collections::HashMap;

use futures::{StreamExt as _, TryStreamExt as _};
use tidemark_model::{Lsn, RelationName};
use tidemark_pipeline::{Error, Kind, Result};
use tidemark_sink::parquet::{Commit, CommitColumn, CommitTable, FileEntry, Lake};

/// Commits that are read at once.
const AT_ONCE: usize = 16;

/// A table as of a commit.
#[derive(Debug, Clone)]
pub(super) struct LakeTable {
    /// As the last commit that lists the table has them.
    pub(super) columns: Vec<CommitColumn>,
    /// All rows, as of the commit with which the table begins.
    pub(super) base: Vec<FileEntry>,
    /// What came after it, in the order of the stream.
    pub(super) changes: Vec<ChangeFile>,
    /// What tells a row apart in the changes; none: all its columns do.
    pub(super) key: Vec<String>,
    /// Until the lake has passed this position, the table is ahead of it.
    pub(super) joined_at: Option<Lsn>,
    /// Why its rows cannot be told from its commits.
    pub(super) trouble: Option<String>,
}

/// A file of changes.
#[derive(Debug, Clone)]
pub(super) struct ChangeFile {
    pub(super) file: FileEntry,
    /// Its transactions end after this
    pub(super) after: Lsn,
    /// and not after that.
    pub(super) up_to: Lsn,
}

/// The tables as of a commit.
///
/// # Errors
/// A commit is not there, or they contradict each other.
pub(super) async fn tables(lake: &Lake, last: u64) -> Result<HashMap<RelationName, LakeTable>> {
    let commits = futures::stream::iter(0..=last).map(|number| lake.commit(number));
    let mut commits = commits.buffered(AT_ONCE);
    let mut tables = HashMap::new();
    let mut position = Lsn::ZERO;
    while let Some(commit) = commits.try_next().await? {
        if commit.end_lsn < position {
            return Err(contradicts(
                &commit,
                "its position is before the one of the commit before",
            ));
        }
        take(&mut tables, &commit, position)?;
        position = commit.end_lsn;
    }
    Ok(tables)
}

fn take(
    tables: &mut HashMap<RelationName, LakeTable>,
    commit: &Commit,
    position: Lsn,
) -> Result<()> {
    for listed in &commit.tables {
        let name = RelationName::new(&listed.schema, &listed.name);
        match commit.kind.as_str() {
            "snapshot" | "join" => {
                tables.insert(name, LakeTable::begin(listed));
            }
            "reset" => {
                tables.remove(&name);
            }
            "changes" => {
                let Some(table) = tables.get_mut(&name) else {
                    return Err(contradicts(commit, "it lists changes of a table without rows"));
                };
                table.change(listed, commit, position);
            }
            _ => return Err(contradicts(commit, "it is of a kind that is not known")),
        }
    }
    Ok(())
}

fn contradicts(commit: &Commit, what: &str) -> Error {
    let attempt = format!("understand commit {} of the lake: {what}", commit.commit);
    Error::new(Kind::Usage, attempt).hint("its commits were changed: take a new snapshot")
}

impl LakeTable {
    fn begin(listed: &CommitTable) -> Self {
        Self {
            columns: listed.columns.clone(),
            base: listed.files.clone(),
            changes: Vec::new(),
            key: listed.key.clone(),
            joined_at: listed.join.as_ref().map(|join| join.lsn),
            trouble: None,
        }
    }

    fn change(&mut self, listed: &CommitTable, commit: &Commit, after: Lsn) {
        if !self.changes.is_empty() && self.key != listed.key {
            self.trouble = Some(format!(
                "what tells its rows apart changed with commit {}: rows of before and after cannot be told apart",
                commit.commit
            ));
        }
        let before = std::mem::replace(&mut self.columns, listed.columns.clone());
        for column in &mut self.columns {
            // Only the run that has added a column says its default.
            let known = before.iter().find(|known| known.name == column.name);
            let default = known.and_then(|known| known.default.clone());
            column.default = column.default.take().or(default);
        }
        self.key.clone_from(&listed.key);
        let files = listed.files.iter();
        self.changes.extend(files.map(|file| ChangeFile {
            file: file.clone(),
            after,
            up_to: commit.end_lsn,
        }));
    }

    /// Rows of all files, as the commits say.
    pub(super) fn change_rows(&self) -> u64 {
        self.changes.iter().map(|change| change.file.rows).sum()
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        let changes = self.changes.iter().map(|change| change.file.bytes);
        self.base.iter().map(|file| file.bytes).chain(changes).sum()
    }
}
