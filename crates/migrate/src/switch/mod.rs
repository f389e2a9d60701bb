//! A cutover or a fallback, step by step.
//!
//! **Invariant:** no step begins before the one before it is done; each may be done again. Before the other side is opened
//! everything can be taken back, and is, where the write block would last too long.

mod steps;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tidemark_ledger::{LedgerReader, now_ms};
use tidemark_model::{Lsn, RelationName};
use tidemark_pipeline::{
    Error, Job, Kind, Phase, Progress, Result, TableOptions, Target, ask_status, cleanup,
};
use tidemark_report::Verdict;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fence::{self, Fence};
use crate::follow::sync;
use crate::hook::Hook;
use crate::runbook::{Attempt, Direction, Event, Runbook, State, Step, Way, state};
use crate::sides::{active, job_of, refuse_opened_by_hand};
use crate::wave_fence;

/// Between two looks at the process that runs the job.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The process that runs the job turns within this.
const TURNS: Duration = Duration::from_secs(30);
/// A stream that is run here has so long to end in order when the work has failed.
const LETS_GO: Duration = Duration::from_secs(2);

/// What is asked of a cutover.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The stream may be so far behind when it begins.
    pub max_lag: Duration,
    /// After so long without writes everything is taken back.
    pub max_write_block: Duration,
    /// Values of sequences that are left out.
    pub sequence_margin: u64,
    /// Verdicts that are good enough beside `identical`.
    pub allows_equivalent: bool,
    /// How writes are kept out of the side that is left.
    pub fence: Fence,
    /// Tells the application.
    pub switch_hook: Hook,
    /// A hook has so long.
    pub hook_timeout: Duration,
}

/// A migration of one job.
#[derive(Debug, Clone)]
pub struct Migration {
    /// The job as it is configured.
    pub job: Job,
    /// What is asked of it.
    pub plan: Plan,
}

/// How an attempt begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// A new one.
    Anew,
    /// Everything but the fence and what comes behind it.
    DryRun,
    /// The one that was not ended.
    Resume,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// Which way.
    pub way: Way,
    /// Whether the application is on the other side by now.
    pub is_done: bool,
    /// What a proof has found that stands in the way.
    pub verdict: Verdict,
    /// From the fence to the open other side.
    pub write_block_ms: Option<u64>,
    /// The last barrier.
    pub lsn: Option<Lsn>,
    /// Steps and how long each took, in milliseconds.
    pub steps: Vec<(Step, u64)>,
    /// Of one that was tried out: for about so long nobody could write.
    pub forecast_ms: Option<u64>,
    /// A process follows the other side.
    pub is_followed: bool,
}

/// Takes the application over to the other side.
///
/// # Errors
/// A step cannot be done. Before the other side is open the writes go on as before, unless the error says that they do not;
/// from then on the same is to be resumed.
pub async fn run(
    migration: &Migration,
    way: Way,
    how: How,
    stop: &CancellationToken,
) -> Result<Ended> {
    let Target::Postgres(_) = &migration.job.target else {
        let attempt = format!("{}: a lake takes no application over", way.word());
        return Err(Error::new(Kind::Usage, attempt));
    };
    refuse_parts(&migration.job, way)?;
    let runbook = Runbook::open(&migration.job.state_dir)?;
    refuse_wrong(&runbook.state, way, how)?;
    refuse_opened_by_hand(&migration.job, &runbook.state).await?;
    refuse_other_than_following(&job_of(&migration.job, runbook.state.direction))?;
    let is_followed = ask_status(&active(&migration.job)?.state_dir).await?.is_some();
    let mut switch = Switch { is_followed, ..Switch::new(migration, runbook, way, stop) };
    if how == How::Anew {
        switch.runbook.note(way, None, Event::Begun, json!({}))?;
    }
    // Whoever is turned needs no stream any more.
    let needs_one = !is_followed && switch.runbook.state.direction == way.from();
    let job = needs_one.then_some(&migration.job);
    if how == How::DryRun {
        return Box::pin(with_follower(job, None, stop, switch.try_out())).await;
    }
    let attempt = switch.runbook.state.attempt.as_ref();
    if attempt.is_some_and(|it| it.has_begun(Step::Fence) && !it.is_beyond_return()) {
        switch.block_begins();
    }
    // Nobody writes while the stream is waited for.
    let waits =
        switch.deadline.map(|deadline| (deadline, switch.too_long("the job does not follow yet")));
    match Box::pin(with_follower(job, waits, stop, switch.work())).await {
        Ok(ended) => Ok(ended),
        Err(error) => Err(left_behind(migration, way, error).await),
    }
}

