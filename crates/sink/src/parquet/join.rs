//! Tables join a lake that follows, and are given up.
//!
//! **Invariant:** the rows of tables that join and where they joined become visible with one commit, which moves no position;
//! files that were written for it and that it does not list are removed by whoever takes the lake next. A table that is given
//! up has no files from one commit on; only then are those that it had removed.
//!
//! ```text
//! begin    job.json names the copy and its directories -> a position commit takes the lake: nobody else commits from here on
//! copy     <root>/<schema>/<table>/snapshot/<copy>-<nnnnn>.parquet     as in a snapshot
//! finish   one commit: these files, S and L, and that the tables are whole
//! ```
//!
//! `docs/adr/2026-11-21-a-table-joins-the-stream.md` says why nothing is lost or doubled.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use tidemark_model::RelationName;

use super::manifest::MemberState;
use super::root::Root;
use super::stream::{self, Commits, Turn};
use super::table::Table;
use super::{ParquetSink, Run};
use crate::{Disposition, Error, Join, Result, SnapshotStart, SnapshotSummary};

impl ParquetSink {
    /// Takes the lake for the copy.
    pub(super) async fn begin_join(
        &self,
        start: &SnapshotStart,
        join: &Join,
        tables: HashMap<RelationName, Arc<Table>>,
    ) -> Result<()> {
        let commits = Commits::take(&self.root, Turn::Join(start, join)).await?;
        let run = Run::new(start, tables);
        *run.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(commits);
        self.hold(run);
        Ok(())
    }

    /// Says that the tables are whole, and gives the lake back for the stream.
    pub(super) async fn finish_join(
        &self,
        run: &Run,
        join: &Join,
        summary: &SnapshotSummary,
    ) -> Result<()> {
        let tables = self.commit_tables(run, summary)?;
        let commits = run.take().ok_or_else(|| {
            Error::new(Disposition::Internal, "let tables join that have joined or failed to")
        })?;
        commits.join(&run.start, join, tables).await?;
        run.is_finished.store(true, Ordering::Release);
        Ok(())
    }
}

/// Gives tables up. The commit that says so stops whoever else writes to the lake.
pub(super) async fn forget(
    root: &Root,
    job: &str,
    tables: &[RelationName],
) -> Result<Vec<RelationName>> {
    let attempt = || Error::new(Disposition::Usage, format!("give tables of the lake {root} up"));
    let Some(members) = stream::members(root).await? else {
        return match stream::stored(root).await? {
            Some(stored) if stored.stage == crate::StoredStage::Follow => Err(attempt().hint(
                "an earlier version wrote it, and did not note its tables: run sync once, then reset",
            )),
            _ => Ok(Vec::new()),
        };
    };
    let named = |member: &&super::manifest::Member| tables.contains(&member.relation());
    let known: Vec<_> = members.iter().filter(named).collect();
    if known.iter().any(|member| member.state != MemberState::Reset) {
        Commits::take(root, Turn::Forget { job, tables }).await?;
    }
    Ok(known.iter().map(|member| member.relation()).collect())
}
