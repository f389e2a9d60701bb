//! Gives tables up, so that they join the job anew.

use tidemark_ledger::Ledger;
use tidemark_model::RelationName;

use crate::job::Job;
use crate::snapshot::blocking;
use crate::target::sink;
use crate::{Error, Kind, Result};

/// Notes on the target that these tables are to be emptied and copied again: the next [`sync`](crate::sync) does it, the
/// others go on. Gives the tables.
///
/// # Errors
/// The job runs, or it does not have one of the tables; the others are noted all the same.
pub async fn reset(job: &Job, tables: &[RelationName]) -> Result<Vec<RelationName>> {
    let (state_dir, name) = (job.state_dir.clone(), job.name.clone());
    let _held = blocking(move || Ledger::open(&state_dir, &name)).await??;
    let cpu = tidemark_model::Cpu::new(1)
        .map_err(|cause| Error::new(Kind::Unavailable, "start the CPU threads").because(cause))?;
    let budget = tidemark_model::Budget::new(job.memory / 2);
    let noted = sink(job, &cpu, &budget).forget(&job.name, tables).await?;
    match tables.iter().find(|table| !noted.contains(table)) {
        None => Ok(noted),
        Some(missing) => {
            Err(Error::new(Kind::Usage, format!("reset table {missing}: job {:?} does not have it", job.name))
                .hint("tables are written schema.table, partitions each by itself; tidemark status names the job's phase: only one that follows can let tables join"))
        }
    }
}
