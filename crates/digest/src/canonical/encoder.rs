//! One function per kind of cell of the canonical form.
//!
//! **Invariant:** every function appends exactly one cell (a `begin_` function: the head of one, whose inner cells
//! follow). A value that both a PostgreSQL reader and a Parquet reader push through the same function has the same bytes.

use super::buffer::RowBuffer;
use super::{json, tag};

/// Which of the two forms is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The exact representation.
    Raw,
    /// What is equal has the same bytes.
    Value,
}

/// Numerics that are no numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumericSpecial {
    /// Not a number.
    NaN,
    /// Above all.
    Infinity,
    /// Below all.
    NegativeInfinity,
}

/// Head of a container or payload of a flat cell, at most.
const HEAD: usize = 1 + 10;

/// Values up to this length are copied as a whole window.
pub(crate) const SHORT: usize = 32;

/// The types whose short values have a quick way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quick {
    Int4,
    Int8,
    Date,
    Text,
    Bpchar,
    Numeric,
    /// The plain way is taken.
    No,
}

/// Payload of a value above all others.
const INFINITY: u8 = 0x01;
/// Payload of a value below all others.
const NEGATIVE_INFINITY: u8 = 0xff;

/// Appends cells to a row.
#[derive(Debug)]
pub struct Encoder<'a> {
    row: &'a mut RowBuffer,
    form: Form,
}

impl<'a> Encoder<'a> {
    /// Appends to `row` in one form.
    #[inline]
    pub fn new(row: &'a mut RowBuffer, form: Form) -> Self {
        Self { row, form }
    }

    /// The form that is written.
    #[inline]
    pub fn form(&self) -> Form {
        self.form
    }

    /// NULL of the type with this [`tag`]. A float4 in the value form is a float8.
    #[inline]
    pub fn push_null(&mut self, tag: u8) {
        let tag = if tag == tag::FLOAT4 && self.form == Form::Value { tag::FLOAT8 } else { tag };
        self.row.room(1);
        self.row.put([tag | tag::NULL]);
    }

    /// NULL of the type with this [`tag`], for a value that its place has no form for; noted in the row.
    pub fn push_replaced(&mut self, tag: u8) {
        self.row.has_replaced = true;
        self.push_null(tag);
    }

    /// A cell that was encoded before, in the same form.
    pub fn push_cell(&mut self, cell: &[u8]) {
        self.row.append(cell);
    }

    /// bool
    #[inline]
    pub fn push_bool(&mut self, value: bool) {
        self.row.room(3);
        self.row.put([tag::BOOL, 1, u8::from(value)]);
    }

    /// int2, int4, int8, oid
    #[inline]
    pub fn push_int(&mut self, value: i64) {
        self.eight(tag::INT, value);
    }

    /// money
    #[inline]
    pub fn push_money(&mut self, value: i64) {
        self.eight(tag::MONEY, value);
    }

