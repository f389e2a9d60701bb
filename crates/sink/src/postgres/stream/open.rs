//! Takes the job on the target and sets the applying session up.
//!
//! **Invariant:** nothing is written before the record on the target was compared with the source: same cluster, same
//! database, no older timeline, and a finished snapshot that a stream continues from. Then this run puts its name and the
//! next epoch into the record; from there on no other session's position can be committed (`hazards.md` B34, G101).
//!
//! The session's settings, and why:
//!
//! ```text
//! session_replication_role = replica   the target's triggers and foreign keys have had their say on the source
//! synchronous_commit = on              a commit that is answered is durable, unless it says otherwise for itself (`apply`)
//! plan_cache_mode, enable_*            arrays have no statistics: the planner takes ten rows for any of them, and would join
//!                                      by hashing whole tables; an index lookup per row is what is meant (`KeyPart::among`)
//! work_mem                             a batch's rows, which unnest() lays out before they are joined, fit
//! origin                               commits are marked, so that a stream the other way round leaves them out
//! ```
//!
//! PostgreSQL manual: "Replication Progress Tracking".

use tidemark_model::Lsn;
use tidemark_wire::Client;

use super::super::join;
use super::super::record::{WITH_OWNER, has_records, held};
use super::super::session::{Sessions, may_replicate, server_error};
use super::super::{PostgresOptions, Triggers};
use super::apply::Fence;
use crate::{Disposition, Error, Result, Stored, StoredStage, StreamStart};

const SETTINGS: &str = "SET synchronous_commit = on; SET plan_cache_mode = force_generic_plan; \
    SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off; SET enable_bitmapscan = off; \
    SET enable_material = off; SET enable_memoize = off; \
    SELECT set_config('work_mem', '64MB', false) WHERE pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('64MB')";

/// Where the target stands; reads only, also a record that an older version made.
pub(super) async fn stored(client: &Client, job: &str) -> Result<Option<Stored>> {
    let attempt = |cause| server_error("read the job's record on the target", None, cause);
    if !has_records(client).await? {
        return Ok(None);
    }
    let row = client
        .query_opt(
            "SELECT run, phase, end_lsn::text, source_system_identifier, source_database, \
             (to_jsonb(p) ->> 'source_timeline')::int8, (to_jsonb(p) ->> 'epoch')::int8 \
             FROM tidemark.progress p WHERE job = $1 AND wave = '' AND phase <> 'cleaned'",
            &[&job],
        )
        .await
        .map_err(attempt)?;
    let Some(row) = row else { return Ok(None) };
    let stage = match row.get(1) {
        "follow" => StoredStage::Follow,
        "complete" => StoredStage::Complete,
        _ => StoredStage::Snapshot,
    };
    let end_lsn = row.get::<_, &str>(2).parse().map_err(|cause| {
        Error::new(Disposition::Internal, "read the position that the target stores").because(cause)
    })?;
    let (tables, stopped) = match stage {
        StoredStage::Follow => {
            (join::whole(client, job, "joined").await?, join::stopped(client, job).await?)
        }
        StoredStage::Snapshot => (join::whole(client, job, "whole").await?, Vec::new()),
        StoredStage::Complete => (None, Vec::new()),
    };
    Ok(Some(Stored {
        run: row.get(0),
        stage,
        end_lsn,
        system_identifier: row.get(3),
        database: row.get(4),
        timeline: row.get::<_, Option<i64>>(5).and_then(|timeline| u32::try_from(timeline).ok()),
        tables,
        copied: None,
        stopped,
        epoch: row.get(6),
    }))
}

