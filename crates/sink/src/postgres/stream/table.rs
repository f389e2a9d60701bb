//! What the target's catalog says of the tables that are followed, and how a row of the stream fits into one.
//!
//! **Invariant:** the key by which rows are found is the target's own: its primary key, or another unique index whose columns
//! can be no NULL, provided that the source's old rows hold all of its columns (`is_identity` of the Relation message).
//! Rows are compared by the operator and the collation of that very index (`hazards.md` E74, D122).
//!
//! Types of the target are named with their schema, because the session's `search_path` is empty.
//!
//! PostgreSQL manual: `pg_attribute`, `pg_index`, `pg_amop`; "Logical Replication Message Formats".

use std::collections::HashMap;
use std::sync::Arc;

use tidemark_model::{Generated, Oid, RelationName, StreamRelation, TablePlan, sql::Ident};
use tidemark_wire::Client;

use super::super::session::server_error;
use crate::{Disposition, Error, Result};

const COLUMNS: &str = "
SELECT n.nspname::text, c.relname::text, c.oid, c.relkind = 'p', a.attname::text, a.attgenerated <> '', a.attidentity = 'a',
       t.oid, tn.nspname::text, t.typname::text, c.reltype, an.nspname::text, at.typname::text, a.attnotnull, rn.nspname::text, ra.typname::text
FROM unnest($1::text[], $2::text[]) AS want(schema_name, relation_name)
JOIN pg_namespace n ON n.nspname = want.schema_name
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = want.relation_name AND c.relkind IN ('r', 'p')
JOIN pg_type rt ON rt.oid = c.reltype JOIN pg_type ra ON ra.oid = rt.typarray JOIN pg_namespace rn ON rn.oid = ra.typnamespace
LEFT JOIN (pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace tn ON tn.oid = t.typnamespace
           LEFT JOIN pg_type at ON at.oid = t.typarray LEFT JOIN pg_namespace an ON an.oid = at.typnamespace)
  ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY 1, 2, a.attnum";

const KEYS: &str = "
SELECT i.indrelid, i.indexrelid, i.indimmediate, a.attname::text, opn.nspname::text, op.oprname::text, con.nspname::text, co.collname::text
FROM pg_index i
JOIN pg_class ic ON ic.oid = i.indexrelid
JOIN pg_am am ON am.oid = ic.relam AND am.amname = 'btree'
CROSS JOIN generate_series(0, i.indnkeyatts - 1) AS k(n)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.n]
JOIN pg_opclass oc ON oc.oid = i.indclass[k.n]
JOIN pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopstrategy = 3
  AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype
JOIN pg_operator op ON op.oid = ao.amopopr
JOIN pg_namespace opn ON opn.oid = op.oprnamespace
LEFT JOIN pg_collation co ON co.oid = i.indcollation[k.n]
LEFT JOIN pg_namespace con ON con.oid = co.collnamespace
WHERE i.indrelid = ANY ($1::oid[]) AND i.indisunique AND i.indisvalid AND i.indislive AND i.indpred IS NULL AND i.indexprs IS NULL
ORDER BY i.indrelid, i.indisprimary DESC, i.indimmediate DESC, i.indnkeyatts, i.indexrelid, k.n";

/// A column of the target.
#[derive(Debug, Clone)]
pub(super) struct TargetColumn {
    pub(super) name: String,
    /// `"pg_catalog"."int4"`
    pub(super) type_name: String,
    pub(super) type_oid: Oid,
    /// `"pg_catalog"."_int4"`; none for types that have no array type, such as arrays.
    pub(super) array_name: Option<String>,
    /// Computed by the target: never written.
    is_generated: bool,
    /// GENERATED ALWAYS AS IDENTITY: written by INSERT and COPY only.
    pub(super) is_always_identity: bool,
    is_not_null: bool,
}

/// A unique index of the target.
#[derive(Debug, Clone)]
struct TargetKey {
    is_immediate: bool,
    columns: Vec<KeyColumn>,
}

#[derive(Debug, Clone)]
struct KeyColumn {
    name: String,
    /// `pg_catalog.=`, quoted for `OPERATOR()`.
    operator: String,
    collation: Option<String>,
}

/// A table of the target.
#[derive(Debug, Clone)]
pub(super) struct TargetTable {
    pub(super) name: RelationName,
    oid: Oid,
    pub(super) is_partitioned: bool,
    /// All of its columns, in their order.
    pub(super) columns: Vec<TargetColumn>,
    keys: Vec<TargetKey>,
    /// `pg_type.oid` of its rows.
    pub(super) row_type: Oid,
    /// The array type of its rows, `"public"."_t"`.
    pub(super) row_array: String,
}

impl TargetTable {
    /// All of its columns.
    pub(super) fn column_names(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }

    /// How FROM, UPDATE and DELETE name it: rows of inheritance children are those tables' own.
    pub(super) fn only(&self) -> String {
        if self.is_partitioned { self.name.to_string() } else { format!("ONLY {}", self.name) }
    }
}

