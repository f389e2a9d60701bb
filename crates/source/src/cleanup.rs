//! Takes away what a job left on a source.
//!
//! **Invariant:** only objects of exactly the job's names are touched (`hazards.md` S16); nothing is matched by pattern.

use tidemark_model::sql::Ident;
use tidemark_wire::ConnectSpec;

use crate::snapshot::{drop_publication, drop_slot};
use crate::{Result, names, sql};

/// Drops the job's slot and publication and says what it did, one sentence each.
///
/// # Errors
/// The slot is in use, rights are missing, or the connection failed.
pub async fn cleanup(spec: &ConnectSpec, job: &str) -> Result<Vec<String>> {
    let client = sql::connect(spec).await?;
    let mut done = Vec::new();
    let (slot, publication) = (names::slot_name(job), names::publication_name(job));
    done.push(match drop_slot(&client, &slot).await? {
        true => format!("dropped replication slot {}", Ident(&slot)),
        false => format!("replication slot {} is not there", Ident(&slot)),
    });
    done.push(match drop_publication(&client, &publication).await? {
        true => format!("dropped publication {}", Ident(&publication)),
        false => format!("publication {} is not there", Ident(&publication)),
    });
    Ok(done)
}
