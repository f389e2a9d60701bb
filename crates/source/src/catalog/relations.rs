//! Relations of all user schemas with sizes, rights and row security.
//!
//! **Invariant:** sizes are those of the files at this moment (`pg_relation_size`), never `relpages`, which is as old as the
//! last VACUUM or ANALYZE (`hazards.md` A7). Only where somebody holds or waits for an exclusive lock `relpages` stands in:
//! `pg_relation_size` would queue there (A11). Nothing depends on a size being exact: the last chunk is open-ended.
//!
//! PostgreSQL manual, sections 53.11 (`pg_class`), 53.27 (`pg_inherits`) and 9.28.7 (object sizes).

use std::collections::HashMap;
use std::fmt::Write as _;

use tidemark_model::{Oid, Persistence, Relation, RelationKind, RelationName, ReplicaIdentity};
use tidemark_wire::Client;

use super::{Server, columns, keys, types};
use crate::{Result, sql};

/// SQL condition on `n` (`pg_namespace`): not a system, TOAST or temporary schema.
pub(super) const USER_SCHEMA: &str = "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%' \
     AND n.nspname NOT LIKE 'pg\\_temp\\_%'";

/// What `read` found.
pub(super) struct Found {
    pub(super) relations: Vec<Relation>,
    pub(super) partition_parents: HashMap<Oid, RelationName>,
}

/// All relations of user schemas.
pub(super) async fn read(client: &Client, server: &Server) -> Result<Found> {
    read_some(client, server, None).await
}

/// Those of the given OIDs that still exist, or all.
pub(super) async fn read_some(
    client: &Client,
    server: &Server,
    oids: Option<&[Oid]>,
) -> Result<Found> {
    let mut condition = format!("c.relkind IN ('r', 'p', 'f', 'v', 'm') AND {USER_SCHEMA}");
    if let Some(oids) = oids {
        write!(condition, " AND c.oid = ANY ({})", sql::oid_array(oids)).ok();
    }
    let types = types::read(client, server.version_num).await?;
    let mut columns = columns::read(client, &types, server.version_num, &condition).await?;
    let mut indexes = keys::read(client, &condition).await?;
    let parents = read_parents(client).await?;
    let mut relations = read_relations(client, &condition).await?;
    for relation in &mut relations {
        relation.columns = columns.remove(&relation.oid).unwrap_or_default();
        let of_relation = indexes.remove(&relation.oid).unwrap_or_default();
        complete(relation, of_relation);
        if let Some(inherits) = parents.plain.get(&relation.oid) {
            relation.inherits.clone_from(inherits);
        }
    }
    Ok(Found { relations, partition_parents: parents.of_partitions })
}

fn complete(relation: &mut Relation, indexes: Vec<keys::RawIndex>) {
    relation.keys = keys::keys(&indexes, &relation.columns);
    if let ReplicaIdentity::Index(name) = &mut relation.replica_identity {
        match keys::replica_identity_index(&indexes) {
            Some(index) => index.clone_into(name),
            // The index was dropped: the server then treats the table as having none (`hazards.md` E70).
            None => relation.replica_identity = ReplicaIdentity::Nothing,
        }
    }
    relation.indexes = keys::plain(indexes);
    let Some(primary) = relation.keys.iter().find(|key| key.is_primary) else { return };
    for (position, name) in (1_u16..).zip(&primary.columns) {
        if let Some(column) = relation.columns.iter_mut().find(|column| column.name == *name) {
            column.key_position = Some(position);
        }
    }
}

