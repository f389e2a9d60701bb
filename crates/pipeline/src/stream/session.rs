//! One stretch of following: from a position to an end or an error, with the tasks that live that long.
//!
//! **Invariant:** the tasks of a session end together: when one of them fails, or the session is dropped, nothing of it goes
//! on, and nothing says to the source any more that somebody is there (`hazards.md` C37).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_model::{Budget, JoinPoint, Lsn, Oid, Persistence, TablePlan, names};
use tidemark_sink::{Positions, Sink, SnapshotStart, StoppedTable, StreamStart, parquet, postgres};
use tidemark_source::{
    Identity as SourceIdentity, PublicationState, Saved, StreamOptions, check_continuation,
    emit_barrier, identify, inspect_slot,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::apply::{Apply, Ended, Rhythm};
use super::assemble::Assembler;
use super::ddl::Ddl;
use super::feed::{Feed, UNDECIDED_BYTES};
use super::followed::Followed;
use super::ladder::{DurableLsn, Ladder};
use super::marks::Track;
use super::queue::Queue;
use super::resume::{next_xid, own_origins, publication_name, slot_name};
use super::spool::{Identity, Spool};
use super::touched::{gather, is_worth_waiting};
use super::unsent::Unsent;
use super::watch::{SpoolPlace, Watch};
use crate::job::{Job, Target};
use crate::snapshot::{Half, Report, Tools, Touched};
use crate::target::target_version;
use crate::{Error, Kind, Result};

/// Shares of `limits.memory`: transactions that wait, batches on their way to the target, transactions in progress, keys of
/// half-copied tables.
const QUEUE_SHARE: u64 = 4;
const BATCH_SHARE: u64 = 4;
const OPEN_SHARE: u64 = 8;
const TOUCHED_SHARE: u64 = 8;
/// Several batches are under way at once.
const BATCHES: u64 = 4;
/// How often is looked whether the stream has passed a join.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The last acknowledgement is waited for so long.
const GOODBYE: Duration = Duration::from_secs(2);
const GOODBYE_STEP: Duration = Duration::from_millis(5);

/// What a session is about.
#[derive(Debug, Clone)]
pub(crate) struct SessionStart {
    /// The run whose snapshot the stream continues.
    pub(crate) run: String,
    pub(crate) system_identifier: u64,
    pub(crate) timeline: u32,
    pub(crate) database: String,
    pub(crate) source_version: u32,
    /// The PostgreSQL target's, if it is one.
    pub(crate) target_version: Option<u32>,
    pub(crate) plans: Arc<Vec<TablePlan>>,
    /// The target has everything that ended before it.
    pub(crate) position: Lsn,
    /// Tables that joined where the stream has not been yet.
    pub(crate) joins: HashMap<Oid, JoinPoint>,
    /// Tables that are not followed until the user gives them up.
    pub(crate) stopped: Vec<StoppedTable>,
}

/// The receiving half, begun.
pub(crate) struct Session {
    start: SessionStart,
    queue: Arc<Queue>,
    ladder: Arc<Ladder>,
    tasks: JoinSet<Result<()>>,
}

impl Session {
    /// Begins to receive while the snapshot is copied: everything goes to a new spool.
    pub(crate) async fn beside(
        job: &Job,
        start: &SnapshotStart,
        ladder: &Arc<Ladder>,
    ) -> Result<Self> {
        let identity = identify(&job.source).await?;
        let start = SessionStart {
            run: start.run.clone(),
            system_identifier: start.system_identifier,
            timeline: identity.timeline,
            database: start.database.clone(),
            source_version: start.source_version,
            target_version: target_version(job).await?,
            plans: Arc::clone(&start.tables),
            position: start.lsn,
            joins: HashMap::new(),
            stopped: Vec::new(),
        };
        if job.stream.slot.is_some() {
            // Others may read from it or move it while the target was prepared.
            not_moved(job, &identity, &start).await?;
        }
        let directory = job.state_dir.join("spool");
        let spool = spool_identity(job, &start);
        let spool = tokio::task::block_in_place(|| Spool::create(&directory, spool))?;
        Self::begin(job, start, Some((spool, true)), ladder).await
    }

    /// Begins to receive while tables are copied that join: everything goes to a spool, behind what an earlier process has
    /// received.
    pub(crate) async fn beside_join(
        job: &Job,
        start: SessionStart,
        spool: Option<Spool>,
        ladder: &Arc<Ladder>,
    ) -> Result<Self> {
        let spool = match spool {
            Some(spool) => spool,
            None => {
                let identity = spool_identity(job, &start);
                let directory = job.state_dir.join("spool");
                tokio::task::block_in_place(|| Spool::create(&directory, identity))?
            }
        };
        Self::begin(job, start, Some((spool, true)), ladder).await
    }

    /// Begins to receive from what is stored, or from the end of what an earlier process spooled.
    pub(crate) async fn resumed(
        job: &Job,
        start: SessionStart,
        spool: Option<Spool>,
        ladder: &Arc<Ladder>,
    ) -> Result<Self> {
        Self::begin(job, start, spool.map(|spool| (spool, false)), ladder).await
    }

    async fn begin(
        job: &Job,
        mut start: SessionStart,
        spool: Option<(Spool, bool)>,
        ladder: &Arc<Ladder>,
    ) -> Result<Self> {
        start.plans = logged(&start.plans);
        let directory = job.state_dir.join("spool");
        tokio::task::block_in_place(|| std::fs::create_dir_all(&directory)).map_err(|cause| {
            Error::new(Kind::Unavailable, format!("make the directory {}", directory.display()))
                .because(cause)
        })?;
        let budget = Budget::new(job.memory / QUEUE_SHARE);
        // What the target stores can be seen before it is on its disk; it is when the stream is opened there. A snapshot and
        // tables that join begin where the target has nothing to lose.
        let is_beside = matches!(spool, Some((_, true)));
        let durable = if is_beside { start.position } else { Lsn::ZERO };
        let queue = Arc::new(Queue::new(budget, job.stream.spool, start.position, durable));
        let mut position = start.position;
        if let Some((spool, is_held)) = spool {
            position = position.max(spool.end());
            match is_held {
                true => queue.hold(spool),
                false => queue.read_first(spool),
            }
        }
        let client = job.source.connect().await?;
        let name = &job.name;
        let mut options = StreamOptions::new(
            slot_name(job),
            publication_name(job),
            names::application_name(name),
        );
        options.binary = match start.target_version {
            Some(target) => postgres::binary_is_safe(&start.plans, start.source_version, target),
            None => parquet::binary_is_safe(&start.plans),
        };
        let publications = vec![publication_name(job)];
        let memory = usize::try_from(job.memory / OPEN_SHARE).unwrap_or(usize::MAX);
        let assembler = Assembler::new(
            &directory,
            memory,
            position,
            next_xid(&client).await?,
            own_origins(&client, name).await?,
        );
        let feed = Feed {
            source: job.source.clone(),
            timeline: start.timeline,
            options,
            assembler,
            queue: Arc::clone(&queue),
            ladder: Arc::clone(ladder),
            source_wal: job.stream.source_wal,
            catches_up: job.stream.catch_up,
            buffers: Budget::new(job.memory / OPEN_SHARE),
            gives_ahead: start.target_version.is_some(),
            undecided_bytes: job.stream.batch_bytes.saturating_mul(4).min(UNDECIDED_BYTES),
            ahead: None,
            asked: None,
            failures: 0,
            is_skipping: false,
            is_elsewhere: false,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(feed.run());
        let watch = Watch {
            source: job.source.clone(),
            slot: slot_name(job),
            ladder: Arc::clone(ladder),
            source_wal: job.stream.source_wal,
            queue: Arc::clone(&queue),
            published: PublicationState::read(&client, &publications).await?,
            publications,
            spool: SpoolPlace {
                directory,
                identity: spool_identity(job, &start),
                limit: job.stream.spool,
                from: SpoolPlace::worth(job.memory / QUEUE_SHARE),
            },
            on_full: job.stream.on_full,
            heartbeat: job.stream.heartbeat,
        };
        tasks.spawn(watch.run());
        Ok(Self { start, queue, ladder: Arc::clone(ladder), tasks })
    }

    /// The keys that the stream has of half-copied tables up to `up_to`, where it is worth waiting for it and they were
    /// published all the time.
    pub(crate) async fn touched(
        &mut self,
        job: &Job,
        halves: &[(&Half, &TablePlan)],
        up_to: Lsn,
    ) -> Result<Touched> {
        let all = |because: &str| {
            halves.iter().map(|(half, _)| (half.oid(), Err(because.to_owned()))).collect()
        };
        let plans: Vec<&TablePlan> = halves.iter().map(|(_, plan)| *plan).collect();
        let bytes = plans.iter().map(|plan| plan.relation.heap_bytes).sum();
        if !is_worth_waiting(bytes, self.queue.spools().1, up_to) {
            return Ok(all("the stream is further behind than the table is large"));
        }
        let client = job.source.connect().await?;
        // So that the stream moves beyond it although nobody writes.
        emit_barrier(&client, "tidemark", &job.name).await?;
        let position = self.start.position;
        let memory = job.memory / TOUCHED_SHARE;
        let mut touched = tokio::select! {
            biased;
            touched = gather(&self.queue, &plans, (position, up_to), memory) => touched?,
            error = Self::failed(&mut self.tasks) => return Err(error),
        };
        let now = PublicationState::read(&client, &[publication_name(job)]).await?;
        for (half, _) in halves.iter().filter(|(half, _)| !now.has_kept(&half.published)) {
            touched.insert(half.oid(), Err("it was taken out of the publication".to_owned()));
        }
        Ok(touched)
    }

    /// What the target stood at when the session began.
    pub(crate) fn position(&self) -> Lsn {
        self.start.position
    }

    /// From where on the tables that joined are as of the same moment as the others.
    pub(crate) fn joined_at(&self) -> Lsn {
        self.start.joins.values().map(|join| join.lsn).max().unwrap_or(Lsn::ZERO)
    }

    /// Whether there are tables that are not followed until the user gives them up.
    pub(crate) fn has_stopped(&self) -> bool {
        !self.start.stopped.is_empty()
    }

    /// Waits until a task fails.
    ///
    /// # Cancel safety
    /// Safe.
    async fn failed(tasks: &mut JoinSet<Result<()>>) -> Error {
        match tasks.join_next().await {
            Some(Ok(Ok(()))) => {
                Error::new(Kind::Internal, "follow the source: a task ended by itself")
            }
            Some(Ok(Err(error))) => error,
            Some(Err(panic)) => {
                Error::new(Kind::Internal, "follow the source: a task panicked").because(panic)
            }
            None => std::future::pending().await,
        }
    }

    /// Brings what is received to the target until `until` or `stop`.
    pub(crate) async fn follow(
        mut self,
        job: &Job,
        (tools, track): (&Tools, Track<'_>),
        until: Option<Lsn>,
        stop: &CancellationToken,
    ) -> Result<Ended> {
        let start = StreamStart {
            job: job.name.clone(),
            run: self.start.run.clone(),
            system_identifier: self.start.system_identifier,
            timeline: self.start.timeline,
            database: self.start.database.clone(),
            source_version: self.start.source_version,
            tables: Arc::clone(&self.start.plans),
            stopped: self.start.stopped.clone(),
        };
        let open = tools.sink.open_stream(&start).await?;
        if open.position != self.start.position {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "follow the source: the target went from {} to {} meanwhile",
                    self.start.position, open.position
                ),
            ));
        }
        let marks = track.marks(open.epoch, &start.tables, open.position).await?;
        self.ladder.set_goal(until);
        let mut positions = open.writer.positions();
        note(&positions.borrow_and_update().clone(), &self.ladder, &self.queue);
        self.tasks.spawn(follow_positions(
            positions,
            Arc::clone(&self.ladder),
            Arc::clone(&self.queue),
        ));
        let passed = self.joined_at();
        let (sink, ladder) = (Arc::clone(&tools.sink), Arc::clone(&self.ladder));
        self.tasks.spawn(settle(sink, ladder, passed));
        let chosen: HashSet<_> = job
            .tables
            .iter()
            .filter(|table| table.columns.is_some())
            .map(|table| table.name.clone())
            .collect();
        let ddl = Ddl::new(&job.source, job.stream.ddl, &start.tables, &open.columns, &chosen);
        let batches = (Budget::new(job.memory / BATCH_SHARE), rhythm(job, passed));
        let followed = Followed::new(&start.tables, &self.start.joins);
        let by = (ddl, Unsent::new(&job.source, &start.tables), marks);
        let apply = Apply::new(&self.queue, &self.ladder, open, followed, by, batches);
        self.queue.let_go();
        let ended = tokio::select! {
            biased;
            ended = apply.run(until, stop) => ended?,
            error = Self::failed(&mut self.tasks) => return Err(error),
        };
        self.goodbye(job).await;
        if let Ended::Reached(durable) = ended
            && durable >= passed
        {
            // The task that waits for it ends with the session, perhaps before it was at it.
            finish_joins(&tools.sink).await;
        }
        Ok(ended)
    }

    /// Waits until the source knows how far the target is: what was sent is lost where the connection is closed before the
    /// server has read it (and something of the server's was not read by us).
    async fn goodbye(&mut self, job: &Job) {
        let deadline = Instant::now() + GOODBYE;
        let durable = self.ladder.view().durable;
        tracing::debug!(%durable, said = %self.ladder.view().said, "telling the source how far the target is");
        while self.ladder.view().said < durable && Instant::now() < deadline {
            self.ladder.say.notify_one();
            tokio::time::sleep(GOODBYE_STEP).await;
        }
        let shown = async {
            let Ok(client) = job.source.connect().await else { return };
            while let Ok(Some(slot)) = inspect_slot(&client, &slot_name(job)).await
                && slot.confirmed_flush < Some(durable)
            {
                tokio::time::sleep(GOODBYE_STEP).await;
            }
        };
        // A source that does not answer is not waited for.
        tokio::time::timeout_at(deadline.into(), shown).await.ok();
    }
}

