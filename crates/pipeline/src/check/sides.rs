//! Findings that neither server can give alone: what both say, side by side.
//!
//! **Invariant:** reads only, and waits for nobody's lock for longer than the session's `lock_timeout`.

mod existing;
mod extensions;

use std::collections::{HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use tidemark_model::sql::Ident;
use tidemark_model::{Finding, Oid, RelationName, Severity, TablePlan};
use tidemark_sink::postgres::Triggers;
use tidemark_source::{
    AddressOf, Catalog, CollationVersion, Fires, Firing, Server, check_age,
    read_collation_versions, read_firing, read_server,
};
use tidemark_wire::Client;

use crate::job::{Job, PostgresTarget};
use crate::{Error, Result};

/// Clocks may differ by as much before lag in seconds misleads anybody.
const CLOCK_MAX_MS: i128 = 2_000;
/// The session that holds the job, and one that looks.
const SESSIONS_BESIDE_LOADERS: i64 = 2;

/// Both servers of a job into PostgreSQL.
pub(super) struct Sides<'a> {
    pub(super) job: &'a Job,
    pub(super) to: &'a PostgresTarget,
    pub(super) source: &'a Client,
    pub(super) target: &'a Client,
    pub(super) catalog: &'a Catalog,
    pub(super) plans: &'a [TablePlan],
}

impl Sides<'_> {
    pub(super) async fn check(&self) -> Result<Vec<Finding>> {
        let server = read_server(self.target).await.map_err(of_target)?;
        let mut findings = Vec::new();
        findings.extend(same_database(self, &self.catalog.server, &server).await?);
        findings.extend(encodings(&self.catalog.server, &server));
        findings.extend(self.connections(&server));
        findings.extend(check_age(self.target, AddressOf::Target).await.map_err(of_target)?);
        findings.extend(clock(self.source, AddressOf::Source).await?);
        findings.extend(clock(self.target, AddressOf::Target).await?);
        findings.extend(self.extensions(&server).await?);
        let there = tables_there(self.target, self.plans).await?;
        findings.extend(self.collations(&server, &there).await?);
        findings.extend(self.firing(&there).await?);
        if !self.job.creates() {
            findings.extend(self.existing(&there).await?);
        }
        Ok(findings)
    }

    fn connections(&self, server: &Server) -> Option<Finding> {
        let readers = i64::try_from(self.job.readers).unwrap_or(i64::MAX);
        let needed = readers.saturating_add(SESSIONS_BESIDE_LOADERS);
        let free = server.free_connections.max(0);
        let message = format!("{needed} connections are needed on the target, {free} are free");
        (free < needed).then(|| {
            Finding::new(Severity::Blocking, "target-connections", "max_connections", message)
                .with_fix("snapshot.readers lower, or max_connections of the target higher")
        })
    }

    /// What of either library has changed under indexes that are there, and what of both differs.
    async fn collations(
        &self,
        server: &Server,
        there: &[(RelationName, Oid)],
    ) -> Result<Vec<Finding>> {
        let ours = &self.catalog.server;
        let oids: Vec<Oid> = self.plans.iter().map(|plan| plan.relation.oid).collect();
        let from = read_collation_versions(self.source, ours.version_num, &oids).await?;
        let oids: Vec<Oid> = there.iter().map(|(_, oid)| *oid).collect();
        let to = read_collation_versions(self.target, server.version_num, &oids).await;
        let to = to.map_err(of_target)?;
        let mut findings = outdated(&from, "source", ours);
        findings.extend(outdated(&to, "target", server));
        if ours.collation != server.collation {
            let message = format!(
                "the databases sort text by {} and by {}: results may come in another order",
                ours.collation, server.collation
            );
            findings.push(Finding::new(Severity::Note, "target-collation", "default", message));
        }
        let differs = |collation: &CollationVersion| {
            let other = to.iter().find(|other| other.name == collation.name)?;
            let is_other_default =
                collation.name == "default" && ours.collation != server.collation;
            (other.actual != collation.actual && !is_other_default).then(|| {
                let message = format!(
                    "the source has version {}, the target {}: text may sort differently",
                    collation.actual, other.actual
                );
                Finding::new(Severity::Note, "target-collation", &collation.name, message)
            })
        };
        findings.extend(from.iter().filter_map(differs));
        Ok(findings)
    }

    /// Triggers and rules that take part in what we write. Tables that are still to be made get those of the source.
    async fn firing(&self, there: &[(RelationName, Oid)]) -> Result<Vec<Finding>> {
        let known: HashSet<&RelationName> = there.iter().map(|(name, _)| name).collect();
        let missing = self.plans.iter().filter(|plan| !known.contains(&plan.relation.name));
        let missing: Vec<(RelationName, Oid)> =
            missing.map(|plan| (plan.relation.name.clone(), plan.relation.oid)).collect();
        let mut findings = Vec::new();
        for (client, tables) in [(self.target, there), (self.source, &missing)] {
            let oids: Vec<Oid> = tables.iter().map(|(_, oid)| *oid).collect();
            let firing = read_firing(client, &oids).await?;
            let names: HashMap<Oid, &RelationName> =
                tables.iter().map(|(name, oid)| (*oid, name)).collect();
            let named = firing
                .iter()
                .filter_map(|firing| fires(names.get(&firing.table)?, firing, self.to.triggers));
            findings.extend(named);
        }
        Ok(findings)
    }
}

