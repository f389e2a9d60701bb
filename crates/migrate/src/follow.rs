//! `sync` of a job that may be turned: it follows the side that takes the writes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tidemark_pipeline::{
    Beginning, Error, Job, Kind, Progress, Result, StreamJob, SyncReport, Target, Until, blocking,
    sync_reconciled,
};
use tokio_util::sync::CancellationToken;

use crate::delta::Reconciler;
use crate::hypercare::watch_sequences;
use crate::runbook::{Direction, state};
use crate::sides::{active, reconciled, refuse_opened_by_hand};

/// How often is looked whether the stream was turned.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Brings the side that is behind to the one that takes the writes and keeps it there, whichever it is by then.
///
/// # Errors
/// As of [`tidemark_pipeline::sync`].
///
/// # Cancel safety
/// Cancel by `stop`.
pub async fn sync(
    forward: &Job,
    progress: &Arc<Progress>,
    until: Option<Until>,
    stop: &CancellationToken,
) -> Result<SyncReport> {
    let mut reconciles = forward.stream.beginning == Beginning::Reconciled;
    // Only once: who is turned begins nothing anew.
    let forward = &Job {
        stream: StreamJob { beginning: Beginning::Copied, ..forward.stream.clone() },
        ..forward.clone()
    };
    if reconciles && matches!(forward.target, Target::Lake(_)) {
        let attempt = "begin with what a lake holds: its files are never written anew";
        return Err(Error::new(Kind::Usage, attempt).hint(
            "--target-not-empty truncate --yes copies all of it again, or name an empty directory",
        ));
    }
    loop {
        let state_now = state(&forward.state_dir)?;
        if state_now.is_complete {
            let attempt = "sync: the migration is complete, nothing is followed any more";
            return Err(Error::new(Kind::Usage, attempt)
                .hint("a new migration has a state directory of its own (--state-dir)"));
        }
        let direction = state_now.direction;
        if let Some(attempt) = state_now.attempt.as_ref().filter(|_| reconciles) {
            let what = format!("sync: a {} is under way", attempt.way.word());
            return Err(Error::new(Kind::Usage, what)
                .hint("end it by --resume or --abort before the target is compared"));
        }
        refuse_opened_by_hand(forward, &state_now).await?;
        let job = match reconciles {
            true => reconciled(&active(forward)?),
            false => active(forward)?,
        };
        let ended = stop.child_token();
        let turned = async {
            while !is_turned(forward, direction).await {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            tracing::info!("the stream is turned: going on with the other side");
            ended.cancel();
            std::future::pending::<Infallible>().await
        };
        let run = sync_reconciled(&job, &Reconciler, (progress, until), &ended);
        let report = tokio::select! {
            report = Box::pin(run) => report,
            never = turned => match never {},
            never = watch_sequences(&forward.state_dir, &job), if direction == Direction::Back => match never {},
        };
        if stop.is_cancelled() || !is_turned(forward, direction).await {
            return report.map_err(|error| match direction {
                Direction::Forward => error,
                Direction::Back => of_the_way_back(error, forward),
            });
        }
        reconciles = false;
    }
}

/// An error of the stream back: nothing of the source is to be thrown away for it.
fn of_the_way_back(error: Error, forward: &Job) -> Error {
    if error.kind != Kind::SourceCannotContinue {
        return error;
    }
    error.hint(format!(
        "the way back is lost, and the application goes on on the target: tidemark sync{} --target-not-empty reconcile --yes makes it again, moving only what differs to the source",
        forward.wave_option()
    ))
}

async fn is_turned(forward: &Job, before: Direction) -> bool {
    let state_dir = forward.state_dir.clone();
    let now = blocking(move || state(&state_dir)).await;
    now.is_ok_and(|now| now.is_ok_and(|now| now.direction != before))
}
