//! Looks at a PostgreSQL target before anything is moved.
//!
//! **Invariant:** reads only. What would make a run fail half-way or write something else than the source holds is found
//! here: column by column, by name, whatever their order.
//!
//! **Not here:** what only both sides together can tell (`pipeline::check`).

mod rights;

use std::collections::HashMap;

use tidemark_model::sql::Ident;
use tidemark_model::{Column, Finding, Generated, RelationName, Severity, TablePlan};
use tidemark_wire::Client;

use super::begin::relations_there;
use super::session::{Sessions, may_replicate, server_error};
use super::{PostgresOptions, SchemaMode, Triggers};
use crate::{Disposition, Error, NotEmpty, Result};

/// A column as the target has it.
#[derive(Debug, Clone)]
struct TargetColumn {
    type_name: String,
    is_not_null: bool,
    has_default: bool,
    is_generated: bool,
}

type TargetTables = HashMap<RelationName, HashMap<String, TargetColumn>>;

const COLUMNS: &str = "
SELECT n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       a.atthasdef OR a.attidentity <> '', a.attgenerated <> ''
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN unnest($1::text[], $2::text[]) AS wanted(nsp, rel) ON wanted.nsp = n.nspname AND wanted.rel = c.relname
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind = 'r'";

pub(super) async fn check(
    options: &PostgresOptions,
    sessions: &Sessions,
    tables: &[TablePlan],
) -> Result<Vec<Finding>> {
    let client = sessions.plain().await?;
    let mut findings = server_findings(&client).await?;
    if let Some(finding) = rights::record(&client).await? {
        // What the record says decides on the rest.
        findings.push(finding);
        return Ok(findings);
    }
    let there = relations_there(&client).await?;
    let own_record = super::read_job_record(&options.spec, &options.job).await?;
    let create = options.schema == SchemaMode::Create && options.not_empty == NotEmpty::Refuse;
    let in_the_way = in_the_way(options, &there, tables);
    if let (true, None, Some(first)) = (create, &own_record, in_the_way.first()) {
        findings.push(
            Finding::new(
                Severity::Blocking,
                "target-not-empty",
                first.to_string(),
                format!("the target already holds {} relations", in_the_way.len()),
            )
            .with_fix("use an empty database, or target.schema = \"exists\", or sync --target-not-empty append|truncate|reconcile"),
        );
    }
    let all_there = || tables.iter().all(|plan| there.contains(&plan.relation.name));
    let exists = options.schema == SchemaMode::Exists
        || options.not_empty != NotEmpty::Refuse && own_record.is_none() && all_there();
    if exists {
        findings.extend(compare(&read_columns(&client, tables).await?, tables));
    }
    findings.extend(rights::check(&client, options, tables, exists).await?);
    let needs_replica = options.triggers == Triggers::Replica && (exists || options.follows);
    if needs_replica && !may_replicate(&client).await? {
        findings.push(replica_role_finding(&client).await?);
    }
    if options.follows {
        findings.extend(super::origin::check(&client, &options.job, options.lanes).await?);
    }
    Ok(findings)
}

/// Relations that are in the way of a schema that is to be made. What is there beside a wave's own tables may be what other
/// waves have made: that is told apart when the schema is made.
fn in_the_way<'a>(
    options: &PostgresOptions,
    there: &'a [RelationName],
    tables: &[TablePlan],
) -> Vec<&'a RelationName> {
    let is_chosen = |name: &&RelationName| tables.iter().any(|plan| plan.relation.name == **name);
    there.iter().filter(|name| options.wave.is_none() || is_chosen(name)).collect()
}

/// The role as a GRANT names it.
async fn role(client: &Client) -> Result<String> {
    let row = client
        .query_one("SELECT current_user::text", &[])
        .await
        .map_err(|cause| server_error("look at the target server", None, cause))?;
    Ok(Ident(row.get(0)).to_string())
}

async fn server_findings(client: &Client) -> Result<Vec<Finding>> {
    let row = client
        .query_one(
            "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::bool, \
             has_database_privilege(current_database(), 'CREATE'), current_user::text, current_database()::text, \
             current_setting('synchronous_standby_names'), current_setting('synchronous_commit')",
            &[],
        )
        .await
        .map_err(|cause| server_error("look at the target server", None, cause))?;
    let (user, database): (String, String) = (row.get(3), row.get(4));
    let object = format!("database {}", Ident(&database));
    let mut findings = Vec::new();
    let mut block = |code: &str, message: &str, fix: String| {
        findings
            .push(Finding::new(Severity::Blocking, code, object.clone(), message).with_fix(fix));
    };
    if client.server_version_num() < 140_000 {
        block(
            "target-version",
            "the target is older than PostgreSQL 14",
            "use PostgreSQL 14 or later as target".to_owned(),
        );
    }
    if row.get(0) {
        block(
            "target-is-standby",
            "the target is a standby: it takes no writes",
            "connect to its primary".to_owned(),
        );
    } else if row.get(1) {
        block(
            "target-read-only",
            "transactions on the target are read-only by default",
            "ALTER DATABASE or ALTER ROLE .. RESET default_transaction_read_only, behind SET default_transaction_read_only = off in the same session".to_owned(),
        );
    }
    if !row.get::<_, bool>(2) {
        block(
            "target-create",
            "the role may not create the schema tidemark on the target",
            format!("GRANT CREATE ON DATABASE {} TO {}", Ident(&database), Ident(&user)),
        );
    }
    findings.extend(synchronous(row.get(5), row.get(6)));
    Ok(findings)
}

