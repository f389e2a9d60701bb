//! Readiness of a source: what stands in the way of a job, and what mends it.
//!
//! **Invariant:** changes nothing and asks for no right that the job itself does not need. Every finding names its object
//! and, where something mends it, the SQL or setting that does. Rights are told one by one (`hazards.md` S4).

mod age;
mod objects;
mod server;
mod tables;
mod wal;

use tidemark_model::{Finding, TablePlan};
use tidemark_wire::Client;

use crate::{AddressOf, Catalog, Result};

pub use age::check_age;
pub use wal::slot_object;

/// What the job will do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// A slot and a stream follow the snapshot.
    pub replication: bool,
    /// The publication was made by a DBA: the role needs neither CREATE nor ownership.
    pub given_publication: bool,
    /// Connections that the job opens at the source, all told; 0 leaves that check out.
    pub connections: u32,
    /// WAL that the source may keep because of us; 0 leaves that check out.
    pub source_wal: u64,
    /// The whole database's schema is read by `pg_dump`.
    pub dumps: bool,
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
    findings.extend(objects::check(client, catalog, chosen).await?);
    findings.extend(check_age(client, AddressOf::Source).await?);
    if needs.replication && !catalog.server.in_recovery {
        findings.extend(wal::check(client, needs).await?);
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings)
}
