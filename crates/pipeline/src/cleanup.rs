//! Removes what a job left on the servers, by exact name.

use tidemark_sink::postgres;

use crate::Result;
use crate::job::{Job, Target};
use crate::target::postgres_options;

/// Drops slot and publication on the source and the records on the target. Data and local state stay. Returns a line for
/// each thing that was done; none means that there was nothing.
///
/// # Errors
/// A server cannot be reached, refuses, or another instance holds the job.
pub async fn cleanup(job: &Job) -> Result<Vec<String>> {
    let mut done = tidemark_source::cleanup(&job.source, &job.name).await?;
    if let Target::Postgres(target) = &job.target {
        done.extend(postgres::cleanup(&postgres_options(job, target)).await?);
    }
    Ok(done)
}
