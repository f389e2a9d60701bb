//! The mapping, without a server.

use arrow_schema::DataType as Arrow;
use tidemark_model::{Generated, Identity};

use super::*;

fn column(data_type: DataType, typmod: i32) -> Column {
    Column {
        attnum: 1,
        name: "v".to_owned(),
        type_name: data_type.name.clone(),
        data_type,
        typmod,
        is_nullable: false,
        generated: Generated::No,
        identity: Identity::No,
        has_default: false,
        key_position: None,
        collation: None,
    }
}

fn builtin(name: &str) -> DataType {
    DataType::builtin(0, name)
}

fn of_kind(name: &str, kind: TypeKind) -> DataType {
    DataType { kind, schema: "public".to_owned(), ..builtin(name) }
}

fn map(data_type: DataType, typmod: i32) -> Mapping {
    map_column(&column(data_type, typmod), Unrepresentable::Error)
}

fn numeric(precision: i32, scale: i32) -> i32 {
    ((precision << 16) | (scale & 0x7FF)) + 4
}

fn extension(field: &Field) -> Option<&str> {
    field.extension_type_name()
}

#[test]
fn numeric_is_a_decimal_exactly_where_arrow_has_it() {
    let arrow = |typmod| map(builtin("numeric"), typmod).field().data_type().clone();
    assert_eq!(arrow(numeric(15, 2)), Arrow::Decimal128(15, 2));
    assert_eq!(arrow(numeric(38, 38)), Arrow::Decimal128(38, 38));
    for typmod in [-1, numeric(39, 2), numeric(3, -2), numeric(2, 5), numeric(1000, 1000)] {
        assert_eq!(arrow(typmod), Arrow::Utf8, "{typmod}");
        let mapping = map(builtin("numeric"), typmod);
        assert_eq!(extension(mapping.field()), Some("arrow.opaque"));
        assert_eq!(mapping.wire(), Wire::Own, "the digits are printed here, not by the server");
    }
}

#[test]
fn metadata_remembers_what_arrow_cannot_say() {
    let mut column = column(builtin("bpchar"), 14);
    column.type_name = "character(10)".to_owned();
    column.key_position = Some(2);
    let mapping = map_column(&column, Unrepresentable::Error);
    let metadata = mapping.field().metadata();
    assert_eq!(metadata["tidemark:pg_type"], "character(10)");
    assert_eq!(metadata["tidemark:pg_typmod"], "14");
    assert_eq!(metadata["tidemark:nullable"], "false");
    assert_eq!(metadata["tidemark:key"], "2");
    assert_eq!(metadata["tidemark:wire_note"], "trailing blanks removed");
    assert_eq!(mapping.note(), Some("trailing blanks removed"));
}

#[test]
fn nullable_in_the_metadata_is_the_source_and_not_the_policy() {
    let mapping = map_column(&column(builtin("date"), -1), Unrepresentable::Null);
    assert!(mapping.field().is_nullable());
    assert_eq!(mapping.field().metadata()["tidemark:nullable"], "false");
}

#[test]
fn extension_types_are_arrows_own() {
    assert_eq!(extension(map(builtin("jsonb"), -1).field()), Some("arrow.json"));
    assert_eq!(extension(map(builtin("json"), -1).field()), Some("arrow.json"));
    assert_eq!(extension(map(builtin("uuid"), -1).field()), Some("arrow.uuid"));
    let inet = map(builtin("inet"), -1);
    let opaque: Opaque = inet.field().try_extension_type().unwrap();
    assert_eq!((opaque.type_name(), opaque.vendor_name()), ("inet", "PostgreSQL"));
    assert_eq!((inet.wire(), inet.note()), (Wire::CastToText, Some("written as text")));
}

#[test]
fn enum_labels_survive_quotes() {
    let labels = vec!["a\"b".to_owned(), "c,d".to_owned()];
    let mapping = map(of_kind("mood", TypeKind::Enum(labels.clone())), -1);
    let json = &mapping.field().metadata()["tidemark:labels"];
    assert_eq!(serde_json::from_str::<Vec<String>>(json).unwrap(), labels);
    assert_eq!(mapping.wire(), Wire::Own);
}

#[test]
fn one_type_without_a_form_makes_the_whole_column_text() {
    let odd = TypeKind::Composite(vec![
        ("a".to_owned(), builtin("int4"), -1),
        ("b".to_owned(), builtin("point"), -1),
    ]);
    let array = TypeKind::Array(Box::new(of_kind("odd", odd)));
    let mapping = map(of_kind("_odd", array), -1);
    assert_eq!((mapping.wire(), mapping.field().data_type()), (Wire::CastToText, &Arrow::Utf8));
}

#[test]
fn a_type_without_a_binary_form_is_text_wherever_it_is() {
    let silent = DataType { has_binary: false, ..builtin("int4") };
    let domain = TypeKind::Domain { base: Box::new(silent.clone()), typmod: -1 };
    for data_type in [silent, of_kind("d", domain)] {
        assert_eq!(map(data_type, -1).wire(), Wire::CastToText);
    }
}

#[test]
fn a_type_that_only_shares_a_builtin_name_is_text() {
    let impostor = DataType { schema: "public".to_owned(), ..builtin("int4") };
    assert_eq!(map(impostor, -1).wire(), Wire::CastToText);
}

#[test]
fn a_typmod_reaches_the_elements_and_a_domain_brings_its_own() {
    let array = of_kind("_numeric", TypeKind::Array(Box::new(builtin("numeric"))));
    let Arrow::List(item) = map(array, numeric(10, 2)).field().data_type().clone() else {
        panic!("not a list");
    };
    assert_eq!(item.data_type(), &Arrow::Decimal128(10, 2));
    let base = Box::new(builtin("numeric"));
    let domain = of_kind("price", TypeKind::Domain { base, typmod: numeric(8, 3) });
    assert_eq!(map(domain, -1).field().data_type(), &Arrow::Decimal128(8, 3));
}

#[test]
fn nesting_has_a_bound() {
    let mut data_type = builtin("int4");
    for depth in 0..200 {
        let attribute = ("a".to_owned(), data_type, -1);
        data_type = of_kind(&format!("c{depth}"), TypeKind::Composite(vec![attribute]));
    }
    assert_eq!(map(data_type, -1).wire(), Wire::CastToText);
}
