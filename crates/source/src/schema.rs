//! Reads the definitions that are built on the target after the rows are in.
//!
//! **Invariant:** run inside the snapshot holder's transaction or a connection of the same kind: `search_path` is empty, so
//! what the server prints is qualified. System schemas and `tidemark` are left out; nothing here depends on the number
//! of tables except the size of the answers.
//!
//! PostgreSQL manual, section 9.27 (`pg_get_indexdef`, `pg_get_constraintdef`).

use std::collections::HashSet;

use tidemark_model::{
    ConstraintDef, ConstraintKind, ForeignKey, IndexDef, Oid, PartitionedIndex, RelationName,
    SchemaObjects,
};
use tidemark_wire::{Client, tokio_postgres};

const INDEXES: &str = "
SELECT i.indexrelid, n.nspname, t.relname, c.relname,
       pg_get_indexdef(i.indexrelid) || coalesce((
         SELECT string_agg(format('; ALTER INDEX %I.%I ALTER COLUMN %s SET STATISTICS %s',
                                  n.nspname, c.relname, a.attnum, a.attstattarget), '' ORDER BY a.attnum)
         FROM pg_attribute a WHERE a.attrelid = i.indexrelid AND a.attstattarget >= 0), ''),
       k.oid, k.conname, k.contype, pg_get_constraintdef(k.oid),
       CASE WHEN k.condeferrable THEN ' DEFERRABLE' ELSE '' END
       || CASE WHEN k.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END,
       i.indisclustered, i.indisreplident, i.indrelid,
       pg_get_constraintdef(k.oid) LIKE '%WITHOUT OVERLAPS%'
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
WHERE t.relkind = 'r' AND i.indisvalid AND i.indislive
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'tidemark')
ORDER BY t.oid, i.indexrelid";

const FOREIGN_KEYS: &str = "
SELECT k.oid, n.nspname, t.relname, fn.nspname, ft.relname, k.conname, pg_get_constraintdef(k.oid),
       k.convalidated, t.relkind = 'p', ft.relkind = 'p'
FROM pg_constraint k
JOIN pg_class t ON t.oid = k.conrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
JOIN pg_class ft ON ft.oid = k.confrelid
JOIN pg_namespace fn ON fn.oid = ft.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tidemark')
ORDER BY k.oid";

const MATERIALIZED_VIEWS: &str = "
WITH RECURSIVE matview AS (
  SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind = 'm' AND c.relispopulated AND n.nspname <> 'tidemark'
), reads AS (
  SELECT DISTINCT r.ev_class AS reader, d.refobjid AS target
  FROM pg_rewrite r
  JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
   AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class
), depth AS (
  SELECT oid, 0 AS level FROM matview
  UNION
  SELECT reads.reader, depth.level + 1 FROM depth JOIN reads ON reads.target = depth.oid WHERE depth.level < 64
)
SELECT m.nspname, m.relname FROM matview m JOIN depth USING (oid)
GROUP BY m.oid, m.nspname, m.relname ORDER BY max(depth.level), m.oid";

const ROLES: &str = "
SELECT DISTINCT r.rolname FROM pg_roles r JOIN (
  SELECT relowner AS oid, relnamespace AS nsp FROM pg_class
  UNION ALL SELECT proowner, pronamespace FROM pg_proc
  UNION ALL SELECT typowner, typnamespace FROM pg_type
  UNION ALL SELECT nspowner, oid FROM pg_namespace
  UNION ALL SELECT a.grantee, c.relnamespace FROM pg_class c, aclexplode(c.relacl) a
  UNION ALL SELECT a.grantee, p.pronamespace FROM pg_proc p, aclexplode(p.proacl) a
  UNION ALL SELECT a.grantee, n.oid FROM pg_namespace n, aclexplode(n.nspacl) a
) o USING (oid)
JOIN pg_namespace n ON n.oid = o.nsp
WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'tidemark', 'public')
   OR n.nspname = 'public' AND r.rolname NOT LIKE 'pg\\_%'
ORDER BY 1";

const PARTITIONED_INDEXES: &str = "
SELECT c.oid, k.oid, n.nspname, c.relname
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_constraint k ON k.conindid = c.oid AND k.contype IN ('p', 'u', 'x')
WHERE c.relkind = 'I' AND n.nspname <> 'tidemark'
ORDER BY c.oid";

/// Reads indexes, foreign keys and materialized views of the whole database, without the sequences' positions.
///
/// # Errors
/// The server's, as it says them.
pub async fn read_schema_objects(client: &Client) -> Result<SchemaObjects, tokio_postgres::Error> {
    let indexes = client.query(INDEXES, &[]).await?.iter().map(index_of).collect();
    let foreign_keys = client.query(FOREIGN_KEYS, &[]).await?.iter().map(foreign_key_of).collect();
    let materialized_views = client
        .query(MATERIALIZED_VIEWS, &[])
        .await?
        .iter()
        .map(|row| RelationName::new(row.get::<_, String>(0), row.get::<_, String>(1)))
        .collect();
    let roles = client.query(ROLES, &[]).await?.iter().map(|row| row.get(0)).collect();
    let partitioned = |row: &tokio_postgres::Row| PartitionedIndex {
        oid: row.get(0),
        constraint: row.get(1),
        name: RelationName::new(row.get::<_, String>(2), row.get::<_, String>(3)),
    };
    Ok(SchemaObjects {
        indexes,
        partitioned_indexes: client
            .query(PARTITIONED_INDEXES, &[])
            .await?
            .iter()
            .map(partitioned)
            .collect(),
        foreign_keys,
        sequences: Vec::new(),
        materialized_views,
        roles,
    })
}

/// Keeps what belongs to the chosen tables; a foreign key needs both of its tables, a sequence that no table owns needs one
/// in its schema.
pub fn restrict(objects: &mut SchemaObjects, chosen: &HashSet<RelationName>) {
    objects.indexes.retain(|index| chosen.contains(&index.table));
    objects
        .foreign_keys
        .retain(|key| chosen.contains(&key.table) && chosen.contains(&key.references));
    let schemas: HashSet<&str> = chosen.iter().map(|name| name.schema.as_str()).collect();
    objects.sequences.retain(|sequence| match &sequence.owner {
        Some(owner) => chosen.contains(owner),
        None => schemas.contains(sequence.name.schema.as_str()),
    });
}

fn index_of(row: &tokio_postgres::Row) -> IndexDef {
    let kind = |contype: i8| match (contype as u8, row.get::<_, Option<bool>>(13)) {
        (b'x', _) | (_, Some(true)) => ConstraintKind::Exclusion,
        (b'p', _) => ConstraintKind::PrimaryKey,
        _ => ConstraintKind::Unique,
    };
    IndexDef {
        oid: row.get(0),
        table: RelationName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        name: row.get(3),
        definition: row.get(4),
        constraint: row.get::<_, Option<Oid>>(5).map(|oid| ConstraintDef {
            oid,
            name: row.get(6),
            kind: kind(row.get(7)),
            definition: row.get(8),
            deferrable: row.get(9),
        }),
        is_clustered: row.get(10),
        is_replica_identity: row.get(11),
    }
}

fn foreign_key_of(row: &tokio_postgres::Row) -> ForeignKey {
    ForeignKey {
        oid: row.get(0),
        table: RelationName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        references: RelationName::new(row.get::<_, String>(3), row.get::<_, String>(4)),
        name: row.get(5),
        definition: row.get(6),
        is_valid: row.get(7),
        on_partitioned: row.get(8),
        to_partitioned: row.get(9),
    }
}
