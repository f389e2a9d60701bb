//! The documents in `_tidemark/` (described for readers in `docs/lake-format.md`).
//!
//! **Invariant:** what no commit lists is not part of the lake. A commit is written once, put-if-absent, after everything that it
//! lists is durable; commit 0 is the snapshot, and the numbers are dense. Which tables the lake has whole is said by a commit, too
//! (`members`), never by `job.json` alone. `job.json` is written before the first file of a run and names every directory that the run may write
//! into, so that a later run knows what was left by us and touches nothing else.

use serde::{Deserialize, Serialize};
use tidemark_model::{Column, JoinPoint, Lsn, Oid, RelationName, RowSum};

use super::file::FileEntry;
use super::names;

/// The commit of the snapshot.
pub(super) const SNAPSHOT_COMMIT: &str = "_tidemark/commits/00000000000000000000.json";

/// The directory of the documents.
pub(super) const DOCUMENTS: &str = "_tidemark";

/// The directory of the commits.
pub(super) const COMMITS: &str = "_tidemark/commits";

/// The directory of what says which tables of a snapshot that is being made are whole.
pub(super) const WHOLE: &str = "_tidemark/whole";

/// Who writes here.
pub(super) const JOB: &str = "_tidemark/job.json";

/// Version of both documents; a reader refuses a higher one. From 2 on tables join and are given up.
pub const FORMAT_VERSION: u32 = 2;

/// Whose lake this is, while it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JobDocument {
    pub(super) format_version: u32,
    pub(super) job: String,
    pub(super) run: String,
    pub(super) created_at: String,
    /// Directories relative to the root that the run writes into.
    pub(super) directories: Vec<String>,
    /// The position of a first snapshot that a stream is to go on from: of one that dies, what is whole counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) snapshot_lsn: Option<Lsn>,
    /// Where the rows come from; unknown only in documents of before the stream.
    #[serde(default)]
    pub(super) source: Option<Source>,
    /// The tables with their columns, new ones included before a file has them.
    #[serde(default)]
    pub(super) tables: Vec<JobTable>,
    /// Runs whose unlisted change files may still lie about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) former: Vec<FormerRun>,
    /// Copies of tables that were to join, whose files may lie about unlisted. The last one that has a table's directory is
    /// the one whose rows of it count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) joining: Vec<FormerJoin>,
}

/// A copy of tables that join. Its files count from the one commit on that makes it a member's `run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FormerJoin {
    /// How its files begin.
    pub(super) run: String,
    /// Directories relative to the root that it writes into.
    pub(super) directories: Vec<String>,
}

/// What the lake has of a table; later than a commit shows it, never earlier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JobTable {
    pub(super) schema: String,
    pub(super) name: String,
    /// Columns by name.
    pub(super) columns: Vec<String>,
}

impl JobTable {
    pub(super) fn new(relation: &RelationName, columns: &[Column]) -> Self {
        Self {
            schema: relation.schema.clone(),
            name: relation.name.clone(),
            columns: columns.iter().map(|column| column.name.clone()).collect(),
        }
    }

    pub(super) fn is_of(&self, relation: &RelationName) -> bool {
        self.schema == relation.schema && self.name == relation.name
    }
}

/// A run that was taken over while it may have been writing the files of a commit that never came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FormerRun {
    pub(super) run: String,
    /// The number that the commit would have had.
    pub(super) commit: u64,
}

/// One commit: a set of files that together are the lake at `end_lsn`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Commit {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Dense, from 0.
    pub commit: u64,
    /// `snapshot`; `changes`; `join` and `reset`, with which the tables that they name begin anew; `position` for one that
    /// lists nothing and moves the position or the run.
    pub kind: String,
    /// The job.
    pub job: String,
    /// The run.
    pub run: String,
    /// The position on the source that the files show.
    pub end_lsn: Lsn,
    /// Where the rows come from.
    pub source: Source,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// Of a snapshot: a stream continues from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// The tables that have files in this commit, in the job's order; of a snapshot all. Of `join` those that join, with
    /// all their rows; of `reset` those that are given up, without files.
    pub tables: Vec<CommitTable>,
    /// The commit whose `members` hold now; none before version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roster: Option<u64>,
    /// Every table that the lake has had, with what holds from this commit on; only in commits that change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<Vec<Member>>,
}

/// A table that a lake has, or has had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Schema, as in PostgreSQL.
    pub schema: String,
    /// Name, as in PostgreSQL.
    pub name: String,
    /// `pg_class.oid` on the source.
    pub oid: Oid,
    /// What it is to readers.
    pub state: MemberState,
    /// The commit that brought it into this state.
    pub since: u64,
    /// How the names of its snapshot's files begin.
    pub run: String,
    /// Where it joined; none for tables of the job's first snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinPoint>,
}

