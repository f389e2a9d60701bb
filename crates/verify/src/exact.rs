//! A pair that a job keeps in step: both sides as of one LSN, while both are written to.
//!
//! **Invariant:** the source's snapshot shows exactly what committed before the barrier, because a slot exports it at its
//! consistent point; the target's shows exactly what the stream brought up to there, because it is taken while the stream
//! stands at that position. So equal sums are equality at that LSN, and a difference is one.
//!
//! ```text
//! target: lock tables --------------------------------- export, at the barrier -> scan
//! stream:               hold ---- up to the barrier, stand --'- open
//! source:                 '- temporary slot: barrier, snapshot ---------------------> scan
//! ```
//!
//! The stream is held before the barrier is known, or it could have passed it. No transaction is between the snapshot and
//! the barrier, so no keys have to be set aside (`docs/adr/2026-11-21-one-point-of-a-moving-pair.md`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemark_model::{Lsn, Relation};
use tidemark_pipeline::{
    Error, Held, Job, Kind, Phase, Progress as JobProgress, Result, Target, ask_status, sync,
};
use tidemark_report::Level;
use tidemark_source::{AtPoint, Hook, Locked, Snapshot, emit_barrier};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::outcome::Outcome;
use crate::rounds::Rounds;
use crate::run::Run;
use crate::scan::interrupted;
use crate::side::{Side, View};
use crate::state::State;
use crate::{Request, Which, lake};

/// How often a point is looked for.
const ATTEMPTS: u32 = 3;
/// The longest that the stream stands while the source looks for a consistent point: it waits for every transaction that
/// runs.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks whether a job that is run here follows.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between two looks whether the stream waits for us.
const LOOK_FOR_WAITING: Duration = Duration::from_millis(200);

/// Compares both sides of a job that follows, at one LSN. Where no process runs the job, it is run here up to there.
///
/// # Errors
/// A side cannot be reached or read; the job does not follow, is held by another verification, or cannot be run; no point
/// was found because transactions run on the source for too long.
///
/// # Cancel safety
/// Safe: the stream goes on when the future ends; a job that is run here is stopped.
pub async fn verify_at_barrier(request: &Request, stop: &CancellationToken) -> Result<Outcome> {
    if let Target::Lake(target) = &request.job.target {
        return Box::pin(lake::verify(request, target.root.clone(), stop)).await;
    }
    let run = Run::open(request, true, stop).await?;
    let states = run.states(State::at_one_point);
    if request.level == Level::Schema {
        // No moment is needed for definitions.
        return Ok(run.outcome(states, None, (None, None)));
    }
    Rounds::begin(run, states).await?.finish(stop).await
}

/// Both sides at one LSN.
pub(crate) struct Met {
    pub(crate) lsn: Lsn,
    /// For how long the stream stood, if it goes on already.
    pub(crate) pause: Duration,
    /// What holds it, if it does not.
    held: Option<Held>,
    pub(crate) source: View,
    pub(crate) target: View,
}

impl Met {
    /// Lets the stream go on and the snapshots go.
    pub(crate) async fn release(self) {
        drop(self.held);
        tokio::join!(self.source.release(), self.target.release());
    }
}

/// For how long the stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stays {
    /// Until the target has taken its snapshot.
    UntilExported,
    /// Until what was met is dropped.
    WithThePoint,
}

/// Brings these pairs to one LSN on both sides, and does there what is to be done; where no process runs the job, it runs
/// here meanwhile.
pub(crate) async fn at_one_point<T>(
    run: &Run<'_>,
    wanted: (&[usize], Stays),
    stop: &CancellationToken,
    work: impl AsyncFnOnce(Met) -> Result<T>,
) -> Result<T> {
    let follows = refuse_other_than_following(run);
    let meet = async |stream: &Stream| Box::pin(meet_once(run, stream, wanted)).await;
    with_stream(&run.request.job, stop, follows, meet, work).await
}

/// Has both sides meet by the stream of a job, and does there what is to be done; where no process runs the job, it runs
/// here meanwhile, if it `follows`.
pub(crate) async fn with_stream<M, T>(
    job: &Job,
    stop: &CancellationToken,
    follows: impl Future<Output = Result<()>>,
    meet: impl AsyncFn(&Stream) -> Result<M>,
    work: impl AsyncFnOnce(M) -> Result<T>,
) -> Result<T> {
    let meeting = async {
        match ask_status(&job.state_dir).await? {
            Some(_) => {
                let stream = Stream::Process(job.state_dir.clone());
                work(persist(&stream, meet).await?).await
            }
            None => {
                follows.await?;
                Box::pin(meet_here(job, stop, meet, work)).await
            }
        }
    };
    tokio::select! {
        met = meeting => met,
        () = stop.cancelled() => Err(interrupted()),
    }
}

