//! Both jobs follow the source for a while, and are asked how far behind they are.
//!
//! **Invariant:** what is shown was answered by the running jobs through their control sockets, as `tidemark status` asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tidemark_pipeline::{self as pipeline, Job, Progress, SyncReport};
use tokio_util::sync::CancellationToken;

use crate::exit::Failure;
use crate::output;

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// So many times as long as they are to follow, the jobs may take until they both answer.
const PATIENCE: u32 = 6;

/// How far behind a job is at one moment.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Behind {
    /// Since it began to follow.
    pub(super) after_ms: u64,
    /// WAL that is not durable on the target.
    pub(super) bytes: u64,
    /// Age of the oldest transaction that the target does not show.
    pub(super) seconds: f64,
    /// Transactions applied since it began to follow.
    pub(super) transactions: u64,
}

/// What came of it, for each of the two jobs.
pub(super) struct Followed {
    pub(super) reports: [SyncReport; 2],
    pub(super) lag: [Vec<Behind>; 2],
}

/// Follows for a while with both jobs at once, then stops them in order.
pub(super) async fn follow(
    jobs: [&Job; 2],
    time: Duration,
    tell: impl Fn([Behind; 2]),
) -> Result<Followed, Failure> {
    let stop = CancellationToken::new();
    let run = async |job: &Job| {
        pipeline::sync(job, &Arc::new(Progress::default()), None, &stop)
            .await
            .map_err(Failure::from)
    };
    let watch = async {
        let mut lag = [Vec::new(), Vec::new()];
        let started = Instant::now();
        let mut both_since: Option<Instant> = None;
        let mut interval = tokio::time::interval_at((started + ASK_EVERY).into(), ASK_EVERY);
        // The time counts from the first answers of both; without a control socket there are none.
        while both_since.map_or(started.elapsed() < time * PATIENCE, |since| since.elapsed() < time)
        {
            interval.tick().await;
            let after = started.elapsed();
            let (Some(first), Some(second)) =
                (ask(jobs[0], after).await?, ask(jobs[1], after).await?)
            else {
                continue; // one of them is still on its way
            };
            both_since.get_or_insert_with(Instant::now);
            tell([first, second]);
            lag[0].push(first);
            lag[1].push(second);
        }
        stop.cancel();
        Ok(lag)
    };
    let (first, second, lag) = tokio::try_join!(run(jobs[0]), run(jobs[1]), watch)?;
    Ok(Followed { reports: [first, second], lag })
}

/// `None` until the job has a position.
async fn ask(job: &Job, after: Duration) -> Result<Option<Behind>, Failure> {
    let Some(status) = pipeline::ask_status(&job.state_dir).await? else { return Ok(None) };
    Ok(status.lag.bytes.map(|bytes| Behind {
        after_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
        bytes,
        seconds: status.lag.seconds.unwrap_or_default(),
        transactions: status.stream.transactions,
    }))
}

/// A moment for people.
pub(super) fn line([postgres, lake]: [Behind; 2]) -> String {
    let behind = |behind: Behind| {
        format!("{:>9} and {:>4.1} s behind", output::bytes(behind.bytes), behind.seconds)
    };
    format!(
        "after {:>2} s   PostgreSQL {}   Parquet {}   {} transactions",
        postgres.after_ms / 1000,
        behind(postgres),
        behind(lake),
        output::count(postgres.transactions),
    )
}
