//! Which values are identical (both sums), which only equivalent (the value sum), and which differ (`verify.md` 5).

use tidemark_digest::{DigestColumn, Forms, LeafBounds, RowHasher, is_tuple_stable};
use tidemark_model::{DataType, RowSum, TupleForm, TypeKind, Wire};

use crate::{Row, batch, column, int4, key, numeric, of_kind, own, sum, sum_of, text, typed};

fn builtin(name: &str) -> DataType {
    DataType::builtin(0, name)
}

#[track_caller]
fn identical(data_type: &DataType, one: &[u8], two: &[u8]) {
    assert_eq!(sum_of(data_type, one), sum_of(data_type, two));
}

#[track_caller]
fn equivalent(data_type: &DataType, one: &[u8], two: &[u8]) {
    let (one, two) = (sum_of(data_type, one), sum_of(data_type, two));
    assert_ne!(one.raw, two.raw, "raw");
    assert_eq!(one.value, two.value, "value");
}

#[track_caller]
fn different(data_type: &DataType, one: &[u8], two: &[u8]) {
    let (one, two) = (sum_of(data_type, one), sum_of(data_type, two));
    assert_ne!(one.raw, two.raw, "raw");
    assert_ne!(one.value, two.value, "value");
}

#[test]
fn numerics() {
    let of = builtin("numeric");
    equivalent(&of, &numeric(0, 0, 1, &[1]), &numeric(0, 0, 2, &[1]));
    equivalent(&of, &numeric(0, 0, 0, &[]), &numeric(0, 0, 3, &[]));
    different(&of, &numeric(0, 0, 0, &[1]), &numeric(0x4000, 0, 0, &[1]));
    different(&of, &numeric(0, 0, 0, &[1]), &numeric(0, 1, 0, &[1]));
    different(&of, &numeric(0, 0, 0, &[1]), &numeric(0, 0, 0, &[1, 1]));
    let specials = [0xc000, 0xd000, 0xf000].map(|sign| numeric(sign, 0, 0, &[]));
    different(&of, &specials[0], &specials[1]);
    different(&of, &specials[1], &specials[2]);
    different(&of, &specials[0], &numeric(0, 0, 0, &[]));
    // Zero digits that a foreign server may leave at the ends.
    let canonical = sum_of(&of, &numeric(0, 0, 2, &[5, 100]));
    assert_eq!(canonical.value, sum_of(&of, &numeric(0, 1, 2, &[0, 5, 100, 0])).value);
}

#[test]
fn floats() {
    let of = builtin("float8");
    let bytes = |value: f64| value.to_be_bytes();
    equivalent(&of, &bytes(-0.0), &bytes(0.0));
    identical(&of, &bytes(f64::NAN), &0xfff8_0000_0000_0001_u64.to_be_bytes());
    different(&of, &bytes(f64::INFINITY), &bytes(f64::NEG_INFINITY));
    different(&of, &bytes(1e-9), &bytes(2e-9));
    different(&of, &bytes(0.1 + 0.2), &bytes(0.3));
    different(&of, &bytes(5e-324), &bytes(0.0));
    let narrow = sum_of(&builtin("float4"), &1.1_f32.to_be_bytes());
    let widened = sum_of(&of, &bytes(f64::from(1.1_f32)));
    assert!(narrow.value == widened.value && narrow.raw != widened.raw);
    assert_ne!(narrow.value, sum_of(&of, &bytes(1.1)).value);
}

#[test]
fn strings_and_blanks() {
    equivalent(&builtin("bpchar"), b"a    ", b"a");
    different(&builtin("bpchar"), b" a", b"a");
    different(&builtin("bpchar"), b"a\n", b"a");
    different(&builtin("text"), b"a ", b"a");
    different(&builtin("text"), "é".as_bytes(), "e\u{301}".as_bytes());
    different(&builtin("bytea"), b"", b"\0");
    let padded = sum_of(&builtin("bpchar"), b"a    ");
    let plain = sum_of(&builtin("varchar"), b"a");
    assert!(padded.value == plain.value && padded.raw != plain.raw);
}

