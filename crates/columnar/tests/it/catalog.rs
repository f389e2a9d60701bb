//! Reads columns from the catalog with what these tests need, apart from the product's own reader.

use std::collections::HashMap;

use serde_json::Value;
use tidemark_model::{Column, DataType, Generated, Identity, TypeKind};
use tidemark_testkit::Database;

const TYPES: &str = "SELECT json_agg(json_build_object(
  'oid', t.oid::int8, 'schema', n.nspname, 'name', t.typname, 'type', t.typtype,
  'element', CASE WHEN t.typcategory = 'A' AND t.typelem <> 0 THEN t.typelem::int8 ELSE 0 END,
  'binary', t.typsend <> 0, 'base', t.typbasetype::int8, 'typmod', t.typtypmod,
  'extension', (SELECT e.extname FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'),
  'labels', (SELECT json_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid),
  'subtype', (SELECT rngsubtype::int8 FROM pg_range WHERE rngtypid = t.oid OR rngmultitypid = t.oid),
  'attributes', CASE WHEN t.typtype = 'c' THEN (SELECT json_agg(json_build_array(attname, atttypid::int8, atttypmod)
      ORDER BY attnum) FROM pg_attribute WHERE attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped) END))
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE n.nspname <> 'information_schema' AND (n.nspname <> 'pg_catalog' OR t.typtype <> 'c')";

/// All types of a database.
pub(crate) struct Catalog(HashMap<i64, Value>);

fn long(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

impl Catalog {
    pub(crate) fn read(database: &Database) -> Self {
        let json: Value = serde_json::from_str(&database.psql(TYPES).unwrap()).unwrap();
        Self(list(&json).iter().map(|row| (long(&row["oid"]), row.clone())).collect())
    }

    fn data_type(&self, oid: i64) -> DataType {
        let row = &self.0[&oid];
        let kind = match row["type"].as_str().unwrap() {
            "d" => self.domain(row),
            "e" => TypeKind::Enum(list(&row["labels"]).iter().map(text).collect()),
            "c" => TypeKind::Composite(
                list(&row["attributes"])
                    .iter()
                    .map(|a| (text(&a[0]), self.data_type(long(&a[1])), long(&a[2]) as i32))
                    .collect(),
            ),
            "r" => TypeKind::Range(Box::new(self.data_type(long(&row["subtype"])))),
            "m" => TypeKind::Multirange(Box::new(self.data_type(long(&row["subtype"])))),
            "b" if long(&row["element"]) != 0 => {
                TypeKind::Array(Box::new(self.data_type(long(&row["element"]))))
            }
            "b" => TypeKind::Base,
            _ => TypeKind::Other,
        };
        DataType {
            oid: oid as u32,
            schema: text(&row["schema"]),
            name: text(&row["name"]),
            kind,
            has_binary: row["binary"].as_bool().unwrap(),
            extension: row["extension"].as_str().map(str::to_owned),
        }
    }

    fn domain(&self, row: &Value) -> TypeKind {
        let base = self.data_type(long(&row["base"]));
        let typmod = long(&row["typmod"]) as i32;
        match base.kind {
            TypeKind::Domain { base, typmod: inner } => {
                TypeKind::Domain { base, typmod: if typmod == -1 { inner } else { typmod } }
            }
            _ => TypeKind::Domain { base: Box::new(base), typmod },
        }
    }

    /// The columns of a table.
    pub(crate) fn columns(&self, database: &Database, table: &str) -> Vec<Column> {
        let sql = format!(
            "SELECT coalesce(json_agg(json_build_array(attnum, attname, atttypid::int8, atttypmod,
               format_type(atttypid, atttypmod), NOT attnotnull) ORDER BY attnum), '[]')
             FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped"
        );
        let json: Value = serde_json::from_str(&database.psql(&sql).unwrap()).unwrap();
        let column = |row: &Value| Column {
            attnum: long(&row[0]) as i16,
            name: text(&row[1]),
            data_type: self.data_type(long(&row[2])),
            typmod: long(&row[3]) as i32,
            type_name: text(&row[4]),
            is_nullable: row[5].as_bool().unwrap(),
            generated: Generated::No,
            identity: Identity::No,
            has_default: false,
            key_position: None,
            collation: None,
        };
        list(&json).iter().map(column).collect()
    }
}
