//! Readiness of a source: what stands in the way of a job, and what mends it.
//!
//! **Invariant:** changes nothing and asks for no right that the job itself does not need. Every finding names its object
//! and, where something mends it, the SQL or setting that does. Rights are told one by one (`hazards.md` S4).

mod objects;
mod server;
mod tables;

use tidemark_model::{Finding, TablePlan};
use tidemark_wire::Client;

use crate::{Catalog, Result};

/// What the job will do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// A slot and a stream follow the snapshot.
    pub replication: bool,
    /// The publication was made by a DBA: the role needs neither CREATE nor ownership.
    pub given_publication: bool,
    /// Connections that the job opens at the source, all told; 0 leaves that check out.
    pub connections: u32,
}

/// Looks at the source and says what stands in the way of moving these tables, the worst first.
///
/// # Errors
/// The connection failed.
pub async fn check(
    client: &Client,
    catalog: &Catalog,
    chosen: &[TablePlan],
    needs: Needs,
) -> Result<Vec<Finding>> {
    let mut findings = server::check(client, catalog, chosen.len(), needs).await?;
    findings.extend(tables::check(client, catalog, chosen, needs).await?);
    findings.extend(objects::check(catalog, chosen));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings)
}
