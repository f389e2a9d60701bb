//! Findings about the server, its settings and the role.

use tidemark_model::sql::{Ident, Literal};
use tidemark_model::{Finding, Severity};
use tidemark_wire::Client;

use super::Needs;
use crate::{Catalog, Result, Server, sql};

/// Newest major version that the tests run on.
const MAJOR_MAX: u32 = 18;
/// From here on a new slot cannot restore another slot's partial transactions (`hazards.md` A4), by major version.
const SLOT_FIXED: [u32; 4] = [130_016, 140_013, 150_008, 160_004];

pub(super) async fn check(
    client: &Client,
    catalog: &Catalog,
    tables: usize,
    needs: Needs,
) -> Result<Vec<Finding>> {
    let server = &catalog.server;
    let mut findings = version(server, needs);
    findings.extend(standby(server, needs));
    findings.extend(database(server));
    findings.extend(locks(server, tables));
    findings.extend(connections(server, needs));
    findings.extend(snapshot_age(client).await?);
    if needs.replication {
        findings.extend(replication(server, needs));
        findings.extend(plugins(client, server).await?);
        findings.extend(transactions(client).await?);
        findings.extend(activity(client, server).await?);
    }
    Ok(findings)
}

fn version(server: &Server, needs: Needs) -> Vec<Finding> {
    let mut findings = Vec::new();
    let object = format!("PostgreSQL {}", server.version);
    if needs.replication && server.version_num < 140_000 {
        let message = "13 cannot be streamed from: its pgoutput has no messages, no binary form and no streaming";
        findings.push(
            Finding::new(Severity::Blocking, "version-streaming", &object, message)
                .with_fix("tidemark sync --snapshot-only, or upgrade to 14 or later"),
        );
    }
    if server.major() > MAJOR_MAX {
        let message = format!("newer than {MAJOR_MAX}, the newest version that was tested");
        findings.push(Finding::new(Severity::Warning, "version-untested", &object, message));
    }
    let fixed = SLOT_FIXED.iter().find(|fixed| *fixed / 10_000 == server.major());
    if let Some(fixed) = fixed.filter(|fixed| needs.replication && server.version_num < **fixed) {
        let message = "this minor version can build a slot's snapshot from another slot's partial transactions";
        findings.push(
            Finding::new(Severity::Warning, "version-minor", object, message).with_fix(format!(
                "upgrade to {}.{} or later",
                fixed / 10_000,
                fixed % 100
            )),
        );
    }
    findings
}

fn standby(server: &Server, needs: Needs) -> Option<Finding> {
    if !server.in_recovery {
        return None;
    }
    if needs.replication {
        let message = if server.version_num < 160_000 {
            "the source is a standby: before 16 a standby makes no logical slot"
        } else {
            // A slot there waits, without an end, for a record that only an active primary writes (`hazards.md` A17).
            "the source is a standby: the publication is made on the primary, and so is the slot"
        };
        let finding = Finding::new(Severity::Blocking, "standby", "source", message);
        return Some(finding.with_fix(
            "give the primary's address as source.url; tidemark sync --snapshot-only works from a standby",
        ));
    }
    let message = "the source is a standby: replay of vacuum or DDL may cancel the copy";
    Some(
        Finding::new(Severity::Warning, "standby", "source", message)
            .with_fix("hot_standby_feedback = on, max_standby_streaming_delay = -1 while it runs"),
    )
}

fn database(server: &Server) -> Vec<Finding> {
    let mut findings = Vec::new();
    let database = Ident(&server.database).to_string();
    if server.encoding == "SQL_ASCII" {
        let message = "SQL_ASCII checks no encoding: text that is not valid UTF-8 stops the copy with an error";
        findings.push(Finding::new(Severity::Warning, "encoding", &database, message));
    }
    if server.system_identifier == 0 {
        let message = "the role may not read the cluster's identity, so that a change of cluster is not noticed";
        findings.push(
            Finding::new(Severity::Note, "system-identifier", database, message).with_fix(format!(
                "GRANT EXECUTE ON FUNCTION pg_control_system() TO {}",
                Ident(&server.user)
            )),
        );
    }
    findings
}

/// The snapshot's holder has a lock on every table; a full lock table makes the application's statements fail.
fn locks(server: &Server, tables: usize) -> Option<Finding> {
    let tables = u64::try_from(tables).unwrap_or(u64::MAX);
    let severity = if tables.saturating_mul(10) > server.max_locks.saturating_mul(9) {
        Severity::Blocking
    } else if tables.saturating_mul(2) > server.max_locks {
        Severity::Warning
    } else {
        return None;
    };
    let message = format!(
        "{tables} tables are locked at once, the lock table has room for {}",
        server.max_locks
    );
    let factor = tables.saturating_mul(2).div_ceil(server.max_locks.max(1));
    Some(
        Finding::new(severity, "lock-table", "max_locks_per_transaction", message).with_fix(
            format!("raise max_locks_per_transaction by a factor of {factor} and restart"),
        ),
    )
}

fn connections(server: &Server, needs: Needs) -> Option<Finding> {
    if needs.connections == 0 || server.free_connections >= i64::from(needs.connections) {
        return None;
    }
    let message = format!(
        "{} connections are needed, {} are free",
        needs.connections,
        server.free_connections.max(0)
    );
    Some(
        Finding::new(Severity::Blocking, "connections", "max_connections", message)
            .with_fix("snapshot.readers lower, or max_connections higher"),
    )
}

