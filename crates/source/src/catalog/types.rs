//! Types with what is needed to carry and to hash their values.
//!
//! **Invariant:** a type is resolved to its base: domains over domains, arrays, composites and ranges carry the types inside
//! them. Only types that some column uses, directly or inside another, are read.
//!
//! PostgreSQL manual, sections 53.64 (`pg_type`), 53.20 (`pg_enum`) and 53.40 (`pg_range`).

use std::collections::HashMap;

use tidemark_model::{DataType, Oid, TypeKind};
use tidemark_wire::Client;

use crate::{Result, sql};

/// How deep types may be nested; deeper ones (the server has no limit) count as not understood.
const MAX_DEPTH: usize = 32;

/// All types that columns use.
pub(super) struct Types {
    raw: HashMap<Oid, RawType>,
    labels: HashMap<Oid, Vec<String>>,
    attributes: HashMap<Oid, Vec<(String, Oid, i32)>>,
}

struct RawType {
    schema: String,
    name: String,
    class: String,
    is_array: bool,
    element: Oid,
    base: Oid,
    typmod: i32,
    subtype: Oid,
    has_binary: bool,
    extension: Option<String>,
}

impl Types {
    /// The type of this OID, resolved.
    pub(super) fn resolve(&self, oid: Oid) -> DataType {
        self.resolve_at(oid, 0)
    }

    fn resolve_at(&self, oid: Oid, depth: usize) -> DataType {
        let Some(raw) = self.raw.get(&oid).filter(|_| depth < MAX_DEPTH) else {
            return DataType {
                kind: TypeKind::Other,
                has_binary: false,
                ..DataType::builtin(oid, "unknown")
            };
        };
        DataType {
            oid,
            schema: raw.schema.clone(),
            name: raw.name.clone(),
            kind: self.kind_of(oid, raw, depth + 1),
            has_binary: raw.has_binary,
            extension: raw.extension.clone(),
        }
    }

    fn kind_of(&self, oid: Oid, raw: &RawType, depth: usize) -> TypeKind {
        let inner = |oid| Box::new(self.resolve_at(oid, depth));
        match raw.class.as_str() {
            "b" if raw.is_array => TypeKind::Array(inner(raw.element)),
            "b" => TypeKind::Base,
            "d" => self.domain(raw, depth),
            "e" => TypeKind::Enum(self.labels.get(&oid).cloned().unwrap_or_default()),
            "c" => TypeKind::Composite(
                self.attributes
                    .get(&oid)
                    .into_iter()
                    .flatten()
                    .map(|(name, oid, typmod)| {
                        (name.clone(), self.resolve_at(*oid, depth), *typmod)
                    })
                    .collect(),
            ),
            "r" => TypeKind::Range(inner(raw.subtype)),
            "m" => TypeKind::Multirange(inner(raw.subtype)),
            _ => TypeKind::Other,
        }
    }

    /// Follows domains down; only the lowest one can have a typmod.
    fn domain(&self, top: &RawType, depth: usize) -> TypeKind {
        let (mut base, mut typmod) = (top.base, top.typmod);
        for _ in 0..MAX_DEPTH {
            match self.raw.get(&base) {
                Some(next) if next.class == "d" => (base, typmod) = (next.base, next.typmod),
                _ => break,
            }
        }
        TypeKind::Domain { base: Box::new(self.resolve_at(base, depth)), typmod }
    }
}

/// Reads every type that a column of a user's relation uses.
pub(super) async fn read(client: &Client, version_num: u32) -> Result<Types> {
    let raw = read_types(client, version_num).await?;
    let labels = read_labels(client).await?;
    let attributes = read_attributes(client).await?;
    Ok(Types { raw, labels, attributes })
}

