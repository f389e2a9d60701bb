//! The end of a run: what the target says of it is what counts.
//!
//! **Invariant:** a run whose closing commit is on the target ends well, whether its answer was lost or the user stopped the
//! job meanwhile; one whose commit is not there says so. Which of the two it is is asked after the session that sent the
//! commit is gone, so that it cannot become the other one afterwards.

use std::time::Duration;

use tidemark_sink::postgres::closed_run;
use tidemark_sink::{Sink, SnapshotSummary};

use super::Run;
use crate::job::Target;
use crate::target::postgres_options;
use crate::{Error, Kind, Result};

/// How long the target is asked, and a lake's one last object is waited for.
const SETTLE: Duration = Duration::from_secs(20);

impl Run<'_> {
    pub(super) async fn finish(
        &self,
        sink: &dyn Sink,
        summary: &SnapshotSummary,
        run: &str,
    ) -> Result<()> {
        let finish = async { Ok(sink.finish(summary).await?) };
        let Target::Postgres(target) = &self.job.target else {
            return self.or_stop_late(finish).await;
        };
        if self.joining().is_some() {
            // Whether it has joined is asked when the job goes on.
            return self.or_stop(finish).await;
        }
        let Err(error) = self.or_stop(finish).await else { return Ok(()) };
        if !matches!(error.kind, Kind::Interrupted | Kind::Unavailable) {
            return Err(error);
        }
        let options = postgres_options(self.job, target);
        match tokio::time::timeout(SETTLE, closed_run(&options, run)).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(error),
            Ok(Err(cause)) => {
                tracing::warn!(%cause, "whether the target is complete could not be asked");
                Err(error)
            }
            Err(_) => {
                tracing::warn!("whether the target is complete could not be asked in time");
                Err(error)
            }
        }
    }

    /// A lake is finished by one small object: a stop waits for it, for a while.
    async fn or_stop_late<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let stopped = async {
            self.stop.cancelled().await;
            tokio::time::sleep(SETTLE).await;
        };
        tokio::select! {
            done = work => done,
            () = stopped => Err(Error::interrupted()),
        }
    }
}
