//! Findings about this machine and the way to the servers: passwords, TLS, disk, client programs.
//!
//! **Invariant:** no server is asked and nothing is made: the state directory may not be there yet.

use std::path::Path;

use rustix::fs::statvfs;
use tidemark_model::{Finding, Severity};
use tidemark_source::{Catalog, dump};

use crate::job::{Job, Target};

/// Connections whose other end nobody has proven to be the right one, and passwords that stand in a URL.
pub(super) fn password_findings(job: &Job) -> Vec<Finding> {
    let mut specs = vec![("source", &job.source)];
    if let Target::Postgres(target) = &job.target {
        specs.push(("target", &target.spec));
    }
    let mut findings = Vec::new();
    for (side, spec) in specs {
        if spec.password_in_text() {
            findings.push(
                Finding::new(Severity::Note, "password-in-url", side, "the connection string holds the password")
                    .with_fix("keep it in PGPASSFILE (.pgpass), PGPASSWORD, a service file, or ${VAR} in the configuration"),
            );
        }
        if spec.tls_unauthenticated() {
            let message = "the connection may be encrypted, but nothing proves that the server is the right one";
            findings.push(
                Finding::new(Severity::Warning, "tls-unauthenticated", side, message)
                    .with_fix("set sslmode=verify-full and sslrootcert"),
            );
        }
    }
    findings
}

/// Whether the spool has the room that it may take.
pub(super) fn space_for_spool(job: &Job) -> Option<Finding> {
    if !job.follows {
        return None;
    }
    // What is not there yet is made below what is.
    let from_here = Path::new(".").join(&job.state_dir);
    let existing = from_here.ancestors().find(|ancestor| ancestor.exists())?;
    let disk = statvfs(existing).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= job.stream.spool {
        return None;
    }
    let message = format!(
        "{} MiB are free, and the spool may take {} MiB (limits.spool)",
        free >> 20,
        job.stream.spool >> 20
    );
    let finding = Finding::new(
        Severity::Warning,
        "state-space",
        job.state_dir.display().to_string(),
        message,
    );
    Some(finding.with_fix(format!(
        "limits.spool = \"{}MiB\", or job.state_dir on another file system",
        (free >> 20).saturating_mul(4) / 5
    )))
}

pub(super) async fn schema_tool_findings(job: &Job, catalog: &Catalog) -> Option<Finding> {
    if !job.creates() {
        return None;
    }
    let error = dump::check_tool(catalog.server.version_num).await.err()?;
    let finding = Finding::new(Severity::Blocking, "pg-dump", "pg_dump", error.to_string());
    Some(finding.with_fix(error.hint()))
}
