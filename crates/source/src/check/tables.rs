//! Findings about the chosen tables.

use std::collections::{BTreeSet, HashMap, HashSet};

use tidemark_model::names;
use tidemark_model::sql::Ident;
use tidemark_model::{
    Finding, Oid, Persistence, Relation, RelationKind, ReplicaIdentity, Severity, TablePlan,
};
use tidemark_wire::Client;

use super::Needs;
use super::server::{grantee, literals};
use crate::filter::try_to_publish;
use crate::snapshot::{filter_way_out, has_identity, refused_filter};
use crate::{Catalog, Result, sql};

pub(super) async fn check(
    client: &Client,
    catalog: &Catalog,
    chosen: &[TablePlan],
    needs: Needs,
) -> Result<Vec<Finding>> {
    let mut findings = schemas(client, catalog, chosen).await?;
    let without_usage: HashSet<String> =
        findings.iter().map(|finding| finding.object.clone()).collect();
    let others = match needs.replication && !needs.given_publication {
        true => owned_by_others(client, chosen).await?,
        false => HashMap::new(),
    };
    if needs.dumps {
        findings.extend(unreadable_for_dump(catalog, chosen));
    }
    for plan in chosen {
        let relation = &plan.relation;
        if !relation.can_select
            && !without_usage.contains(&Ident(&relation.name.schema).to_string())
        {
            findings.push(no_select(catalog, relation));
        }
        findings.extend(row_security(catalog, relation));
        findings.extend(identity(relation, needs));
        findings.extend(keys(relation));
        findings.extend(unlogged(relation, needs));
        findings.extend(row_filter(client, catalog, plan, needs).await?);
        if let Some(owner) = others.get(&relation.oid) {
            findings.push(not_owned(catalog, relation, owner));
        }
    }
    Ok(findings)
}

async fn schemas(client: &Client, catalog: &Catalog, chosen: &[TablePlan]) -> Result<Vec<Finding>> {
    let names: BTreeSet<&str> =
        chosen.iter().map(|plan| plan.relation.name.schema.as_str()).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let text = format!(
        "SELECT nspname::text FROM pg_catalog.pg_namespace WHERE NOT has_schema_privilege(oid, 'USAGE') \
         AND nspname IN ({}) ORDER BY nspname",
        literals(&names.into_iter().collect::<Vec<_>>())
    );
    let rows = sql::rows(client, "read rights on schemas", &text).await?;
    let finding = |row: &tidemark_wire::tokio_postgres::Row| {
        let schema: String = row.get(0);
        let message = "the role may not use the schema";
        Finding::new(Severity::Blocking, "schema-right", Ident(&schema).to_string(), message)
            .with_fix(format!(
                "GRANT USAGE ON SCHEMA {} TO {}",
                Ident(&schema),
                grantee(&catalog.server)
            ))
    };
    Ok(rows.iter().map(finding).collect())
}