/// Reads these tables' catalog. Tables that are not there are left out.
pub(super) async fn read_tables(
    client: &Client,
    names: &[&RelationName],
) -> Result<HashMap<RelationName, TargetTable>> {
    let attempt = |cause| server_error("read the target's columns and keys", None, cause);
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let relations: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let rows = client.query(COLUMNS, &[&schemas, &relations]).await.map_err(attempt)?;
    let mut tables: HashMap<Oid, TargetTable> = HashMap::new();
    for row in rows {
        let table = tables.entry(row.get(2)).or_insert_with(|| TargetTable {
            name: RelationName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
            oid: row.get(2),
            is_partitioned: row.get(3),
            columns: Vec::new(),
            keys: Vec::new(),
            row_type: row.get(10),
            row_array: qualified(row.get(14), row.get(15)),
        });
        // A table without columns has one row without a column.
        let Some(name) = row.get::<_, Option<String>>(4) else { continue };
        let array = row
            .get::<_, Option<&str>>(11)
            .zip(row.get::<_, Option<&str>>(12))
            .map(|(schema, name)| qualified(schema, name));
        table.columns.push(TargetColumn {
            name,
            type_name: qualified(row.get(8), row.get(9)),
            type_oid: row.get(7),
            array_name: array,
            is_generated: row.get(5),
            is_always_identity: row.get(6),
            is_not_null: row.get(13),
        });
    }
    read_keys(client, &mut tables).await?;
    Ok(tables.into_values().map(|table| (table.name.clone(), table)).collect())
}

async fn read_keys(client: &Client, tables: &mut HashMap<Oid, TargetTable>) -> Result<()> {
    let attempt = |cause| server_error("read the target's columns and keys", None, cause);
    let oids: Vec<Oid> = tables.values().map(|table| table.oid).collect();
    let rows = client.query(KEYS, &[&oids]).await.map_err(attempt)?;
    let mut index: Oid = 0;
    for row in rows {
        let Some(table) = tables.get_mut(&row.get::<_, Oid>(0)) else { continue };
        if index != row.get::<_, Oid>(1) {
            index = row.get(1);
            table.keys.push(TargetKey { is_immediate: row.get(2), columns: Vec::new() });
        }
        let operator = format!("{}.{}", Ident(row.get(4)), row.get::<_, &str>(5));
        let collation = row
            .get::<_, Option<&str>>(6)
            .zip(row.get::<_, Option<&str>>(7))
            .map(|(schema, name)| qualified(schema, name));
        if let Some(key) = table.keys.last_mut() {
            key.columns.push(KeyColumn { name: row.get(3), operator, collation });
        }
    }
    for table in tables.values_mut() {
        let columns = &table.columns;
        let is_not_null = |name: &String| columns.iter().any(|c| c.name == *name && c.is_not_null);
        table.keys.retain(|key| key.columns.iter().all(|column| is_not_null(&column.name)));
    }
    Ok(())
}

fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", Ident(schema), Ident(name))
}

/// A cell of the stream that is written.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    /// Index of the cell in the stream's rows.
    pub(super) cell: usize,
    pub(super) column: TargetColumn,
}

/// A column by which rows are found.
#[derive(Debug, Clone)]
pub(super) struct KeyPart {
    /// Index of its slot.
    pub(super) slot: usize,
    /// Index of its cell in the stream's rows.
    pub(super) cell: usize,
    /// How the target's index compares it; none where no index serves.
    operator: Option<(String, Option<String>)>,
}

impl KeyPart {
    /// The condition that a row's column and a value are the same.
    pub(super) fn condition(&self, column: &str, value: &str) -> String {
        match &self.operator {
            Some((operator, None)) => format!("{column} OPERATOR({operator}) {value}"),
            Some((operator, Some(collation))) => {
                format!("{column} OPERATOR({operator}) ({value} COLLATE {collation})")
            }
            None => format!("{column} IS NOT DISTINCT FROM {value}"),
        }
    }

    /// The same where the value comes from a set of rows. A plain `=` would let the planner begin with the table: where it was
    /// analysed while it looked empty that is one row to it, and all of it is read for each row of the set.
    pub(super) fn among(&self, column: &TargetColumn, value: &str) -> String {
        let name = format!("t.{}", Ident(&column.name));
        // An array of arrays is one array.
        let has_array = column.array_name.is_some();
        match &self.operator {
            Some((operator, None)) if has_array => {
                format!("{name} OPERATOR({operator}) ANY (ARRAY[{value}])")
            }
            Some((operator, Some(collation))) if has_array => {
                format!("{name} OPERATOR({operator}) ANY (ARRAY[{value} COLLATE {collation}])")
            }
            _ => self.condition(&name, value),
        }
    }
}

/// How a row is found on the target.
#[derive(Debug, Clone)]
pub(super) enum Access {
    /// By these columns.
    Key(Vec<KeyPart>),
    /// By all of its values, one of several equal ones: REPLICA IDENTITY FULL without a key.
    Image,
    /// Not at all: the stream holds inserts only.
    InsertOnly,
}