    /// float4
    #[inline]
    pub fn push_float4(&mut self, value: f32) {
        if self.form == Form::Value {
            return self.push_float(f64::from(value));
        }
        let bits = if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() };
        self.row.room(6);
        self.row.put([tag::FLOAT4, 4]);
        self.row.put(bits.to_be_bytes());
    }

    /// float8
    #[inline]
    pub fn push_float(&mut self, value: f64) {
        let bits = if value.is_nan() {
            0x7ff8_0000_0000_0000
        } else if value == 0.0 && self.form == Form::Value {
            0
        } else {
            value.to_bits()
        };
        self.eight(tag::FLOAT8, bits as i64);
    }

    /// A finite numeric: base-10^4 digits as big-endian 16-bit words, the first of them worth 10000^`weight`; `dscale`
    /// digits behind the point are shown. Zero digits at either end are taken away here.
    #[inline]
    pub fn push_numeric_parts(&mut self, negative: bool, weight: i32, dscale: u16, digits: &[u8]) {
        let (mut digits, mut weight) = (digits, weight);
        while let [0, 0, rest @ ..] = digits {
            digits = rest;
            weight -= 1;
        }
        while let [rest @ .., 0, 0] = digits {
            digits = rest;
        }
        let zero = digits.is_empty();
        let class = u8::from(negative && !zero);
        let weight = if zero { 0 } else { weight };
        let fixed = if self.form == Form::Raw { 7 } else { 5 };
        self.row.room(HEAD + 7 + digits.len());
        self.row.put([tag::NUMERIC]);
        self.row.put_varint((fixed + digits.len()) as u64);
        let [a, b, c, d] = weight.to_be_bytes();
        self.row.put([class, a, b, c, d]);
        if self.form == Form::Raw {
            self.row.put(dscale.to_be_bytes());
        }
        self.row.put_slice(digits);
    }

    /// A numeric from a decimal: `unscaled` x 10^-`scale`, as Parquet and Arrow keep it. The raw form takes a scale
    /// above 0 as the display scale.
    pub fn push_decimal(&mut self, unscaled: i128, scale: i16) {
        // Words of base 10^4 align with the decimal point, so the lowest one is filled up with zeros.
        let fill = i32::from(scale).rem_euclid(4);
        let fill = if fill == 0 { 0 } else { 4 - fill };
        let mut rest = unscaled.unsigned_abs();
        let mut words = [0_u8; 24];
        let mut at = words.len();
        let mut first = true;
        while rest > 0 {
            let (divisor, factor) = match (first, fill) {
                (true, fill) => (10_u128.pow(4 - fill as u32), 10_u16.pow(fill as u32)),
                (false, _) => (10_000, 1),
            };
            let word = (rest % divisor) as u16 * factor;
            rest /= divisor;
            first = false;
            at -= 2;
            words[at..at + 2].copy_from_slice(&word.to_be_bytes());
        }
        let count = ((words.len() - at) / 2) as i32;
        // The lowest word is worth 10^-(scale + fill), a power of 10^4.
        let lowest = -(i32::from(scale) + fill) / 4;
        let dscale = scale.max(0) as u16;
        self.push_numeric_parts(unscaled < 0, lowest + count - 1, dscale, &words[at..]);
    }

    /// NaN and the infinities of numeric.
    pub fn push_numeric_special(&mut self, special: NumericSpecial) {
        let class = match special {
            NumericSpecial::NaN => 2,
            NumericSpecial::Infinity => 3,
            NumericSpecial::NegativeInfinity => 4,
        };
        self.flat(tag::NUMERIC, &[class]);
    }

    /// date as PostgreSQL sends it: days since 2000-01-01, the two extremes being the infinities.
    #[inline]
    pub fn push_date(&mut self, days: i32) {
        match days {
            i32::MAX => self.flat(tag::DATE, &[INFINITY]),
            i32::MIN => self.flat(tag::DATE, &[NEGATIVE_INFINITY]),
            _ => self.eight(tag::DATE, i64::from(days)),
        }
    }

    /// time in microseconds since midnight
    #[inline]
    pub fn push_time(&mut self, micros: i64) {
        self.eight(tag::TIME, micros);
    }

    /// timetz: microseconds since midnight, seconds west of UTC
    pub fn push_timetz(&mut self, micros: i64, seconds_west: i32) {
        self.row.room(14);
        self.row.put([tag::TIMETZ, 12]);
        self.row.put(micros.to_be_bytes());
        self.row.put(seconds_west.to_be_bytes());
    }

    /// timestamp: microseconds since 2000-01-01, the two extremes being the infinities
    #[inline]
    pub fn push_timestamp(&mut self, micros: i64) {
        self.instant(tag::TIMESTAMP, micros);
    }

    /// timestamptz: microseconds since 2000-01-01 in UTC, the two extremes being the infinities
    #[inline]
    pub fn push_timestamptz(&mut self, micros: i64) {
        self.instant(tag::TIMESTAMPTZ, micros);
    }

    /// interval; all three at an extreme is an infinity (17 and later)
    pub fn push_interval(&mut self, months: i32, days: i32, micros: i64) {
        match (months, days, micros) {
            (i32::MAX, i32::MAX, i64::MAX) => return self.flat(tag::INTERVAL, &[INFINITY]),
            (i32::MIN, i32::MIN, i64::MIN) => {
                return self.flat(tag::INTERVAL, &[NEGATIVE_INFINITY]);
            }
            _ => {}
        }
        self.row.room(18);
        self.row.put([tag::INTERVAL, 16]);
        if self.form == Form::Raw {
            self.row.put(months.to_be_bytes());
            self.row.put(days.to_be_bytes());
            self.row.put(micros.to_be_bytes());
            return;
        }
        let days = i128::from(months) * 30 + i128::from(days);
        self.row.put((days * 86_400_000_000 + i128::from(micros)).to_be_bytes());
    }

    /// uuid
    #[inline]
    pub fn push_uuid(&mut self, bytes: [u8; 16]) {
        self.row.room(18);
        self.row.put([tag::UUID, 16]);
        self.row.put(bytes);
    }

    /// bytea
    #[inline]
    pub fn push_bytea(&mut self, bytes: &[u8]) {
        self.flat(tag::BYTEA, bytes);
    }

    /// text and what is carried as text
    #[inline]
    pub fn push_text(&mut self, bytes: &[u8]) {
        self.flat(tag::TEXT, bytes);
    }

    /// bpchar; its blanks at the end count in the raw form only
    #[inline]
    pub fn push_bpchar(&mut self, bytes: &[u8]) {
        let len = self.bpchar_len(bytes);
        self.flat(tag::TEXT, &bytes[..len]);
    }

    /// How much of a bpchar counts in this form.
    #[inline]
    fn bpchar_len(&self, bytes: &[u8]) -> usize {
        if self.form == Form::Value { without_blanks(bytes) } else { bytes.len() }
    }

    /// Pushes a short value of one of the commonest types from the bytes of its field and those behind it, `len` of which
    /// are the value. Writes through one window of the row, so that a cell costs one check of bounds and no branch on the
    /// length. Returns false, and has pushed nothing, where the plain way has to be taken.
    #[inline]
    pub(crate) fn push_quick(&mut self, kind: Quick, field: &[u8; SHORT], len: usize) -> bool {
        let is_value = self.form == Form::Value;
        let Some(cell) = self.row.window::<{ 2 + SHORT }>() else { return false };
        let written = match kind {
            Quick::Int4 if len == 4 => int_cell(cell, tag::INT, int4(field).into()),
            Quick::Int8 if len == 8 => int_cell(cell, tag::INT, int8(field)),
            Quick::Date if len == 4 => match int4(field) {
                i32::MIN | i32::MAX => return false,
                days => int_cell(cell, tag::DATE, days.into()),
            },
            Quick::Text if len <= SHORT => text_cell(cell, field, len),
            Quick::Bpchar if len <= SHORT => {
                let len = if is_value { without_blanks(&field[..len]) } else { len };
                text_cell(cell, field, len)
            }
            Quick::Numeric if is_value => match numeric_cell(cell, field, len) {
                0 => return false,
                written => written,
            },
            _ => return false,
        };
        self.row.advance(written);
        true
    }

    /// bit, varbit
    pub fn push_bits(&mut self, bit_count: u32, bytes: &[u8]) {
        self.row.room(HEAD + 4 + bytes.len());
        self.row.put([tag::BIT]);
        self.row.put_varint(4 + bytes.len() as u64);
        self.row.put(bit_count.to_be_bytes());
        self.row.put_slice(bytes);
    }

    /// json, jsonb: the text
    ///
    /// # Errors
    /// In the value form: the text is not JSON; the error says in what way.
    pub fn push_json(&mut self, text: &[u8]) -> Result<(), &'static str> {
        if self.form == Form::Raw {
            self.flat(tag::JSON, text);
            return Ok(());
        }
        self.row.append(&[tag::JSON]);
        json::append_value(text, self.row)
    }

    /// inet, cidr: 4 or 16 address bytes
    pub fn push_inet(&mut self, bit_count: u8, address: &[u8]) {
        let family = if address.len() == 4 { 4 } else { 6 };
        self.row.room(HEAD + 2 + address.len());
        self.row.put([tag::INET]);
        self.row.put_varint(2 + address.len() as u64);
        self.row.put([family, bit_count]);
        self.row.put_slice(address);
    }

    /// macaddr
    pub fn push_macaddr(&mut self, bytes: [u8; 6]) {
        if self.form == Form::Raw {
            return self.flat(tag::MAC, &bytes);
        }
        let [a, b, c, d, e, f] = bytes;
        self.push_macaddr8([a, b, c, 0xff, 0xfe, d, e, f]);
    }

    /// macaddr8
    pub fn push_macaddr8(&mut self, bytes: [u8; 8]) {
        self.flat(tag::MAC, &bytes);
    }

    /// A type without a form of its own: what its send function writes.
    pub fn push_opaque(&mut self, bytes: &[u8]) {
        self.flat(tag::OPAQUE, bytes);
    }

    /// Head of an array: length and lower bound of each dimension; its elements follow as cells.
    pub fn begin_array(&mut self, dimensions: impl ExactSizeIterator<Item = (i32, i32)>) {
        self.row.room(HEAD + 8 * dimensions.len());
        self.row.put([tag::ARRAY]);
        self.row.put_varint(dimensions.len() as u64);
        for (length, lower_bound) in dimensions {
            self.row.put(length.to_be_bytes());
            self.row.put(lower_bound.to_be_bytes());
        }
    }

    /// Head of a range; the bounds that its flags say it has follow as cells.
    pub fn begin_range(&mut self, flags: u8) {
        self.row.append(&[tag::RANGE, flags]);
    }

    /// Head of a multirange; `count` ranges follow.
    pub fn begin_multirange(&mut self, count: usize) {
        self.counted(tag::MULTIRANGE, count);
    }

    /// Head of a composite; `count` attributes follow as cells.
    pub fn begin_composite(&mut self, count: usize) {
        self.counted(tag::COMPOSITE, count);
    }

    fn counted(&mut self, tag: u8, count: usize) {
        self.row.room(HEAD);
        self.row.put([tag]);
        self.row.put_varint(count as u64);
    }

    #[inline]
    fn instant(&mut self, tag: u8, micros: i64) {
        match micros {
            i64::MAX => self.flat(tag, &[INFINITY]),
            i64::MIN => self.flat(tag, &[NEGATIVE_INFINITY]),
            _ => self.eight(tag, micros),
        }
    }

    #[inline]
    fn eight(&mut self, tag: u8, value: i64) {
        let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
        self.row.room(10);
        self.row.put([tag, 8, a, b, c, d, e, f, g, h]);
    }

    #[inline]
    fn flat(&mut self, tag: u8, payload: &[u8]) {
        self.row.room(HEAD + payload.len());
        if let Ok(len @ 0..0x80) = u8::try_from(payload.len()) {
            self.row.put([tag, len]);
        } else {
            self.row.put([tag]);
            self.row.put_varint(payload.len() as u64);
        }
        self.row.put_slice(payload);
    }
}

