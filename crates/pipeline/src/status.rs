//! What `status` answers, from the running job or from its ledger.
//!
//! **Invariant:** the names are `design.md` section 8's; scripts rely on them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tidemark_ledger::LedgerReader;
use tidemark_model::Lsn;

use crate::cleanup::CLEANED;
use crate::job::Job;
use crate::progress::{Phase, ProgressView};
use crate::snapshot::{blocking, half_copied};
use crate::stream::{Ladder, LadderView, made_run};
use crate::{Error, Kind, Result};

/// The state of a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The job.
    pub job: String,
    /// Where it stands.
    pub phase: Phase,
    /// What it does at the moment, in a few words.
    pub activity: String,
    /// Whether a process runs it now.
    pub is_running: bool,
    /// The stream's positions; all null before a stream exists.
    pub lag: Lag,
    /// The snapshot.
    pub snapshot: SnapshotStatus,
    /// The stream's counters; zero before a stream exists.
    pub stream: StreamStatus,
    /// WAL that the source keeps for our slot, because of us or of others.
    pub retained_wal_bytes: u64,
    /// Who else makes the source keep WAL, where it keeps more than we need: slots, prepared and long transactions.
    #[serde(default)]
    pub retained_by_others: Option<String>,
    /// Bytes of the spool.
    pub spool_bytes: u64,
    /// Bytes of rows on their way, as the budget counts them.
    pub memory_bytes: u64,
    /// What ended the last run, if it did not end well.
    pub last_error: Option<String>,
    /// Between a cutover and the end of the migration: what is to be watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypercare: Option<Hypercare>,
    /// The waves of the job; none where all tables are moved together.
    pub waves: Vec<WaveStatus>,
}

/// One wave, in short.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WaveStatus {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub phase: Phase,
    /// Its stream.
    pub lag: Lag,
    /// What the last proof has said, if there was one.
    pub verdict: Option<String>,
}

/// After a cutover, as long as there is a way back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Hypercare {
    /// Since so long the application is on the target.
    pub seconds: f64,
    /// WAL that the side which was left does not have yet.
    pub reverse_lag_bytes: Option<u64>,
    /// Since so long the oldest transaction has waited that it does not show.
    pub reverse_lag_seconds: Option<f64>,
    /// What the last verification has found, steps of the cutover included.
    pub last_verdict: Option<String>,
    /// Where.
    pub last_verdict_lsn: Option<Lsn>,
    /// How long ago.
    pub last_verdict_seconds: Option<f64>,
    /// The sequence with the least room on the side that the application writes to.
    pub fullest_sequence: Option<SequenceRoom>,
}

/// How much room a sequence has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SequenceRoom {
    /// Its name, quoted as SQL would.
    pub name: String,
    /// The share of its values, or of its column's, that is left.
    pub free: f64,
}

/// Five positions and what lies between them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// The source's insert position.
    pub head_lsn: Option<Lsn>,
    /// Sent by the source.
    pub sent_lsn: Option<Lsn>,
    /// Received by us.
    pub received_lsn: Option<Lsn>,
    /// Applied to the target.
    pub applied_lsn: Option<Lsn>,
    /// Durable on the target: after a finished snapshot, its position.
    pub durable_lsn: Option<Lsn>,
    /// Bytes from durable to head.
    pub bytes: Option<u64>,
    /// Since when, by the source's clock, the oldest transaction has waited that the target does not show.
    pub seconds: Option<f64>,
    /// For so long the source has not answered; the lag is as of then. It is asked once a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_silent_seconds: Option<f64>,
}

/// Counters of the snapshot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Tables whose rows and keys are in.
    pub tables_done: u64,
    /// All tables.
    pub tables_total: u64,
    /// Rows so far.
    pub rows_done: u64,
    /// Rows expected, an estimate.
    pub rows_estimate: u64,
    /// Bytes of heap and TOAST so far.
    pub bytes_done: u64,
    /// Bytes of heap and TOAST.
    pub bytes_total: u64,
    /// Seconds since the job began.
    pub elapsed_seconds: f64,
    /// Tables at work.
    pub active: Vec<crate::progress::ActiveTable>,
}

/// Counters of the stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Transactions applied.
    pub transactions: u64,
    /// Changes applied.
    pub changes: u64,
    /// Changes a second, lately.
    pub changes_per_second: f64,
    /// How many lanes apply (`stream.lanes`).
    #[serde(default)]
    pub lanes: usize,
}

impl Lag {
    pub(crate) fn of(ladder: &Ladder) -> Self {
        let view = ladder.view();
        let known = |lsn: Lsn| (lsn != Lsn::ZERO).then_some(lsn);
        Self {
            head_lsn: known(view.head),
            sent_lsn: known(view.sent),
            received_lsn: known(view.received),
            applied_lsn: known(view.applied),
            durable_lsn: known(view.durable),
            // Before the first answer of the target nothing is known, and all WAL since the cluster was made is no lag.
            bytes: known(view.head).and(known(view.durable)).map(|_| view.bytes_behind()),
            seconds: known(view.durable).map(|_| ladder.seconds_behind()),
            source_silent_seconds: ladder.source_silent().map(|silent| silent.as_secs_f64()),
        }
    }
}

