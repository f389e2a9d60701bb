//! The job's record on the target: which run has it, how far it is, which tables and chunks are there.
//!
//! **Invariant:** the run and epoch that `tidemark.progress` names are the only ones whose chunks can commit: whoever takes
//! over writes its own there first, which waits for commits in flight ([`WITH_OWNER`]) and refuses all later ones. What
//! `tidemark.chunk` says is the truth about a chunk; the local ledger is a copy.

use serde::{Deserialize, Serialize};
use tidemark_model::Lsn;
use tidemark_wire::{Client, ConnectSpec};

use super::session::server_error;
use crate::{Disposition, Error, Result};

/// Our tables, made by one session at a time: the waves of a job begin at once.
pub(super) const TABLES: &str = "
SELECT pg_advisory_xact_lock(7490117);
CREATE SCHEMA IF NOT EXISTS tidemark;
CREATE TABLE IF NOT EXISTS tidemark.progress (
  job text NOT NULL, wave text NOT NULL DEFAULT '', run text NOT NULL, phase text NOT NULL,
  end_lsn pg_lsn NOT NULL, schema_mode text NOT NULL,
  source_system_identifier text NOT NULL, source_database text NOT NULL,
  schema_state text NOT NULL DEFAULT 'none', tool_version text NOT NULL, started_at timestamptz NOT NULL DEFAULT now(), finished_at timestamptz,
  heartbeat timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (job, wave));
CREATE TABLE IF NOT EXISTS tidemark.relation (
  job text NOT NULL, schema_name text NOT NULL, relation_name text NOT NULL,
  PRIMARY KEY (job, schema_name, relation_name));
CREATE TABLE IF NOT EXISTS tidemark.chunk (
  job text NOT NULL, run text NOT NULL, relation_oid oid NOT NULL, chunk int8 NOT NULL,
  rows int8 NOT NULL, digest_raw text NOT NULL, xid int8 NOT NULL,
  PRIMARY KEY (job, run, relation_oid, chunk));
CREATE TABLE IF NOT EXISTS tidemark.lane (
  job text NOT NULL, lane int4 NOT NULL, lanes int4 NOT NULL, end_lsn pg_lsn NOT NULL, epoch int8 NOT NULL,
  PRIMARY KEY (job, lane));
CREATE TABLE IF NOT EXISTS tidemark.delta (
  job text NOT NULL, schema_name text NOT NULL, relation_name text NOT NULL, generation text NOT NULL,
  moved_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (job, schema_name, relation_name));
COMMENT ON SCHEMA tidemark IS 'Records of Tidemark; removed by tidemark cleanup';
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tidemark.progress'::regclass AND attname = 'epoch') THEN
    ALTER TABLE tidemark.progress ADD COLUMN source_timeline int8, ADD COLUMN epoch int8 NOT NULL DEFAULT 0;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tidemark.relation'::regclass AND attname = 'state') THEN
    ALTER TABLE tidemark.relation ADD COLUMN relation_oid oid, ADD COLUMN state text, ADD COLUMN read_snapshot text, ADD COLUMN joined_lsn pg_lsn;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tidemark.relation'::regclass AND attname = 'stopped_lsn') THEN
    ALTER TABLE tidemark.relation ADD COLUMN stopped_lsn pg_lsn, ADD COLUMN stopped_because text;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tidemark.progress'::regclass AND attname = 'owed') THEN
    ALTER TABLE tidemark.progress ADD COLUMN schema_digest text, ADD COLUMN owed text[] NOT NULL DEFAULT '{}';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tidemark.relation'::regclass AND attname = 'lanes') THEN
    ALTER TABLE tidemark.relation ADD COLUMN lanes text;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tidemark.relation'::regclass AND attname = 'joined_timeline') THEN
    ALTER TABLE tidemark.relation ADD COLUMN joined_timeline int8;
  END IF;
END $$";

