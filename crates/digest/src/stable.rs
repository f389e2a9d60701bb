//! For which columns COPY BINARY writes the same bytes on every cluster.
//!
//! **Invariant:** only types are named whose send function writes nothing but the value, in one way. Whatever is not named
//! goes through the canonical form: slower, never wrong.
//!
//! | type | the same bytes? |
//! |---|---|
//! | bool, int2/4/8, money, oid, date, time, timetz, timestamp, timestamptz, interval, uuid, pg_lsn, xid8 | yes: fixed width |
//! | numeric | yes: zero digits are never stored at either end; the display scale is part of the raw form anyway |
//! | text, varchar, bpchar, name, "char", bytea, json, bit, varbit, citext | yes: the bytes themselves, under one client encoding |
//! | jsonb | yes: a version byte and the text, which has one order of keys |
//! | enum | yes: the label |
//! | inet, cidr, macaddr, macaddr8 | yes |
//! | range, multirange | as their subtype: flags, lengths and bounds |
//! | domain | as its base type |
//! | any column that is cast to text | yes |
//! | array | no: the element type's OID, and a flag for NULLs that stays set when they are gone |
//! | composite | no: the attribute types' OIDs |
//! | float4, float8 and what is made of them (point, box, ..) | no: a NaN has many bit patterns |
//! | reg* | no: OIDs of this cluster |
//! | xml, tsvector, tsquery, txid_snapshot, other extension types | not relied upon |

use tidemark_model::{DataType, TypeKind, Wire};

use crate::DigestColumn;

/// Whether the raw COPY BINARY tuple of these columns can be compared across clusters. Both sides must select the same
/// columns of the same types in the same order.
pub fn is_tuple_stable(columns: &[DigestColumn<'_>]) -> bool {
    columns
        .iter()
        .all(|column| column.wire == Wire::CastToText || is_type_stable(&column.column.data_type))
}

fn is_type_stable(data_type: &DataType) -> bool {
    match &data_type.kind {
        TypeKind::Domain { base, .. } => is_type_stable(base),
        TypeKind::Enum(_) => true,
        TypeKind::Range(subtype) | TypeKind::Multirange(subtype) => is_type_stable(subtype),
        TypeKind::Base if data_type.extension.as_deref() == Some("citext") => true,
        TypeKind::Base => data_type.schema == "pg_catalog" && is_base_stable(&data_type.name),
        TypeKind::Array(_) | TypeKind::Composite(_) | TypeKind::Other => false,
    }
}

fn is_base_stable(name: &str) -> bool {
    matches!(
        name,
        "bool"
            | "int2"
            | "int4"
            | "int8"
            | "money"
            | "oid"
            | "date"
            | "time"
            | "timetz"
            | "timestamp"
            | "timestamptz"
            | "interval"
            | "uuid"
            | "pg_lsn"
            | "xid8"
            | "numeric"
            | "text"
            | "varchar"
            | "bpchar"
            | "name"
            | "char"
            | "bytea"
            | "json"
            | "jsonb"
            | "bit"
            | "varbit"
            | "inet"
            | "cidr"
            | "macaddr"
            | "macaddr8"
    )
}