/// How the rows of one description of a relation fit into the target's table.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) table: Arc<TargetTable>,
    pub(super) slots: Vec<Slot>,
    /// For each cell of the stream, its slot.
    pub(super) slot_of_cell: Vec<Option<usize>>,
    pub(super) access: Access,
    /// For each slot, whether it belongs to the key.
    pub(super) is_key: Vec<bool>,
    /// Two rows may have the same key for the moment: the target's key is deferrable.
    pub(super) is_deferrable: bool,
}

impl Layout {
    /// Fits a description to the plan and the target.
    ///
    /// # Errors
    /// The target lacks a column.
    pub(super) fn new(
        relation: &StreamRelation,
        plan: &TablePlan,
        added: &[String],
        table: &Arc<TargetTable>,
    ) -> Result<Self> {
        let mut slots: Vec<Slot> = Vec::new();
        let mut slot_of_cell = Vec::with_capacity(relation.columns.len());
        for (cell, column) in relation.columns.iter().enumerate() {
            let place = slots.len();
            slot_of_cell.push(None);
            let target = table.columns.iter().find(|target| target.name == column.name);
            match (wanted(plan, added, &column.name), target) {
                (Wanted::No, _) => {}
                (_, Some(target)) if target.is_generated => {}
                (_, Some(target)) => {
                    slots.push(Slot { cell, column: target.clone() });
                    slot_of_cell[cell] = Some(place);
                }
                (_, None) => return Err(missing_column(&column.name, plan)),
            }
        }
        let (access, is_deferrable) = access(relation, table, &slots);
        let mut is_key = vec![false; slots.len()];
        if let Access::Key(parts) = &access {
            parts.iter().for_each(|part| is_key[part.slot] = true);
        }
        Ok(Self { table: Arc::clone(table), slots, slot_of_cell, access, is_key, is_deferrable })
    }

    /// The columns by which rows are found, for messages.
    pub(super) fn key_names(&self) -> String {
        match &self.access {
            Access::Key(parts) => {
                let names: Vec<String> = parts
                    .iter()
                    .map(|part| Ident(&self.slots[part.slot].column.name).to_string())
                    .collect();
                names.join(", ")
            }
            Access::Image | Access::InsertOnly => "none".to_owned(),
        }
    }

    /// Whether the key holds a column that UPDATE cannot write.
    pub(super) fn has_fixed_key(&self) -> bool {
        self.slots
            .iter()
            .zip(&self.is_key)
            .any(|(slot, key)| *key && slot.column.is_always_identity)
    }
}

/// Whether a column of the stream is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Yes,
    No,
    /// Neither chosen nor left out: it came after the plan was made.
    New,
}

fn wanted(plan: &TablePlan, added: &[String], name: &str) -> Wanted {
    let is_chosen = |name: &str| plan.columns.iter().any(|column| column.name == name);
    if is_chosen(name) || added.iter().any(|added| added == name) {
        return Wanted::Yes;
    }
    if plan.relation.columns.iter().any(|column| column.name == name) {
        return Wanted::No;
    }
    // With a list of the user's, what the list does not name stays out.
    let has_list = plan
        .relation
        .columns
        .iter()
        .any(|column| column.generated == Generated::No && !is_chosen(&column.name));
    if has_list { Wanted::No } else { Wanted::New }
}

fn missing_column(name: &str, plan: &TablePlan) -> Error {
    Error::new(
        Disposition::Refused,
        format!("apply changes that have a column {}, which the target's table has not", Ident(name)),
    )
    .on(&plan.relation.name)
    .hint("add the column to the target's table with the source's type and run the same command again")
}

fn access(relation: &StreamRelation, table: &TargetTable, slots: &[Slot]) -> (Access, bool) {
    let is_full = relation.replica_identity == 'f';
    let is_old = |slot: &Slot| is_full || relation.columns[slot.cell].is_identity;
    let part = |name: &str, operator| {
        let slot = slots.iter().position(|slot| slot.column.name == name && is_old(slot))?;
        Some(KeyPart { slot, cell: slots[slot].cell, operator })
    };
    let serving = |key: &TargetKey| -> Option<(Access, bool)> {
        let columns = key.columns.iter();
        let parts: Option<Vec<KeyPart>> = columns
            .map(|column| {
                part(&column.name, Some((column.operator.clone(), column.collation.clone())))
            })
            .collect();
        Some((Access::Key(parts?), !key.is_immediate))
    };
    // Immediate keys first: a deferrable one is not enforced while triggers are off (`hazards.md` E73).
    let (immediate, deferrable): (Vec<_>, Vec<_>) =
        table.keys.iter().partition(|key| key.is_immediate);
    if let Some(found) = immediate.into_iter().chain(deferrable).find_map(serving) {
        return found;
    }
    if is_full {
        return (Access::Image, false);
    }
    let identity = relation.columns.iter().filter(|column| column.is_identity);
    let parts: Option<Vec<KeyPart>> = identity.map(|column| part(&column.name, None)).collect();
    match parts {
        Some(parts) if !parts.is_empty() => (Access::Key(parts), false),
        _ => (Access::InsertOnly, false),
    }
}