/// Runs the job itself for as long as it takes.
async fn meet_here<M, T>(
    job: &Job,
    stop: &CancellationToken,
    meet: impl AsyncFn(&Stream) -> Result<M>,
    work: impl AsyncFnOnce(M) -> Result<T>,
) -> Result<T> {
    let (progress, stop) = (Arc::new(JobProgress::default()), stop.child_token());
    let mut running = std::pin::pin!(sync(job, &progress, None, &stop));
    let meeting = async {
        while progress.view().phase != Phase::Follow {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        work(persist(&Stream::Here(Arc::clone(&progress)), meet).await?).await
    };
    let done = tokio::select! {
        done = meeting => done,
        ended = &mut running => return Err(ended.err().unwrap_or_else(interrupted)),
    };
    stop.cancel();
    running.await?;
    done
}

/// Tries a few times.
async fn persist<M>(stream: &Stream, meet: impl AsyncFn(&Stream) -> Result<M>) -> Result<M> {
    let mut attempt = 1;
    loop {
        match meet(stream).await {
            Err(error) if error.kind == Kind::Unavailable && attempt < ATTEMPTS => {
                tracing::info!(%error, attempt, "both sides could not be brought to one point; trying again");
                attempt += 1;
            }
            met => return met,
        }
    }
}

async fn meet_once(
    run: &Run<'_>,
    stream: &Stream,
    (wanted, stays): (&[usize], Stays),
) -> Result<Met> {
    let (source, target) = (&run.source, &run.target);
    let there = run.relations(Which::Target, wanted);
    let locked = Locked::take(target.spec(), &target.options(there)).await;
    let locked = locked.map_err(|error| target.of(error))?;
    let (holder, stood) = (locked.holder_pid(), CancellationToken::new());
    let reach = async |lsn: Lsn, mut held: Held| {
        held.up_to(lsn).await?;
        stood.cancel();
        let exported = locked.export().await.map_err(|error| run.target.of(error))?;
        let held = match stays {
            Stays::UntilExported => Err(held.open()),
            Stays::WithThePoint => Ok(held),
        };
        Ok((lsn, exported, held))
    };
    let there = run.relations(Which::Source, wanted);
    // From the beginning: a stream that waits for our locks cannot be held either.
    let until_it_stands = async {
        tokio::select! {
            () = stood.cancelled() => std::future::pending().await,
            error = in_the_way(run, holder) => error,
        }
    };
    let (snapshot, (lsn, exported, held)) = tokio::select! {
        met = Box::pin(stand(source, there, stream, reach)) => met?,
        error = until_it_stands => return Err(error),
    };
    if snapshot.lsn() != lsn {
        return Err(taken_again());
    }
    let shown = exported.finish().await.map_err(|error| target.of(error))?;
    let (pause, held) = match held {
        Ok(held) => (Duration::ZERO, Some(held)),
        Err(pause) => (pause, None),
    };
    let (source, target) = (source.shows(snapshot), target.shows(shown));
    Ok(Met { lsn, pause, held, source, target })
}

/// Takes a snapshot of the source at a consistent point, with the stream held from before it; `reach` brings the stream there
/// and looks at the target, while the snapshot is still being made ready.
pub(crate) async fn stand<X>(
    source: &Side,
    tables: Vec<Relation>,
    stream: &Stream,
    reach: impl AsyncFnOnce(Lsn, Held) -> Result<X>,
) -> Result<(Snapshot, X)> {
    let holding = Arc::new(Mutex::new(None));
    let (found, finding) = watch::channel(None);
    let mut options = source.options(tables);
    (options.lock_timeout, options.lock_attempts) = (PATIENCE, 1);
    options.point = Some(AtPoint { before: stream.hold(&holding), found });
    let taken = async {
        let taken = Snapshot::take(source.spec(), &options).await;
        taken.map_err(|error| source.of(error))
    };
    let reached = async {
        let (lsn, held) = barrier(source, finding, &holding).await?;
        reach(lsn, held).await
    };
    let met = tokio::try_join!(taken, reached);
    // Whatever became of it, the stream goes on.
    let held = holding.lock().await.take();
    if let (Err(_), Some(Err(error))) = (&met, held) {
        return Err(error);
    }
    met
}

pub(crate) fn taken_again() -> Error {
    let attempt = "bring both sides to one point: the source's snapshot was taken again";
    Error::new(Kind::Unavailable, attempt).hint("run the same command again")
}

/// What holds the stream, once it was tried.
type Holding = Arc<Mutex<Option<Result<Held>>>>;

/// Waits for the point, and sees to it that the stream, which is held, can move beyond it.
async fn barrier(
    source: &Side,
    mut finding: watch::Receiver<Option<Lsn>>,
    holding: &Holding,
) -> Result<(Lsn, Held)> {
    let client = source.spec().connect().await.map_err(|error| source.of(error))?;
    let lsn = match finding.wait_for(Option::is_some).await {
        Ok(found) => found.unwrap_or(Lsn::ZERO),
        // The snapshot failed, and its error is the one to tell.
        Err(_) => std::future::pending().await,
    };
    let held = holding.lock().await.take().ok_or_else(|| {
        Error::new(Kind::Internal, "bring both sides to one point: nobody holds the stream")
    })??;
    // So that the stream moves beyond it although nobody writes.
    let barrier = emit_barrier(&client, "tidemark", "verify").await;
    barrier.map_err(|error| source.of(error))?;
    Ok((lsn, held))
}

/// Waits until somebody on the target waits for our locks. The stream has to empty or alter a table before it can stand at
/// the barrier: it goes first.
async fn in_the_way(run: &Run<'_>, holder: i32) -> Error {
    let waits = "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE $1 = ANY (pg_catalog.pg_blocking_pids(pid)))";
    let client = match run.target.spec().connect().await {
        Ok(client) => client,
        Err(error) => return run.target.of(error),
    };
    loop {
        match client.query_one(waits, &[&holder]).await {
            Ok(row) if row.get(0) => {
                let attempt =
                    "bring both sides to one point: a change of the stream waits for our locks";
                return Error::new(Kind::Unavailable, attempt).hint("run the same command again");
            }
            Ok(_) => tokio::time::sleep(LOOK_FOR_WAITING).await,
            Err(cause) => return failed(cause),
        }
    }
}

/// Whoever runs the job.
pub(crate) enum Stream {
    Process(PathBuf),
    Here(Arc<JobProgress>),
}

impl Stream {
    /// Holds the stream when the source is about to look for its point.
    fn hold(&self, holding: &Holding) -> Hook {
        let holding = Arc::clone(holding);
        match self {
            Self::Process(state_dir) => {
                let state_dir = state_dir.clone();
                Arc::new(move |_| {
                    let (holding, state_dir) = (Arc::clone(&holding), state_dir.clone());
                    Box::pin(async move {
                        let held = Held::of_process(&state_dir).await;
                        let held = held.and_then(|held| held.ok_or_else(gone));
                        *holding.lock().await = Some(held);
                    })
                })
            }
            Self::Here(progress) => {
                let progress = Arc::clone(progress);
                Arc::new(move |_| {
                    let (holding, progress) = (Arc::clone(&holding), Arc::clone(&progress));
                    Box::pin(async move {
                        let held = Held::of_own(&progress).await;
                        let held = held.and_then(|held| held.ok_or_else(gone));
                        *holding.lock().await = Some(held);
                    })
                })
            }
        }
    }
}

/// A verification makes no copy and joins no tables: the job has to follow already.
async fn refuse_other_than_following(run: &Run<'_>) -> Result<()> {
    let job = &run.request.job;
    let of = |error: tidemark_wire::Error| run.target.of(error);
    let client = run.target.spec().connect().await.map_err(of)?;
    let there = "SELECT pg_catalog.to_regclass('tidemark.progress') IS NOT NULL";
    let there: bool = client.query_one(there, &[]).await.map_err(failed)?.get(0);
    let phase: Option<String> = match there {
        false => None,
        true => {
            let sql = "SELECT phase FROM tidemark.progress WHERE job = $1 AND wave = ''";
            let row = client.query_opt(sql, &[&job.name]).await.map_err(failed)?;
            row.map(|row| row.get(0))
        }
    };
    let found = match phase.as_deref() {
        Some("follow") => return Ok(()),
        None => format!("the target holds no job {:?}", job.name),
        Some(phase) => format!("the job {:?} does not follow yet (its phase is {phase})", job.name),
    };
    Err(Error::new(Kind::Usage, format!("verify both sides at one LSN: {found}")).hint(
        "add --quiesced for two databases that nobody writes to; or let tidemark sync run until it follows",
    ))
}

fn failed(cause: tidemark_wire::tokio_postgres::Error) -> Error {
    Error::new(Kind::Unavailable, "read the job's record on the target").because(cause)
}

/// The process that ran the job went away meanwhile.
fn gone() -> Error {
    Error::new(Kind::Unavailable, "hold the job's stream: the process that ran the job has ended")
        .hint("run the same command again")
}
