//! What a process takes a lake for, and what it says with the commit that takes it.
//!
//! **Invariant:** `job.json` names every directory before a file is written into it; what tables are is only said by the
//! commit.

use tidemark_model::{Oid, RelationName, TablePlan};

use super::super::manifest::{
    self, Commit, CommitTable, FormerJoin, JobDocument, JobTable, MemberState,
};
use super::roster::{self, Roster};
use crate::{Join, Result, SnapshotStart, StreamStart};

/// What a process does with a lake.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Turn<'a> {
    /// It follows the source.
    Stream(&'a StreamStart),
    /// It copies tables that join.
    Join(&'a SnapshotStart, &'a Join),
    /// It gives tables up.
    Forget { job: &'a str, tables: &'a [RelationName] },
}

impl Turn<'_> {
    pub(super) fn job(&self) -> &str {
        match self {
            Self::Stream(start) => &start.job,
            Self::Join(start, _) => &start.job,
            Self::Forget { job, .. } => job,
        }
    }

    /// The run that goes on with it; none for the one that had it.
    pub(super) fn run(&self) -> Option<&str> {
        match self {
            Self::Stream(start) => Some(&start.run),
            Self::Join(_, join) => Some(&join.run),
            Self::Forget { .. } => None,
        }
    }

    /// System identifier and database of the source that it reads; none where it reads none.
    pub(super) fn source(&self) -> Option<(String, &str)> {
        match self {
            Self::Stream(start) => Some((start.system_identifier.to_string(), &start.database)),
            Self::Join(start, _) => Some((start.system_identifier.to_string(), &start.database)),
            Self::Forget { .. } => None,
        }
    }

    pub(super) fn timeline(&self) -> Option<u32> {
        match self {
            Self::Stream(start) => Some(start.timeline),
            Self::Join(..) | Self::Forget { .. } => None,
        }
    }

    /// The copy that is being made, whose files are not left over.
    pub(super) fn copy(&self) -> Option<&str> {
        match self {
            Self::Join(start, _) => Some(&start.run),
            Self::Stream(_) | Self::Forget { .. } => None,
        }
    }

    /// Notes what will be written.
    pub(super) fn note(&self, job: &mut JobDocument) {
        match self {
            Self::Stream(start) => {
                for plan in start.tables.iter() {
                    note_table(job, plan);
                }
            }
            Self::Join(start, _) => {
                let directory =
                    |plan: &TablePlan| manifest::snapshot_directory(&plan.relation.name);
                let directories: Vec<_> = start.tables.iter().map(directory).collect();
                let run = start.run.clone();
                job.joining.retain(|copy| copy.run != run);
                job.joining.push(FormerJoin { run, directories: directories.clone() });
                for (plan, directory) in start.tables.iter().zip(directories) {
                    if !job.directories.contains(&directory) {
                        job.directories.push(directory);
                    }
                    // Nobody follows it now: the columns are those that are copied.
                    job.tables.retain(|known| !known.is_of(&plan.relation.name));
                    note_table(job, plan);
                }
            }
            Self::Forget { .. } => {}
        }
    }

    /// Says what the tables are from this commit on. `run` wrote the files of the first snapshot.
    pub(super) fn write(&self, document: &mut Commit, roster: &Roster, run: &str) -> Result<()> {
        let number = document.commit;
        let members = match self {
            Self::Stream(start) => {
                let followed = start.tables.iter().map(name_and_oid);
                let members = roster.following(followed, run, number);
                let noted = Roster { at: Some(number), members };
                roster::may_follow(&noted, &start.tables)?;
                noted.members
            }
            Self::Join(start, join) => {
                let followed = join.followed.iter().cloned();
                let members = roster.following(followed, run, number);
                let noted = Roster { at: Some(number), members };
                roster::may_join(&noted, &start.tables, (join.position, document.end_lsn))?;
                noted.members
            }
            Self::Forget { tables, .. } => {
                let mut members = roster.members.clone();
                for member in &mut members {
                    let name = member.relation();
                    if member.state != MemberState::Reset && tables.contains(&name) {
                        (member.state, member.since) = (MemberState::Reset, number);
                        member.join = None;
                        document.kind = "reset".to_owned();
                        document.tables.push(without_files(name));
                    }
                }
                members
            }
        };
        if roster.at.is_none() || members != roster.members {
            (document.roster, document.members) = (Some(number), Some(members));
        }
        Ok(())
    }
}

fn name_and_oid(plan: &TablePlan) -> (RelationName, Oid) {
    (plan.relation.name.clone(), plan.relation.oid)
}

/// Notes a table that is followed, with the columns that the lake has already.
fn note_table(job: &mut JobDocument, plan: &TablePlan) {
    let name = &plan.relation.name;
    if !job.tables.iter().any(|known| known.is_of(name)) {
        job.tables.push(JobTable::new(name, &plan.columns));
    }
    let directory = manifest::changes_directory(name);
    if !job.directories.contains(&directory) {
        job.directories.push(directory);
    }
}

fn without_files(name: RelationName) -> CommitTable {
    CommitTable {
        schema: name.schema,
        name: name.name,
        columns: Vec::new(),
        key: Vec::new(),
        filter: None,
        rows: 0,
        digest: None,
        operations: None,
        replaced: Vec::new(),
        files: Vec::new(),
        join: None,
    }
}
