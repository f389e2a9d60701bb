//! What tables are declared to be beyond the types of their columns, as the server prints it.
//!
//! **Invariant:** one statement whatever the number of tables. Every name in a text is qualified, because every connection
//! pins `search_path` to nothing: the same definition reads the same on both sides. (Two major versions may print one
//! expression in two ways.) To print one the server opens its table: only the session's `lock_timeout` bounds the wait for
//! somebody who has it locked (`hazards.md` A11).
//!
//! PostgreSQL manual, section 9.27 (system catalog information functions).

use std::collections::HashMap;

use tidemark_model::Oid;
use tidemark_wire::Client;

use crate::{Result, sql};

/// What is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DefinitionKind {
    /// The primary key.
    PrimaryKey,
    /// A unique, foreign key, check or exclusion constraint.
    Constraint,
    /// An index that belongs to no constraint.
    Index,
    /// What a partition holds, and what a partitioned table is cut by.
    Partitioning,
    /// The default of a column.
    Default,
    /// The expression of a generated column.
    Generated,
    /// How an identity column takes its values.
    Identity,
    /// Whether row security is enabled and forced.
    RowSecurity,
    /// A policy of row security.
    Policy,
    /// A trigger of the user's.
    Trigger,
    /// A rule.
    Rule,
}

/// One definition of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// What it is.
    pub kind: DefinitionKind,
    /// Its name; of a default, an identity and a generated column the column's.
    pub name: String,
    /// As the server prints it, with what keeps it from being in force; of an index without its name.
    pub text: String,
}

/// The definitions of tables, by OID.
pub type Definitions = HashMap<Oid, Vec<Definition>>;

