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

/// The tables as of a commit, which has no change of after this position.
///
/// # Errors
/// A commit is not there, or they contradict each other; the stream has gone on meanwhile.
pub(super) async fn tables(
    lake: &Lake,
    last: u64,
    lsn: Lsn,
) -> Result<HashMap<RelationName, LakeTable>> {
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
        if commit.kind == "changes" && commit.end_lsn > lsn {
            return Err(gone_on(&commit, lsn));
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

/// It was held for too long, or what held it has ended.
fn gone_on(commit: &Commit, lsn: Lsn) -> Error {
    let attempt = format!(
        "read the lake as of {lsn}: the stream had gone on to {} before its last commit was read",
        commit.end_lsn
    );
    Error::new(Kind::Unavailable, attempt).hint("run the same command again")
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
        self.changes.iter().map(|change| change.file.rows).fold(0, u64::saturating_add)
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        let changes = self.changes.iter().map(|change| change.file.bytes);
        self.base.iter().map(|file| file.bytes).chain(changes).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tidemark_sink::parquet::Root;

    use super::*;

    /// A lake of these commits: kind, position, and key of the one table.
    async fn lake(root: &Path, commits: &[(&str, &str, &str)]) -> Lake {
        let directory = root.join("_tidemark/commits");
        std::fs::create_dir_all(&directory).unwrap();
        for (number, (kind, end_lsn, key)) in commits.iter().enumerate() {
            let file = format!(r#"{{"path":"s/t/{number}","rows":1,"bytes":1,"row_groups":1}}"#);
            let table = format!(
                r#"{{"schema":"s","name":"t","columns":[],"key":["{key}"],"filter":null,"rows":1,"replaced":[],"files":[{file}]}}"#
            );
            let tables = if *kind == "position" { "" } else { &table };
            let text = format!(
                r#"{{"format_version":2,"commit":{number},"kind":"{kind}","job":"j","run":"r","end_lsn":"{end_lsn}","created_at":"",
                "source":{{"system_identifier":"1","database":"d","server_version":150000}},"tables":[{tables}]}}"#
            );
            std::fs::write(directory.join(format!("{number:020}.json")), text).unwrap();
        }
        Lake::new(Root::local(root))
    }

    async fn table(commits: &[(&str, &str, &str)]) -> Result<LakeTable> {
        let root = tempfile::TempDir::new().unwrap();
        let lake = lake(root.path(), commits).await;
        let mut tables = tables(&lake, commits.len() as u64 - 1, Lsn::new(0x100)).await?;
        Ok(tables.remove(&RelationName::new("s", "t")).unwrap())
    }

    #[tokio::test]
    async fn a_table_is_what_it_began_with_last_and_the_changes_after_it() {
        let commits = [
            ("snapshot", "0/10", "a"),
            ("changes", "0/20", "a"),
            ("reset", "0/20", "a"),
            ("join", "0/20", "a"),
            ("changes", "0/30", "b"),
            ("changes", "0/100", "b"),
            ("position", "0/200", "b"),
        ];
        let found = table(&commits).await.unwrap();
        let paths = |files: Vec<&FileEntry>| {
            files.into_iter().map(|file| file.path.clone()).collect::<Vec<_>>()
        };
        assert_eq!(paths(found.base.iter().collect()), ["s/t/3"]);
        let changes = found.changes.iter().map(|change| &change.file).collect();
        assert_eq!(paths(changes), ["s/t/4", "s/t/5"]);
        assert_eq!((&found.key[0][..], found.trouble), ("b", None));
        let range = (found.changes[1].after, found.changes[1].up_to);
        assert_eq!(range, (Lsn::new(0x30), Lsn::new(0x100)));
    }

    #[tokio::test]
    async fn a_key_that_changes_and_a_stream_that_has_gone_on_are_told() {
        let commits =
            [("snapshot", "0/10", "a"), ("changes", "0/20", "a"), ("changes", "0/30", "b")];
        assert!(table(&commits).await.unwrap().trouble.unwrap().contains("commit 2"));
        let beyond = [("snapshot", "0/10", "a"), ("changes", "0/101", "a")];
        assert_eq!(table(&beyond).await.unwrap_err().kind, Kind::Unavailable);
        let back = [("snapshot", "0/20", "a"), ("changes", "0/10", "a")];
        assert_eq!(table(&back).await.unwrap_err().kind, Kind::Usage);
        let headless =
            [("snapshot", "0/10", "a"), ("reset", "0/10", "a"), ("changes", "0/20", "a")];
        assert_eq!(table(&headless).await.unwrap_err().kind, Kind::Usage);
    }
}
