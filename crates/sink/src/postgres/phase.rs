//! How far a first snapshot is, as the job's record on the target says.
//!
//! **Invariant:** a phase is written only by the run and epoch that the record names; the last commit waits for the disk and
//! with it for every commit before it.

use super::control::Control;
use super::load::Owner;
use super::record::held;
use super::session::server_error;
use crate::{Disposition, Error, Result, SnapshotStart, SnapshotSummary};

impl Control {
    /// Writes the phase; refused once the run is complete or another run has taken the record over.
    pub(super) async fn set_phase(&self, owner: &Owner, phase: &str) -> Result<()> {
        let changed = self
            .client
            .execute(
                "UPDATE tidemark.progress SET phase = $3 WHERE job = $1 AND run = $2 AND epoch = $4 AND phase NOT IN ('follow', 'complete')",
                &[&self.job, &self.run, &phase, &owner.epoch],
            )
            .await
            .map_err(|cause| server_error("write the job's phase on the target", None, cause))?;
        if changed == 1 {
            return Ok(());
        }
        Err(Error::new(
            Disposition::Internal,
            format!(
                "go on with run {} of job {:?}: the target's record is complete or another run's",
                self.run, self.job
            ),
        ))
    }

    /// Writes how far the schema is created, and from which definitions.
    pub(super) async fn set_schema_state(&self, state: &str, digest: Option<&str>) -> Result<()> {
        self.client
            .execute(
                "UPDATE tidemark.progress SET schema_state = $3, schema_digest = $4 WHERE job = $1 AND run = $2",
                &[&self.job, &self.run, &state, &digest],
            )
            .await
            .map_err(|cause| server_error("write how far the schema is", None, cause))?;
        Ok(())
    }

    /// Writes what the tables that were there are filled from.
    pub(super) async fn set_schema_digest(&self, digest: Option<&str>) -> Result<()> {
        self.client
            .execute(
                "UPDATE tidemark.progress SET schema_digest = $3 WHERE job = $1 AND run = $2",
                &[&self.job, &self.run, &digest],
            )
            .await
            .map_err(|cause| server_error("write what is copied of the tables", None, cause))?;
        Ok(())
    }

    /// Compares the markers with what the run believes: commits that a crash of the target took back show here.
    pub(super) async fn expect_markers(&self, summary: &SnapshotSummary) -> Result<()> {
        let row = self
            .client
            .query_one(
                "SELECT coalesce(sum(rows), 0)::int8 FROM tidemark.chunk WHERE job = $1 AND run = $2",
                &[&self.job, &self.run],
            )
            .await
            .map_err(|cause| server_error("count the chunks that the target holds", None, cause))?;
        let there = row.get::<_, i64>(0) as u64;
        let expected: u64 = summary.tables.iter().map(|table| table.rows_in).sum();
        if there == expected {
            return Ok(());
        }
        Err(Error::new(
            Disposition::Unavailable,
            format!("finish the snapshot: the target's markers name {there} rows, {expected} were committed to it"),
        )
        .hint("the target was restarted and lost commits; run the same command again: it starts the snapshot over"))
    }

    /// Closes the record. This commit waits for the disk and with it for every commit before it.
    pub(super) async fn complete(
        &self,
        start: &SnapshotStart,
        owner: &Owner,
        summary: &SnapshotSummary,
    ) -> Result<()> {
        self.alive()?;
        let (schemas, names, oids) = super::join::columns(&start.tables);
        let states: Vec<&str> = start.tables.iter().map(super::join::state_after).collect();
        let phase = if start.continues { "follow" } else { "complete" };
        let lsn = summary.lsn.to_string();
        self.client
            .batch_execute("SET synchronous_commit = on")
            .await
            .map_err(|cause| server_error("close the job's record on the target", None, cause))?;
        let changed = self
            .client
            .execute(
                "WITH whole AS (UPDATE tidemark.relation r SET state = t.state, relation_oid = t.o \
                   FROM unnest($5::text[], $6::text[], $7::oid[], $9::text[]) AS t(s, n, o, state) \
                   WHERE r.job = $1 AND r.schema_name = t.s AND r.relation_name = t.n) \
                 UPDATE tidemark.progress SET phase = $4, end_lsn = $3::text::pg_lsn, finished_at = now() \
                 WHERE job = $1 AND run = $2 AND epoch = $8 AND phase = 'finish'",
                &[&self.job, &self.run, &lsn, &phase, &schemas, &names, &oids, &owner.epoch, &states],
            )
            .await
            .map_err(|cause| server_error("close the job's record on the target", None, cause))?;
        if changed == 1 {
            return Ok(());
        }
        Err(held(&self.job))
    }
}
