//! Golden bytes: version 1 of the canonical form never changes by accident.

use std::fmt::Write as _;

use tidemark_digest::canonical::{Encoder, Form, NumericSpecial, RowBuffer, tag};
use tidemark_digest::{CANONICAL_VERSION, DigestKey};

type Push = fn(&mut Encoder<'_>);

/// Name, what is pushed, raw form, value form (empty: the same).
const VECTORS: &[(&str, Push, &str, &str)] = &[
    ("null int", |e| e.push_null(tag::INT), "82", ""),
    ("null float4", |e| e.push_null(tag::FLOAT4), "83", "84"),
    ("bool true", |e| e.push_bool(true), "010101", ""),
    ("int -2", |e| e.push_int(-2), "0208fffffffffffffffe", ""),
    ("float4 1.5", |e| e.push_float4(1.5), "03043fc00000", "04083ff8000000000000"),
    ("float8 -0", |e| e.push_float(-0.0), "04088000000000000000", "04080000000000000000"),
    ("float8 NaN", |e| e.push_float(f64::NAN), "04087ff8000000000000", ""),
    (
        "numeric 12345.60",
        |e| e.push_decimal(1_234_560, 2),
        "050d0000000001000200010929 1770",
        "050b000000000100010929 1770",
    ),
    (
        "numeric -0.0001",
        |e| e.push_numeric_parts(true, -1, 4, &[0, 1]),
        "050901ffffffff00040001",
        "050701ffffffff0001",
    ),
    ("numeric 0.00", |e| e.push_decimal(0, 2), "050700000000000002", "05050000000000"),
    ("numeric NaN", |e| e.push_numeric_special(NumericSpecial::NaN), "050102", ""),
    ("money 1.00", |e| e.push_money(100), "06080000000000000064", ""),
    ("date 2000-01-02", |e| e.push_date(1), "07080000000000000001", ""),
    ("date infinity", |e| e.push_date(i32::MAX), "070101", ""),
    ("date -infinity", |e| e.push_date(i32::MIN), "0701ff", ""),
    ("time 00:00:01", |e| e.push_time(1_000_000), "080800000000000f4240", ""),
    ("timetz 00:00:01+01", |e| e.push_timetz(1_000_000, -3600), "090c00000000000f4240fffff1f0", ""),
    ("timestamp -infinity", |e| e.push_timestamp(i64::MIN), "0a01ff", ""),
    ("timestamptz 2000-01-01", |e| e.push_timestamptz(0), "0b080000000000000000", ""),
    (
        "interval 1 mon 2 days 3 us",
        |e| e.push_interval(1, 2, 3),
        "0c1000000001000000020000000000000003",
        "0c10000000000000000000000283baec0003",
    ),
    ("uuid", |e| e.push_uuid([7; 16]), "0d1007070707070707070707070707070707", ""),
    ("bytea", |e| e.push_bytea(&[0, 255]), "0e0200ff", ""),
    ("text empty", |e| e.push_text(b""), "0f00", ""),
    ("bpchar", |e| e.push_bpchar(b"a  "), "0f03612020", "0f0161"),
    ("bits 101", |e| e.push_bits(3, &[0xa0]), "110500000003a0", ""),
    (
        "json",
        |e| e.push_json(br#"{"b":[1.50,null],"a":"x"}"#).unwrap(),
        "12197b2262223a5b312e35302c6e756c6c5d2c2261223a2278227d",
        "127b 220161 220178 220162 5b 2300fffffffffffffff f023135 6e 5d 7d",
    ),
    ("inet", |e| e.push_inet(24, &[10, 1, 2, 3]), "140604180a010203", ""),
    ("macaddr", |e| e.push_macaddr([1, 2, 3, 4, 5, 6]), "1506010203040506", "1508010203fffe040506"),
    (
        "array",
        |e| {
            e.begin_array([(2, 1)].into_iter());
            e.push_int(1);
            e.push_null(tag::INT);
        },
        "16010000000200000001 02080000000000000001 82",
        "",
    ),
    (
        "range",
        |e| {
            e.begin_range(0x12);
            e.push_int(1);
        },
        "1712 02080000000000000001",
        "",
    ),
    ("multirange", |e| e.begin_multirange(0), "1800", ""),
    ("composite", |e| e.begin_composite(300), "19ac02", ""),
    ("opaque", |e| e.push_opaque(b"\x01"), "1a0101", ""),
];

fn hex(form: Form, push: Push) -> String {
    let mut row = RowBuffer::new();
    push(&mut Encoder::new(&mut row, form));
    row.as_slice().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
fn version_1_is_what_it_was() {
    assert_eq!(CANONICAL_VERSION, 1);
    for (name, push, raw, value) in VECTORS {
        let value = if value.is_empty() { raw } else { value };
        assert_eq!(hex(Form::Raw, *push), raw.replace(' ', ""), "{name}, raw");
        assert_eq!(hex(Form::Value, *push), value.replace(' ', ""), "{name}, value");
    }
}

#[test]
fn long_texts_have_a_length_of_several_bytes() {
    let mut row = RowBuffer::new();
    Encoder::new(&mut row, Form::Raw).push_text(&[b'x'; 300]);
    assert_eq!(row.as_slice()[..4], [0x0f, 0xac, 0x02, b'x']);
    assert_eq!(row.as_slice().len(), 303);
}

#[test]
fn the_keyed_hash_is_what_it_was() {
    let key = DigestKey::new([7; 32]);
    let hashes = [b"".as_slice(), b"abc", &[9; 100], &[9; 1000]]
        .map(|row| format!("{:032x}", key.hash(row)));
    let wanted = [
        "8dc95f0ddcb37e26d9823621bf4747e9",
        "8834cbef7dff3a96f713bb6677183eda",
        "a1ef1bb98ecc8c0c0b67d4c717f3a096",
        "752326686fdc8ec6de247acb26c9a293",
    ];
    assert_eq!(hashes, wanted);
}
