//! The decoder, without a server: properties of values and of validity.

use arrow_array::Int64Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Int64Type};
use proptest::prelude::*;
use tidemark_model::{DataType, Generated, Identity};

use super::*;

fn column(type_name: &str, typmod: i32) -> Column {
    Column {
        attnum: 1,
        name: "v".to_owned(),
        data_type: DataType::builtin(0, type_name),
        typmod,
        type_name: type_name.to_owned(),
        is_nullable: true,
        generated: Generated::No,
        identity: Identity::No,
        has_default: false,
        key_position: None,
        collation: None,
    }
}

/// Rows of one field each.
fn rows(values: &[Option<Vec<u8>>]) -> Tuples {
    let mut data = Vec::new();
    let mut ends = Vec::new();
    for value in values {
        data.extend(1i16.to_be_bytes());
        let len = value.as_ref().map_or(-1, |value| value.len() as i32);
        data.extend(len.to_be_bytes());
        data.extend(value.iter().flatten());
        ends.push(data.len() as u32);
    }
    Tuples { form: TupleForm::PgBinary, data: data.into(), ends }
}

fn decode(column: Column, batches: &[Vec<Option<Vec<u8>>>]) -> Result<ArrayRef> {
    let mut decoder = Program::compile(&[column], Unrepresentable::Error)?.decoder();
    for batch in batches {
        decoder.append(&rows(batch))?;
    }
    Ok(Arc::clone(decoder.finish()?.column(0)))
}

/// The digits of a numeric of `scale` decimal places, as `numeric_send` writes them.
fn numeric(unscaled: i128, scale: u32) -> Vec<u8> {
    let groups = scale.div_ceil(4);
    let shift = 10u128.pow(groups * 4 - scale);
    let Some(mut rest) = unscaled.unsigned_abs().checked_mul(shift) else {
        panic!("too many digits for this test");
    };
    let mut digits = Vec::new();
    while rest > 0 {
        digits.push((rest % 10_000) as u16);
        rest /= 10_000;
    }
    let weight = digits.len() as i32 - 1 - groups as i32;
    digits.reverse();
    while digits.last() == Some(&0) {
        digits.pop();
    }
    let sign = if unscaled < 0 { 0x4000 } else { 0 };
    let head = [digits.len() as u16, weight as i16 as u16, sign, scale as u16];
    head.iter().chain(&digits).flat_map(|word| word.to_be_bytes()).collect()
}

