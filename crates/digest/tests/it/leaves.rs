//! Leaves: every row in exactly one, the same one on both sides.

use tidemark_digest::{Error, Forms, LeafBounds, RowHasher};
use tidemark_model::{Column, LeafSum, RowSum, TupleForm, Tuples, Wire};

use crate::{Row, batch, column, int4, key, lines, own, text};

fn bounds(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn add(columns: &[Column], leaves: &LeafBounds, rows: &Tuples) -> (RowSum, Vec<LeafSum>) {
    let mut hasher =
        RowHasher::compile(&own(columns), rows.form, Forms::Raw, &key(), leaves.clone()).unwrap();
    hasher.add(rows).unwrap();
    hasher.finish()
}

fn counts(leaves: &[LeafSum]) -> Vec<(u32, u64)> {
    leaves.iter().map(|leaf| (leaf.leaf, leaf.sum.count)).collect()
}

#[test]
fn the_leaves_add_up_to_the_table() {
    let columns = [column("id", "int4"), column("name", "text")];
    let leaves = LeafBounds::from_text_bounds(&columns[0], 0, &bounds(&["-100", "0", "7", "900"]));
    assert_eq!(leaves.leaf_count(), 5);
    let rows: Vec<Row> = (-300..1200).rev().map(|id| vec![int4(id), text("x")]).collect();
    let (table, sums) = add(&columns, &leaves, &batch(&rows));
    let mut total = RowSum::default();
    for leaf in &sums {
        total += leaf.sum;
    }
    assert_eq!(total, table);
    assert_eq!(counts(&sums), [(0, 200), (1, 100), (2, 7), (3, 893), (4, 300)]);
    let (single, _) = add(&columns, &LeafBounds::single(), &batch(&rows));
    assert_eq!(single, table);
}

#[test]
fn a_bound_belongs_to_the_leaf_above_it_and_null_to_the_first() {
    let columns = [column("name", "text"), column("id", "int4")];
    let leaves = LeafBounds::from_text_bounds(&columns[1], 1, &bounds(&["-5", "5"]));
    let leaf = |id: Option<Vec<u8>>| {
        let (_, sums) = add(&columns, &leaves, &batch(&[vec![None, id]]));
        sums[0].leaf
    };
    let ids = [i32::MIN, -6, -5, -4, 4, 5, 6, i32::MAX];
    assert_eq!(ids.map(|id| leaf(int4(id))), [0, 0, 1, 1, 1, 2, 2, 2]);
    assert_eq!(leaf(None), 0);
}

/// A type, two bounds, and a key below, between and above them.
type Case<'a> = (&'a str, &'a [&'a str], Vec<Vec<u8>>);

#[test]
fn every_key_type_is_cut_in_its_own_order() {
    let day = |days: i32| days.to_be_bytes().to_vec();
    let instant = |micros: i64| micros.to_be_bytes().to_vec();
    let second = 1_000_000_i64;
    let cases: [Case<'_>; 7] = [
        ("int2", &["-1", "1"], [-2_i16, 0, 1].map(|id| id.to_be_bytes().to_vec()).to_vec()),
        ("int8", &["-1", "5000000000"], [-2, 4_999_999_999, 5_000_000_000].map(instant).to_vec()),
        ("date", &["1999-12-31", "2000-01-02"], [i32::MIN, 0, i32::MAX].map(day).to_vec()),
        (
            "timestamp",
            &["2000-01-01 00:00:01", "2000-01-01 00:00:02.5"],
            [0, second, 5 * second].map(instant).to_vec(),
        ),
        (
            "timestamptz",
            &["2000-01-01 02:00:01+02", "2000-01-01 00:00:02.5+00"],
            [0, second, i64::MAX].map(instant).to_vec(),
        ),
        (
            "uuid",
            &["10000000-0000-0000-0000-000000000000", "f0000000-0000-0000-0000-000000000000"],
            [0x0f, 0x10, 0xff].map(|byte| vec![byte; 16]).to_vec(),
        ),
        ("text", &["Z", "a"], ["Y", "_", "b"].map(|text| text.as_bytes().to_vec()).to_vec()),
    ];
    for (type_name, texts, keys) in cases {
        let mut column = column("id", type_name);
        column.collation = (type_name == "text").then(|| "pg_catalog.C".to_owned());
        let leaves = LeafBounds::from_text_bounds(&column, 0, &bounds(texts));
        assert_eq!(leaves.leaf_count(), 3, "{type_name}");
        let rows: Vec<Row> = keys.into_iter().map(|key| vec![Some(key)]).collect();
        let (_, sums) = add(&[column], &leaves, &batch(&rows));
        assert_eq!(counts(&sums), [(0, 1), (1, 1), (2, 1)], "{type_name}");
    }
}