/// Every kind with what finds it: table, name, text. `wanted(oid)` are the tables.
const QUERIES: &[(DefinitionKind, &str)] = &[
    (
        DefinitionKind::PrimaryKey,
        "SELECT k.conrelid, k.conname::text, pg_get_constraintdef(k.oid) \
           || CASE WHEN i.indisvalid THEN '' ELSE ' (invalid)' END \
         FROM wanted JOIN pg_catalog.pg_constraint k ON k.conrelid = wanted.oid \
         JOIN pg_catalog.pg_index i ON i.indexrelid = k.conindid WHERE k.contype = 'p'",
    ),
    (
        DefinitionKind::Constraint,
        // A foreign key that points to a partitioned table has one more row for each of its partitions.
        "SELECT k.conrelid, k.conname::text, pg_get_constraintdef(k.oid) \
           || CASE WHEN k.contype IN ('u', 'x') AND NOT i.indisvalid THEN ' (invalid)' ELSE '' END \
         FROM wanted JOIN pg_catalog.pg_constraint k ON k.conrelid = wanted.oid \
         LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = k.conindid \
         LEFT JOIN pg_catalog.pg_constraint above ON above.oid = k.conparentid \
         WHERE k.contype IN ('u', 'f', 'c', 'x') AND above.conrelid IS DISTINCT FROM k.conrelid",
    ),
    (
        DefinitionKind::Index,
        "SELECT i.indrelid, c.relname::text, \
           replace(pg_get_indexdef(i.indexrelid), ' INDEX ' || quote_ident(c.relname) || ' ON ', ' INDEX ON ') \
           || CASE WHEN i.indisvalid THEN '' ELSE ' (invalid)' END \
         FROM wanted JOIN pg_catalog.pg_index i ON i.indrelid = wanted.oid \
         JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.indexrelid \
           AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x'))",
    ),
    (
        DefinitionKind::Partitioning,
        "SELECT c.oid, v.name, v.def FROM wanted JOIN pg_catalog.pg_class c ON c.oid = wanted.oid, \
           LATERAL (VALUES ('partition bound', pg_get_expr(c.relpartbound, c.oid)), \
             ('partition key', CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END)) v(name, def)",
    ),
    (
        DefinitionKind::Default,
        "SELECT a.attrelid, a.attname::text, pg_get_expr(d.adbin, d.adrelid) \
         FROM wanted JOIN pg_catalog.pg_attribute a ON a.attrelid = wanted.oid \
         JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         WHERE a.attgenerated = ''",
    ),
    (
        DefinitionKind::Generated,
        "SELECT a.attrelid, a.attname::text, 'GENERATED ALWAYS AS (' || pg_get_expr(d.adbin, d.adrelid) || ')' \
           || CASE a.attgenerated WHEN 's' THEN ' STORED' ELSE ' VIRTUAL' END \
         FROM wanted JOIN pg_catalog.pg_attribute a ON a.attrelid = wanted.oid \
         JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         WHERE a.attgenerated <> ''",
    ),
    (
        DefinitionKind::Identity,
        "SELECT a.attrelid, a.attname::text, 'GENERATED ' \
           || CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END || ' AS IDENTITY' \
         FROM wanted JOIN pg_catalog.pg_attribute a ON a.attrelid = wanted.oid WHERE a.attidentity <> ''",
    ),
    (
        DefinitionKind::RowSecurity,
        "SELECT c.oid, 'row security', concat_ws(', ', CASE WHEN c.relrowsecurity THEN 'enabled' END, \
           CASE WHEN c.relforcerowsecurity THEN 'forced' END) \
         FROM wanted JOIN pg_catalog.pg_class c ON c.oid = wanted.oid \
         WHERE c.relrowsecurity OR c.relforcerowsecurity",
    ),
    (
        DefinitionKind::Policy,
        "SELECT p.polrelid, p.polname::text, \
           CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END || ' FOR ' \
           || CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' \
                WHEN 'd' THEN 'DELETE' ELSE 'ALL' END \
           || ' TO ' || array_to_string(ARRAY(SELECT (CASE WHEN role = 0 THEN 'PUBLIC' \
                ELSE quote_ident(pg_get_userbyid(role)) END) COLLATE \"C\" FROM unnest(p.polroles) role ORDER BY 1), ', ') \
           || coalesce(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', '') \
           || coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', '') \
         FROM wanted JOIN pg_catalog.pg_policy p ON p.polrelid = wanted.oid",
    ),
    (
        DefinitionKind::Trigger,
        // Those of partitions are the partitioned table's; ours keep writes out of what has moved.
        "SELECT t.tgrelid, t.tgname::text, pg_get_triggerdef(t.oid) || CASE t.tgenabled \
           WHEN 'O' THEN '' WHEN 'D' THEN ' (disabled)' WHEN 'R' THEN ' (on replicas)' ELSE ' (always)' END \
         FROM wanted JOIN pg_catalog.pg_trigger t ON t.tgrelid = wanted.oid \
         JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace \
         WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND n.nspname <> 'tidemark'",
    ),
    (
        DefinitionKind::Rule,
        "SELECT r.ev_class, r.rulename::text, pg_get_ruledef(r.oid) || CASE r.ev_enabled \
           WHEN 'O' THEN '' WHEN 'D' THEN ' (disabled)' WHEN 'R' THEN ' (on replicas)' ELSE ' (always)' END \
         FROM wanted JOIN pg_catalog.pg_rewrite r ON r.ev_class = wanted.oid WHERE r.rulename <> '_RETURN'",
    ),
];

/// Reads what these tables are declared to be; one that is gone has nothing.
///
/// # Errors
/// The connection failed, or somebody keeps a table locked for longer than `lock_timeout`.
pub async fn read_definitions(client: &Client, tables: &[Oid]) -> Result<Definitions> {
    let queries = QUERIES.iter().enumerate().map(|(number, (_, text))| {
        format!("SELECT {number}::int8, q.* FROM ({text}) AS q (tab, name, def)")
    });
    let queries: Vec<String> = queries.collect();
    let text = format!(
        "WITH wanted(oid) AS MATERIALIZED (SELECT unnest({})) SELECT * FROM ({}) AS all_of_them (kind, tab, name, def) \
         WHERE def IS NOT NULL ORDER BY tab, kind, name COLLATE \"C\"",
        sql::oid_array(tables),
        queries.join(" UNION ALL ")
    );
    let rows = sql::rows(client, "read the definitions of tables", &text).await?;
    let mut found = Definitions::new();
    for row in &rows {
        let number = usize::try_from(row.get::<_, i64>(0)).unwrap_or(usize::MAX);
        if let Some((kind, _)) = QUERIES.get(number) {
            let definition = Definition { kind: *kind, name: row.get(2), text: row.get(3) };
            found.entry(row.get(1)).or_default().push(definition);
        }
    }
    Ok(found)
}