fn batches<T: std::fmt::Debug>(
    value: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Vec<Vec<Option<T>>>> {
    let batch = prop::collection::vec(prop::option::weighted(0.8, value), 0..1200);
    prop::collection::vec(batch, 0..3)
}

fn encode<T>(batches: &[Vec<Option<T>>], one: impl Fn(&T) -> Vec<u8>) -> Vec<Vec<Option<Vec<u8>>>> {
    let batch = |batch: &Vec<Option<T>>| batch.iter().map(|v| v.as_ref().map(&one)).collect();
    batches.iter().map(batch).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn numbers_and_nulls_keep_their_places(values in batches(any::<i64>())) {
        let array = decode(column("int8", -1), &encode(&values, |v| v.to_be_bytes().to_vec())).unwrap();
        let expected: Int64Array = values.into_iter().flatten().collect();
        prop_assert_eq!(array.as_primitive::<Int64Type>(), &expected);
    }

    #[test]
    fn text_of_any_length_keeps_its_bytes(values in batches("[a-zé€ ]{0,50}")) {
        let array = decode(column("text", -1), &encode(&values, |v| v.as_bytes().to_vec())).unwrap();
        let ours: Vec<_> = array.as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect();
        prop_assert_eq!(ours, values.into_iter().flatten().collect::<Vec<_>>());
    }

    #[test]
    fn only_trailing_blanks_are_trimmed(values in batches("[a ]{0,30}")) {
        let array = decode(column("bpchar", 34), &encode(&values, |v| v.as_bytes().to_vec())).unwrap();
        let ours: Vec<_> = array.as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect();
        let trimmed = |v: Option<String>| v.map(|v| v.trim_end_matches(' ').to_owned());
        prop_assert_eq!(ours, values.into_iter().flatten().map(trimmed).collect::<Vec<_>>());
    }

    #[test]
    fn decimals_of_every_scale_are_exact(
        digits in 1..=29u32,
        scale_of in 0..=29u32,
        seed in any::<i128>(),
    ) {
        let scale = scale_of.min(digits);
        let unscaled = seed % 10i128.pow(digits);
        let typmod = ((digits << 16) | scale) as i32 + 4;
        let values = vec![vec![Some(numeric(unscaled, scale)), None, Some(numeric(-unscaled, scale))]];
        let array = decode(column("numeric", typmod), &values).unwrap();
        let ours: Vec<_> = array.as_primitive::<Decimal128Type>().iter().collect();
        prop_assert_eq!(ours, [Some(unscaled), None, Some(-unscaled)]);
    }

    #[test]
    fn a_date_is_shifted_or_refused_but_never_wraps(days in any::<i32>()) {
        let values = vec![vec![Some(days.to_be_bytes().to_vec())]];
        match decode(column("date", -1), &values) {
            Ok(array) => {
                let shifted = array.as_primitive::<Date32Type>().value(0);
                prop_assert_eq!(i64::from(shifted), i64::from(days) + 10_957);
            }
            Err(error) => {
                prop_assert!(days == i32::MIN || days > i32::MAX - 10_957, "{}", error);
            }
        }
    }
}

#[test]
fn the_edges_of_the_epoch_shift_are_refused() {
    for days in [i32::MIN, i32::MAX, i32::MAX - 10_956] {
        let values = vec![vec![Some(days.to_be_bytes().to_vec())]];
        let error = decode(column("date", -1), &values).unwrap_err();
        assert!(matches!(error, Error::Unrepresentable { .. }), "{days}");
    }
    let last = i64::MAX - 10_957 * 86_400_000_000;
    for (micros, fits) in [(last, true), (last + 1, false), (i64::MIN, false), (i64::MIN + 1, true)]
    {
        let values = vec![vec![Some(micros.to_be_bytes().to_vec())]];
        assert_eq!(decode(column("timestamp", -1), &values).is_ok(), fits, "{micros}");
    }
}

#[test]
fn text_that_only_together_is_utf_8_is_refused() {
    let halves = vec![vec![Some(vec![0xC3]), Some(vec![0xA9])]];
    let error = decode(column("text", -1), &halves).unwrap_err();
    assert_eq!(error, Error::NotUtf8 { column: "v".to_owned(), type_name: "text".to_owned() });
    assert!(!error.to_string().contains('Ã'));
}

#[test]
fn bytes_tell_what_is_held_and_not_what_came_in() {
    let program = Program::compile(&[column("numeric", -1)], Unrepresentable::Error).unwrap();
    let mut decoder = program.decoder();
    // Ten bytes that print as 131,069 digits.
    let wide = vec![0, 1, 0x7F, 0xFF, 0, 0, 0, 0, 0, 1];
    decoder.append(&rows(&vec![Some(wide); 100])).unwrap();
    assert!(decoder.bytes() > 100 * 131_000, "{}", decoder.bytes());
}

#[test]
fn the_one_byte_char_prints_as_postgres_16_does() {
    let values = vec![vec![Some(vec![0]), Some(vec![b'a']), Some(vec![0xE9])]];
    let array = decode(column("char", -1), &values).unwrap();
    let ours: Vec<_> = array.as_string::<i32>().iter().flatten().collect();
    assert_eq!(ours, ["", "a", "\\351"]);
}

#[test]
fn more_columns_than_a_select_list_holds_are_refused() {
    let columns = vec![column("int4", -1); 1665];
    let error = Program::compile(&columns, Unrepresentable::Error).unwrap_err();
    assert_eq!(error, Error::TooManyColumns { count: 1665 });
}

#[test]
fn an_infinite_interval_is_named() {
    let mut infinity = i64::MAX.to_be_bytes().to_vec();
    infinity.extend(i32::MAX.to_be_bytes());
    infinity.extend(i32::MAX.to_be_bytes());
    let error = decode(column("interval", -1), &[vec![Some(infinity)]]).unwrap_err();
    assert!(matches!(error, Error::Unrepresentable { what: "infinity", .. }));
}
