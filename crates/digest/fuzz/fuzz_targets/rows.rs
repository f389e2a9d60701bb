//! Any bytes as one COPY BINARY field of any type: an error or a sum, never a panic.
//!
//! The first byte chooses the type, the rest is the field. The same corpus is run by the test
//! `the_corpus_of_the_fuzzer_never_panics`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemark_digest::{DigestColumn, DigestKey, Forms, LeafBounds, RowHasher};
use tidemark_model::{
    Column, DataType, Generated, Identity, TupleForm, Tuples, TypeKind, Wire,
};

const BASE: [&str; 12] = [
    "bool", "int4", "float8", "numeric", "timetz", "interval", "bpchar", "varbit", "json", "jsonb",
    "inet", "macaddr",
];

fn data_type(choice: u8) -> DataType {
    let element = DataType::builtin(0, BASE[usize::from(choice) % BASE.len()]);
    let kind = match usize::from(choice) / BASE.len() % 5 {
        0 => return element,
        1 => TypeKind::Array(Box::new(element)),
        2 => TypeKind::Range(Box::new(element)),
        3 => TypeKind::Multirange(Box::new(element)),
        _ => TypeKind::Composite(vec![("a".to_owned(), element.clone(), -1), ("b".to_owned(), element, -1)]),
    };
    DataType { kind, ..DataType::builtin(0, "made") }
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, field)) = input.split_first() else { return };
    let column = Column {
        attnum: 1,
        name: "c".to_owned(),
        data_type: data_type(*choice),
        typmod: -1,
        type_name: String::new(),
        is_nullable: true,
        generated: Generated::No,
        identity: Identity::No,
        has_default: false,
        key_position: None,
        collation: None,
    };
    let row = [&[0, 1][..], &(field.len() as u32).to_be_bytes(), field].concat();
    let ends = vec![row.len() as u32];
    let tuples = Tuples { form: TupleForm::PgBinary, data: row.into(), ends };
    let columns = [DigestColumn { column: &column, wire: Wire::Own }];
    for forms in [Forms::Raw, Forms::RawCanonical, Forms::RawAndValue] {
        let (key, leaves) = (DigestKey::new([1; 32]), LeafBounds::single());
        let hasher = RowHasher::compile(&columns, TupleForm::PgBinary, forms, &key, leaves);
        drop(hasher.expect("compiles").add(&tuples));
    }
});