fn int4(field: &[u8; SHORT]) -> i32 {
    let [a, b, c, d, ..] = *field;
    i32::from_be_bytes([a, b, c, d])
}

fn int8(field: &[u8; SHORT]) -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = *field;
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The cell of an integer; returns its length, as the other two do.
#[inline]
fn int_cell(cell: &mut [u8; 2 + SHORT], tag: u8, value: i64) -> usize {
    (cell[0], cell[1]) = (tag, 8);
    cell[2..10].copy_from_slice(&value.to_be_bytes());
    10
}

#[inline]
fn text_cell(cell: &mut [u8; 2 + SHORT], text: &[u8; SHORT], len: usize) -> usize {
    (cell[0], cell[1]) = (tag::TEXT, len as u8);
    cell[2..].copy_from_slice(text);
    2 + len
}

/// The value form of a numeric as the server sends it, if it is finite, has at most four digits of base 10^4 and no zero
/// among the outer ones; otherwise 0.
#[inline]
fn numeric_cell(cell: &mut [u8; 2 + SHORT], field: &[u8; SHORT], len: usize) -> usize {
    let [n0, n1, w0, w1, s0, s1, _, _, a, b, c, d, e, f, g, h, ..] = *field;
    let count = usize::from(u16::from_be_bytes([n0, n1]));
    let is_plain = matches!(count, 1..=4) && len == 8 + 2 * count && s1 == 0 && s0 & !0x40 == 0;
    if !is_plain || [a, b] == [0, 0] || field[6 + 2 * count..8 + 2 * count] == [0, 0] {
        return 0;
    }
    let [x, y, _, _] = i32::from(i16::from_be_bytes([w0, w1])).to_be_bytes();
    let bytes =
        [tag::NUMERIC, 5 + 2 * count as u8, s0 >> 6, x, y, w0, w1, a, b, c, d, e, f, g, h, 0];
    cell[..16].copy_from_slice(&bytes);
    7 + 2 * count
}

