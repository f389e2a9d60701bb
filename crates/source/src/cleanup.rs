//! Takes away what a job left on a source.
//!
//! **Invariant:** only objects of exactly the job's names are touched (`hazards.md` S16); nothing is matched by pattern.

use tidemark_model::sql::Ident;
use tidemark_wire::ConnectSpec;

use crate::snapshot::{drop_publication, drop_slot};
use crate::{Result, names, sql};

/// What somebody else has made for the job: it is never dropped.
#[derive(Debug, Clone, Copy, Default)]
pub struct Given<'a> {
    /// `source.slot`.
    pub slot: Option<&'a str>,
    /// `source.publication`.
    pub publication: Option<&'a str>,
}

/// Drops the job's own slot and publication and says what it did, one sentence each.
///
/// # Errors
/// The slot is in use, rights are missing, or the connection failed.
pub async fn cleanup(spec: &ConnectSpec, job: &str, given: Given<'_>) -> Result<Vec<String>> {
    let client = sql::connect(spec).await?;
    let mut done = Vec::new();
    let (slot, publication) = (names::slot_name(job), names::publication_name(job));
    if let Some(slot) = given.slot {
        done.push(format!(
            "left replication slot {}, which keeps WAL until its owner drops it",
            Ident(slot)
        ));
    }
    if given.slot != Some(slot.as_str()) {
        done.push(match drop_slot(&client, &slot).await? {
            true => format!("dropped replication slot {}", Ident(&slot)),
            false => format!("replication slot {} is not there", Ident(&slot)),
        });
    }
    if given.publication != Some(publication.as_str()) {
        done.push(match drop_publication(&client, &publication).await? {
            true => format!("dropped publication {}", Ident(&publication)),
            false => format!("publication {} is not there", Ident(&publication)),
        });
    }
    Ok(done)
}
