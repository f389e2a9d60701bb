//! `sync`: the snapshot if there is none, then the source is followed until the job is stopped.
//!
//! **Invariant:** nothing is acknowledged to the source before it is durable (`ladder.rs`), a transaction reaches the
//! target exactly once (its end LSN is stored with its rows, and only that decides), and before anything is written the
//! stored position is compared with slot and server: what does not fit is refused, never repaired.
//!
//! ```text
//! feed:  connection -> Message -> Assembler -> Committed -> Queue (memory, or the spool)          feed.rs assemble.rs queue.rs
//! apply: Queue -> decode -> StreamBatch -> StreamWriter -> Positions                               apply.rs ddl.rs
//! ack:   Positions -> DurableLsn -> Ladder -> status update                                        ladder.rs feed.rs
//! watch: the source's head, what it keeps because of us                                            watch.rs
//! ```
//!
//! While the snapshot runs only the feed runs, into the spool; the hand-off is that `apply` begins to read it. After an
//! error that may pass everything is made anew from what the target has stored: there is one way to begin.

mod apply;
mod assemble;
mod blocks;
mod body;
mod ddl;
mod feed;
mod followed;
mod gate;
mod join;
mod ladder;
mod marks;
mod plant;
mod queue;
mod resume;
mod segment;
mod session;
mod spool;
mod touched;
mod unfinished;
mod unsent;
mod waiting;
mod watch;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tidemark_ledger::Ledger;
use tidemark_model::{Lsn, RelationName, names};
use tidemark_sink::postgres::{JobRecord, read_job_record};
use tidemark_sink::{StoppedTable, Stored, StoredStage, StoredTable};
use tidemark_source::{
    PublicationState, SlotOptions, drop_publication, drop_slot, emit_barrier, head, refuse_existing,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::control::{self, Shared};
use crate::job::{Beginning, Job};
use crate::progress::{Phase, Progress};
use crate::reconcile::Reconcile;
use crate::snapshot::{Continuation, Point, Report, Run, Tools, blocking, note_error};
use crate::{Error, Kind, NotEmpty, Result, Target};

pub use ddl::DdlPolicy;
pub(crate) use gate::Closed;
#[cfg(test)]
pub(crate) use gate::Order;
pub(crate) use ladder::{Ladder, LadderView};
pub(crate) use spool::SpoolError;
pub(crate) use unfinished::made_run;

use apply::Ended;
use marks::Track;
use resume::Resumable;
use session::Session;
use unfinished::Left;

/// Without progress for so long, errors that may pass are believed.
const PATIENCE: Duration = Duration::from_secs(180);
/// The first pause before everything is made anew; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Within this another instance that lost its session has the job again.
const COMES_BACK: Duration = Duration::from_secs(2);
/// How often a snapshot whose holder was lost begins again.
const SNAPSHOTS: u32 = 3;
/// What the ledger knows of the sessions that have applied the stream to the target.
enum Known {
    /// All up to the one that the target counts by this number.
    Epoch(i64),
    /// There was none: the snapshot is made or completed here.
    Snapshot,
    /// Others may have been there.
    Nothing,
}

/// What the journal calls the making of a slot.
const SLOT_EVENT: &str = "slot";
/// What the journal calls the state of the publication at the snapshot.
const PUBLICATION_EVENT: &str = "publication";

/// When following ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Everything that the source had committed when the command began.
    Now,
    /// Everything that ended at or before this position.
    Lsn(Lsn),
}

/// What `sync` has done when it ends in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReport {
    /// The job.
    pub job: String,
    /// The snapshot, if this call made one.
    pub snapshot: Option<Report>,
    /// The tables that joined the stream in this call, if any did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Report>,
    /// The tables that the job goes on without (`stream.ddl = "stop-table"`): they stand still where each of them stopped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopped: Vec<StoppedTable>,
    /// Everything up to here is durable on the target.
    pub end_lsn: Lsn,
    /// Transactions of the stream that were applied.
    pub transactions: u64,
    /// Changes of the stream that were applied.
    pub changes: u64,
    /// From start to end.
    pub duration_ms: u64,
}