/// Whether a commit that is to be durable has to wait for somebody else.
fn synchronous(standbys: &str, commit: &str) -> Option<Finding> {
    if standbys.is_empty() || matches!(commit, "off" | "local") {
        return None;
    }
    let setting = "synchronous_standby_names";
    let message = format!(
        "every durable commit waits for standbys ({standbys}): where one is away, the job stands still"
    );
    let finding = Finding::new(Severity::Note, "target-synchronous", setting, message);
    Some(finding.with_fix(
        "watch those standbys, or ALTER ROLE .. SET synchronous_commit = local for the job's role",
    ))
}

async fn replica_role_finding(client: &Client) -> Result<Finding> {
    let role = role(client).await?;
    let fix = if client.server_version_num() >= 150_000 {
        format!("on the target: GRANT SET ON PARAMETER session_replication_role TO {role}")
    } else {
        "use a superuser on the target, or target.triggers = \"as-is\"".to_owned()
    };
    Ok(Finding::new(
        Severity::Blocking,
        "target-triggers",
        format!("role {role}"),
        "the role may not switch triggers off, so the target's triggers would fire on every copied row",
    )
    .with_fix(fix))
}

async fn read_columns(client: &Client, tables: &[TablePlan]) -> Result<TargetTables> {
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables
        .iter()
        .map(|plan| (plan.relation.name.schema.as_str(), plan.relation.name.name.as_str()))
        .unzip();
    let rows = client
        .query(COLUMNS, &[&schemas, &names])
        .await
        .map_err(|cause| server_error("read the target's columns", None, cause))?;
    let mut there = TargetTables::new();
    for row in rows {
        let table = there
            .entry(RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)))
            .or_default();
        if let Some(name) = row.get::<_, Option<String>>(2) {
            let column = TargetColumn {
                type_name: row.get(3),
                is_not_null: row.get(4),
                has_default: row.get(5),
                is_generated: row.get(6),
            };
            table.insert(name, column);
        }
    }
    Ok(there)
}

fn compare(there: &TargetTables, tables: &[TablePlan]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for plan in tables {
        let name = &plan.relation.name;
        let Some(columns) = there.get(name) else {
            let message = "the target has no such table";
            findings.push(
                Finding::new(Severity::Blocking, "target-table-missing", name.to_string(), message)
                    .with_fix("create it, or set target.schema = \"create\""),
            );
            continue;
        };
        findings
            .extend(plan.columns.iter().filter_map(|column| compare_column(name, column, columns)));
        findings.extend(extra_columns(plan, columns));
    }
    findings
}

fn compare_column(
    table: &RelationName,
    column: &Column,
    there: &HashMap<String, TargetColumn>,
) -> Option<Finding> {
    let object = format!("{table}.{}", Ident(&column.name));
    let name = Ident(&column.name);
    let block = |code: &str, message: String, mend: String| {
        let finding = Finding::new(Severity::Blocking, code, object.clone(), message);
        Some(finding.with_fix(format!("on the target: ALTER TABLE {table} {mend}")))
    };
    let Some(target) = there.get(&column.name) else {
        let message = "the target's table lacks this column".to_owned();
        let mend = format!("ADD COLUMN {name} {}", column.type_name);
        return block("target-column-missing", message, mend);
    };
    if target.is_generated {
        let message = "the target generates this column itself".to_owned();
        let mend = format!("ALTER COLUMN {name} DROP EXPRESSION");
        return (column.generated == Generated::No)
            .then(|| block("target-column-generated", message, mend))
            .flatten();
    }
    if target.type_name != column.type_name {
        let message =
            format!("the source has type {}, the target {}", column.type_name, target.type_name);
        let mend = format!("ALTER COLUMN {name} TYPE {}", column.type_name);
        return block("target-column-type", message, mend);
    }
    if target.is_not_null && column.is_nullable {
        let message = "the source allows NULL, the target does not".to_owned();
        let mend = format!("ALTER COLUMN {name} DROP NOT NULL");
        return block("target-column-not-null", message, mend);
    }
    None
}

