//! Bytes that PostgreSQL would not send: refused with an error, never a panic, never a wrong batch.
//!
//! The corpus of the fuzz target (`fuzz/corpus/decode`) was written by PostgreSQL; `UPDATE_GOLDEN=1` writes it anew.

#[path = "../../fuzz/input.rs"]
mod input;

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use tidemark_columnar::{Error, Program};
use tidemark_model::{TupleForm, Tuples, Unrepresentable};
use tidemark_testkit::shared;

use crate::copy::binary;

/// Rows for each table of the fuzz input, in the order of its columns.
const SEEDS: &[(&str, u8, &str)] = &[
    ("numbers", 0, "SELECT true, 1::int2, -1::int4, 2::int8, 1.5::float4, 'NaN'::float8, 7::oid,
      '2024-02-29'::date, '2024-02-29 12:34:56'::timestamp, '2024-02-29 12:34:56Z'::timestamptz, '12:34'::time,
      '1 mon -2 days 3 s'::interval, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, 21168.23::numeric(15,2),
      123456789012345678::numeric(18,0), -1.5::numeric(38,37), 12345.6789000::numeric"),
    ("numbers_null", 0, "SELECT NULL::bool, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
      NULL, NULL, NULL, NULL"),
    ("bytes", 1, "SELECT 'é and more than thirty-two bytes of text'::text, 'a  '::char(12), 'x'::\"char\",
      '{\"a\": [1]}'::jsonb, '[]'::json, '\\x00ff'::bytea, '10.0.0.1'::inet::text"),
    ("parts", 2, "SELECT '{1,NULL,3}'::int4[], ARRAY[ROW(1, '{a,NULL}'::text[]), NULL], ROW(2, '{}'::text[]),
      '[2024-01-01,2024-01-02)'::tsrange, '{[1,2),(3,)}'::nummultirange"),
    ("parts_empty", 2, "SELECT '{}'::int4[], NULL::text[], ROW(NULL::int4, NULL::text[]), 'empty'::tsrange,
      '{}'::nummultirange"),
];

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/decode")
}

fn seed(table: u8, tuples: &Tuples) -> Vec<u8> {
    let mut bytes = vec![table, 1];
    for row in tuples.rows() {
        bytes.extend((row.len() as u16).to_be_bytes());
        bytes.extend(row);
    }
    bytes
}

#[test]
fn the_corpus_is_what_postgres_writes_and_decodes() {
    let database = shared().unwrap();
    for (name, table, query) in SEEDS {
        let path = corpus().join(name);
        let now = seed(*table, &binary(&database, query));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &now).unwrap();
        }
        let stored = fs::read(&path).unwrap();
        // Type OIDs inside differ from server to server only for types that are not built in; these are.
        assert_eq!(stored, now, "{name}");
        assert_eq!(input::decode(&stored), Ok(1), "{name}");
    }
}

#[test]
fn no_cut_and_no_changed_byte_of_the_corpus_panics() {
    let mut refused = 0;
    for entry in fs::read_dir(corpus()).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        for len in 0..bytes.len() {
            refused += usize::from(input::decode(&bytes[..len]).is_err());
        }
        for index in 2..bytes.len() {
            for value in [0, 1, 0x7F, 0x80, 0xFF, bytes[index] ^ 1] {
                let mut changed = bytes.clone();
                changed[index] = value;
                refused += usize::from(input::decode(&changed).is_err());
            }
        }
    }
    assert!(refused > 1000, "only {refused} were refused");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        drop(input::decode(&bytes));
    }

    #[test]
    fn random_values_in_well_formed_rows_never_panic(
        table in 0..3u8,
        policy in 0..2u8,
        rows in prop::collection::vec(
            prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..40)), 17),
            0..4,
        ),
    ) {
        let count = input::table(table).len();
        let mut bytes = vec![table, policy];
        for row in rows {
            let mut tuple = (count as i16).to_be_bytes().to_vec();
            for field in &row[..count] {
                let len = field.as_ref().map_or(-1, |field| field.len() as i32);
                tuple.extend(len.to_be_bytes());
                tuple.extend(field.iter().flatten());
            }
            bytes.extend((tuple.len() as u16).to_be_bytes());
            bytes.extend(tuple);
        }
        drop(input::decode(&bytes));
    }
}

