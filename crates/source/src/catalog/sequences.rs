//! Sequences and their values.
//!
//! **Invariant:** values are read without a snapshot (sequences have none): what is read after the tables' snapshot was taken
//! is never behind the values that its rows hold.
//!
//! PostgreSQL manual, section 53.47 (`pg_sequence`), and `CREATE SEQUENCE`, "Notes".

use std::collections::HashMap;

use tidemark_model::sql::Literal;
use tidemark_model::{Oid, RelationName};
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres::Row;

use super::relations::USER_SCHEMA;
use crate::{Result, sql};

/// Sequences per statement: one statement for each would be a round trip per serial column.
const PER_STATEMENT: usize = 500;
/// What says that an object is gone, is not for us, or is locked.
const UNREADABLE: [&str; 4] = ["42P01", "42501", "3F000", "55P03"];

/// One sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its qualified name.
    pub name: RelationName,
    /// `last_value`; 0 without the right to read it.
    pub last_value: i64,
    /// Whether `last_value` was given out.
    pub is_called: bool,
    /// What is added for the next value; negative where it descends.
    pub increment: i64,
    /// The values that it may give out.
    pub bounds: (i64, i64),
    /// Whether it begins again at the end.
    pub cycles: bool,
    /// Table and column that own it (serial, identity).
    pub owned_by: Option<(RelationName, String)>,
    /// Whether the role may read its value.
    pub can_select: bool,
}

impl Sequence {
    /// The value that it hands out next, if it does not reach its end before.
    pub fn next(&self) -> i128 {
        let step = if self.is_called { i128::from(self.increment) } else { 0 };
        i128::from(self.last_value) + step
    }

    /// Whether it is past a value, and will not hand it out.
    pub fn has_handed_out(&self, value: i128) -> bool {
        if self.increment < 0 { value > self.next() } else { value < self.next() }
    }
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
    let readable = found.iter().filter(|(_, sequence)| sequence.can_select);
    let statements: Vec<String> = readable
        .map(|(oid, sequence)| {
            let oid = Literal(&oid.to_string()).to_string();
            format!("SELECT {oid}::oid, last_value, is_called FROM {}", sequence.name)
        })
        .collect();
    let value = |row: &Row| (row.get(0), (row.get(1), row.get(2)));
    let values: HashMap<Oid, (i64, bool)> =
        read_each(client, "read the values of sequences", &statements, value)
            .await?
            .into_iter()
            .collect();
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
           tn.nspname::text, t.relname::text, a.attname::text, q.seqincrement, q.seqmin, q.seqmax, q.seqcycle \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_catalog.pg_sequence q ON q.seqrelid = c.oid \
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
            increment: row.get(7),
            bounds: (row.get(8), row.get(9)),
            cycles: row.get(10),
            owned_by,
            can_select: row.get::<_, Option<bool>>(3).unwrap_or(false),
        };
        (row.get(0), sequence)
    });
    Ok(sequences.collect())
}

/// The farthest value, in the direction of its sequence, of the columns of these tables that own one, by the sequence's
/// name. Only of columns that an index leads to, so that no table is read.
///
/// A table that is dropped meanwhile, or locked for longer than the session's `lock_timeout`, is left out; `client` must not
/// be in a transaction.
///
/// # Errors
/// The connection failed.
pub async fn read_owned_ends(
    client: &Client,
    tables: &[Oid],
) -> Result<HashMap<RelationName, i64>> {
    let text = format!(
        "SELECT sn.nspname::text, s.relname::text, format('%s(%I)::int8 FROM %I.%I', \
           CASE WHEN q.seqincrement < 0 THEN 'min' ELSE 'max' END, a.attname, tn.nspname, t.relname) \
         FROM pg_catalog.pg_sequence q JOIN pg_catalog.pg_class s ON s.oid = q.seqrelid \
         JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace \
         JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = s.oid \
           AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0 \
         JOIN pg_catalog.pg_class t ON t.oid = d.refobjid \
         JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
         WHERE t.oid = ANY ({}) AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) \
           AND has_schema_privilege(tn.oid, 'USAGE') AND has_column_privilege(t.oid, a.attnum, 'SELECT') \
           AND NOT row_security_active(t.oid) \
           AND EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid \
             JOIN pg_catalog.pg_am m ON m.oid = ic.relam WHERE i.indrelid = t.oid AND i.indkey[0] = a.attnum \
             AND i.indisvalid AND i.indpred IS NULL AND m.amname = 'btree')",
        sql::oid_array(tables)
    );
    let rows = sql::rows(client, "list the columns that own a sequence", &text).await?;
    let name = |row: &Row| RelationName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    let statement = |(number, row): (usize, &Row)| {
        format!("SELECT {number}::int8, {}", row.get::<_, String>(2))
    };
    let statements: Vec<String> = rows.iter().enumerate().map(statement).collect();
    let end = |row: &Row| (row.get::<_, i64>(0), row.get::<_, Option<i64>>(1));
    let ends =
        read_each(client, "read the ends of columns that own a sequence", &statements, end).await?;
    let known = ends.into_iter().filter_map(|(number, end)| {
        let row = usize::try_from(number).ok().and_then(|number| rows.get(number))?;
        Some((name(row), end?))
    });
    Ok(known.collect())
}

/// What these statements give, so many in one. Where one of them fails because its object is gone, locked or not for us,
/// they are asked one by one, and it is left out.
async fn read_each<T>(
    client: &Client,
    attempt: &str,
    statements: &[String],
    of: impl Fn(&Row) -> T,
) -> Result<Vec<T>> {
    let mut found = Vec::new();
    for part in statements.chunks(PER_STATEMENT) {
        match sql::rows(client, attempt, &part.join(" UNION ALL ")).await {
            Ok(rows) => found.extend(rows.iter().map(&of)),
            Err(error) if error.has_state(&UNREADABLE) => {
                for one in part {
                    match sql::rows(client, attempt, one).await {
                        Ok(rows) => found.extend(rows.iter().map(&of)),
                        Err(error) if error.has_state(&UNREADABLE) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
