//! What is to be watched between a cutover and the end of the migration.
//!
//! **Invariant:** what is told comes from the journal and from the process that follows; only that one asks a server.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use tidemark_ledger::now_ms;
use tidemark_pipeline::{
    Error, Hypercare, Job, Kind, Phase, Result, SequenceRoom, Status, blocking,
};

use crate::runbook::{Attempt, Direction, Event, State, Step, Way, state};
use crate::sides::place;
use crate::{sequences, story};

/// What the process that follows has seen of the sequences.
const FILE: &str = "sequences.json";
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What the process that keeps the sides in step says; `None` where none runs.
///
/// # Errors
/// The journal cannot be read, or the answer makes no sense.
pub async fn ask_status(state_dir: &Path) -> Result<Option<Status>> {
    let (active, _) = place(state_dir, "")?;
    let answer = tidemark_pipeline::ask_status(&active).await?;
    answer.map(|status| of_migration(state_dir, status)).transpose()
}

/// The state of a job that no process runs.
///
/// # Errors
/// It has never run, or a ledger cannot be read.
pub fn stored_status(state_dir: &Path, job: &str) -> Result<Status> {
    let (active, name) = place(state_dir, job)?;
    of_migration(state_dir, tidemark_pipeline::stored_status(&active, &name)?)
}

/// The state of a job as that of its migration.
///
/// # Errors
/// The journal cannot be read.
fn of_migration(state_dir: &Path, mut status: Status) -> Result<Status> {
    let state = state(state_dir)?;
    if let Some(attempt) = &state.attempt {
        status.phase = phase(attempt).unwrap_or(status.phase);
        status.activity = at_step(attempt).unwrap_or(status.activity);
        return Ok(status);
    }
    if state.is_complete {
        status.phase = Phase::Complete;
        "the application is on the target, and there is no way back any more"
            .clone_into(&mut status.activity);
        return Ok(status);
    }
    if state.direction == Direction::Forward {
        return Ok(status);
    }
    if status.phase == Phase::Follow {
        status.phase = Phase::Hypercare;
    }
    status.hypercare = Some(hypercare(state_dir, &state, &status)?);
    Ok(status)
}

/// Before the fence the stream goes on as ever.
fn phase(attempt: &Attempt) -> Option<Phase> {
    let step = attempt.entries.iter().rev().find_map(|entry| entry.step)?;
    let phase = match step {
        Step::Check | Step::Prove => return None,
        _ if attempt.way == Way::Fallback => Phase::Fallback,
        Step::Fence => Phase::Fence,
        Step::Drain | Step::Sequences => Phase::Drain,
        Step::Verify | Step::Reverse => Phase::Verify,
        Step::Open | Step::Switch | Step::Turn | Step::Retire => Phase::Switch,
    };
    Some(phase)
}

/// Who looks cannot tell whether the process that does it lives: what to do if it does not.
fn at_step(attempt: &Attempt) -> Option<String> {
    let step = attempt.entries.iter().rev().find_map(|entry| entry.step)?;
    let (way, step) = (attempt.way.word(), step.word());
    let out = match attempt.is_beyond_return() {
        true => "--resume",
        false => "--resume or --abort; writes may be blocked",
    };
    Some(format!("a {way} is at step {step}; if its process has died: tidemark {way} {out}"))
}

fn hypercare(state_dir: &Path, state: &State, status: &Status) -> Result<Hypercare> {
    let now = now_ms();
    let seconds_since = |at_ms: i64| (now - at_ms).max(0) as f64 / 1000.0;
    let is_opened =
        |entry: &&crate::Entry| (entry.step, entry.event) == (Some(Step::Open), Event::Done);
    let opened = state.entries.iter().rev().find(is_opened);
    let verified = story::last_verified(state_dir)?;
    Ok(Hypercare {
        seconds: opened.map_or(0.0, |entry| seconds_since(entry.at_ms)),
        reverse_lag_bytes: status.lag.bytes,
        reverse_lag_seconds: status.lag.seconds,
        last_verdict: verified.as_ref().map(|(_, verified)| verified.verdict.word().to_owned()),
        last_verdict_lsn: verified.as_ref().and_then(|(_, verified)| verified.lsn),
        last_verdict_seconds: verified.as_ref().map(|(at_ms, _)| seconds_since(*at_ms)),
        fullest_sequence: seen(state_dir),
    })
}

/// What was seen of the sequences last.
fn seen(state_dir: &Path) -> Option<SequenceRoom> {
    serde_json::from_slice(&std::fs::read(state_dir.join(FILE)).ok()?).ok()
}

/// Looks at the sequences of the side that the application writes to, as long as the stream back runs. A side that cannot be
/// asked is the stream's affair.
pub(crate) async fn watch_sequences(state_dir: &Path, active: &Job) -> Infallible {
    loop {
        if let Err(error) = look(state_dir, active).await {
            tracing::debug!(%error, "the sequences cannot be looked at");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(state_dir: &Path, active: &Job) -> Result<()> {
    let Some(fullest) = sequences::fullest(&active.source).await? else { return Ok(()) };
    let (path, text) =
        (state_dir.join(FILE), serde_json::to_vec(&fullest).expect("it is plain data"));
    let write = move || {
        let new = path.with_extension("new");
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path))
    };
    blocking(write).await?.map_err(|cause| {
        Error::new(Kind::Unavailable, "note what was seen of the sequences").because(cause)
    })
}
