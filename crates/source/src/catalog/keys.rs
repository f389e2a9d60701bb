//! Indexes, and the unique keys among them that can identify a row.
//!
//! **Invariant:** a key is a valid unique index over plain NOT NULL columns, neither partial nor over expressions nor an
//! exclusion constraint (a primary key WITHOUT OVERLAPS): two rows never share it.
//!
//! PostgreSQL manual, section 53.26 (`pg_index`).

use std::collections::HashMap;

use tidemark_model::{Column, Index, Key, Oid};
use tidemark_wire::Client;

use crate::{Result, sql};

/// One row of `pg_index`.
pub(super) struct RawIndex {
    index: Index,
    is_primary: bool,
    is_replica_identity: bool,
    can_identify: bool,
    is_deferrable: bool,
    attnums: Vec<i16>,
}

/// Indexes by relation. `condition` restricts `c` (`pg_class` of the table) and `n` (`pg_namespace`).
pub(super) async fn read(client: &Client, condition: &str) -> Result<HashMap<Oid, Vec<RawIndex>>> {
    let text = format!(
        "SELECT i.indrelid, ic.relname::text, pg_get_indexdef(i.indexrelid), i.indisunique, i.indisprimary, \
           i.indisreplident, i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
             AND NOT i.indisexclusion, coalesce(con.condeferrable, NOT i.indimmediate), \
           (i.indkey::int2[])[0:i.indnkeyatts - 1], con.conname::text \
         FROM pg_catalog.pg_index i \
         JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid \
         JOIN pg_catalog.pg_class c ON c.oid = i.indrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_catalog.pg_constraint con ON con.conindid = i.indexrelid \
           AND con.conrelid = i.indrelid AND con.contype IN ('p', 'u', 'x') \
         WHERE {condition} ORDER BY i.indrelid, i.indisprimary DESC, ic.relname"
    );
    let rows = sql::rows(client, "read the indexes", &text).await?;
    let mut indexes: HashMap<Oid, Vec<RawIndex>> = HashMap::new();
    for row in &rows {
        let raw = RawIndex {
            index: Index {
                name: row.get(1),
                definition: row.get::<_, Option<String>>(2).unwrap_or_default(),
                is_unique: row.get(3),
                constraint: row.get(9),
            },
            is_primary: row.get(4),
            is_replica_identity: row.get(5),
            can_identify: row.get(6),
            is_deferrable: row.get(7),
            attnums: row.get(8),
        };
        indexes.entry(row.get(0)).or_default().push(raw);
    }
    Ok(indexes)
}

/// The keys among the indexes, the primary key first.
pub(super) fn keys(indexes: &[RawIndex], columns: &[Column]) -> Vec<Key> {
    indexes.iter().filter(|raw| raw.can_identify).filter_map(|raw| key(raw, columns)).collect()
}

fn key(raw: &RawIndex, columns: &[Column]) -> Option<Key> {
    let names = raw.attnums.iter().map(|attnum| {
        let column = columns.iter().find(|column| column.attnum == *attnum)?;
        (!column.is_nullable).then(|| column.name.clone())
    });
    Some(Key {
        index: raw.index.name.clone(),
        columns: names.collect::<Option<Vec<_>>>()?,
        is_primary: raw.is_primary,
        is_deferrable: raw.is_deferrable,
    })
}

/// The index that is marked as replica identity.
pub(super) fn replica_identity_index(indexes: &[RawIndex]) -> Option<&str> {
    indexes.iter().find(|raw| raw.is_replica_identity).map(|raw| raw.index.name.as_str())
}

/// The indexes as the model has them.
pub(super) fn plain(indexes: Vec<RawIndex>) -> Vec<Index> {
    indexes.into_iter().map(|raw| raw.index).collect()
}
