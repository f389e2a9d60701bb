//! Rights on what the target has already, one by one, each with its GRANT (`hazards.md` S4, G125).
//!
//! **Invariant:** asks for no right that the job does not use.

use tidemark_model::sql::Ident;
use tidemark_model::{Finding, RelationName, Severity, TablePlan};
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres::Row;

use super::super::PostgresOptions;
use super::super::session::server_error;
use crate::{NotEmpty, Result};

const SCHEMAS: &str = "
SELECT n.nspname::text, has_schema_privilege(n.oid, 'USAGE'), has_schema_privilege(n.oid, 'CREATE')
FROM pg_namespace n WHERE n.nspname = ANY ($1) ORDER BY 1";

const TABLES: &str = "
SELECT n.nspname::text, c.relname::text,
  ARRAY(SELECT w FROM unnest($3::text[]) AS w WHERE NOT has_table_privilege(c.oid, w)),
  pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner)::text
FROM unnest($1::text[], $2::text[]) AS wanted(nsp, rel)
JOIN pg_namespace n ON n.nspname = wanted.nsp
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.rel AND c.relkind IN ('r', 'p')
ORDER BY 1, 2";

const RECORD: &str = "
SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace
WHERE nspname = 'tidemark' AND NOT pg_has_role(nspowner, 'USAGE')";

/// Whether tables of these names are there already, or are made.
pub(super) async fn check(
    client: &Client,
    options: &PostgresOptions,
    tables: &[TablePlan],
    exists: bool,
) -> Result<Vec<Finding>> {
    let role = super::role(client).await?;
    let mut findings = Vec::new();
    if options.follows {
        findings.extend(temporary(client, &role).await?);
    }
    findings.extend(schemas(client, &role, tables, !exists).await?);
    if exists {
        findings.extend(rows(client, &role, options, tables).await?);
    }
    Ok(findings)
}

/// The job's record is kept in a schema that the role has to own.
pub(super) async fn record(client: &Client) -> Result<Option<Finding>> {
    let role = super::role(client).await?;
    let row = client
        .query_opt(RECORD, &[])
        .await
        .map_err(|cause| server_error("look who owns the schema tidemark", None, cause))?;
    Ok(row.map(|row| {
        let owner = Ident(row.get(0)).to_string();
        let message = format!("it belongs to {owner}, and the job's record is kept there");
        Finding::new(Severity::Blocking, "target-record-right", "schema \"tidemark\"", message)
            .with_fix(format!("GRANT {owner} TO {role}"))
    }))
}

/// Keys that are read again for a half-copied table are gathered in a temporary table.
async fn temporary(client: &Client, role: &str) -> Result<Option<Finding>> {
    let may =
        "SELECT has_database_privilege(current_database(), 'TEMPORARY'), current_database()::text";
    let row = client.query_one(may, &[]).await;
    let row = row.map_err(|cause| {
        server_error("ask for the right to temporary tables on the target", None, cause)
    })?;
    let (may, database): (bool, String) = (row.get(0), row.get(1));
    let database = Ident(&database).to_string();
    let message = "the role may not make temporary tables: a large table that is half copied when a first snapshot dies could not go on";
    Ok((!may).then(|| {
        let fix = format!("on the target: GRANT TEMPORARY ON DATABASE {database} TO {role}");
        Finding::new(
            Severity::Warning,
            "target-temporary-right",
            format!("database {database}"),
            message,
        )
        .with_fix(fix)
    }))
}

async fn schemas(
    client: &Client,
    role: &str,
    tables: &[TablePlan],
    makes_tables: bool,
) -> Result<Vec<Finding>> {
    let mut names: Vec<&str> =
        tables.iter().map(|plan| plan.relation.name.schema.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let found = client
        .query(SCHEMAS, &[&names])
        .await
        .map_err(|cause| server_error("ask for rights on the target's schemas", None, cause))?;
    let finding = |row: &Row| {
        let (may_use, may_create): (bool, bool) = (row.get(1), row.get(2));
        let missing = match (may_use, may_create || !makes_tables) {
            (true, true) => return None,
            (false, true) => "USAGE",
            (true, false) => "CREATE",
            (false, false) => "USAGE, CREATE",
        };
        let name = Ident(row.get(0)).to_string();
        let message = format!("the role lacks {missing} on the target's schema");
        let fix = format!("on the target: GRANT {missing} ON SCHEMA {name} TO {role}");
        Some(Finding::new(Severity::Blocking, "target-schema-right", name, message).with_fix(fix))
    };
    Ok(found.iter().filter_map(finding).collect())
}

/// What is done to rows: read when keys are checked, written by COPY, and anything while the source is followed.
fn wanted(options: &PostgresOptions) -> Vec<&'static str> {
    let mut wanted = vec!["SELECT", "INSERT"];
    if options.follows {
        wanted.extend(["UPDATE", "DELETE", "TRUNCATE"]);
    } else if options.not_empty == NotEmpty::Truncate {
        wanted.push("TRUNCATE");
    }
    wanted
}

async fn rows(
    client: &Client,
    role: &str,
    options: &PostgresOptions,
    tables: &[TablePlan],
) -> Result<Vec<Finding>> {
    let names = tables.iter().map(|plan| &plan.relation.name);
    let (schemas, relations): (Vec<&str>, Vec<&str>) =
        names.map(|name| (name.schema.as_str(), name.name.as_str())).unzip();
    let found = client
        .query(TABLES, &[&schemas, &relations, &wanted(options)])
        .await
        .map_err(|cause| server_error("ask for rights on the target's tables", None, cause))?;
    let of_table = |row: &Row| {
        let table = RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        let missing: Vec<String> = row.get(2);
        let right = missing_right(&table, &missing.join(", "), role);
        let is_owner: bool = row.get(3);
        let owner = (!is_owner).then(|| not_owned(&table, row.get(4), role));
        [right, owner].into_iter().flatten().collect::<Vec<_>>()
    };
    Ok(found.iter().flat_map(of_table).collect())
}

fn missing_right(table: &RelationName, missing: &str, role: &str) -> Option<Finding> {
    let message = format!("the role lacks {missing} on the target's table");
    (!missing.is_empty()).then(|| {
        Finding::new(Severity::Blocking, "target-table-right", table.to_string(), message)
            .with_fix(format!("on the target: GRANT {missing} ON {table} TO {role}"))
    })
}

fn not_owned(table: &RelationName, owner: &str, role: &str) -> Finding {
    let message = "the role does not own it: it is not analyzed after the copy, and columns that the source adds are not carried over";
    Finding::new(Severity::Note, "target-owner", table.to_string(), message).with_fix(format!(
        "on the target: GRANT {} TO {role}; or ANALYZE it after the copy",
        Ident(owner)
    ))
}