/// Brings the target to the source and keeps it there.
///
/// # Errors
/// See [`Kind`]. The position is kept: the same call goes on from there; where the snapshot was not whole, with the tables
/// that were, or it begins it anew.
///
/// # Cancel safety
/// Cancel by `stop`: what was received and accepted becomes durable and is acknowledged first.
pub async fn sync(
    job: &Job,
    progress: &Arc<Progress>,
    until: Option<Until>,
    stop: &CancellationToken,
) -> Result<SyncReport> {
    run(job, None, (progress, until), stop).await
}

/// The same, also of a job that begins at a target which holds rows already ([`Beginning::Reconciled`]): it begins anew, and
/// `reconcile` brings them to the new snapshot.
///
/// # Errors
/// As of [`sync`], and those of [`Reconcile::reconcile`].
///
/// # Cancel safety
/// As of [`sync`].
pub async fn sync_reconciled(
    job: &Job,
    reconcile: &dyn Reconcile,
    how: (&Arc<Progress>, Option<Until>),
    stop: &CancellationToken,
) -> Result<SyncReport> {
    let is_meant = job.stream.beginning == Beginning::Reconciled;
    run(job, is_meant.then_some(reconcile), how, stop).await
}

async fn run(
    job: &Job,
    reconcile: Option<&dyn Reconcile>,
    (progress, until): (&Arc<Progress>, Option<Until>),
    stop: &CancellationToken,
) -> Result<SyncReport> {
    let started = Instant::now();
    let (state_dir, name) = (job.state_dir.clone(), job.name.clone());
    let source = job.source.clone().with_application_name(&names::application_name(&name));
    let job = &Job { source, ..job.clone() };
    let ledger = Arc::new(blocking(move || Ledger::open(&state_dir, &name)).await??);
    let shared = Shared::new(job, progress, &ledger);
    let _control = control::listen(&job.state_dir, shared).await;
    let ladder = Arc::new(Ladder::default());
    let anew = AtomicBool::new(false);
    let (ledger_of, ladder_of) = (&ledger, &ladder);
    let sync =
        Sync { job, reconcile, progress, stop, ledger: ledger_of, ladder: ladder_of, until, anew };
    let ended = Box::pin(sync.run()).await;
    let (reports, end_lsn) = match ended {
        Ok(ended) => ended,
        Err(error) => {
            note_error(&ledger, &error).await;
            return Err(error.of_job(job));
        }
    };
    if !reports.stopped.is_empty() {
        note_error(&ledger, &some_are_stopped(&reports.stopped)).await;
    }
    let view = ladder.view();
    Ok(SyncReport {
        job: job.name.clone(),
        snapshot: reports.snapshot,
        joined: reports.joined,
        stopped: reports.stopped,
        end_lsn,
        transactions: view.transactions,
        changes: view.changes,
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// What `status` tells of tables that the job goes on without.
fn some_are_stopped(stopped: &[StoppedTable]) -> Error {
    let because: Vec<&str> = stopped.iter().map(|table| table.because.as_str()).collect();
    Error::new(Kind::TargetRefused, format!("tables are stopped: {}", because.join("; ")))
}

/// What was copied on the way.
struct Reports {
    snapshot: Option<Report>,
    joined: Option<Report>,
    stopped: Vec<StoppedTable>,
}

/// One call of [`sync`].
struct Sync<'a> {
    job: &'a Job,
    reconcile: Option<&'a dyn Reconcile>,
    progress: &'a Arc<Progress>,
    stop: &'a CancellationToken,
    ledger: &'a Arc<Ledger>,
    ladder: &'a Arc<Ladder>,
    until: Option<Until>,
    /// What an unfinished snapshot left turned out not to fit.
    anew: AtomicBool,
}

impl Sync<'_> {
    async fn run(&self) -> Result<(Reports, Lsn)> {
        self.refuse_stops_in_a_lake()?;
        let head = self.head_at_start().await?;
        let mut snapshots = 0;
        let mut reports = Reports { snapshot: None, joined: None, stopped: Vec::new() };
        let mut since = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            let before = self.ladder.view().durable;
            let tools = Tools::new(self.job, self.progress)?;
            let ended = Box::pin(self.once(&tools, head, &mut reports)).await;
            let error = match ended {
                Ok(Ended::Reached(lsn) | Ended::Stopped(lsn)) => {
                    return Ok((reports, lsn));
                }
                Err(error) => error,
            };
            if let (DdlPolicy::StopTable, Some(name)) = (self.job.stream.ddl, &error.table) {
                tracing::error!(table = %name, because = %error, "the table stops; the others go on");
                note_error(self.ledger, &error).await;
                // Noted on the target when the stream is opened again, before a change of it is passed over.
                let stopped = StoppedTable { name: (**name).clone(), because: error.to_string() };
                reports.stopped.push(stopped);
                continue;
            }
            if error.begin_anew && snapshots < SNAPSHOTS {
                snapshots += 1;
                self.anew.store(true, Ordering::Relaxed);
                tracing::warn!(because = %error, cause = error.cause(), "the snapshot begins anew");
                continue;
            }
            if self.ladder.view().durable > before {
                (since, pause) = (Instant::now(), PAUSE_MIN);
            }
            let may_pass = if reports.snapshot.is_some() || self.ladder.view().durable > Lsn::ZERO {
                error.kind == Kind::Unavailable && since.elapsed() < PATIENCE
            } else {
                snapshots += 1;
                error.lost_snapshot && snapshots < SNAPSHOTS
            };
            if !may_pass || self.stop.is_cancelled() {
                return Err(error);
            }
            tracing::warn!(%error, cause = error.cause(), "interrupted; trying again");
            note_error(self.ledger, &error).await;
            tokio::select! {
                () = self.stop.cancelled() => return Err(Error::interrupted_following()),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Where the source stands now; `--until now` means what had committed by then.
    async fn head_at_start(&self) -> Result<Lsn> {
        if self.until != Some(Until::Now) {
            return Ok(Lsn::ZERO);
        }
        let client = self.job.source.connect().await?;
        Ok(head(&client).await?)
    }

    /// From whatever the target has stored to the end, or to an error.
    async fn once(&self, tools: &Tools, head: Lsn, reports: &mut Reports) -> Result<Ended> {
        self.progress.enter(Phase::Check, "looking where the target stands");
        let stored = match self.wants_new_snapshot() && reports.snapshot.is_none() {
            true => None,
            false => tools.sink.stored().await?,
        };
        // There is nothing to be completed where nothing is copied.
        let is_begun = |stored: &Stored| stored.stage == StoredStage::Follow;
        let stored =
            stored.filter(|stored| !self.job.stream.beginning.copies_nothing() || is_begun(stored));
        if stored.is_some() {
            // Before anything is compared: what the other one does meanwhile would look like a loss.
            tools.sink.refuse_if_held().await?;
        }
        let known = self.known_epoch(stored.as_ref()).await?;
        let mut joins = false;
        let session = match stored {
            Some(stored) if stored.stage == StoredStage::Follow => {
                self.note_following(&stored.run).await?;
                let looked = self.look(stored, tools, &mut reports.stopped).await;
                let resumable = match looked {
                    Err(error) if error.kind == Kind::SourceCannotContinue => {
                        return Err(self.or_held(error, tools).await);
                    }
                    looked => looked?,
                };
                joins = !resumable.joining.is_empty();
                Box::pin(self.resume(resumable, tools, &mut reports.joined)).await?
            }
            Some(stored) if stored.stage == StoredStage::Complete => {
                return Err(Error::new(
                    Kind::Usage,
                    format!("follow the source: the target holds a finished snapshot of job {:?} that no stream continues", self.job.name),
                )
                .hint("--target-not-empty truncate --yes replaces it by one that is followed, or use another job name and target"));
            }
            Some(stored) if !self.anew.load(Ordering::Relaxed) => {
                match self.unfinished(stored).await? {
                    Some(left) => Box::pin(self.resume(left, tools, &mut reports.joined)).await?,
                    None => Box::pin(self.snapshot(tools, &mut reports.snapshot)).await?,
                }
            }
            _ => Box::pin(self.snapshot(tools, &mut reports.snapshot)).await?,
        };
        let epoch = match known {
            Known::Epoch(epoch) => Some(epoch + i64::from(joins)),
            Known::Snapshot => tools.sink.stored().await?.and_then(|stored| stored.epoch),
            Known::Nothing => None,
        };
        self.follow(session, (tools, epoch), head).await
    }

    /// What the ledger knows of the sessions that the target had.
    async fn known_epoch(&self, stored: Option<&Stored>) -> Result<Known> {
        let Some(stored) = stored.filter(|stored| stored.stage == StoredStage::Follow) else {
            return Ok(Known::Snapshot);
        };
        let ledger = Arc::clone(self.ledger);
        let last = blocking(move || ledger.epoch()).await??;
        Ok(match (last, stored.epoch) {
            (Some(last), Some(now)) if last == now => Known::Epoch(now),
            _ => Known::Nothing,
        })
    }

    /// What looks like a loss may be another instance between two of its sessions, which lets go of the job for moments:
    /// what the source sent it is in its spool and not in ours.
    async fn or_held(&self, error: Error, tools: &Tools) -> Error {
        let until = Instant::now() + COMES_BACK;
        while Instant::now() < until && !self.stop.is_cancelled() {
            if let Err(held) = tools.sink.refuse_if_held().await {
                return held.into();
            }
            tokio::time::sleep(PAUSE_MIN).await;
        }
        error
    }

    /// Tells the ledger that the target follows, where the process died that had made it so.
    async fn note_following(&self, run: &str) -> Result<()> {
        let (ledger, run) = (Arc::clone(self.ledger), run.to_owned());
        let noted = blocking(move || {
            let known = ledger.run()?.filter(|known| known.run == run && known.phase == "snapshot");
            if known.is_some() {
                ledger.finish_run()?;
                ledger.set_phase("follow")?;
            }
            Ok::<_, tidemark_ledger::Error>(())
        });
        Ok(noted.await??)
    }

    /// Where the stream goes on. Tables whose join no longer means anything on the source's timeline begin it anew.
    async fn look(
        &self,
        mut stored: Stored,
        tools: &Tools,
        stopped: &mut Vec<StoppedTable>,
    ) -> Result<Resumable> {
        self.leave_out_stopped(&mut stored, stopped)?;
        let resumable = resume::look(self.job, &stored, self.ledger).await?;
        if resumable.foreign.is_empty() {
            return Ok(resumable);
        }
        let names: Vec<String> = resumable.foreign.iter().map(RelationName::to_string).collect();
        tracing::warn!(
            tables = names.join(", "),
            "the source was promoted while tables were joining, before it had what they were copied with; they join anew"
        );
        tools.sink.forget(&self.job.name, &resumable.foreign).await?;
        let given_up = |table: &StoredTable| resumable.foreign.contains(&table.name);
        stored.tables.iter_mut().for_each(|tables| tables.retain(|table| !given_up(table)));
        resume::look(self.job, &stored, self.ledger).await
    }

    /// Adds what the target knows of stopped tables to what this call has stopped, and takes all of them out of what is
    /// followed.
    fn leave_out_stopped(
        &self,
        stored: &mut Stored,
        stopped: &mut Vec<StoppedTable>,
    ) -> Result<()> {
        for table in std::mem::take(&mut stored.stopped) {
            let is_known = stopped.iter().any(|known| known.name == table.name);
            if !is_known && !self.job.selection.excludes(&table.name)? {
                stopped.push(table);
            }
        }
        let is_stopped = |table: &StoredTable| stopped.iter().any(|known| known.name == table.name);
        stored.tables.iter_mut().for_each(|tables| tables.retain(|table| !is_stopped(table)));
        stored.stopped.clone_from(stopped);
        Ok(())
    }

    /// A lake's commits do not say yet which tables they are without.
    fn refuse_stops_in_a_lake(&self) -> Result<()> {
        let stops = self.job.stream.ddl == DdlPolicy::StopTable;
        if !stops || matches!(self.job.target, Target::Postgres(_)) {
            return Ok(());
        }
        let what = "stop single tables of a lake (stream.ddl = \"stop-table\")";
        Err(Error::new(Kind::Usage, what)
            .hint("stop-table is for PostgreSQL targets; a lake has additive and stop"))
    }

    fn wants_new_snapshot(&self) -> bool {
        let not_empty = match &self.job.target {
            Target::Postgres(target) => target.not_empty,
            Target::Lake(target) => target.not_empty,
        };
        self.reconcile.is_some() || not_empty == NotEmpty::Truncate
    }

    /// The snapshot, with the stream received beside it.
    async fn snapshot(&self, tools: &Tools, report: &mut Option<Report>) -> Result<Session> {
        resume::refuse_own_target(&self.job.source.connect().await?, &self.job.name).await?;
        let started = Instant::now();
        let slot = resume::slot_name(self.job);
        let is_given = self.job.stream.slot.is_some();
        let publication = resume::publication_name(self.job);
        let failover = self.job.stream.failover;
        let (send, begun) = oneshot::channel();
        let continuation = Continuation {
            point: Point::Slot(SlotOptions { slot: slot.clone(), is_given, publication, failover }),
            begun: Mutex::new(Some(send)),
        };
        let run = self.copying(&continuation);
        if self.reconcile.is_some() {
            self.refuse_half_made().await?;
        }
        // Before anything goes: what cannot be begun keeps the slot that it may still go on from.
        let looked = run.look(tools).await?;
        self.drop_own_leftovers().await?;
        if !is_given {
            // What is there already is not ours to drop when this run ends.
            refuse_existing(&self.job.source.connect().await?, &slot).await?;
        }
        self.note_slot(&slot, "making").await?;
        let copied = async {
            let copy = Box::pin(run.run_from(looked, tools));
            let receive = async {
                match begun.await {
                    Ok(start) => {
                        self.note_publication(&start.run).await?;
                        self.note_made(&slot, &start.run).await?;
                        // Of this one what is whole can be gone on with.
                        self.anew.store(false, Ordering::Relaxed);
                        Session::beside(self.job, &start, self.ladder).await.map(Some)
                    }
                    Err(_) => Ok(None),
                }
            };
            let (copied, session) = session::copy_beside(copy, receive).await?;
            Ok::<_, Error>((copied, session))
        };
        match copied.await {
            Ok((copied, session)) => {
                let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                *report = Some(Report { duration_ms, ..copied });
                Ok(session)
            }
            Err(error) => {
                if let Left::Stays(left) = self.left(tools, &error).await {
                    return Err(error.staying(&left));
                }
                self.leave_nothing().await;
                Err(error)
            }
        }
    }

    /// The rows of a first copy that was killed are there, and not yet what is made of them.
    async fn refuse_half_made(&self) -> Result<()> {
        let Target::Postgres(to) = &self.job.target else { return Ok(()) };
        let record = read_job_record(&to.spec, &self.job.name).await?;
        let is_half_made = |record: &JobRecord| {
            record.schema_mode == "create"
                && matches!(record.phase.as_str(), "prepare" | "snapshot" | "finish")
        };
        if !record.as_ref().is_some_and(is_half_made) {
            return Ok(());
        }
        let attempt = "begin with what the target holds: it is what a first copy of this job has left, which still owes keys, indexes and constraints";
        Err(Error::new(Kind::Usage, attempt)
            .hint("tidemark sync goes on with that copy, or begins it anew"))
    }

    /// A copy that the stream goes on from.
    fn copying<'a>(&'a self, continuation: &'a Continuation) -> Run<'a> {
        Run {
            job: self.job,
            progress: self.progress,
            stop: self.stop,
            ledger: self.ledger,
            continuation: Some(continuation),
            reconcile: self.reconcile,
        }
    }

    /// `epoch`: the target's, if nobody but this job with this ledger was there before.
    async fn follow(
        &self,
        session: Session,
        (tools, epoch): (&Tools, Option<i64>),
        head: Lsn,
    ) -> Result<Ended> {
        let until = match self.until {
            None => None,
            Some(Until::Lsn(lsn)) => Some(lsn),
            Some(Until::Now) => Some(head.max(session.position()).max(session.joined_at())),
        };
        let beyond = async {
            if self.until == Some(Until::Now) {
                // So that the stream moves beyond the goal although nobody writes.
                let client = self.job.source.connect().await?;
                emit_barrier(&client, "tidemark", &self.job.name).await?;
            }
            Ok(())
        };
        self.progress.watch_stream(self.ladder);
        self.progress.enter(Phase::Follow, "following");
        if !session.has_stopped() {
            // What ended an earlier run is mended. A ledger that was lost has nothing to forget.
            let ledger = Arc::clone(self.ledger);
            drop(blocking(move || ledger.set_error(None)).await?);
        }
        let track = Track { ledger: self.ledger, epoch };
        let followed = session.follow(self.job, (tools, track), until, self.stop);
        let ((), ended) = tokio::try_join!(beyond, followed)?;
        Ok(ended)
    }

    /// What a killed run of this job left on the source before the target knew of it: only if our own ledger says so.
    async fn drop_own_leftovers(&self) -> Result<()> {
        let ledger = Arc::clone(self.ledger);
        let journal = blocking(move || ledger.journal()).await??;
        let last = journal.iter().rev().find(|entry| entry.event == SLOT_EVENT);
        if last.is_some_and(|entry| entry.detail["state"] != "dropped") {
            self.drop_slot_and_publication().await?;
        }
        Ok(())
    }

    /// Nothing continues from the slot, and the source would keep its WAL for it.
    async fn leave_nothing(&self) {
        if let Err(left) = self.drop_slot_and_publication().await {
            tracing::warn!(error = %left, "the slot of the unfinished snapshot could not be dropped; the next run or tidemark cleanup does");
        }
    }

    async fn drop_slot_and_publication(&self) -> Result<()> {
        let client = self.job.source.connect().await?;
        resume::end_own_walsender(&client, self.job).await?;
        let slot = resume::slot_name(self.job);
        if self.job.stream.slot.is_none() {
            drop_slot(&client, &slot).await?;
        }
        if self.job.stream.publication.is_none() {
            drop_publication(&client, &names::publication_name(&self.job.name)).await?;
        }
        self.note_slot(&slot, "dropped").await
    }

    /// Keeps how the publication is, so that a later run can tell whether it was always so.
    async fn note_publication(&self, run: &str) -> Result<()> {
        let client = self.job.source.connect().await?;
        let publications = [resume::publication_name(self.job)];
        let state = PublicationState::read(&client, &publications).await?;
        let ledger = Arc::clone(self.ledger);
        let detail = serde_json::json!({ "run": run, "state": state });
        blocking(move || ledger.write_journal(PUBLICATION_EVENT, &detail)).await??;
        Ok(())
    }

    async fn note_slot(&self, slot: &str, state: &str) -> Result<()> {
        let ledger = Arc::clone(self.ledger);
        let detail = serde_json::json!({ "slot": slot, "state": state });
        blocking(move || ledger.write_journal(SLOT_EVENT, &detail)).await??;
        Ok(())
    }
}