/// The chosen tables that the target has, with their OIDs there.
async fn tables_there(client: &Client, plans: &[TablePlan]) -> Result<Vec<(RelationName, Oid)>> {
    let names = plans.iter().map(|plan| &plan.relation.name);
    let (schemas, tables): (Vec<&str>, Vec<&str>) =
        names.map(|name| (name.schema.as_str(), name.name.as_str())).unzip();
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text, c.oid FROM unnest($1::text[], $2::text[]) AS wanted(nsp, rel) \
             JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.nsp \
             JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.rel AND c.relkind IN ('r', 'p')",
            &[&schemas, &tables],
        )
        .await
        .map_err(tidemark_wire::Error::sql("look which tables the target has"))?;
    let name = |row: &tidemark_wire::tokio_postgres::Row| {
        (RelationName::new(row.get::<_, String>(0), row.get::<_, String>(1)), row.get(2))
    };
    Ok(rows.iter().map(name).collect())
}

/// A clone has the identifier and the OIDs of what it was made from; only the running server tells them apart.
async fn same_database(
    sides: &Sides<'_>,
    source: &Server,
    target: &Server,
) -> Result<Option<Finding>> {
    let began = |row: tidemark_wire::tokio_postgres::Row| row.get::<_, String>(0);
    let ask = async |client: &Client| {
        let text = "SELECT pg_postmaster_start_time()::text";
        let row = client.query_one(text, &[]).await;
        row.map(began).map_err(tidemark_wire::Error::sql("ask how long the server runs"))
    };
    let is_same = source.database_oid == target.database_oid
        && source.system_identifier == target.system_identifier
        && ask(sides.source).await? == ask(sides.target).await?;
    let message = "source and target are the same database";
    Ok(is_same.then(|| {
        let object = Ident(&target.database).to_string();
        Finding::new(Severity::Blocking, "same-database", object, message)
            .with_fix("give another database as target.url")
    }))
}

fn encodings(source: &Server, target: &Server) -> Option<Finding> {
    // UTF8 holds what any other has; a source without one has its own finding.
    if target.encoding == source.encoding || target.encoding == "UTF8" {
        return None;
    }
    let message = format!(
        "the target's encoding is {}, the source's {}: text that the target cannot hold stops the copy",
        target.encoding, source.encoding
    );
    let object = Ident(&target.database).to_string();
    let finding = Finding::new(Severity::Warning, "target-encoding", object, message);
    Some(finding.with_fix("make the target database WITH ENCODING 'UTF8' TEMPLATE template0"))
}