/// The tables of which there is WAL: of an unlogged one only a part of the changes would come, should it become logged.
fn logged(plans: &[TablePlan]) -> Arc<Vec<TablePlan>> {
    let is_logged = |plan: &&TablePlan| plan.relation.persistence != Persistence::Unlogged;
    Arc::new(plans.iter().filter(is_logged).cloned().collect())
}

/// A slot that was moved beyond the snapshot would begin later than that without a word.
async fn not_moved(job: &Job, identity: &SourceIdentity, start: &SessionStart) -> Result<()> {
    let saved = Saved {
        system_identifier: start.system_identifier,
        timeline: Some(start.timeline),
        database: start.database.clone(),
        end_lsn: start.position,
        slot: slot_name(job),
    };
    let client = job.source.connect().await?;
    let state = inspect_slot(&client, &saved.slot).await?;
    Ok(check_continuation(&saved, identity, state.as_ref())?)
}

/// The identity of a spool that begins where the session does.
fn spool_identity(job: &Job, start: &SessionStart) -> Identity {
    Identity {
        job: job.name.clone(),
        run: start.run.clone(),
        system_identifier: start.system_identifier.to_string(),
        base: start.position,
    }
}

/// The copy and, as soon as it is ready for it, the receiving of the stream.
pub(crate) async fn copy_beside(
    copy: impl Future<Output = Result<Report>>,
    receive: impl Future<Output = Result<Option<Session>>>,
) -> Result<(Report, Session)> {
    tokio::pin!(copy, receive);
    let nothing =
        || Error::new(Kind::Internal, "follow the source: the snapshot handed nothing over");
    let session = tokio::select! {
        biased;
        session = &mut receive => session?,
        copied = &mut copy => {
            let report = copied?;
            return Ok((report, receive.await?.ok_or_else(nothing)?));
        }
    };
    let Some(mut session) = session else { return Ok((copy.await?, Err(nothing())?)) };
    tokio::select! {
        biased;
        copied = &mut copy => Ok((copied?, session)),
        error = Session::failed(&mut session.tasks) => Err(error),
    }
}

