//! Findings about the WAL that a slot keeps: whether the server ends it before our own limit, and who else keeps some.
//!
//! **Invariant:** asked of a primary only: a standby has no WAL of its own.
//!
//! PostgreSQL manual, section 19.6.1 (sending servers).

use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{Finding, Severity};
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres::Row;

use super::Needs;
use crate::{Result, sql};

/// So much kept by somebody else's slot is more than a note.
const KEPT_BY_OTHERS: i64 = 1 << 30;

pub(super) async fn check(client: &Client, needs: Needs) -> Result<Vec<Finding>> {
    let text = "SELECT (SELECT setting::int8 FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'), \
                current_setting('idle_replication_slot_timeout', true)";
    let row = sql::one(client, "read the limits of slots", text).await?;
    let mut findings = Vec::new();
    findings.extend(budget(row.get::<_, Option<i64>>(0).unwrap_or(-1), needs.source_wal >> 20));
    findings.extend(row.get::<_, Option<String>>(1).and_then(|timeout| idle(&timeout)));
    findings.extend(left(client).await?);
    Ok(findings)
}

/// Both in MiB; a negative limit of the server's is none.
fn budget(server: i64, ours: u64) -> Option<Finding> {
    let server = u64::try_from(server).ok()?;
    if ours == 0 || server >= ours {
        return None;
    }
    let message = format!(
        "the server ends a slot that keeps more than {server} MiB, while limits.source_wal lets it keep {ours} MiB: the job would have to begin anew"
    );
    // Open transactions keep WAL besides what we have not taken yet.
    let fix = format!(
        "limits.source_wal = \"{}MiB\"; or ALTER SYSTEM SET max_slot_wal_keep_size = '{}MB'; SELECT pg_reload_conf()",
        (server / 2).max(16),
        ours * 2
    );
    Some(
        Finding::new(Severity::Warning, "wal-keep-size", "max_slot_wal_keep_size", message)
            .with_fix(fix),
    )
}

fn idle(timeout: &str) -> Option<Finding> {
    if timeout == "0" {
        return None;
    }
    let setting = "idle_replication_slot_timeout";
    let message = format!(
        "the server ends a slot that nobody has read from for {timeout}: a job that is stopped for as long has to begin anew"
    );
    let fix = format!("ALTER SYSTEM SET {setting} = 0; SELECT pg_reload_conf()");
    Some(Finding::new(Severity::Warning, "slot-idle-timeout", setting, message).with_fix(fix))
}

/// Slots that nobody reads from; this job's own, between two runs, is told apart by the caller.
async fn left(client: &Client) -> Result<Vec<Finding>> {
    let text = "SELECT slot_name::text, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8 \
                FROM pg_catalog.pg_replication_slots WHERE NOT active AND restart_lsn IS NOT NULL ORDER BY 2 DESC";
    let rows = sql::rows(client, "look for slots that nobody reads from", text).await?;
    let finding = |row: &Row| {
        let (name, bytes): (String, i64) = (row.get(0), row.get(1));
        let severity = if bytes > KEPT_BY_OTHERS { Severity::Warning } else { Severity::Note };
        let message = format!(
            "nobody reads from it and it keeps {} MiB of WAL, whatever this job does",
            bytes >> 20
        );
        Finding::new(severity, "slot-left", slot_object(&name), message).with_fix(format!(
            "let its owner go on, or SELECT pg_drop_replication_slot({})",
            Literal(&name)
        ))
    };
    Ok(rows.iter().map(finding).collect())
}

/// How a finding names a slot.
pub fn slot_object(name: &str) -> String {
    format!("slot {}", Ident(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_the_servers_matters_where_it_is_below_ours() {
        assert!(budget(-1, 16_384).is_none());
        assert!(budget(16_384, 16_384).is_none());
        assert!(budget(1_000, 0).is_none());
        let finding = budget(1_000, 16_384).unwrap();
        assert!(finding.fix.unwrap().starts_with("limits.source_wal = \"500MiB\""));
    }
}