fn outdated(versions: &[CollationVersion], side: &str, server: &Server) -> Vec<Finding> {
    let is_outdated = |collation: &&CollationVersion| {
        collation.recorded.as_ref().is_some_and(|recorded| *recorded != collation.actual)
    };
    let finding = |collation: &CollationVersion| {
        let refresh = match collation.name.as_str() {
            "default" => {
                format!("ALTER DATABASE {} REFRESH COLLATION VERSION", Ident(&server.database))
            }
            name => format!("ALTER COLLATION {name} REFRESH VERSION"),
        };
        let message = format!(
            "on the {side} indexes were built with version {} and are read with {}: they may miss rows",
            collation.recorded.as_deref().unwrap_or_default(),
            collation.actual
        );
        let object = format!("collation {} of the {side}", collation.name);
        Finding::new(Severity::Warning, "collation-version", object, message)
            .with_fix(format!("REINDEX the indexes on text, then {refresh}"))
    };
    versions.iter().filter(is_outdated).map(finding).collect()
}

fn fires(table: &RelationName, firing: &Firing, triggers: Triggers) -> Option<Finding> {
    let (severity, when) = match (triggers, firing.fires) {
        (Triggers::Replica, Fires::Ordinarily) | (Triggers::AsIs, Fires::OnReplicas) => {
            return None;
        }
        (Triggers::Replica, _) => {
            (Severity::Warning, "on the rows that are written, although triggers are switched off")
        }
        (Triggers::AsIs, _) => {
            (Severity::Note, "on the rows that are written (target.triggers = \"as-is\")")
        }
    };
    let (kind, name) = (&firing.kind, Ident(&firing.name));
    let message = format!("{} {name} fires {when}", kind.to_lowercase());
    let finding = Finding::new(severity, "target-trigger-fires", table.to_string(), message);
    Some(finding.with_fix(match triggers {
        Triggers::Replica => format!("on the target: ALTER TABLE {table} ENABLE {kind} {name}"),
        Triggers::AsIs => format!("on the target: ALTER TABLE {table} DISABLE {kind} {name}"),
    }))
}

/// How far a server's clock is from ours, as far as the time of the answer lets us know.
async fn clock(client: &Client, side: AddressOf) -> Result<Option<Finding>> {
    let before = now_ms();
    let row = client
        .query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8", &[])
        .await
        .map_err(tidemark_wire::Error::sql("ask for the time"))?;
    Ok(clock_finding(side, before, i128::from(row.get::<_, i64>(0)), now_ms()))
}

fn now_ms() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i128::try_from(since.as_millis()).unwrap_or(i128::MAX)
}

/// The server said `there` at some moment between our `before` and `after`.
fn clock_finding(side: AddressOf, before: i128, there: i128, after: i128) -> Option<Finding> {
    let off = if there < before { there - before } else { (there - after).max(0) };
    if off.abs() <= CLOCK_MAX_MS {
        return None;
    }
    let direction = if off < 0 { "behind" } else { "ahead of" };
    let seconds = off.abs() / 1_000;
    let message = format!(
        "its clock is at least {seconds} s {direction} ours: lag in seconds is wrong by as much"
    );
    Some(
        Finding::new(Severity::Warning, "clock", side.server(), message)
            .with_fix("set the clocks of all machines by NTP"),
    )
}

/// `source` reads either side; its errors are told as those of the side that was read.
fn of_target(error: tidemark_source::Error) -> Error {
    let mut error = Error::from(error);
    error.message = error.message.replacen("source:", "target:", 1);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_only_by_what_the_time_of_the_answer_does_not_explain() {
        let found = |before, there, after| {
            clock_finding(AddressOf::Source, before, there, after).map(|finding| finding.message)
        };
        assert_eq!(found(10_000, 12_500, 13_000), None);
        assert_eq!(found(10_000, 12_000, 10_010), None);
        assert!(found(10_000, 13_100, 10_010).unwrap().contains("3 s ahead of ours"));
        assert!(found(10_000, 5_000, 10_010).unwrap().contains("5 s behind ours"));
    }
}
