//! The two jobs of a migration: from the old side to the new one, and back.
//!
//! **Invariant:** the job back has a name, a state directory and objects of its own; both see through a fence, which is for
//! the application.

use std::path::{Path, PathBuf};

use tidemark_model::names;
use tidemark_pipeline::{
    Beginning, Error, Job, Kind, NotEmpty, PostgresTarget, Result, SchemaMode, StreamJob, Target,
};

use crate::runbook::{Direction, Event, Runbook, State, Way, state};
use crate::{fence, wave_fence};

/// The part of the state directory that is the job's back.
const DIRECTORY: &str = "back";

/// The state directory of the job's back.
pub(crate) fn back_of(state_dir: &Path) -> PathBuf {
    state_dir.join(DIRECTORY)
}

/// The job that keeps the sides in step in this direction. A migration into a lake has none back.
pub fn job_of(forward: &Job, direction: Direction) -> Job {
    let Target::Postgres(target) = &forward.target else { return forward.clone() };
    let writable = |spec: &tidemark_wire::ConnectSpec| {
        spec.clone().with_setting("default_transaction_read_only", "off")
    };
    let (old, new) = (writable(&forward.source), writable(&target.spec));
    match direction {
        Direction::Forward => Job {
            source: old,
            // What was to become of a target with contents was said for the first copy.
            target: Target::Postgres(PostgresTarget {
                spec: new,
                not_empty: NotEmpty::Refuse,
                ..target.clone()
            }),
            ..forward.clone()
        },
        Direction::Back => Job {
            name: names::other_way(&forward.name),
            state_dir: back_of(&forward.state_dir),
            source: new,
            target: Target::Postgres(PostgresTarget {
                spec: old,
                schema: SchemaMode::Exists,
                triggers: target.triggers,
                not_empty: NotEmpty::Refuse,
            }),
            // The other side has the chosen rows and columns only.
            tables: Vec::new(),
            stream: StreamJob {
                publication: None,
                slot: None,
                failover: false,
                ..forward.stream.clone()
            },
            ..forward.clone()
        },
    }
}

/// The same job as one that finds its rows on the other side already.
pub(crate) fn adopting(job: &Job) -> Job {
    let mut job = job.clone();
    job.stream.beginning = Beginning::Adopted;
    if let Target::Postgres(target) = &mut job.target {
        (target.schema, target.not_empty) = (SchemaMode::Exists, NotEmpty::Append);
    }
    job
}

/// The same job as one that finds most of its rows there.
pub(crate) fn reconciled(job: &Job) -> Job {
    let mut job = adopting(job);
    job.stream.beginning = Beginning::Reconciled;
    job
}

/// Refuses what would write to the target as if the application were not on it, or were not about to be.
///
/// # Errors
/// A cutover was begun.
pub fn refuse_begun(forward: &Job, what: &str) -> Result<()> {
    let state = state(&forward.state_dir)?;
    if state.direction == Direction::Forward && state.attempt.is_none() {
        return Ok(());
    }
    let attempt = format!("{what}: the application is on the target, or about to go there or back");
    Err(Error::new(Kind::Usage, attempt).hint(
        "tidemark status tells where the migration is; tidemark fallback goes back to the source",
    ))
}

/// Refuses to bring changes to a source that takes writes itself. Where somebody has taken its fence away by hand the
/// application is there again, and what the target had would undo what it writes.
///
/// # Errors
/// It takes writes.
pub(crate) async fn refuse_opened_by_hand(forward: &Job, state: &State) -> Result<()> {
    if state.direction == Direction::Forward || state.attempt.is_some() {
        return Ok(());
    }
    let fence = state.last_fence(Direction::Forward);
    let source = job_of(forward, Direction::Forward).source;
    let is_up = match fence {
        Some(fence) if fence.get("function").is_some() => {
            wave_fence::is_up(&source, &forward.name).await
        }
        Some(fence) if fence.get("ended").is_some() => fence::is_up(&source).await,
        // What a hook has done nobody but the hook knows.
        _ => return Ok(()),
    };
    match is_up {
        Ok(false) => {
            let what = "follow the target: the application is there as far as is known here, and the fence of the source is away";
            Err(Error::new(Kind::Usage, what).hint(
                "if the application is on the source again, nothing of the target may come here: begin a new migration with another --job and --state-dir; if it is on the target, put the fence up again (ALTER DATABASE .. SET default_transaction_read_only = on; the triggers of a wave's fence are not made again by themselves, which takes a new migration, too)",
            ))
        }
        // One that is away is for the stream to wait for.
        _ => Ok(()),
    }
}

/// Removes what the jobs of a migration have on the servers. While the application is on the target this is the end of the
/// migration. Gives what was removed.
///
/// # Errors
/// A cutover is under way, or a server cannot be reached.
pub async fn cleanup(forward: &Job) -> Result<Vec<String>> {
    refuse_under_way(forward)?;
    let state = state(&forward.state_dir)?;
    let mut done = Vec::new();
    for job in jobs(forward)? {
        done.extend(tidemark_pipeline::cleanup(&job).await?);
    }
    if state.direction == Direction::Back && !state.is_complete {
        let mut runbook = Runbook::open(&forward.state_dir)?;
        runbook.note(Way::Cutover, None, Event::Completed, serde_json::Value::Null)?;
        done.push("the migration is complete: there is no way back any more".to_owned());
    }
    Ok(done)
}

/// Refuses to remove what a cutover that is under way needs.
///
/// # Errors
/// One is.
fn refuse_under_way(forward: &Job) -> Result<()> {
    let Some(attempt) = state(&forward.state_dir)?.attempt else { return Ok(()) };
    let what = format!("cleanup: a {} is under way", attempt.way.word());
    Err(Error::new(Kind::Usage, what).hint("go on with it by --resume, or take it back by --abort"))
}

/// Every job that a migration may have left something of, or the one that there is.
///
/// # Errors
/// The journal cannot be read.
fn jobs(forward: &Job) -> Result<Vec<Job>> {
    Ok(match state(&forward.state_dir)?.has_begun() {
        true => vec![job_of(forward, Direction::Forward), job_of(forward, Direction::Back)],
        false => vec![forward.clone()],
    })
}

/// State directory and name of the job that keeps the sides in step now.
///
/// # Errors
/// The journal cannot be read.
pub fn place(state_dir: &Path, name: &str) -> Result<(PathBuf, String)> {
    Ok(match state(state_dir)?.direction {
        Direction::Forward => (state_dir.to_owned(), name.to_owned()),
        Direction::Back => (back_of(state_dir), names::other_way(name)),
    })
}

/// The job that keeps the sides in step now.
///
/// # Errors
/// The journal cannot be read.
pub fn active(forward: &Job) -> Result<Job> {
    let state = state(&forward.state_dir)?;
    Ok(match state.has_begun() {
        true => job_of(forward, state.direction),
        false => forward.clone(),
    })
}
