//! Sequences and their values.
//!
//! **Invariant:** values are read without a snapshot (sequences have none): what is read after the tables' snapshot was taken
//! is never behind the values that its rows hold.
//!
//! PostgreSQL manual, section 53.47 (`pg_sequence`), and `CREATE SEQUENCE`, "Notes".

use tidemark_model::sql::Literal;
use tidemark_model::{Oid, RelationName};
use tidemark_wire::Client;

use super::relations::USER_SCHEMA;
use crate::{Result, sql};

/// Sequences per statement: one statement for each would be a round trip per serial column.
const PER_STATEMENT: usize = 500;

/// One sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its qualified name.
    pub name: RelationName,
    /// `last_value`; 0 without the right to read it.
    pub last_value: i64,
    /// Whether `last_value` was given out.
    pub is_called: bool,
    /// Table and column that own it (serial, identity).
    pub owned_by: Option<(RelationName, String)>,
    /// Whether the role may read its value.
    pub can_select: bool,
}

/// Reads all sequences of user schemas with their values as they are now.
///
/// A sequence that is dropped meanwhile is left out; because its statement fails first, `client` must not be in a
/// transaction.
///
/// # Errors
/// The connection failed.
pub async fn read_sequences(client: &Client) -> Result<Vec<Sequence>> {
    let mut found = list(client).await?;
    let readable: Vec<(Oid, String)> = found
        .iter()
        .filter(|(_, sequence)| sequence.can_select)
        .map(|(oid, sequence)| (*oid, sequence.name.to_string()))
        .collect();
    let mut values = std::collections::HashMap::new();
    for part in readable.chunks(PER_STATEMENT) {
        match read_values(client, part).await {
            Ok(some) => values.extend(some),
            Err(error) if error.has_state(&["42P01", "42501", "3F000"]) => {
                for one in part.chunks(1) {
                    match read_values(client, one).await {
                        Ok(some) => values.extend(some),
                        Err(error) if error.has_state(&["42P01", "42501", "3F000"]) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    found.retain(|(oid, sequence)| !sequence.can_select || values.contains_key(oid));
    for (oid, sequence) in &mut found {
        if let Some((last_value, is_called)) = values.get(oid) {
            (sequence.last_value, sequence.is_called) = (*last_value, *is_called);
        }
    }
    Ok(found.into_iter().map(|(_, sequence)| sequence).collect())
}

async fn list(client: &Client) -> Result<Vec<(Oid, Sequence)>> {
    let text = format!(
        "SELECT c.oid, n.nspname::text, c.relname::text, \
           has_schema_privilege(n.oid, 'USAGE') AND has_sequence_privilege(c.oid, 'SELECT'), \
           tn.nspname::text, t.relname::text, a.attname::text \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid \
           AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0 \
         LEFT JOIN pg_catalog.pg_class t ON t.oid = d.refobjid \
         LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace \
         LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
         WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND {USER_SCHEMA} ORDER BY n.nspname, c.relname"
    );
    let rows = sql::rows(client, "list the sequences", &text).await?;
    let sequences = rows.iter().map(|row| {
        let owner: (Option<String>, Option<String>, Option<String>) =
            (row.get(4), row.get(5), row.get(6));
        let owned_by = match owner {
            (Some(schema), Some(table), Some(column)) => {
                Some((RelationName::new(schema, table), column))
            }
            _ => None,
        };
        let sequence = Sequence {
            name: RelationName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            last_value: 0,
            is_called: false,
            owned_by,
            can_select: row.get::<_, Option<bool>>(3).unwrap_or(false),
        };
        (row.get(0), sequence)
    });
    Ok(sequences.collect())
}

async fn read_values(client: &Client, some: &[(Oid, String)]) -> Result<Vec<(Oid, (i64, bool))>> {
    let parts: Vec<String> = some
        .iter()
        .map(|(oid, name)| {
            format!("SELECT {}::oid, last_value, is_called FROM {name}", Literal(&oid.to_string()))
        })
        .collect();
    let rows =
        sql::rows(client, "read the values of sequences", &parts.join(" UNION ALL ")).await?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}
