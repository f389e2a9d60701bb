//! Removes what a job left on the servers, by exact name.

use tidemark_sink::postgres;
use tidemark_source::Given;

use crate::Result;
use crate::job::{Job, Target};
use crate::target::postgres_options;

/// Drops our slot and our publication on the source (what others made for the job stays) and the records on the target. Data and local state stay. Returns a line for
/// each thing that was done; none means that there was nothing.
///
/// # Errors
/// A server cannot be reached, refuses, or another instance holds the job.
pub async fn cleanup(job: &Job) -> Result<Vec<String>> {
    let given =
        Given { slot: job.stream.slot.as_deref(), publication: job.stream.publication.as_deref() };
    let mut done = tidemark_source::cleanup(&job.source, &job.name, given).await?;
    if let Target::Postgres(target) = &job.target {
        done.extend(postgres::cleanup(&postgres_options(job, target)).await?);
    }
    Ok(done)
}