/// What the decoder says of one row, given as its bytes, for the first columns of a table of the fuzz input.
fn complaint(table: u8, column_index: usize, row: &[u8]) -> &'static str {
    let columns = &input::table(table)[column_index..=column_index];
    let mut decoder = Program::compile(columns, Unrepresentable::Error).unwrap().decoder();
    let ends = vec![row.len() as u32];
    let tuples = Tuples { form: TupleForm::PgBinary, data: row.to_vec().into(), ends };
    match decoder.append(&tuples) {
        Err(Error::Malformed { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

/// A row of one field.
fn row_of(value: &[u8]) -> Vec<u8> {
    [&[0, 1], (value.len() as i32).to_be_bytes().as_slice(), value].concat()
}

fn words(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[test]
fn lying_rows_are_named() {
    let int4 = |row: &[u8]| complaint(0, 2, row);
    assert_eq!(int4(&[]), "it has no field count");
    assert_eq!(int4(&[0, 2, 0, 0, 0, 0, 0, 0, 0, 0]), "its field count is not that of the table");
    assert_eq!(int4(&[0xFF, 0xFF]), "its field count is not that of the table");
    assert_eq!(int4(&[0, 1, 0, 0, 0]), "it is cut short");
    assert_eq!(int4(&[0, 1, 0, 0, 0, 4, 1, 2, 3]), "a field is longer than its row");
    assert_eq!(int4(&[0, 1, 0xFF, 0xFF, 0xFF, 0xFE]), "a field is longer than its row");
    assert_eq!(int4(&[0, 1, 0, 0, 0, 4, 1, 2, 3, 4, 5]), "its fields do not fill it");
    assert_eq!(int4(&row_of(&[1, 2])), "a value of the wrong length");
}

#[test]
fn lying_values_are_named() {
    let array = |head: &[i32]| complaint(2, 0, &row_of(&words(head)));
    assert_eq!(array(&[1, 0, 23, i32::MAX, 1]), "more elements than bytes");
    assert_eq!(array(&[1, 0, 23, -1, 1]), "a negative count");
    assert_eq!(array(&[7, 0, 23, 1, 1]), "an array of impossible dimensions");
    assert_eq!(array(&[-1, 0, 23]), "an array of impossible dimensions");
    assert_eq!(array(&[1, 0]), "a value is cut short");
    assert_eq!(array(&[1, 0, 23, 1, 1, 8, 0]), "a part is longer than the value it lies in");
    assert_eq!(array(&[1, 0, 23, 1, 1, -2]), "a negative length");
    assert_eq!(array(&[0, 0, 23, 9]), "bytes behind a value");
    let composite = |head: &[i32]| complaint(2, 2, &row_of(&words(head)));
    assert_eq!(composite(&[3]), "a composite with another number of attributes");
    assert_eq!(complaint(2, 3, &row_of(&[0x20])), "a range with unknown flags");
    assert_eq!(complaint(2, 3, &row_of(&[0, 0xFF, 0xFF, 0xFF, 0xFF])), "a range with a NULL bound");
    assert_eq!(complaint(1, 3, &row_of(b"\x02{}")), "a jsonb of an unknown version");
    assert_eq!(complaint(0, 13, &row_of(&[0, 1, 0, 0, 0, 0, 0, 0])), "not a numeric");
}

#[test]
fn ends_that_do_not_fit_the_data_are_refused() {
    let columns = &input::table(0)[2..3];
    let program = Program::compile(columns, Unrepresentable::Error).unwrap();
    let row = row_of(&[0, 0, 0, 1]);
    let len = row.len() as u32;
    for ends in [vec![len + 1], vec![len - 1], vec![], vec![len, len - 1], vec![len, u32::MAX]] {
        let data = row.clone().into();
        let tuples = Tuples { form: TupleForm::PgBinary, data, ends };
        let mut decoder = program.decoder();
        assert!(matches!(decoder.append(&tuples), Err(Error::Malformed { .. })));
        assert_eq!(decoder.append(&tuples), Err(Error::Failed));
    }
    let text = Tuples { form: TupleForm::PgText, data: row.into(), ends: vec![len] };
    assert_eq!(program.decoder().append(&text), Err(Error::NotBinary));
}