/// A stream that ended took the step with it: what was begun is taken back here, where the step itself did not.
async fn left_behind(migration: &Migration, way: Way, error: Error) -> Error {
    let left = state(&migration.job.state_dir).ok().and_then(|state| state.attempt);
    let is_over = |attempt: &Attempt| {
        attempt.way != way || attempt.is_beyond_return() || attempt.is_taken_back()
    };
    if left.as_ref().is_none_or(is_over) {
        return error;
    }
    match Box::pin(abort_because(migration, way, &error.to_string())).await {
        Ok(()) => error,
        Err(cause) => not_taken_back(way, error, &cause),
    }
}

/// The worst to happen: nobody may write, and only somebody who looks can help.
fn not_taken_back(way: Way, mut error: Error, cause: &Error) -> Error {
    error.message = format!("{}; and it could not be taken back: {cause}", error.message);
    error.hint(format!("writes may be blocked: tidemark {} --abort", way.word()))
}

/// A stream back of a part of the rows or columns would do things to the rest.
fn refuse_parts(job: &Job, way: Way) -> Result<()> {
    let moved: HashSet<RelationName> = match LedgerReader::open(&job.state_dir) {
        Ok(ledger) => ledger.relations()?.into_iter().map(|relation| relation.plan.name).collect(),
        Err(tidemark_ledger::Error::Missing { .. }) => HashSet::new(),
        Err(error) => return Err(error.into()),
    };
    // Those of another wave are none of this one's.
    let is_ours = |table: &TableOptions| job.wave.is_none() || moved.contains(&table.name);
    let is_part = |table: &&TableOptions| {
        (table.filter.is_some() || table.columns.is_some()) && is_ours(table)
    };
    let Some(table) = job.tables.iter().find(is_part) else { return Ok(()) };
    let what = format!("{}: of table {} the target has only a part", way.word(), table.name);
    Err(Error::new(Kind::Usage, what)
        .hint("an application is taken over to whole tables: take where and columns out of the configuration, and tidemark reset the table"))
}

/// Takes back what was begun, where the other side is not open yet.
///
/// # Errors
/// There is nothing to take back, or it is too late.
pub async fn abort(migration: &Migration, way: Way) -> Result<()> {
    abort_because(migration, way, "it was asked for").await
}

async fn abort_because(migration: &Migration, way: Way, because: &str) -> Result<()> {
    let runbook = Runbook::open(&migration.job.state_dir)?;
    let attempt = runbook.state.attempt.as_ref().filter(|attempt| attempt.way == way);
    let Some(attempt) = attempt else {
        return Err(Error::new(Kind::Usage, format!("{}: none is under way", way.word())));
    };
    refuse_beyond_return(attempt)?;
    let stop = CancellationToken::new();
    Switch::new(migration, runbook, way, &stop).take_back(because).await
}

/// Ends the migration: there is no way back any more. Gives what was removed.
///
/// # Errors
/// A cutover is under way, or there was none; a server cannot be reached.
pub async fn complete(job: &Job) -> Result<Vec<String>> {
    let mut runbook = Runbook::open(&job.state_dir)?;
    let state = &runbook.state;
    let is_ready = state.attempt.is_none() && state.direction == Direction::Back;
    if !is_ready {
        let attempt = "complete: the application is not on the target's side";
        return Err(Error::new(Kind::Usage, attempt)
            .hint("tidemark cutover takes it there; --resume goes on with one that was begun"));
    }
    let back = job_of(job, Direction::Back);
    tidemark_pipeline::refuse_running(&back).await.map_err(|error| match error.kind {
        Kind::Held => error.hint("stop tidemark sync first: what it follows is what goes"),
        _ => error,
    })?;
    let mut done = removed(&back).await?;
    done.extend(removed(&job_of(job, Direction::Forward)).await?);
    runbook.note(Way::Cutover, None, Event::Completed, json!({}))?;
    Ok(done)
}

