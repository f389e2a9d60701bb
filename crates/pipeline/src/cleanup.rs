//! Removes what a job left on the servers, by exact name.

use tidemark_ledger::{Ledger, LedgerReader};
use tidemark_sink::postgres;
use tidemark_source::Given;

use crate::Result;
use crate::job::{Job, Target};
use crate::snapshot::blocking;
use crate::target::postgres_options;

/// The phase of a job that has nothing on the servers any more.
pub(crate) const CLEANED: &str = "cleaned";

/// Drops our slot and our publication on the source (what others made for the job stays) and the records on the target. Data and local state stay. Returns a line for
/// each thing that was done; none means that there was nothing.
///
/// # Errors
/// A server cannot be reached, refuses, or another instance holds the job.
pub async fn cleanup(job: &Job) -> Result<Vec<String>> {
    let ledger = own_ledger(job).await?;
    let given =
        Given { slot: job.stream.slot.as_deref(), publication: job.stream.publication.as_deref() };
    let mut done = tidemark_source::cleanup(&job.source, &job.name, given).await?;
    if let Target::Postgres(target) = &job.target {
        done.extend(postgres::cleanup(&postgres_options(job, target)).await?);
    }
    if let Some(ledger) = ledger {
        blocking(move || ledger.set_phase(CLEANED)).await??;
    }
    Ok(done)
}

/// The ledger of a job that has run here: nobody else of this state directory goes on meanwhile.
async fn own_ledger(job: &Job) -> Result<Option<Ledger>> {
    let (state_dir, name) = (job.state_dir.clone(), job.name.clone());
    let open = move || {
        let has_run = LedgerReader::open(&state_dir)
            .is_ok_and(|ledger| ledger.run().is_ok_and(|run| run.is_some()));
        has_run.then(|| Ledger::open(&state_dir, &name)).transpose()
    };
    Ok(blocking(open).await??)
}