impl StreamStatus {
    pub(crate) fn of(view: LadderView, lanes: usize) -> Self {
        Self {
            lanes,
            transactions: view.transactions,
            changes: view.changes,
            changes_per_second: view.rate as f64,
        }
    }
}

impl SnapshotStatus {
    pub(crate) fn of(view: ProgressView) -> Self {
        Self {
            tables_done: view.tables_done,
            tables_total: view.tables_total,
            rows_done: view.rows_done,
            rows_estimate: view.rows_estimate,
            bytes_done: view.bytes_done,
            bytes_total: view.bytes_total,
            elapsed_seconds: view.elapsed.as_secs_f64(),
            active: view.active,
        }
    }
}

/// The status of a job that no process runs, from its ledger.
///
/// # Errors
/// There is no ledger, or it cannot be read.
pub fn stored_status(state_dir: &Path, job: &str) -> Result<Status> {
    let reader = LedgerReader::open(state_dir)?;
    let Some(run) = reader.run()? else {
        return Err(Error::new(
            Kind::Usage,
            format!("read the status of job {job:?}: it has never run"),
        )
        .hint("start it with tidemark sync"));
    };
    let relations = reader.relations()?;
    let journal = reader.journal()?;
    let goes_on = made_run(&journal) == Some(run.run.as_str());
    let is_half_copied = half_copied(journal, &relations, &run.run) > 0;
    let is_copied = run.finished_at_ms.is_some();
    let follows = run.phase == "follow";
    let is_cleaned = run.phase == CLEANED;
    let is_complete = is_copied && !follows && !is_cleaned;
    let mut snapshot =
        SnapshotStatus { tables_total: relations.len() as u64, ..SnapshotStatus::default() };
    for relation in &relations {
        let share = f64::from(relation.chunks_done) / f64::from(relation.plan.chunks_total.max(1));
        snapshot.tables_done += u64::from(relation.is_finished);
        snapshot.rows_done += relation.rows_in;
        snapshot.rows_estimate +=
            if relation.is_finished { relation.rows_in } else { relation.plan.estimated_rows };
        snapshot.bytes_total += relation.plan.estimated_bytes;
        snapshot.bytes_done += (relation.plan.estimated_bytes as f64 * share.min(1.0)) as u64;
    }
    Ok(Status {
        job: run.job,
        phase: if is_complete { Phase::Complete } else { Phase::Stopped },
        activity: match (is_complete, follows) {
            _ if is_cleaned => {
                "cleaned up: the servers know nothing of it; the same sync takes a new snapshot"
            }
            (true, _) => "done",
            (false, true) => "not running; the same sync goes on where it stopped",
            // The target may follow already: the process died between the last word there and the one here.
            (false, false) if goes_on && snapshot.tables_done == snapshot.tables_total => {
                "not running; all tables are in, and the same sync goes on where it stopped"
            }
            (false, false) if goes_on && snapshot.tables_done > 0 => {
                "not running; the same sync keeps the tables that are done and copies the others; until then the slot stays, and the source keeps its WAL for it (tidemark cleanup --yes gives the job up)"
            }
            (false, false) if goes_on && is_half_copied => {
                "not running; the same sync keeps the chunks that are done of large tables and copies the rest; until then the slot stays, and the source keeps its WAL for it (tidemark cleanup --yes gives the job up)"
            }
            (false, false) => "not running; the same sync starts the snapshot over",
        }
        .to_owned(),
        lag: Lag { durable_lsn: is_complete.then_some(run.snapshot_lsn), ..Lag::default() },
        snapshot,
        last_error: run.last_error,
        ..Status::default()
    })
}

/// Refuses to go on where a process runs the job of this state directory.
///
/// # Errors
/// One does ([`Kind::Held`]).
pub async fn refuse_running(job: &Job) -> Result<()> {
    let state_dir = job.state_dir.clone();
    let look = move || LedgerReader::open(&state_dir).ok().and_then(|ledger| ledger.holder());
    match blocking(look).await? {
        Some(pid) => {
            Err(tidemark_ledger::Error::Held { directory: job.state_dir.clone(), pid }.into())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_unknown_until_the_target_has_said_where_it_is() {
        let ladder = Ladder::default();
        ladder.set_source((Lsn::new(1 << 30), 7), None, 0);
        let lag = Lag::of(&ladder);
        assert_eq!(lag.head_lsn, Some(Lsn::new(1 << 30)));
        assert_eq!((lag.bytes, lag.seconds), (None, None));
    }
}
