//! Triggers and rules, and when they fire; either side.
//!
//! **Invariant:** only the catalog is read: no table is opened, so that nobody's lock is waited for.
//!
//! PostgreSQL manual, `ALTER TABLE`, "DISABLE/ENABLE [ REPLICA | ALWAYS ] TRIGGER".

use tidemark_model::Oid;
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres::Row;

use crate::{Result, sql};

/// When a trigger or a rule fires, by the session's `session_replication_role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fires {
    /// As `origin` or `local`, the ordinary case.
    Ordinarily,
    /// As `replica` only.
    OnReplicas,
    /// Always.
    Always,
}

/// A trigger or rule that is not disabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firing {
    /// Its table.
    pub table: Oid,
    /// `TRIGGER` or `RULE`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// When it fires.
    pub fires: Fires,
}

/// Reads the users' triggers and rules of these tables that are not disabled; ours let our sessions pass.
///
/// # Errors
/// The connection failed.
pub async fn read_firing(client: &Client, tables: &[Oid]) -> Result<Vec<Firing>> {
    let tables = sql::oid_array(tables);
    let text = format!(
        "SELECT tgrelid, 'TRIGGER', tgname::text, tgenabled::text FROM pg_catalog.pg_trigger \
         WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgrelid = ANY ({tables}) \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc f WHERE f.oid = tgfoid AND f.pronamespace = pg_catalog.to_regnamespace('tidemark')) \
         UNION ALL SELECT ev_class, 'RULE', rulename::text, ev_enabled::text FROM pg_catalog.pg_rewrite \
         WHERE rulename <> '_RETURN' AND ev_enabled <> 'D' AND ev_class = ANY ({tables}) ORDER BY 1, 2, 3"
    );
    let rows = sql::rows(client, "look which triggers and rules fire", &text).await?;
    let firing = |row: &Row| Firing {
        table: row.get(0),
        kind: row.get(1),
        name: row.get(2),
        fires: match row.get::<_, &str>(3) {
            "A" => Fires::Always,
            "R" => Fires::OnReplicas,
            _ => Fires::Ordinarily,
        },
    };
    Ok(rows.iter().map(firing).collect())
}
