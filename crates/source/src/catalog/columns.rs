//! Columns of all relations.
//!
//! **Invariant:** in attribute order, without the dropped ones; `attnum` counts them, so that it can be compared with what
//! another snapshot of the same catalog shows.
//!
//! PostgreSQL manual, section 53.7 (`pg_attribute`).

use std::collections::HashMap;

use tidemark_model::{Column, Generated, Identity, Oid};
use tidemark_wire::Client;

use super::types::Types;
use crate::{Result, sql};

/// Columns by relation. `condition` restricts `c` (`pg_class`) and `n` (`pg_namespace`).
pub(super) async fn read(
    client: &Client,
    types: &Types,
    version_num: u32,
    condition: &str,
) -> Result<HashMap<Oid, Vec<Column>>> {
    // From 18 a NOT NULL may be NOT VALID: the column can hold NULLs all the same.
    let not_null = if version_num >= 180_000 {
        "a.attnotnull AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conrelid = a.attrelid \
           AND k.contype = 'n' AND NOT k.convalidated AND a.attnum = ANY (k.conkey))"
    } else {
        "a.attnotnull"
    };
    let text = format!(
        "SELECT a.attrelid, a.attnum, a.attname::text, a.atttypid, a.atttypmod, \
           format_type(a.atttypid, a.atttypmod), NOT ({not_null}), a.attgenerated::text, a.attidentity::text, \
           a.atthasdef, cn.nspname::text || '.' || co.collname::text \
         FROM pg_catalog.pg_attribute a \
         JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation \
         LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace \
         WHERE a.attnum > 0 AND NOT a.attisdropped AND {condition} \
         ORDER BY a.attrelid, a.attnum"
    );
    let rows = sql::rows(client, "read the columns", &text).await?;
    let mut columns: HashMap<Oid, Vec<Column>> = HashMap::new();
    let mut known = HashMap::new();
    for row in &rows {
        let type_oid: Oid = row.get(3);
        let data_type = known.entry(type_oid).or_insert_with(|| types.resolve(type_oid)).clone();
        let generated = match row.get::<_, String>(7).as_str() {
            "s" => Generated::Stored,
            "v" => Generated::Virtual,
            _ => Generated::No,
        };
        let identity = match row.get::<_, String>(8).as_str() {
            "a" => Identity::Always,
            "d" => Identity::ByDefault,
            _ => Identity::No,
        };
        columns.entry(row.get(0)).or_default().push(Column {
            attnum: row.get(1),
            name: row.get(2),
            data_type,
            typmod: row.get(4),
            type_name: row.get(5),
            is_nullable: row.get(6),
            generated,
            identity,
            has_default: row.get::<_, bool>(9) && generated == Generated::No,
            key_position: None,
            collation: row.get(10),
        });
    }
    Ok(columns)
}
