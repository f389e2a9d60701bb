//! How a fuzz input becomes a table and rows; shared by the fuzz target and by the test that runs its corpus.
//!
//! One byte chooses the table, one the policy; then rows follow, each with its length as a 16-bit number (big-endian), the
//! last one cut if the input ends early.

use arrow_array::Array;
use tidemark_columnar::{Program, Result};
use tidemark_model::{
    Column, DataType, Generated, Identity, TupleForm, Tuples, TypeKind, Unrepresentable,
};

fn column(data_type: DataType, typmod: i32) -> Column {
    Column {
        attnum: 1,
        name: "v".to_owned(),
        type_name: data_type.name.clone(),
        data_type,
        typmod,
        is_nullable: true,
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

fn kind(name: &str, kind: TypeKind) -> DataType {
    DataType { kind, ..builtin(name) }
}

/// The typmod of numeric(precision, scale).
const fn numeric(precision: i32, scale: i32) -> i32 {
    ((precision << 16) | scale) + 4
}

/// The columns of table 0 (numbers and times), 1 (bytes) or 2 (types with parts).
pub(crate) fn table(number: u8) -> Vec<Column> {
    let plain = |name: &&str| column(builtin(name), -1);
    match number % 3 {
        0 => {
            let names =
                ["bool", "int2", "int4", "int8", "float4", "float8", "oid", "date", "timestamp"];
            let mut columns: Vec<_> = names.iter().map(plain).collect();
            columns.extend(["timestamptz", "time", "interval", "uuid"].iter().map(plain));
            let typmods = [numeric(15, 2), numeric(18, 0), numeric(38, 37), -1];
            columns.extend(typmods.map(|typmod| column(builtin("numeric"), typmod)));
            columns
        }
        1 => {
            ["text", "bpchar", "char", "jsonb", "json", "bytea", "inet"].iter().map(plain).collect()
        }
        _ => {
            let composite = TypeKind::Composite(vec![
                ("a".to_owned(), builtin("int4"), -1),
                ("b".to_owned(), kind("_text", TypeKind::Array(Box::new(builtin("text")))), -1),
            ]);
            let pair = kind("pair", composite);
            vec![
                column(kind("_int4", TypeKind::Array(Box::new(builtin("int4")))), -1),
                column(kind("_pair", TypeKind::Array(Box::new(pair.clone()))), -1),
                column(pair, -1),
                column(kind("tsrange", TypeKind::Range(Box::new(builtin("timestamp")))), -1),
                column(
                    kind("nummultirange", TypeKind::Multirange(Box::new(builtin("numeric")))),
                    -1,
                ),
            ]
        }
    }
}

/// The rows of an input behind its first two bytes.
pub(crate) fn rows(mut bytes: &[u8]) -> Tuples {
    let mut data = Vec::new();
    let mut ends = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
        let (row, rest) = rest.split_at(len);
        data.extend_from_slice(row);
        ends.push(data.len() as u32);
        bytes = rest;
    }
    Tuples { form: TupleForm::PgBinary, data: data.into(), ends }
}

/// Decodes an input; the number of rows, or why not.
pub(crate) fn decode(bytes: &[u8]) -> Result<usize> {
    let [number, policy, rest @ ..] = bytes else { return Ok(0) };
    let policy = if policy % 2 == 0 { Unrepresentable::Error } else { Unrepresentable::Null };
    let mut decoder = Program::compile(&table(*number), policy)?.decoder();
    decoder.append(&rows(rest))?;
    let batch = decoder.finish()?;
    for column in batch.columns() {
        // Checks every offset, every character and every part, apart from the code under test.
        column.to_data().validate_full().expect("a valid array");
    }
    Ok(batch.num_rows())
}