/// The owners of the tables that the role does not own, neither by itself nor through a role that it inherits from.
async fn owned_by_others(client: &Client, chosen: &[TablePlan]) -> Result<HashMap<Oid, String>> {
    let oids: Vec<Oid> = chosen.iter().map(|plan| plan.relation.oid).collect();
    let text = format!(
        "SELECT oid, pg_get_userbyid(relowner)::text FROM pg_catalog.pg_class \
         WHERE NOT pg_has_role(relowner, 'USAGE') AND oid = ANY ({})",
        sql::oid_array(&oids)
    );
    let rows = sql::rows(client, "read the owners of tables", &text).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// `pg_dump` locks every table whose definition it writes; what is not chosen is left out only afterwards.
fn unreadable_for_dump(catalog: &Catalog, chosen: &[TablePlan]) -> Vec<Finding> {
    let chosen: HashSet<Oid> = chosen.iter().map(|plan| plan.relation.oid).collect();
    let is_dumped = |relation: &&Relation| {
        let is_table =
            matches!(relation.kind, RelationKind::Table | RelationKind::PartitionedTable);
        is_table && relation.extension.is_none() && !is_ours(&relation.name.schema)
    };
    let others = catalog.relations.iter().filter(is_dumped);
    let unreadable =
        others.filter(|relation| !chosen.contains(&relation.oid) && !relation.can_select);
    let finding = |relation: &Relation| {
        let object = relation.name.to_string();
        let fix = format!(
            "GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT ON {object} TO {role}; or target.schema = \"exists\"",
            Ident(&relation.name.schema),
            role = grantee(&catalog.server)
        );
        let message = "pg_dump reads the schema of the whole database, and the role may not read this table, although it is not chosen";
        Finding::new(Severity::Blocking, "dump-right", object, message).with_fix(fix)
    };
    unreadable.map(finding).collect()
}

/// Schemas of ours, which are not dumped.
fn is_ours(schema: &str) -> bool {
    schema == "tidemark" || schema.starts_with(names::SELFTEST_SCHEMAS)
}

fn no_select(catalog: &Catalog, relation: &Relation) -> Finding {
    let object = relation.name.to_string();
    let fix = format!("GRANT SELECT ON {object} TO {}", grantee(&catalog.server));
    Finding::new(Severity::Blocking, "select-right", object, "the role may not read the table")
        .with_fix(fix)
}

fn not_owned(catalog: &Catalog, relation: &Relation, owner: &str) -> Finding {
    let message = "the role does not own the table and cannot put it into a publication";
    Finding::new(Severity::Blocking, "owner", relation.name.to_string(), message).with_fix(format!(
        "GRANT {} TO {}; or let a DBA make the publication (source.publication)",
        Ident(owner),
        grantee(&catalog.server)
    ))
}

fn row_security(catalog: &Catalog, relation: &Relation) -> Option<Finding> {
    if !relation.row_security_applies {
        return None;
    }
    let message = "row security applies to the role: rows would be hidden from the copy";
    Some(
        Finding::new(Severity::Blocking, "row-security", relation.name.to_string(), message)
            .with_fix(format!("ALTER ROLE {} BYPASSRLS", grantee(&catalog.server))),
    )
}

/// A stream leaves out the same rows as the copy only where the publication can.
async fn row_filter(
    client: &Client,
    catalog: &Catalog,
    plan: &TablePlan,
    needs: Needs,
) -> Result<Option<Finding>> {
    let relation = &plan.relation;
    let is_streamed = needs.replication && relation.persistence == Persistence::Permanent;
    let Some(filter) = plan.filter.as_ref().filter(|_| is_streamed) else { return Ok(None) };
    let finding = |message: String| {
        let way_out = filter_way_out(client, relation);
        Finding::new(Severity::Blocking, "row-filter", relation.name.to_string(), message)
            .with_fix(way_out)
    };
    match refused_filter(client, relation, filter).await {
        Ok(None) => {}
        Ok(Some(why)) => return Ok(Some(finding(why))),
        Err(error) if error.has_state(&["42501"]) => {
            let message = "what its row filter uses is asked of a temporary view, which the role may not make";
            let object = relation.name.to_string();
            let fix = format!(
                "GRANT TEMPORARY ON DATABASE {} TO {}",
                Ident(&catalog.server.database),
                grantee(&catalog.server)
            );
            let finding = Finding::new(Severity::Blocking, "temporary-right", object, message);
            return Ok(Some(finding.with_fix(fix)));
        }
        // A standby, which is a finding of its own.
        Err(error) if error.has_state(&["25006"]) => return Ok(None),
        Err(error) => return Err(error),
    }
    if needs.given_publication {
        return Ok(None);
    }
    match try_to_publish(client, &relation.name, filter).await {
        Ok(()) => Ok(None),
        // A right is missing, or this is a standby, which are findings of their own.
        Err(error) if error.has_state(&["42501", "25006"]) => Ok(None),
        Err(error) if error.sqlstate().is_some_and(|state| state.starts_with("55")) => Err(error),
        Err(error) if error.sqlstate().is_none() => Err(error),
        Err(error) => Ok(Some(finding(format!("its row filter cannot be published: {error}")))),
    }
}

/// What an UPDATE or DELETE could carry in the stream (`hazards.md` E67, E69, E70).
fn identity(relation: &Relation, needs: Needs) -> Option<Finding> {
    let object = relation.name.to_string();
    let full = format!("ALTER TABLE {object} REPLICA IDENTITY FULL");
    let is_streamed = needs.replication && relation.persistence == Persistence::Permanent;
    if is_streamed && !has_identity(relation) {
        let message = match relation.replica_identity {
            ReplicaIdentity::Nothing => "its replica identity is NOTHING",
            _ if relation.primary_key().is_some() => "its primary key is deferrable",
            _ => "it has no primary key",
        };
        let message = format!(
            "{message}: the application's UPDATE and DELETE would fail once it is published"
        );
        let fix = format!("add a primary key, or {full}");
        return Some(
            Finding::new(Severity::Blocking, "replica-identity", object, message).with_fix(fix),
        );
    }
    if !relation.keys.is_empty() {
        return None;
    }
    if is_streamed {
        let message = "it has no key: changes are found by whole rows, which is slow";
        return Some(
            Finding::new(Severity::Warning, "no-key", object, message)
                .with_fix("add a primary key"),
        );
    }
    let message = "it has no key: it can be copied, and be verified by whole rows only";
    Some(Finding::new(Severity::Note, "no-key", object, message).with_fix("add a primary key"))
}

fn keys(relation: &Relation) -> Option<Finding> {
    let key = relation.keys.iter().find(|key| key.is_deferrable)?;
    let message = format!(
        "key {} is deferrable: it is checked by a query once the table is in",
        Ident(&key.index)
    );
    Some(Finding::new(Severity::Note, "deferrable-key", relation.name.to_string(), message))
}

fn unlogged(relation: &Relation, needs: Needs) -> Option<Finding> {
    if relation.persistence != Persistence::Unlogged {
        return None;
    }
    let object = relation.name.to_string();
    if needs.replication {
        let message = "it is unlogged: its rows are copied once, its changes are in no WAL";
        let fix = format!("ALTER TABLE {object} SET LOGGED, or exclude it");
        return Some(Finding::new(Severity::Warning, "unlogged", object, message).with_fix(fix));
    }
    Some(Finding::new(Severity::Note, "unlogged", object, "it is unlogged; its rows are copied"))
}