async fn read_types(client: &Client, version_num: u32) -> Result<HashMap<Oid, RawType>> {
    let range_of = if version_num >= 140_000 {
        "r.rngtypid = t.oid OR r.rngmultitypid = t.oid"
    } else {
        "r.rngtypid = t.oid"
    };
    let text = format!(
        "WITH RECURSIVE used(oid) AS (\
           SELECT DISTINCT a.atttypid FROM pg_catalog.pg_attribute a \
           JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
           WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f', 'v', 'm') \
             AND {user_schema} \
         UNION \
           SELECT x.oid FROM used u JOIN pg_catalog.pg_type t ON t.oid = u.oid, LATERAL (\
             SELECT t.typelem WHERE t.typelem <> 0 \
             UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0 \
             UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE {range_of} \
             UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a \
               WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) x(oid)) \
         SELECT t.oid, n.nspname::text, t.typname::text, t.typtype::text, \
           EXISTS (SELECT FROM pg_catalog.pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid), \
           t.typelem, t.typbasetype, t.typtypmod, \
           coalesce((SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE {range_of} LIMIT 1), 0), \
           t.typsend <> 0 AND t.typreceive <> 0, x.extname::text \
         FROM pg_catalog.pg_type t JOIN used u ON u.oid = t.oid \
         JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
         LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_type'::regclass \
           AND d.objid = t.oid AND d.objsubid = 0 AND d.deptype = 'e' \
         LEFT JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid",
        user_schema = super::relations::USER_SCHEMA
    );
    let rows = sql::rows(client, "read the types", &text).await?;
    let types = rows.iter().map(|row| {
        let raw = RawType {
            schema: row.get(1),
            name: row.get(2),
            class: row.get(3),
            is_array: row.get(4),
            element: row.get(5),
            base: row.get(6),
            typmod: row.get(7),
            subtype: row.get(8),
            has_binary: row.get(9),
            extension: row.get(10),
        };
        (row.get(0), raw)
    });
    Ok(types.collect())
}

async fn read_labels(client: &Client) -> Result<HashMap<Oid, Vec<String>>> {
    let text = "SELECT enumtypid, enumlabel::text FROM pg_catalog.pg_enum ORDER BY enumtypid, enumsortorder";
    let rows = sql::rows(client, "read the labels of enums", text).await?;
    let mut labels: HashMap<Oid, Vec<String>> = HashMap::new();
    for row in &rows {
        labels.entry(row.get(0)).or_default().push(row.get(1));
    }
    Ok(labels)
}

/// Attributes of stand-alone composite types and of relations whose row type some column uses.
async fn read_attributes(client: &Client) -> Result<HashMap<Oid, Vec<(String, Oid, i32)>>> {
    // Joins, so that the server can hash: beyond some ten thousand tables it would otherwise walk them all for each type.
    let text = "WITH used(oid) AS (\
                  SELECT atttypid FROM pg_catalog.pg_attribute \
                  UNION SELECT typbasetype FROM pg_catalog.pg_type UNION SELECT rngsubtype FROM pg_catalog.pg_range), \
                wanted(oid) AS (\
                  SELECT reltype FROM pg_catalog.pg_class WHERE relkind = 'c' \
                  UNION SELECT u.oid FROM used u \
                  UNION SELECT e.oid FROM used u JOIN pg_catalog.pg_type e ON e.typarray = u.oid) \
                SELECT t.oid, a.attname::text, a.atttypid, a.atttypmod FROM wanted w \
                JOIN pg_catalog.pg_type t ON t.oid = w.oid \
                JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid \
                WHERE t.typtype = 'c' AND a.attnum > 0 AND NOT a.attisdropped \
                ORDER BY t.oid, a.attnum";
    let rows = sql::rows(client, "read the attributes of composite types", text).await?;
    let mut attributes: HashMap<Oid, Vec<(String, Oid, i32)>> = HashMap::new();
    for row in &rows {
        attributes.entry(row.get(0)).or_default().push((row.get(1), row.get(2), row.get(3)));
    }
    Ok(attributes)
}