/// Compares the record with the source.
pub(super) fn compare(stored: Option<Stored>, start: &StreamStart) -> Result<Stored> {
    let attempt = format!("follow the source of job {:?}", start.job);
    let Some(stored) = stored else {
        return Err(Error::new(
            Disposition::Usage,
            format!("{attempt}: the target holds no snapshot of it"),
        )
        .hint("tidemark sync makes the snapshot first"));
    };
    if stored.system_identifier != start.system_identifier.to_string()
        || stored.database != start.database
    {
        return Err(Error::new(
            Disposition::Usage,
            format!(
                "{attempt}: the target holds database {:?} of cluster {}, the source is database {:?} of cluster {}",
                stored.database, stored.system_identifier, start.database, start.system_identifier
            ),
        )
        .hint("connect to the source that the snapshot was made from, or give this job another name (--job)"));
    }
    if let Some(timeline) = stored.timeline
        && start.timeline < timeline
    {
        return Err(Error::new(
            Disposition::Usage,
            format!("{attempt}: the source is on timeline {}, the target has followed timeline {timeline}", start.timeline),
        )
        .hint("the source was restored to a time before: a new snapshot is needed (tidemark sync --target-not-empty truncate --yes)"));
    }
    let problem = match stored.stage {
        StoredStage::Follow => return Ok(stored),
        StoredStage::Snapshot => "its snapshot on the target is not whole",
        StoredStage::Complete => "its snapshot was made without a stream (--snapshot-only)",
    };
    Err(Error::new(Disposition::Usage, format!("{attempt}: {problem}"))
        .hint("make the snapshot again: tidemark sync --target-not-empty truncate --yes"))
}

/// Puts this run into the record. Waits for a commit in flight and refuses all later ones of others; answers with the
/// position that holds from then on.
pub(super) async fn claim(client: &Client, start: &StreamStart) -> Result<(Fence, Lsn)> {
    let attempt = |cause| server_error("take the job's record on the target over", None, cause);
    let timeline = i64::from(start.timeline);
    // The position may be of a commit that is not on disk yet; this one takes it along.
    client.batch_execute("SET synchronous_commit = on").await.map_err(attempt)?;
    let row = client
        .query_opt(
            &format!(
                "{WITH_OWNER} UPDATE tidemark.progress SET run = $2, epoch = epoch + 1, source_timeline = $3, heartbeat = clock_timestamp() \
                 WHERE job = $1 AND wave = '' AND phase = 'follow' AND EXISTS (SELECT FROM owner) RETURNING epoch, end_lsn::text"
            ),
            &[&start.job, &start.run, &timeline],
        )
        .await
        .map_err(attempt)?;
    let Some(row) = row else { return Err(held(&start.job)) };
    let lsn = row.get::<_, &str>(1).parse().map_err(|cause| {
        Error::new(Disposition::Internal, "read the position that the target stores").because(cause)
    })?;
    let (job, run) = (start.job.clone(), start.run.clone());
    let fence = Fence { job, run, epoch: row.get(0), lane: None };
    Ok((fence, lsn))
}

/// A session for applying in this lane.
pub(super) async fn session(
    options: &PostgresOptions,
    sessions: &Sessions,
    lane: usize,
) -> Result<Client> {
    let client = sessions.plain().await?;
    let mut settings = SETTINGS.to_owned();
    if lane > 0 {
        settings.push_str("; SET lock_timeout = '2s'");
    }
    if options.triggers == Triggers::Replica {
        if !may_replicate(&client).await? {
            return Err(may_not_replicate(&client));
        }
        settings.push_str("; SET session_replication_role = replica");
    }
    client
        .batch_execute(&settings)
        .await
        .map_err(|cause| server_error("set up a session for applying changes", None, cause))?;
    super::super::origin::set_up(&client, &options.job, lane).await?;
    Ok(client)
}

fn may_not_replicate(client: &Client) -> Error {
    let way = match client.server_version_num() >= 150_000 {
        true => {
            "GRANT SET ON PARAMETER session_replication_role TO the role, as a superuser on the target"
        }
        false => "connect to the target as a superuser",
    };
    Error::new(Disposition::Refused, "switch the target's triggers off while changes are applied")
        .hint(format!("{way}; or set target.triggers = \"as-is\""))
}