async fn snapshot_age(client: &Client) -> Result<Option<Finding>> {
    let text = "SELECT coalesce(nullif(current_setting('old_snapshot_threshold', true), ''), '-1')";
    let value: String = sql::one(client, "read old_snapshot_threshold", text).await?.get(0);
    let message =
        format!("old_snapshot_threshold is {value}: a long copy fails with \"snapshot too old\"");
    Ok((value != "-1").then(|| {
        Finding::new(Severity::Warning, "snapshot-too-old", "old_snapshot_threshold", message)
            .with_fix("old_snapshot_threshold = -1 and restart")
    }))
}

fn replication(server: &Server, needs: Needs) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut blocking = |code: &str, object: &str, message: String, fix: String| {
        findings.push(Finding::new(Severity::Blocking, code, object, message).with_fix(fix));
    };
    let user = Ident(&server.user);
    if server.wal_level != "logical" {
        let message = format!("wal_level is {}, a slot needs logical", server.wal_level);
        blocking(
            "wal-level",
            "wal_level",
            message,
            "ALTER SYSTEM SET wal_level = logical, then restart".into(),
        );
    }
    if server.free_slots < 1 {
        let fix = "raise max_replication_slots and restart, or drop a slot that nobody uses".into();
        blocking("slots", "max_replication_slots", "no free replication slot".into(), fix);
    }
    if server.free_senders < 1 {
        let fix = "raise max_wal_senders and restart".into();
        blocking("senders", "max_wal_senders", "no free WAL sender".into(), fix);
    }
    if !server.can_replicate {
        let fix = match server.replicates_by_role {
            true => format!("GRANT rds_replication TO {user}"),
            false => format!("ALTER ROLE {user} REPLICATION"),
        };
        blocking(
            "replication-right",
            &user.to_string(),
            "the role may not make a slot".into(),
            fix,
        );
    }
    if !server.can_create && !needs.given_publication {
        let fix = format!("GRANT CREATE ON DATABASE {} TO {user}", Ident(&server.database));
        blocking(
            "publication-right",
            &user.to_string(),
            "the role may not make a publication".into(),
            fix,
        );
    }
    if server.is_read_only && !server.in_recovery && !needs.given_publication {
        let fix = format!("ALTER ROLE {user} SET default_transaction_read_only = off");
        let message = "sessions are read-only: the publication cannot be made".into();
        blocking("read-only", "default_transaction_read_only", message, fix);
    }
    findings
}

/// Servers since August 2026 let roles that are not superusers use listed output plugins only (`hazards.md` S17).
async fn plugins(client: &Client, server: &Server) -> Result<Option<Finding>> {
    let text = "SELECT current_setting('output_plugin_libraries', true)";
    let row = sql::one(client, "read output_plugin_libraries", text).await?;
    let Some(list) = row.get::<_, Option<String>>(0) else { return Ok(None) };
    let is_listed =
        list.split(',').any(|name| matches!(name.trim().trim_matches('"'), "pgoutput" | "*"));
    Ok((!server.is_superuser && !is_listed && !list.trim().is_empty()).then(|| {
        Finding::new(
            Severity::Blocking,
            "output-plugin",
            "output_plugin_libraries",
            "pgoutput is not listed",
        )
        .with_fix("add pgoutput to output_plugin_libraries and reload")
    }))
}

/// A new slot waits for every transaction that runs (`hazards.md` B19).
async fn transactions(client: &Client) -> Result<Vec<Finding>> {
    let text = "SELECT 'process ' || pid, extract(epoch FROM now() - xact_start)::int8, \
                  'SELECT pg_terminate_backend(' || pid || ')' \
                FROM pg_catalog.pg_stat_activity \
                WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND xact_start < now() - interval '10 s' \
                UNION ALL SELECT 'prepared transaction ' || quote_literal(gid), \
                  extract(epoch FROM now() - prepared)::int8, 'COMMIT or ROLLBACK PREPARED ' || quote_literal(gid) \
                FROM pg_catalog.pg_prepared_xacts ORDER BY 2 DESC LIMIT 20";
    let rows = sql::rows(client, "look for long transactions", text).await?;
    let finding = |row: &tidemark_wire::tokio_postgres::Row| {
        let seconds: Option<i64> = row.get(1);
        let message =
            format!("open for {} s: a new slot waits until it ends", seconds.unwrap_or(0));
        Finding::new(Severity::Warning, "long-transaction", row.get::<_, String>(0), message)
            .with_fix(row.get::<_, String>(2))
    };
    Ok(rows.iter().map(finding).collect())
}

/// Only who may see what other sessions do can name those that a slot waits for.
async fn activity(client: &Client, server: &Server) -> Result<Option<Finding>> {
    let text = "SELECT pg_has_role('pg_read_all_stats', 'USAGE')";
    let sees: bool = sql::one(client, "ask what the role may see", text).await?.get(0);
    let message = "the role does not see what other sessions do: who keeps a new slot waiting cannot be named";
    Ok((!sees).then(|| {
        Finding::new(Severity::Note, "activity-right", grantee(server), message)
            .with_fix(format!("GRANT pg_read_all_stats TO {}", grantee(server)))
    }))
}

/// The role as a GRANT names it.
pub(super) fn grantee(server: &Server) -> String {
    Ident(&server.user).to_string()
}

/// A name as an SQL literal, for queries of the neighbours.
pub(super) fn literals(names: &[&str]) -> String {
    names.iter().map(|name| Literal(name).to_string()).collect::<Vec<_>>().join(", ")
}