impl Member {
    pub(super) fn is_of(&self, relation: &RelationName) -> bool {
        self.schema == relation.schema && self.name == relation.name
    }

    pub(super) fn relation(&self) -> RelationName {
        RelationName::new(&self.schema, &self.name)
    }
}

/// What a lake's table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// It has every change up to the commit's position, but for the transactions that its join's snapshot does not show.
    Joined,
    /// It is as it was: the stream goes on without it.
    Left,
    /// It was given up, and has no files any more.
    Reset,
}

/// The source of a lake.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// As a string: it has 64 bits, more than JSON's readers keep.
    pub system_identifier: String,
    /// The database.
    pub database: String,
    /// `server_version_num`.
    pub server_version: u32,
    /// The timeline when the stream was opened; none before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
}

/// One table in a commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommitTable {
    /// Schema, as in PostgreSQL.
    pub schema: String,
    /// Name, as in PostgreSQL.
    pub name: String,
    /// Columns in file order.
    pub columns: Vec<CommitColumn>,
    /// Columns of the primary key, in key order; empty without one. Of changes: the columns that tell a row apart in the
    /// stream, which are others where the replica identity is another index; empty where a row is told by all its columns.
    pub key: Vec<String>,
    /// The user's row filter.
    pub filter: Option<String>,
    /// Rows.
    pub rows: u64,
    /// Count and keyed sums of the rows, as the source had them; only of a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<RowSum>,
    /// How many rows of which kind; only of changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<OperationCounts>,
    /// Values without a lake form that became NULL, by column.
    pub replaced: Vec<Replaced>,
    /// The files; together they are the table.
    pub files: Vec<FileEntry>,
    /// Of a table that joins: until a commit's `end_lsn` has reached its `lsn`, the table is ahead of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinPoint>,
}

/// Rows of change files by their `_op`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationCounts {
    /// New rows.
    pub i: u64,
    /// Changed rows.
    pub u: u64,
    /// Rows that are gone.
    pub d: u64,
    /// TRUNCATE.
    pub t: u64,
}

/// One column in a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitColumn {
    /// Its name.
    pub name: String,
    /// Its type as PostgreSQL prints it.
    pub pg_type: String,
    /// Its type in the files, as Arrow prints it.
    pub arrow_type: String,
    /// Whether PostgreSQL allows NULL.
    pub nullable: bool,
    /// Of a column that was added while the source was followed: its constant default, as PostgreSQL's SQL. Rows of files
    /// without the column have this value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
}

/// How many values of a column were replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// The column.
    pub column: String,
    /// How many.
    pub values: u64,
}

/// The directory of a table's snapshot files, relative to the root.
pub(super) fn snapshot_directory(name: &RelationName) -> String {
    format!("{}/{}/snapshot", names::encode(&name.schema), names::encode(&name.name))
}

/// The directory of a table's change files, relative to the root.
pub(super) fn changes_directory(name: &RelationName) -> String {
    format!("{}/{}/changes", names::encode(&name.schema), names::encode(&name.name))
}

/// The document of a commit.
pub(super) fn commit_path(number: u64) -> String {
    format!("{COMMITS}/{number:020}.json")
}

/// The document that says that a copy of a table is whole.
pub(super) fn whole_path(run: &str, oid: Oid) -> String {
    format!("{WHOLE}/{}{oid}.json", file_prefix(run))
}

/// How the change files begin that a run writes for a commit.
pub(super) fn change_file_prefix(run: &str, commit: u64) -> String {
    format!("{}{commit:020}-", file_prefix(run))
}

/// The name of a change file.
pub(super) fn change_file_name(run: &str, commit: u64, number: u32) -> String {
    format!("{}{number:05}.parquet", change_file_prefix(run, commit))
}

/// Whether a run wrote this file for a commit; for any commit if none is named.
pub(super) fn is_change_file(name: &str, run: &str, commit: Option<u64>) -> bool {
    let name = name.strip_prefix('.').unwrap_or(name);
    let Some(rest) = name.strip_prefix(&file_prefix(run)) else { return false };
    let Some((number, rest)) = rest.split_at_checked(20) else { return false };
    let is_commit = number.bytes().all(|byte| byte.is_ascii_digit())
        && commit.is_none_or(|commit| number.parse() == Ok(commit));
    let Some(rest) = rest.strip_prefix('-') else { return false };
    let (number, rest) = rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count());
    let is_parquet = rest == ".parquet" || rest.starts_with(".parquet.tmp-");
    is_commit && number.len() >= 5 && is_parquet
}