fn extra_columns(plan: &TablePlan, there: &HashMap<String, TargetColumn>) -> Vec<Finding> {
    let is_extra = |name: &str| !plan.columns.iter().any(|column| column.name == name);
    let extra = there.iter().filter(|(name, _)| is_extra(name));
    let finding = |(name, column): (&String, &TargetColumn)| {
        let refuses = column.is_not_null && !column.has_default && !column.is_generated;
        let (severity, message) = match refuses {
            true => (
                Severity::Blocking,
                "the target's column is not moved, NOT NULL and without a default",
            ),
            false => (Severity::Note, "the target's column is not moved and gets its default"),
        };
        (!column.is_generated).then(|| {
            let (table, name) = (&plan.relation.name, Ident(name));
            let found =
                Finding::new(severity, "target-column-extra", format!("{table}.{name}"), message);
            match severity {
                Severity::Blocking => found.with_fix(format!(
                    "on the target: ALTER TABLE {table} ALTER COLUMN {name} DROP NOT NULL"
                )),
                _ => found,
            }
        })
    };
    extra.filter_map(finding).collect()
}

/// The comparison of `check` once more, for a run that was started without it.
pub(super) async fn matching_or_refuse(client: &Client, tables: &[TablePlan]) -> Result<()> {
    let findings = compare(&read_columns(client, tables).await?, tables);
    let Some(first) = findings.iter().find(|finding| finding.severity == Severity::Blocking) else {
        return Ok(());
    };
    Err(Error::new(
        Disposition::Usage,
        format!("load into the target's tables: {}: {}", first.object, first.message),
    )
    .hint("tidemark check lists all differences; mend them on the target"))
}

const DEFERRABLE_KEYS: &str = "
SELECT k.conname, string_agg(format('%I', a.attname), ', ' ORDER BY u.ord),
  string_agg(format('%I IS NOT NULL', a.attname), ' AND ' ORDER BY u.ord)
FROM pg_constraint k
CROSS JOIN LATERAL unnest(k.conkey) WITH ORDINALITY AS u(attnum, ord)
JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum
WHERE k.conrelid = to_regclass($1) AND k.contype IN ('p', 'u') AND k.condeferrable
GROUP BY k.oid, k.conname";

const FOREIGN_KEYS: &str = "
SELECT k.conname, k.confrelid::regclass::text,
  string_agg(format('s.%I = t.%I', a.attname, b.attname), ' AND ' ORDER BY u.ord),
  string_agg(format('s.%I IS NOT NULL', a.attname), ' AND ' ORDER BY u.ord)
FROM pg_constraint k
CROSS JOIN LATERAL unnest(k.conkey, k.confkey) WITH ORDINALITY AS u(col, refcol, ord)
JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.col
JOIN pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = u.refcol
WHERE k.conrelid = to_regclass($1) AND k.contype = 'f'
GROUP BY k.oid, k.conname, k.confrelid";

/// What `session_replication_role = replica` does not enforce in tables that have their keys already: deferrable unique
/// keys and foreign keys, each checked by one query.
pub(super) async fn keys_hold(client: &Client, tables: &[TablePlan]) -> Result<()> {
    keys_are_unique(client, tables).await?;
    for plan in tables {
        let name = &plan.relation.name;
        let qualified = name.to_string();
        for row in client.query(FOREIGN_KEYS, &[&qualified]).await.map_err(unasked(name))? {
            let (key, target): (String, String) = (row.get(0), row.get(1));
            let (on, not_null): (String, String) = (row.get(2), row.get(3));
            let query = format!(
                "SELECT EXISTS (SELECT FROM ONLY {name} s WHERE {not_null} AND NOT EXISTS (SELECT FROM {target} t WHERE {on}))"
            );
            refuse_if(client, &query, name, &key, "is violated").await?;
        }
    }
    Ok(())
}

/// The part of [`keys_hold`] that looks at each table by itself.
pub(super) async fn keys_are_unique(client: &Client, tables: &[TablePlan]) -> Result<()> {
    for plan in tables {
        let name = &plan.relation.name;
        let qualified = name.to_string();
        for row in client.query(DEFERRABLE_KEYS, &[&qualified]).await.map_err(unasked(name))? {
            let (key, columns, not_null): (String, String, String) =
                (row.get(0), row.get(1), row.get(2));
            let query = format!(
                "SELECT EXISTS (SELECT FROM ONLY {name} WHERE {not_null} GROUP BY {columns} HAVING count(*) > 1)"
            );
            refuse_if(client, &query, name, &key, "has duplicates").await?;
        }
    }
    Ok(())
}

fn unasked(table: &RelationName) -> impl Fn(tidemark_wire::tokio_postgres::Error) -> Error {
    move |cause| {
        server_error("check the keys that were not enforced while loading", Some(table), cause)
    }
}

async fn refuse_if(
    client: &Client,
    query: &str,
    table: &RelationName,
    key: &str,
    what: &str,
) -> Result<()> {
    let row = client.query_one(query, &[]).await.map_err(unasked(table))?;
    if !row.get::<_, bool>(0) {
        return Ok(());
    }
    let key = Ident(key);
    Err(Error::new(
        Disposition::Refused,
        format!("finish the snapshot: the target's constraint {key} {what}"),
    )
    .on(table)
    .hint("the rows are in; mend or drop the constraint on the target"))
}
