//! Whether those who write on the side that is left may write on the other one: no copy brings rights over for sure.

use std::collections::HashMap;

use tidemark_model::sql::Ident;
use tidemark_pipeline::Result;
use tidemark_wire::{Client, ConnectSpec};

use crate::fence::failed;

/// Tables that are named of a role; the others are counted.
const NAMED: usize = 3;

/// By role and table the rights of INSERT, UPDATE and DELETE, as bits. Superusers may do everything.
const WRITERS: &str = "SELECT r.rolname, c.oid::regclass::text, \
      pg_catalog.has_table_privilege(r.oid, c.oid, 'INSERT')::int + 2 * pg_catalog.has_table_privilege(r.oid, c.oid, 'UPDATE')::int \
        + 4 * pg_catalog.has_table_privilege(r.oid, c.oid, 'DELETE')::int \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace CROSS JOIN pg_catalog.pg_roles r \
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't' \
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tidemark') \
      AND r.rolcanlogin AND NOT r.rolsuper AND r.rolname <> current_user \
      AND pg_catalog.has_database_privilege(r.oid, pg_catalog.current_database(), 'CONNECT') \
      AND pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE') \
      AND ($1::text[] IS NULL OR c.oid = ANY ($1::text[]::regclass[]::oid[])) \
      AND pg_catalog.has_table_privilege(r.oid, c.oid, 'INSERT, UPDATE, DELETE')";

/// Roles that may write here and not, or not as much, there: a sentence for each. Without `of_tables` of all tables.
pub(crate) async fn missing(
    from: &ConnectSpec,
    to: &ConnectSpec,
    of_tables: Option<&[String]>,
) -> Result<Vec<String>> {
    let (from, to) = tokio::try_join!(from.connect(), to.connect())?;
    let there: HashMap<(String, String), i32> =
        writers(&to, of_tables).await?.into_iter().collect();
    let mut lacks: Vec<(String, Vec<String>)> = Vec::new();
    for ((role, table), rights) in writers(&from, of_tables).await? {
        let allowed = there.get(&(role.clone(), table.clone())).copied().unwrap_or_default();
        if rights & !allowed == 0 {
            continue;
        }
        match lacks.last_mut().filter(|(last, _)| *last == role) {
            Some((_, tables)) => tables.push(table),
            None => lacks.push((role, vec![table])),
        }
    }
    Ok(lacks.into_iter().map(|(role, tables)| sentence(&role, &tables)).collect())
}

type Right = ((String, String), i32);

/// In the order of roles and tables.
async fn writers(client: &Client, of_tables: Option<&[String]>) -> Result<Vec<Right>> {
    let rows = client.query(&format!("{WRITERS} ORDER BY 1, 2"), &[&of_tables]).await;
    let rows = rows.map_err(failed("look who may write"))?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
}

fn sentence(role: &str, tables: &[String]) -> String {
    let named = tables.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let more = match tables.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("role {} may write to {named}{more}, and there it may not as much", Ident(role))
}