/// The commit that a change file was written for, whichever run wrote it.
pub(super) fn commit_of_change_file(name: &str) -> Option<u64> {
    let stem = &name[..name.rfind(".parquet")?];
    let (rest, number) = stem.rsplit_once('-')?;
    let (_, commit) = rest.rsplit_once('-')?;
    let run = &rest[..rest.len() - commit.len() - 1];
    let run = run.strip_prefix('.').unwrap_or(run);
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let is_ours = commit.len() == 20 && number.len() >= 5 && is_digits(commit) && is_digits(number);
    // As it would have been named: nothing else is taken for a file of ours.
    let commit = commit.parse().ok().filter(|_| is_ours && !run.is_empty())?;
    let rest = &name[stem.len()..];
    (rest == ".parquet" || rest.starts_with(".parquet.tmp-")).then_some(commit)
}

/// How the files of a run begin, in every directory; temporary ones have a dot before it.
pub(super) fn file_prefix(run: &str) -> String {
    format!("{}-", names::encode(run))
}

/// Whether a file was written by this run.
pub(super) fn is_file_of_run(name: &str, run: &str) -> bool {
    let name = name.strip_prefix('.').unwrap_or(name);
    let Some(rest) = name.strip_prefix(&file_prefix(run)) else { return false };
    let (number, rest) = rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count());
    number.len() >= 5 && (rest == ".parquet" || rest.starts_with(".parquet.tmp-"))
}

/// The file name of a run's file.
pub(super) fn file_name(run: &str, number: u32) -> String {
    format!("{}{number:05}.parquet", file_prefix(run))
}

/// Columns as a commit shows them.
pub(super) fn commit_columns(
    columns: &[Column],
    schema: &arrow_schema::Schema,
) -> Vec<CommitColumn> {
    let described = columns.iter().zip(schema.fields()).map(|(column, field)| CommitColumn {
        name: column.name.clone(),
        pg_type: column.type_name.clone(),
        arrow_type: field.data_type().to_string(),
        nullable: column.is_nullable,
        default: None,
    });
    described.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_run_are_taken_for_its_own() {
        for name in ["r1-00000.parquet", ".r1-00012.parquet.tmp-AbC", "r1-100000.parquet"] {
            assert!(is_file_of_run(name, "r1"), "{name}");
        }
        for name in [
            "r2-00000.parquet",
            "r1.parquet",
            "r1-0.parquet",
            "r11-00000.parquet",
            "r1-00000.parquet.bak",
            "r1.00000.parquet",
        ] {
            assert!(!is_file_of_run(name, "r1"), "{name}");
        }
        assert!(is_file_of_run(&file_name("2026-11-20T10:00", 7), "2026-11-20T10:00"));
    }

    #[test]
    fn only_change_files_of_the_run_and_commit_are_taken_for_its_own() {
        let name = change_file_name("R:1", 12, 3);
        assert!(is_change_file(&name, "R:1", Some(12)) && is_change_file(&name, "R:1", None));
        assert!(is_change_file(&format!(".{name}.tmp-x1"), "R:1", Some(12)));
        assert!(!is_change_file(&name, "R:1", Some(1)) && !is_change_file(&name, "R", None));
        assert!(!is_file_of_run(&name, "R:1"));
        for name in ["r1-00000.parquet", "r1-00000000000000000001.parquet", "r1-é", "r1-"] {
            assert!(!is_change_file(name, "r1", None), "{name}");
        }
    }

    #[test]
    fn a_change_file_of_any_run_tells_its_commit_and_nothing_else_does() {
        let name = change_file_name("R:1", 12, 3);
        assert_eq!(commit_of_change_file(&name), Some(12));
        assert_eq!(commit_of_change_file(&format!(".{name}.tmp-a-b.parquet.x")), None);
        assert_eq!(commit_of_change_file(&format!(".{name}.tmp-Ab12")), Some(12));
        for name in [
            "r1-00000.parquet",
            "r1-00000000000000000001.parquet",
            "-00000000000000000001-00000.parquet",
            "r1-00000000000000000001-00000.parquet.bak",
            "r1-0000000000000000001-00000.parquet",
            "r1-00000000000000000001-notes.parquet",
            "é-é-.parquet",
            ".parquet",
        ] {
            assert_eq!(commit_of_change_file(name), None, "{name}");
        }
    }
}