fn refuse_wrong(state: &State, way: Way, how: How) -> Result<()> {
    let refuse = |what: String, hint: &str| Err(Error::new(Kind::Usage, what).hint(hint));
    if state.is_complete {
        return refuse(
            format!("{}: the migration is complete", way.word()),
            "there is no way back any more",
        );
    }
    match (&state.attempt, how) {
        (Some(attempt), How::Resume) if attempt.way == way && attempt.is_taken_back() => {
            refuse(format!("{}: it is being taken back", way.word()), "--abort goes on with that")
        }
        (Some(attempt), How::Resume) if attempt.way == way => Ok(()),
        (Some(attempt), _) => refuse(
            format!("{}: a {} is under way", way.word(), attempt.way.word()),
            match attempt.is_beyond_return() {
                true => "go on with it by --resume: the other side is open already",
                false => "go on with it by --resume, or take it back by --abort",
            },
        ),
        (None, How::Resume) => {
            refuse(format!("{}: there is none to be resumed", way.word()), "leave --resume out")
        }
        (None, _) if state.direction != way.from() => refuse(
            format!("{}: the application is on the other side already", way.word()),
            "tidemark cutover goes to the target, tidemark fallback to the source",
        ),
        (None, _) => Ok(()),
    }
}

/// Whoever takes an application over makes no copy.
fn refuse_other_than_following(job: &Job) -> Result<()> {
    let run = LedgerReader::open(&job.state_dir)?.run()?;
    if run.is_some_and(|run| run.phase == "follow") {
        return Ok(());
    }
    let what = format!("job {:?} does not follow yet", job.name);
    Err(Error::new(Kind::Usage, what).hint("let tidemark sync run until it does (tidemark status)"))
}

fn refuse_beyond_return(attempt: &Attempt) -> Result<()> {
    if !attempt.is_beyond_return() {
        return Ok(());
    }
    let what =
        format!("{}: the other side is open already, it cannot be taken back", attempt.way.word());
    Err(Error::new(Kind::Usage, what).hint("go on with --resume"))
}