fn rhythm(job: &Job, joined_at: Lsn) -> Rhythm {
    let flush_every = match job.target {
        Target::Postgres(_) => None,
        Target::Lake(_) => Some(job.stream.commit_interval),
    };
    let most = job.memory / BATCH_SHARE / BATCHES;
    Rhythm {
        batch_bytes: job.stream.batch_bytes.min(most),
        batch_delay: job.stream.batch_delay,
        flush_every,
        joined_at,
    }
}

/// Tells the target when the stream has passed every join. What it cannot do then is said and does not end the stream.
async fn settle(sink: Arc<dyn Sink>, ladder: Arc<Ladder>, passed: Lsn) -> Result<()> {
    let mut interval = tokio::time::interval(LOOK_EVERY);
    while ladder.view().durable < passed {
        interval.tick().await;
    }
    finish_joins(&sink).await;
    std::future::pending().await
}

async fn finish_joins(sink: &Arc<dyn Sink>) {
    if let Err(error) = sink.settle().await {
        tracing::warn!(%error, "what waited for the tables that joined could not be finished; the next start tries again");
    }
}

/// Passes on how far the writer is.
async fn follow_positions(
    mut positions: watch::Receiver<Positions>,
    ladder: Arc<Ladder>,
    queue: Arc<Queue>,
) -> Result<()> {
    while positions.changed().await.is_ok() {
        note(&positions.borrow_and_update().clone(), &ladder, &queue);
    }
    // The writer was closed, which ends the session in another place.
    std::future::pending().await
}

fn note(positions: &Positions, ladder: &Ladder, queue: &Queue) {
    ladder.set_applied(positions.applied);
    let durable = DurableLsn::answered(positions.durable);
    ladder.set_durable(durable);
    queue.set_durable(durable);
}
