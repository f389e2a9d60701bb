//! Decides whether a table's rows can travel as COPY BINARY between two clusters.
//!
//! **Invariant:** binary only where the bytes mean the same on both sides: built-in types whose `typreceive` accepts what
//! the other version's `typsend` writes and that carry no OID of a user's type. Everything else travels as text, by the
//! table, because COPY has one format for all of its columns (`hazards.md` A16).

use tidemark_model::{Column, DataType, TablePlan, TupleForm, TypeKind};

/// Built-in types with a binary form that is the same on every supported version.
const PORTABLE: &[&str] = &[
    "bool",
    "int2",
    "int4",
    "int8",
    "float4",
    "float8",
    "numeric",
    "money",
    "text",
    "varchar",
    "bpchar",
    "char",
    "name",
    "bytea",
    "uuid",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
    "json",
    "jsonb",
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    "bit",
    "varbit",
    "oid",
    "xid",
    "xid8",
    "cid",
    "tid",
    "pg_lsn",
    "point",
    "line",
    "lseg",
    "box",
    "path",
    "polygon",
    "circle",
];

/// The form for a table's columns, from a source to a target of these `server_version_num`s.
pub fn copy_form(columns: &[Column], source_version: u32, target_version: u32) -> TupleForm {
    let portable = |column: &Column| is_portable(&column.data_type, source_version, target_version);
    if columns.iter().all(portable) { TupleForm::PgBinary } else { TupleForm::PgText }
}

/// Whether the stream of these tables may carry values in binary, from a source to a target of these
/// `server_version_num`s. The stream has one form for all of its tables; types without a send function come as text in
/// either.
pub fn binary_is_safe(tables: &[TablePlan], source_version: u32, target_version: u32) -> bool {
    let mut columns = tables.iter().flat_map(|plan| &plan.columns);
    columns.all(|column| {
        let data_type = &column.data_type;
        !data_type.has_binary || is_portable(data_type, source_version, target_version)
    })
}

fn is_portable(data_type: &DataType, source_version: u32, target_version: u32) -> bool {
    let inner = |inner: &DataType| is_portable(inner, source_version, target_version);
    match &data_type.kind {
        TypeKind::Base => {
            // Infinite intervals exist from 17 on; an older server reads their bytes as an ordinary interval.
            let interval_differs = (source_version >= 170_000) != (target_version >= 170_000);
            data_type.schema == "pg_catalog"
                && PORTABLE.contains(&data_type.name.as_str())
                && !(data_type.name == "interval" && interval_differs)
        }
        TypeKind::Domain { base, .. } => inner(base),
        TypeKind::Enum(_) => true,
        // Arrays write the OID of their element: equal on both sides only for built-in elements.
        TypeKind::Array(element) => matches!(element.kind, TypeKind::Base) && inner(element),
        TypeKind::Range(subtype) | TypeKind::Multirange(subtype) => {
            data_type.schema == "pg_catalog" && inner(subtype)
        }
        TypeKind::Composite(_) | TypeKind::Other => false,
    }
}

#[cfg(test)]
mod tests {
    use tidemark_model::{Generated, Identity};

    use super::*;

    fn column(data_type: DataType) -> Column {
        Column {
            attnum: 1,
            name: "c".to_owned(),
            type_name: data_type.name.clone(),
            data_type,
            typmod: -1,
            is_nullable: true,
            generated: Generated::No,
            identity: Identity::No,
            has_default: false,
            key_position: None,
            collation: None,
        }
    }

    fn of_kind(name: &str, kind: TypeKind) -> DataType {
        DataType { kind, ..DataType::builtin(1, name) }
    }

    #[test]
    fn built_in_types_travel_in_binary() {
        let columns =
            [column(DataType::builtin(20, "int8")), column(DataType::builtin(1700, "numeric"))];
        assert_eq!(copy_form(&columns, 150_000, 180_000), TupleForm::PgBinary);
    }

    #[test]
    fn one_column_with_foreign_oids_makes_the_table_text() {
        let label =
            DataType { schema: "public".to_owned(), ..of_kind("mood", TypeKind::Enum(vec![])) };
        let plain = column(DataType::builtin(20, "int8"));
        assert_eq!(copy_form(&[column(label.clone())], 150_000, 150_000), TupleForm::PgBinary);
        let array = of_kind("_mood", TypeKind::Array(Box::new(label)));
        assert_eq!(copy_form(&[plain, column(array)], 150_000, 150_000), TupleForm::PgText);
    }

    #[test]
    fn intervals_do_not_cross_version_17_in_binary() {
        let interval = [column(DataType::builtin(1186, "interval"))];
        assert_eq!(copy_form(&interval, 170_000, 150_000), TupleForm::PgText);
        assert_eq!(copy_form(&interval, 150_000, 170_000), TupleForm::PgText);
        assert_eq!(copy_form(&interval, 170_000, 180_000), TupleForm::PgBinary);
        let array = of_kind("_interval", TypeKind::Array(Box::new(interval[0].data_type.clone())));
        assert_eq!(copy_form(&[column(array)], 170_000, 150_000), TupleForm::PgText);
    }

    #[test]
    fn extension_types_travel_as_text() {
        let citext = DataType {
            schema: "public".to_owned(),
            extension: Some("citext".to_owned()),
            ..DataType::builtin(99_999, "citext")
        };
        assert_eq!(copy_form(&[column(citext)], 150_000, 150_000), TupleForm::PgText);
    }
}