#[test]
fn what_has_no_known_order_is_one_leaf() {
    let with_collation = |type_name, collation: Option<&str>| {
        let mut column = column("id", type_name);
        column.collation = collation.map(str::to_owned);
        LeafBounds::from_text_bounds(&column, 0, &bounds(&["1", "2"])).leaf_count()
    };
    assert_eq!(with_collation("text", Some("pg_catalog.C")), 3);
    assert_eq!(with_collation("text", Some("pg_catalog.\"C\"")), 3);
    for (type_name, collation) in [
        ("text", Some("pg_catalog.default")),
        ("text", Some("pg_catalog.en_US")),
        ("text", Some("public.C")),
        ("text", None),
        ("bpchar", Some("pg_catalog.C")),
        ("numeric", None),
        ("float8", None),
    ] {
        assert_eq!(with_collation(type_name, collation), 1, "{type_name} {collation:?}");
    }
    let column = column("id", "int4");
    for bad in [&["1", "x"][..], &["2", "1"], &["99999999999"], &[]] {
        assert_eq!(LeafBounds::from_text_bounds(&column, 0, &bounds(bad)), LeafBounds::single());
    }
    assert_eq!(LeafBounds::from_text_bounds(&column, 0, &bounds(&["1", "1", "2"])).leaf_count(), 3);
}

#[test]
fn text_rows_fall_into_the_same_leaves_as_binary_ones() {
    let columns = [column("name", "text"), column("id", "int4")];
    let leaves = LeafBounds::from_text_bounds(&columns[1], 1, &bounds(&["0", "10"]));
    let (_, sums) = add(&columns, &leaves, &lines("a\\tb\t-1\nc\t0\nd\t9\ne\t10\n\\N\t\\N\n"));
    assert_eq!(counts(&sums), [(0, 2), (1, 2), (2, 1)]);

    let cast = [tidemark_digest::DigestColumn { column: &columns[1], wire: Wire::CastToText }];
    let leaves = LeafBounds::from_text_bounds(&columns[1], 0, &bounds(&["0", "10"]));
    let mut hasher =
        RowHasher::compile(&cast, TupleForm::PgBinary, Forms::Raw, &key(), leaves).unwrap();
    hasher.add(&batch(&[vec![text("-1")], vec![text("10")]])).unwrap();
    assert!(matches!(hasher.add(&batch(&[vec![text("x")]])), Err(Error::MalformedField { .. })));
    assert_eq!(counts(&hasher.finish().1), [(0, 1), (2, 1)]);
}

#[test]
fn leaves_survive_the_ledger() {
    let mut name = column("id", "text");
    name.collation = Some("pg_catalog.POSIX".to_owned());
    for leaves in [
        LeafBounds::single(),
        LeafBounds::from_text_bounds(&column("id", "int8"), 3, &bounds(&["-1", "9"])),
        LeafBounds::from_text_bounds(&column("id", "uuid"), 0, &bounds(&[&"1f".repeat(16)])),
        LeafBounds::from_text_bounds(&name, 0, &bounds(&["", "é\"\\"])),
    ] {
        let json = serde_json::to_string(&leaves).unwrap();
        assert_eq!(serde_json::from_str::<LeafBounds>(&json).unwrap(), leaves, "{json}");
    }
}

#[test]
fn a_key_that_is_no_column_is_refused() {
    let columns = [column("id", "int4")];
    let leaves = LeafBounds::from_text_bounds(&columns[0], 1, &bounds(&["1"]));
    let made = RowHasher::compile(&own(&columns), TupleForm::PgBinary, Forms::Raw, &key(), leaves);
    assert_eq!(made.unwrap_err(), Error::Columns { columns: 1 });
}