/// What a statement begins with that takes the record of job `$1` over, and ends with `AND EXISTS (SELECT FROM owner)`. The
/// chunks and marks of whoever had it hold their owner's row until they commit; a plain UPDATE, which leaves the key alone,
/// would not wait for them.
pub(super) const WITH_OWNER: &str = "WITH owner AS MATERIALIZED (SELECT FROM tidemark.progress WHERE job = $1 AND wave = '' FOR UPDATE)";

/// The job as the target knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Which run.
    pub run: String,
    /// `prepare`, `snapshot`, `finish`; then `follow` where a stream continues, `complete` where none does; `cleaned`.
    pub phase: String,
    /// The position that the target stands at once the phase is `follow` or `complete`.
    pub end_lsn: Lsn,
    /// `create` or `exists`.
    pub schema_mode: String,
    /// How far the schema was created: `none`, `making` or `made`. What was there before us is never taken for ours.
    pub schema_state: String,
    /// The source cluster.
    pub source_system_identifier: String,
    /// The source's database.
    pub source_database: String,
}

impl JobRecord {
    /// Whether the snapshot is whole.
    pub(super) fn is_finished(&self) -> bool {
        matches!(self.phase.as_str(), "follow" | "complete")
    }
}

/// Whether any job has ever been recorded on the target.
pub(super) async fn has_records(client: &Client) -> Result<bool> {
    let row = client
        .query_one("SELECT to_regclass('tidemark.progress') IS NOT NULL", &[])
        .await
        .map_err(|cause| server_error("look for the jobs' records on the target", None, cause))?;
    Ok(row.get(0))
}

pub(super) async fn read_record(client: &Client, job: &str) -> Result<Option<JobRecord>> {
    let row = client
        .query_opt(
            "SELECT run, phase, end_lsn::text, schema_mode, source_system_identifier, source_database, schema_state \
             FROM tidemark.progress WHERE job = $1 AND wave = ''",
            &[&job],
        )
        .await
        .map_err(|cause| server_error("read the job's record on the target", None, cause))?;
    Ok(row.map(|row| JobRecord {
        run: row.get(0),
        phase: row.get(1),
        end_lsn: row.get::<_, &str>(2).parse().unwrap_or_default(),
        schema_mode: row.get(3),
        source_system_identifier: row.get(4),
        source_database: row.get(5),
        schema_state: row.get(6),
    }))
}

/// The job as the target knows it, if it does.
///
/// # Errors
/// The target cannot be reached or does not let us read.
pub async fn read_job_record(spec: &ConnectSpec, job: &str) -> Result<Option<JobRecord>> {
    let client = spec.connect().await.map_err(|cause| {
        Error::new(Disposition::Unavailable, "connect to the target").because(cause)
    })?;
    if heartbeat_of(&client, job).await?.is_none() {
        return Ok(None);
    }
    read_record(&client, job).await
}

pub(super) async fn heartbeat_of(client: &Client, job: &str) -> Result<Option<String>> {
    let attempt = |cause| server_error("read the job's heartbeat on the target", None, cause);
    if !has_records(client).await? {
        return Ok(None);
    }
    let row = client
        .query_opt(
            "SELECT heartbeat::text FROM tidemark.progress WHERE job = $1 AND wave = ''",
            &[&job],
        )
        .await
        .map_err(attempt)?;
    Ok(row.map(|row| row.get(0)))
}

/// Another process has the record.
pub(super) fn held(job: &str) -> Error {
    let mut error = Error::new(
        Disposition::Held,
        format!("take job {job:?} on the target: another instance holds it"),
    );
    error.hint = Some("stop the other instance, or give this job another name (--job)".to_owned());
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_in_our_schema_is_made_under_its_lock() {
        let lock =
            format!("SELECT pg_advisory_xact_lock({});", tidemark_model::names::OUR_SCHEMA_LOCK);
        assert!(TABLES.trim_start().starts_with(&lock));
    }
}