/// Runs the job here for as long as the work takes, if it is given. It has to follow by a moment if one is given; else that
/// error is the end.
async fn with_follower<T>(
    forward: Option<&Job>,
    follows_by: Option<(Instant, Error)>,
    stop: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some(forward) = forward else { return work.await };
    let (progress, stop) = (Arc::new(Progress::default()), stop.child_token());
    let running = sync(forward, &progress, None, &stop);
    let mut running = std::pin::pin!(running);
    let working = async {
        let follows = async {
            while progress.view().phase != Phase::Follow {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        match follows_by {
            Some((by, error)) => tokio::time::timeout_at(by, follows).await.map_err(|_| error)?,
            None => follows.await,
        }
        work.await
    };
    let done = tokio::select! {
        done = working => done,
        ended = &mut running => {
            return Err(ended.err().unwrap_or_else(|| {
                Error::new(Kind::Interrupted, "interrupted: the job is not followed any more")
            }));
        }
    };
    stop.cancel();
    let ended = match &done {
        Ok(_) => running.await,
        // Nobody may be able to write meanwhile: one that waits for something itself is dropped.
        Err(_) => tokio::time::timeout(LETS_GO, running).await.unwrap_or_else(|_| Err(gone())),
    };
    if let Err(error) = ended {
        tracing::warn!(%error, "the stream did not end in order; the next tidemark sync goes on with it");
    }
    done
}

struct Switch<'a> {
    migration: &'a Migration,
    runbook: Runbook,
    way: Way,
    from: Job,
    to: Job,
    stop: &'a CancellationToken,
    /// Another process runs the job.
    is_followed: bool,
    /// Changes of the stream that the other side had at the first barrier behind the fence.
    changes: Option<u64>,
    lsn: Option<Lsn>,
    /// Writes are to go on by then.
    deadline: Option<Instant>,
    verdict: Verdict,
    /// How long the last proof took.
    proving: Duration,
    /// How long the preflight took.
    looking: Duration,
    forecast: Option<Duration>,
}

/// What a step ends with.
enum Stepped {
    Done(serde_json::Value),
    /// A proof has failed.
    NotProven(serde_json::Value),
}

impl<'a> Switch<'a> {
    fn new(
        migration: &'a Migration,
        runbook: Runbook,
        way: Way,
        stop: &'a CancellationToken,
    ) -> Self {
        let lsn = runbook.state.attempt.as_ref().and_then(Attempt::drained_to);
        Self {
            migration,
            runbook,
            way,
            from: job_of(&migration.job, way.from()),
            to: job_of(&migration.job, way.to()),
            stop,
            is_followed: false,
            changes: None,
            lsn,
            deadline: None,
            verdict: Verdict::Identical,
            proving: Duration::ZERO,
            looking: Duration::ZERO,
            forecast: None,
        }
    }

    /// Everything that changes nothing.
    async fn try_out(mut self) -> Result<Ended> {
        self.step(Step::Check).await?;
        if let Stepped::Done(_) = Box::pin(self.step(Step::Prove)).await? {
            let began = Instant::now();
            self.pass_barrier().await?;
            // Drained is with two of them. The stream back looks at both sides as the preflight does, and then makes what it
            // needs there, which takes as long again.
            self.forecast = Some(began.elapsed() * 2 + self.proving + self.looking * 2);
        }
        Ok(self.ended(false))
    }

    async fn work(mut self) -> Result<Ended> {
        // What keeps writes out, and what was proven behind it, is done again by a process that goes on: the one before may
        // have died at any moment, and who has written since nobody knows.
        let attempt = self.runbook.state.attempt.as_ref();
        let is_beyond_return = attempt.is_some_and(Attempt::is_beyond_return);
        for step in Step::ALL {
            let attempt = self.runbook.state.attempt.as_ref();
            let is_kept = step < Step::Fence || is_beyond_return;
            if is_kept && attempt.is_some_and(|attempt| attempt.is_done(step)) {
                continue;
            }
            if let Some(verdict) = self.one(step).await? {
                self.verdict = verdict;
                return Ok(self.ended(false));
            }
        }
        let ended = self.ended(true);
        self.runbook.note(self.way, None, Event::Done, json!(ended))?;
        Ok(ended)
    }

    /// One step, with its lines in the journal. Gives a verdict that is not good enough, after everything was taken back.
    async fn one(&mut self, step: Step) -> Result<Option<Verdict>> {
        if step == Step::Fence && self.deadline.is_none() {
            self.block_begins();
        }
        let detail = match step {
            // So that whoever goes on knows what there was before it was changed.
            Step::Fence => match self.migration.plan.fence {
                Fence::Tables => json!(wave_fence::function(&self.migration.job.name)),
                _ => json!(fence::before(&self.from.source).await?),
            },
            _ => serde_json::Value::Null,
        };
        self.runbook.note(self.way, Some(step), Event::Begun, detail)?;
        failpoint(self.way, step.word(), "begun");
        match self.in_time(step).await {
            Ok(Stepped::Done(detail)) => {
                failpoint(self.way, step.word(), "acted");
                self.runbook.note(self.way, Some(step), Event::Done, detail)?;
                failpoint(self.way, step.word(), "done");
                Ok(None)
            }
            Ok(Stepped::NotProven(detail)) => {
                self.runbook.note(self.way, Some(step), Event::Failed, detail)?;
                let because = "the sides were not proven to be the same";
                self.take_back(because).await.map_err(|cause| {
                    not_taken_back(self.way, Error::new(Kind::TargetRefused, because), &cause)
                })?;
                Ok(Some(self.verdict))
            }
            Err(error) => Err(self.failed(step, error).await),
        }
    }

    /// From now on the application waits. What was before a process that goes on was not in its hands.
    fn block_begins(&mut self) {
        self.deadline = Some(Instant::now() + self.migration.plan.max_write_block);
    }

    fn has_begun(&self, step: Step) -> bool {
        self.runbook.state.attempt.as_ref().is_some_and(|attempt| attempt.has_begun(step))
    }

    /// Does a step; writes are not blocked for longer than is allowed.
    async fn in_time(&mut self, step: Step) -> Result<Stepped> {
        let Some(deadline) = self.deadline.filter(|_| step < Step::Open) else {
            return Box::pin(self.step(step)).await;
        };
        let stepped = tokio::time::timeout_at(deadline, Box::pin(self.step(step))).await;
        stepped
            .unwrap_or_else(|_| Err(self.too_long(&format!("step {:?} is not done", step.word()))))
    }

    /// Takes everything back because a step went wrong, if that can be; what is to be said of it.
    async fn failed(&mut self, step: Step, error: Error) -> Error {
        let because = error.to_string();
        let detail = json!({ "error": because });
        let noted = self.runbook.note(self.way, Some(step), Event::Failed, detail);
        let attempt = self.runbook.state.attempt.as_ref();
        if attempt.is_some_and(Attempt::is_beyond_return) {
            let way = self.way.word();
            return error.hint(format!("the other side is open: tidemark {way} --resume goes on"));
        }
        let taken_back = match noted {
            Ok(()) => self.take_back(&because).await,
            Err(cause) => Err(cause),
        };
        match taken_back {
            Ok(()) => error,
            Err(cause) => not_taken_back(self.way, error, &cause),
        }
    }

    fn too_long(&self, what: &str) -> Error {
        let message = format!(
            "{}: writes were blocked for {} s, and {what}",
            self.way.word(),
            self.migration.plan.max_write_block.as_secs(),
        );
        Error::new(Kind::Unavailable, message).hint(
            "the application writes where it did before, and the stream goes on; raise cutover.max_write_block, or try at a quieter time",
        )
    }

    /// Undoes what was done, so that the application writes on where it did.
    async fn take_back(&mut self, because: &str) -> Result<()> {
        self.runbook.note(self.way, None, Event::TakingBack, json!({ "because": because }))?;
        failpoint(self.way, "abort", "begun");
        if self.has_begun(Step::Fence) {
            match (&self.migration.plan.fence, self.known_fence()) {
                (Fence::Hooks { down, .. }, _) => {
                    drop(self.hook(down, &self.told("abort", self.way.from())).await?);
                }
                (Fence::ReadOnly, Some(fenced)) => {
                    fence::open(&self.from.source, &fenced).await?;
                }
                (Fence::ReadOnly, None) => {}
                (Fence::Tables, _) => {
                    wave_fence::open(&self.from.source, &self.migration.job.name).await?;
                    wave_fence::clear(&self.from.source, &self.migration.job.name).await?;
                }
            }
        }
        if self.has_begun(Step::Reverse) {
            removed(&self.to).await?;
        }
        self.runbook.note(self.way, None, Event::Aborted, json!({ "because": because }))
    }

    fn ended(&self, is_done: bool) -> Ended {
        let attempt = self.runbook.state.attempt.as_ref();
        let entries = attempt.map(|attempt| attempt.entries.as_slice()).unwrap_or_default();
        let at = |step: Step, event: Event| {
            entries
                .iter()
                .rfind(|entry| entry.step == Some(step) && entry.event == event)
                .map(|entry| entry.at_ms)
        };
        let lasted = |step: Step| {
            let took = at(step, Event::Done)?.saturating_sub(at(step, Event::Begun)?);
            Some((step, u64::try_from(took).unwrap_or_default()))
        };
        let opened = at(Step::Open, Event::Done).unwrap_or_else(now_ms);
        let fenced = attempt.and_then(Attempt::fenced_at).filter(|_| is_done);
        Ended {
            way: self.way,
            is_done,
            verdict: self.verdict,
            write_block_ms: fenced.map(|at| u64::try_from(opened - at).unwrap_or_default()),
            lsn: self.lsn,
            forecast_ms: self
                .forecast
                .map(|block| u64::try_from(block.as_millis()).unwrap_or(u64::MAX)),
            steps: Step::ALL.into_iter().filter_map(lasted).collect(),
            is_followed: self.is_followed,
        }
    }
}

/// Removes what a job has on the servers. The sessions of a process that was killed have its slot for a while.
async fn removed(job: &Job) -> Result<Vec<String>> {
    let deadline = Instant::now() + TURNS;
    loop {
        match cleanup(job).await {
            Err(error) if Instant::now() < deadline => {
                tracing::debug!(%error, "what is left of the stream cannot be removed yet");
                tokio::time::sleep(LOOK_EVERY * 10).await;
            }
            done => return done,
        }
    }
}

fn no_wave() -> Error {
    Error::new(Kind::Internal, "fence the tables of a wave of a job that is none")
}

fn gone() -> Error {
    Error::new(Kind::Unavailable, "the process that ran the job has ended")
        .hint("run the same command again")
}

/// Ends the process as `kill -9` does, where a test asks for it.
fn failpoint(way: Way, step: &str, event: &str) {
    let wanted = std::env::var("TIDEMARK_FAILPOINT").unwrap_or_default();
    if wanted == format!("{}:{step}:{event}", way.word()) {
        tracing::warn!(wanted, "a failpoint ends the process");
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .ok();
    }
}