#[test]
fn intervals() {
    let of = builtin("interval");
    let bytes = |micros: i64, days: i32, months: i32| {
        [&micros.to_be_bytes()[..], &days.to_be_bytes(), &months.to_be_bytes()].concat()
    };
    let day = 86_400_000_000;
    equivalent(&of, &bytes(0, 0, 1), &bytes(0, 30, 0));
    equivalent(&of, &bytes(0, 1, 0), &bytes(day, 0, 0));
    equivalent(&of, &bytes(-day, 1, 0), &bytes(0, 0, 0));
    different(&of, &bytes(0, 0, 1), &bytes(0, 31, 0));
    different(&of, &bytes(i64::MAX, i32::MAX, i32::MAX), &bytes(i64::MAX - 1, i32::MAX, i32::MAX));
    different(&of, &bytes(i64::MAX, i32::MAX, i32::MAX), &bytes(i64::MIN, i32::MIN, i32::MIN));
}

#[test]
fn json_documents() {
    let json = builtin("json");
    equivalent(&json, br#"{"a":1,"b":2}"#, br#"{ "b": 2, "a": 1 }"#);
    different(&json, br#"{"a":1,"a":2}"#, br#"{"a":2}"#);
    different(&json, b"{}", b"[]");
    different(&json, b"9007199254740993", b"9007199254740992");
    let jsonb = builtin("jsonb");
    equivalent(&jsonb, b"\x01[1.0]", b"\x01[1.00]");
    different(&jsonb, b"\x01null", b"\x01\"null\"");
    let (one, two) =
        (sum_of(&json, br#"{"b":1,"aa":2}"#), sum_of(&jsonb, b"\x01{\"b\": 1, \"aa\": 2}"));
    assert!(one.value == two.value && one.raw != two.raw);
}

/// The binary form of an array of int4 or of whatever the elements are.
fn array(flags: i32, oid: i32, dimensions: &[(i32, i32)], elements: &[Option<&[u8]>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |number: i32| bytes.extend_from_slice(&number.to_be_bytes());
    put(dimensions.len() as i32);
    put(flags);
    put(oid);
    for (length, lower) in dimensions {
        put(*length);
        put(*lower);
    }
    for element in elements {
        match element {
            None => bytes.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(element) => {
                bytes.extend_from_slice(&(element.len() as i32).to_be_bytes());
                bytes.extend_from_slice(element);
            }
        }
    }
    bytes
}

#[test]
fn arrays() {
    let of = of_kind("_int4", TypeKind::Array(Box::new(builtin("int4"))));
    let (one, two) = (1_i32.to_be_bytes(), 2_i32.to_be_bytes());
    let elements: [Option<&[u8]>; 2] = [Some(&one), Some(&two)];
    let plain = array(0, 23, &[(2, 1)], &elements);
    identical(&of, &plain, &array(1, 23, &[(2, 1)], &elements));
    identical(&of, &plain, &array(0, 99_999, &[(2, 1)], &elements));
    different(&of, &plain, &array(0, 23, &[(2, 0)], &elements));
    different(&of, &plain, &array(0, 23, &[(2, 1), (1, 1)], &elements));
    different(&of, &plain, &array(0, 23, &[(1, 1), (2, 1)], &elements));
    different(&of, &plain, &array(1, 23, &[(2, 1)], &[Some(&one), None]));
    different(&of, &array(0, 23, &[], &[]), &array(1, 23, &[(1, 1)], &[None]));

    let numerics = of_kind("_numeric", TypeKind::Array(Box::new(builtin("numeric"))));
    let (short, long) = (numeric(0, 0, 1, &[1]), numeric(0, 0, 2, &[1]));
    let of_one = |element: &[u8]| array(0, 1700, &[(1, 1)], &[Some(element)]);
    equivalent(&numerics, &of_one(&short), &of_one(&long));
}

#[test]
fn ranges_and_multiranges() {
    let range = of_kind("numrange", TypeKind::Range(Box::new(builtin("numeric"))));
    let bound = |scale| {
        let number = numeric(0, 0, scale, &[1]);
        [&(number.len() as i32).to_be_bytes()[..], &number].concat()
    };
    let from = |flags: u8, bounds: &[Vec<u8>]| [vec![flags], bounds.concat()].concat();
    equivalent(&range, &from(0x12, &[bound(1)]), &from(0x12, &[bound(2)]));
    different(&range, &from(0x10, &[bound(1)]), &from(0x12, &[bound(1)]));
    different(&range, &from(0x01, &[]), &from(0x18, &[]));
    let multi = of_kind("nummultirange", TypeKind::Multirange(Box::new(builtin("numeric"))));
    let many = |ranges: &[Vec<u8>]| {
        let mut bytes = (ranges.len() as i32).to_be_bytes().to_vec();
        for range in ranges {
            bytes.extend_from_slice(&(range.len() as i32).to_be_bytes());
            bytes.extend_from_slice(range);
        }
        bytes
    };
    equivalent(&multi, &many(&[from(0x12, &[bound(1)])]), &many(&[from(0x12, &[bound(2)])]));
    different(&multi, &many(&[]), &many(&[from(0x01, &[])]));
}

#[test]
fn composites_do_not_depend_on_oids() {
    let of = of_kind(
        "pair",
        TypeKind::Composite(vec![
            ("a".to_owned(), builtin("int4"), -1),
            ("b".to_owned(), of_kind("mood", TypeKind::Enum(vec!["ok".to_owned()])), -1),
        ]),
    );
    let pair = |oid: i32, mood: Option<&[u8]>| {
        let mut bytes =
            [2_i32, 23, 4, 7, oid].iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<_>>();
        match mood {
            None => bytes.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(mood) => {
                bytes.extend_from_slice(&(mood.len() as i32).to_be_bytes());
                bytes.extend_from_slice(mood);
            }
        }
        bytes
    };
    identical(&of, &pair(16_400, Some(b"ok")), &pair(16_500, Some(b"ok")));
    different(&of, &pair(16_400, Some(b"ok")), &pair(16_400, None));
    different(&of, &pair(16_400, Some(b"")), &pair(16_400, None));
}

#[test]
fn addresses_bits_and_zones() {
    let inet = builtin("inet");
    different(&inet, &[2, 24, 0, 4, 10, 1, 2, 3], &[2, 24, 0, 4, 10, 1, 2, 0]);
    different(&inet, &[2, 24, 0, 4, 10, 1, 2, 3], &[2, 32, 0, 4, 10, 1, 2, 3]);
    different(&builtin("varbit"), &[0, 0, 0, 3, 0b1010_0000], &[0, 0, 0, 4, 0b1010_0000]);
    let six = sum_of(&builtin("macaddr"), &[1, 2, 3, 4, 5, 6]);
    let eight = sum_of(&builtin("macaddr8"), &[1, 2, 3, 0xff, 0xfe, 4, 5, 6]);
    assert!(six.value == eight.value && six.raw != eight.raw);
    let timetz = |hour: i64, west: i32| {
        [&(hour * 3_600_000_000).to_be_bytes()[..], &west.to_be_bytes()].concat()
    };
    different(&builtin("timetz"), &timetz(10, -7200), &timetz(9, -3600));
    let hour = 3_600_000_000_i64;
    different(&builtin("timestamptz"), &0_i64.to_be_bytes(), &hour.to_be_bytes());
    different(&builtin("timestamptz"), &i64::MAX.to_be_bytes(), &(i64::MAX - 1).to_be_bytes());
    different(&builtin("date"), &i32::MAX.to_be_bytes(), &i32::MIN.to_be_bytes());
}

#[test]
fn widths_and_domains_do_not_matter_in_the_canonical_form() {
    let four = sum_of(&builtin("int4"), &(-7_i32).to_be_bytes());
    assert_eq!(four, sum_of(&builtin("int8"), &(-7_i64).to_be_bytes()));
    assert_eq!(four, sum_of(&builtin("int2"), &(-7_i16).to_be_bytes()));
    let base = Box::new(builtin("int4"));
    let domain = of_kind("quantity", TypeKind::Domain { base, typmod: -1 });
    assert_eq!(four, sum_of(&domain, &(-7_i32).to_be_bytes()));
}

#[test]
fn columns_are_taken_by_name() {
    let (a, b) = (column("a", "int4"), column("b", "text"));
    let one = sum(&[a.clone(), b.clone()], &[vec![int4(1), text("x")]]);
    let two = sum(&[b, a], &[vec![text("x"), int4(1)]]);
    assert_eq!(one, two);
}

#[test]
fn the_borders_of_fields_and_null_count() {
    let columns = [column("a", "text"), column("b", "text")];
    let rows: [Row; 8] = [
        vec![text("a|b"), text("c")],
        vec![text("a"), text("b|c")],
        vec![text("ab"), text("c")],
        vec![text("a"), text("bc")],
        vec![text(""), None],
        vec![None, text("")],
        vec![None, None],
        vec![text(""), text("")],
    ];
    let sums = rows.map(|row| sum(&columns, &[row]));
    for (number, one) in sums.iter().enumerate() {
        for two in &sums[..number] {
            assert_ne!(one.raw, two.raw);
        }
    }
}

#[test]
fn a_column_that_comes_as_text_is_text() {
    let column = column("c", "point");
    let cast = [DigestColumn { column: &column, wire: Wire::CastToText }];
    let form = TupleForm::PgBinary;
    let leaves = LeafBounds::single();
    let mut hasher = RowHasher::compile(&cast, form, Forms::RawAndValue, &key(), leaves).unwrap();
    assert_eq!(hasher.opaque_columns().count(), 0);
    hasher.add(&batch(&[vec![text("(1,2)")]])).unwrap();
    let wanted: RowSum = sum_of(&builtin("text"), b"(1,2)");
    assert_eq!(hasher.sum(), wanted);
}

#[test]
fn types_without_a_form_are_named() {
    let columns = [column("id", "int4"), column("place", "point")];
    let hasher = crate::hasher(&columns, Forms::Raw);
    assert_eq!(hasher.opaque_columns().collect::<Vec<_>>(), ["place"]);
}

#[test]
fn only_types_without_oids_and_nans_are_stable() {
    let is_stable = |data_type: DataType| is_tuple_stable(&own(&[typed("c", data_type)]));
    for name in ["int4", "numeric", "jsonb", "bpchar", "interval", "timetz", "inet"] {
        assert!(is_stable(builtin(name)), "{name}");
    }
    for name in ["float4", "float8", "point", "regclass", "tsvector", "xml"] {
        assert!(!is_stable(builtin(name)), "{name}");
    }
    let of = |name: &str| Box::new(builtin(name));
    assert!(is_stable(of_kind("mood", TypeKind::Enum(Vec::new()))));
    assert!(is_stable(of_kind("int4range", TypeKind::Range(of("int4")))));
    assert!(!is_stable(of_kind("floatrange", TypeKind::Range(of("float8")))));
    assert!(!is_stable(of_kind("_int4", TypeKind::Array(of("int4")))));
    assert!(!is_stable(of_kind("pair", TypeKind::Composite(Vec::new()))));
    assert!(!is_stable(of_kind("d", TypeKind::Domain { base: of("float8"), typmod: -1 })));
    let foreign = DataType { schema: "public".to_owned(), ..builtin("int4") };
    assert!(!is_stable(foreign));
}
