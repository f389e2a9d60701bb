//! Whatever the bytes are: an error, never a panic.

use proptest::prelude::*;
use tidemark_digest::{Error, Forms, LeafBounds, RowHasher};
use tidemark_model::{Column, DataType, TupleForm, Tuples, TypeKind};

use crate::{batch, column, hasher, int4, key, lines, of_kind, own, text, tuple, typed};

/// One column of every kind of type.
pub(crate) fn every_type() -> Vec<Column> {
    let names = [
        "bool",
        "int2",
        "int4",
        "int8",
        "oid",
        "float4",
        "float8",
        "numeric",
        "money",
        "date",
        "time",
        "timetz",
        "timestamp",
        "timestamptz",
        "interval",
        "uuid",
        "bytea",
        "text",
        "bpchar",
        "varbit",
        "json",
        "jsonb",
        "inet",
        "macaddr",
        "macaddr8",
        "point",
    ];
    let of = |name: &str| Box::new(DataType::builtin(0, name));
    let pair = vec![
        ("a".to_owned(), DataType::builtin(0, "int4"), -1),
        ("b".to_owned(), DataType::builtin(0, "numeric"), -1),
    ];
    let pair = of_kind("pair", TypeKind::Composite(pair));
    let mut columns: Vec<_> = names.iter().map(|name| column(name, name)).collect();
    columns.extend([
        typed("array", of_kind("_numeric", TypeKind::Array(of("numeric")))),
        typed("range", of_kind("int4range", TypeKind::Range(of("int4")))),
        typed("multirange", of_kind("int4multirange", TypeKind::Multirange(of("int4")))),
        typed("pairs", of_kind("_pair", TypeKind::Array(Box::new(pair.clone())))),
        typed("pair", pair),
    ]);
    columns
}

#[test]
fn an_error_names_row_and_column_and_no_value() {
    let columns = [column("id", "int4"), column("price", "numeric")];
    let rows = [vec![int4(1), None], vec![int4(2), text("secret")]];
    let error = hasher(&columns, Forms::RawCanonical).add(&batch(&rows)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "hash row 1 of a batch, column \"price\": the length does not fit the type"
    );
}

#[test]
fn the_number_of_fields_must_be_the_number_of_columns() {
    let columns = [column("a", "int4"), column("b", "int4")];
    for forms in [Forms::Raw, Forms::RawCanonical, Forms::RawAndValue] {
        for row in [vec![int4(1)], vec![int4(1), int4(2), int4(3)]] {
            let error = hasher(&columns, forms).add(&batch(&[row])).unwrap_err();
            assert!(matches!(error, Error::MalformedRow { row: 0, .. }), "{error}");
        }
    }
}

#[test]
fn every_truncation_of_a_row_is_an_error() {
    let columns = [column("a", "int4"), column("b", "text"), column("c", "float8")];
    let whole = tuple(&vec![int4(1), text("some text"), Some(1.5_f64.to_be_bytes().to_vec())]);
    for len in 0..whole.len() {
        let rows = Tuples {
            form: TupleForm::PgBinary,
            data: whole[..len].to_vec().into(),
            ends: vec![len as u32],
        };
        assert!(hasher(&columns, Forms::RawAndValue).add(&rows).is_err(), "{len} bytes");
    }
}

#[test]
fn a_text_line_without_an_end_or_its_key_is_an_error() {
    let columns = [column("a", "text"), column("id", "int4")];
    let leaves = LeafBounds::from_text_bounds(&columns[1], 1, &["1".to_owned()]);
    let of = || {
        let leaves = leaves.clone();
        RowHasher::compile(&own(&columns), TupleForm::PgText, Forms::Raw, &key(), leaves).unwrap()
    };
    for bad in ["a\t1", "a\n", "a\tb\n", "a\t\\\n"] {
        assert!(of().add(&lines(bad)).is_err(), "{bad:?}");
    }
    of().add(&lines("a\t1\n")).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_fields_never_panic(
        which in any::<prop::sample::Index>(),
        field in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(2), Just(0xff), any::<u8>()], 0..60),
    ) {
        let columns = every_type();
        let column = &columns[which.index(columns.len())];
        let rows = batch(&[vec![Some(field)]]);
        for forms in [Forms::RawCanonical, Forms::RawAndValue] {
            drop(hasher(std::slice::from_ref(column), forms).add(&rows));
        }
    }

    #[test]
    fn random_rows_never_panic(
        data in prop::collection::vec(any::<u8>(), 0..200),
        head in 0_u8..4,
        ends in prop::collection::vec(0_u32..220, 0..5),
    ) {
        let columns = [column("a", "int4"), column("b", "text")];
        let data = [vec![0, head], data].concat();
        let rows = Tuples { form: TupleForm::PgBinary, data: data.into(), ends };
        let leaves = LeafBounds::from_text_bounds(&columns[0], 0, &["1".to_owned()]);
        for forms in [Forms::Raw, Forms::RawCanonical] {
            let form = TupleForm::PgBinary;
            let mut hasher = RowHasher::compile(&own(&columns), form, forms, &key(), leaves.clone()).unwrap();
            drop(hasher.add(&rows));
        }
    }

    #[test]
    fn random_json_never_panics(text in "[\\[\\]{}\",:0-9eE+.\\-\\\\untrf \\u{0}-\\u{ff}]{0,40}") {
        let rows = batch(&[vec![Some(text.into_bytes())]]);
        drop(hasher(&[column("c", "json")], Forms::RawAndValue).add(&rows));
    }
}

/// The files of the fuzzer's corpus, with every type in place of the one that their first byte chooses.
#[test]
fn the_corpus_of_the_fuzzer_never_panics() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/rows");
    let mut files = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        files += 1;
        for column in every_type() {
            for len in 1..=bytes.len() {
                let rows = batch(&[vec![Some(bytes[1..len].to_vec())]]);
                drop(hasher(std::slice::from_ref(&column), Forms::RawAndValue).add(&rows));
            }
        }
    }
    assert!(files >= 10);
}