async fn read_relations(client: &Client, condition: &str) -> Result<Vec<Relation>> {
    let text = format!(
        "WITH busy AS MATERIALIZED (SELECT DISTINCT relation FROM pg_catalog.pg_locks \
           WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock' AND database = \
             (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())) \
         SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, \
           c.relreplident::text, rn.nspname::text, rc.relname::text, row_security_active(c.oid), \
           has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), \
           greatest(c.reltuples, 0)::int8, \
           CASE WHEN c.relkind NOT IN ('r', 'm') THEN 0 WHEN c.oid IN (SELECT relation FROM busy) \
             THEN c.relpages::int8 * 8192 ELSE coalesce(pg_relation_size(c.oid), 0) END, \
           CASE WHEN c.reltoastrelid = 0 THEN 0 \
             WHEN c.oid IN (SELECT relation FROM busy) OR c.reltoastrelid IN (SELECT relation FROM busy) \
             THEN coalesce(tc.relpages::int8, 0) * 8192 ELSE coalesce(pg_total_relation_size(c.reltoastrelid), 0) END, \
           x.extname::text \
         FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_catalog.pg_class tc ON tc.oid = c.reltoastrelid \
         LEFT JOIN LATERAL (SELECT pg_partition_root(c.oid) AS oid WHERE c.relispartition) p ON true \
         LEFT JOIN pg_catalog.pg_class rc ON rc.oid = p.oid \
         LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace \
         LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass \
           AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e' \
         LEFT JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid \
         WHERE {condition} ORDER BY n.nspname, c.relname"
    );
    let rows = sql::rows(client, "read the relations", &text).await?;
    let relations = rows.iter().map(|row| {
        let kind: String = row.get(3);
        let persistence: String = row.get(4);
        let identity: String = row.get(5);
        let root: (Option<String>, Option<String>) = (row.get(6), row.get(7));
        Relation {
            oid: row.get(0),
            name: RelationName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            kind: kind_of(&kind),
            persistence: persistence_of(&persistence),
            columns: Vec::new(),
            keys: Vec::new(),
            indexes: Vec::new(),
            replica_identity: identity_of(&identity),
            partition_root: root
                .0
                .zip(root.1)
                .map(|(schema, name)| RelationName::new(schema, name)),
            inherits: Vec::new(),
            // NULL when the table is dropped while we read.
            row_security_applies: row.get::<_, Option<bool>>(8).unwrap_or(false),
            can_select: row.get::<_, Option<bool>>(9).unwrap_or(false),
            row_estimate: sql::unsigned(row.get(10)),
            heap_bytes: sql::unsigned(row.get(11)),
            toast_bytes: sql::unsigned(row.get(12)),
            extension: row.get(13),
        }
    });
    Ok(relations.collect())
}

fn kind_of(relkind: &str) -> RelationKind {
    match relkind {
        "p" => RelationKind::PartitionedTable,
        "f" => RelationKind::ForeignTable,
        "v" => RelationKind::View,
        "m" => RelationKind::MaterializedView,
        _ => RelationKind::Table,
    }
}

fn persistence_of(relpersistence: &str) -> Persistence {
    match relpersistence {
        "u" => Persistence::Unlogged,
        "t" => Persistence::Temporary,
        _ => Persistence::Permanent,
    }
}

fn identity_of(relreplident: &str) -> ReplicaIdentity {
    match relreplident {
        "n" => ReplicaIdentity::Nothing,
        "f" => ReplicaIdentity::Full,
        "i" => ReplicaIdentity::Index(String::new()),
        _ => ReplicaIdentity::Default,
    }
}

struct Parents {
    plain: HashMap<Oid, Vec<RelationName>>,
    of_partitions: HashMap<Oid, RelationName>,
}

async fn read_parents(client: &Client) -> Result<Parents> {
    let text = "SELECT i.inhrelid, n.nspname::text, p.relname::text, c.relispartition \
                FROM pg_catalog.pg_inherits i \
                JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid \
                JOIN pg_catalog.pg_class p ON p.oid = i.inhparent \
                JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace \
                WHERE c.relkind IN ('r', 'p', 'f') ORDER BY i.inhrelid, i.inhseqno";
    let rows = sql::rows(client, "read inheritance", text).await?;
    let mut parents = Parents { plain: HashMap::new(), of_partitions: HashMap::new() };
    for row in &rows {
        let parent = RelationName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        if row.get(3) {
            parents.of_partitions.insert(row.get(0), parent);
        } else {
            parents.plain.entry(row.get(0)).or_default().push(parent);
        }
    }
    Ok(parents)
}