/// The length without the blanks at the end, eight bytes at a time.
#[inline]
fn without_blanks(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some((before, last)) = rest.split_last_chunk::<8>() {
        let others = u64::from_le_bytes(*last) ^ u64::from_le_bytes([b' '; 8]);
        if others != 0 {
            return rest.len() - (others.leading_zeros() / 8) as usize;
        }
        rest = before;
    }
    while let [before @ .., b' '] = rest {
        rest = before;
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(form: Form, push: impl FnOnce(&mut Encoder<'_>)) -> Vec<u8> {
        let mut row = RowBuffer::new();
        push(&mut Encoder::new(&mut row, form));
        row.as_slice().to_vec()
    }

    #[test]
    fn a_decimal_has_the_bytes_of_the_numeric_it_stands_for() {
        // (unscaled, scale) against (negative, weight, words)
        let cases: [(i128, i16, bool, i32, &[u16]); 9] = [
            (0, 2, false, 0, &[]),
            (1, 0, false, 0, &[1]),
            (12_345, 0, false, 1, &[1, 2345]),
            (-12_345, 2, true, 0, &[123, 4500]),
            (1, 4, false, -1, &[1]),
            (1, 5, false, -2, &[1000]),
            (100, 2, false, 0, &[1]),
            (5, -2, false, 0, &[500]),
            (5, -4, false, 1, &[5]),
        ];
        for (unscaled, scale, negative, weight, words) in cases {
            let digits: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            for form in [Form::Raw, Form::Value] {
                let decimal = bytes(form, |e| e.push_decimal(unscaled, scale));
                let parts = bytes(form, |e| {
                    e.push_numeric_parts(negative, weight, scale.max(0) as u16, &digits);
                });
                assert_eq!(decimal, parts, "{unscaled} scale {scale} {form:?}");
            }
        }
    }

    #[test]
    fn blanks_are_stripped_at_the_end_only() {
        for inner in ["", "a", "a b", " a", "1234567", "12345678", "123456789", "é"] {
            for blanks in 0..40 {
                let text = format!("{inner}{}", " ".repeat(blanks));
                assert_eq!(without_blanks(text.as_bytes()), inner.len(), "{text:?}");
            }
        }
    }

    /// Both ways; the quick one has room for its window.
    fn quick(form: Form, kind: Quick, field: &[u8; SHORT], len: usize) -> Vec<u8> {
        bytes(form, |e| {
            e.row.room(64);
            assert!(e.push_quick(kind, field, len), "{kind:?} {len}");
        })
    }

    #[test]
    fn the_quick_ways_write_the_same_cells() {
        let mut window = [b'x'; SHORT];
        window[..9].copy_from_slice(b"abcdefg  ");
        for form in [Form::Raw, Form::Value] {
            for len in 0..=SHORT {
                let text = &window[..len];
                assert_eq!(
                    quick(form, Quick::Text, &window, len),
                    bytes(form, |e| e.push_text(text))
                );
                assert_eq!(
                    quick(form, Quick::Bpchar, &window, len),
                    bytes(form, |e| e.push_bpchar(text))
                );
            }
            for value in [0, 1, -1, i64::MIN, i64::MAX, 1 << 40] {
                window[..8].copy_from_slice(&value.to_be_bytes());
                assert_eq!(
                    quick(form, Quick::Int8, &window, 8),
                    bytes(form, |e| e.push_int(value))
                );
            }
            for value in [0, 1, -1, i32::MIN + 1, i32::MAX - 1] {
                window[..4].copy_from_slice(&value.to_be_bytes());
                assert_eq!(
                    quick(form, Quick::Int4, &window, 4),
                    bytes(form, |e| e.push_int(value.into()))
                );
                assert_eq!(
                    quick(form, Quick::Date, &window, 4),
                    bytes(form, |e| e.push_date(value))
                );
            }
        }
    }

    #[test]
    fn what_has_no_quick_way_pushes_nothing() {
        let mut row = RowBuffer::new();
        row.room(64);
        let mut out = Encoder::new(&mut row, Form::Value);
        let infinity = [0x7f, 0xff, 0xff, 0xff].repeat(8).try_into().unwrap();
        assert!(!out.push_quick(Quick::Date, &infinity, 4));
        assert!(!out.push_quick(Quick::Int4, &[0; SHORT], 3));
        assert!(!out.push_quick(Quick::Numeric, &[0; SHORT], 8), "zero has no digits");
        assert!(!out.push_quick(Quick::No, &[0; SHORT], 4));
        assert!(row.as_slice().is_empty());
    }

    #[test]
    fn quick_numerics_are_plain_numerics() {
        for words in [&[1][..], &[9999, 1], &[1, 0, 5], &[7, 8, 9, 10]] {
            for (negative, weight) in [(false, 0), (true, 3), (false, -2), (true, -300)] {
                let mut field = [0xAB; SHORT];
                field[..2].copy_from_slice(&(words.len() as u16).to_be_bytes());
                field[2..4].copy_from_slice(&(weight as i16).to_be_bytes());
                field[4..8].copy_from_slice(&[if negative { 0x40 } else { 0 }, 0, 0, 2]);
                for (at, word) in words.iter().enumerate() {
                    field[8 + 2 * at..10 + 2 * at].copy_from_slice(&(*word as u16).to_be_bytes());
                }
                let len = 8 + 2 * words.len();
                let quick = quick(Form::Value, Quick::Numeric, &field, len);
                let digits = &field[8..len];
                let slow =
                    bytes(Form::Value, |e| e.push_numeric_parts(negative, weight, 2, digits));
                assert_eq!(quick, slow, "{words:?} {negative} {weight}");
            }
        }
    }

    #[test]
    fn the_widest_decimals_fit() {
        for scale in 0..=38 {
            for unscaled in [i128::MAX, i128::MIN] {
                assert!(!bytes(Form::Value, |e| e.push_decimal(unscaled, scale)).is_empty());
            }
        }
    }

    #[test]
    fn a_float4_is_the_float8_of_the_same_value_in_the_value_form_only() {
        for value in [1.1_f32, -0.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE] {
            let wide = f64::from(value);
            let of =
                |form| (bytes(form, |e| e.push_float4(value)), bytes(form, |e| e.push_float(wide)));
            let (four, eight) = of(Form::Value);
            assert_eq!(four, eight);
            let (four, eight) = of(Form::Raw);
            assert_ne!(four, eight);
        }
    }

    #[test]
    fn every_not_a_number_is_the_same() {
        let strange = f64::from_bits(0xfff8_0000_0000_0001);
        let raw = |value| bytes(Form::Raw, |e| e.push_float(value));
        assert_eq!(raw(strange), raw(f64::NAN));
        assert_ne!(raw(-0.0), raw(0.0));
    }
}
