//! Values as PostgreSQL prints them.
//!
//! **Invariant:** what is printed is, byte for byte, what the server's cast to text gives for the same value, under the
//! settings that every connection of ours pins (DateStyle ISO, TimeZone UTC, IntervalStyle postgres, bytea_output hex,
//! extra_float_digits above 0); a value for which that is not known is refused, never guessed.
//!
//! PostgreSQL manual: 8.5.2 (times), 8.15.6 (arrays), 8.16.6 (composites), 8.17.5 (ranges).

use std::io::Write as _;

use super::cells::{Fault, Kind, Range, Values, ends};

const DAY_MICROS: i64 = 86_400_000_000;
/// The first and the last day that PostgreSQL has, since 1970.
const FIRST_DAY: i64 = -2_440_588;
const LAST_DAY: i64 = 2_145_042_905;

impl Values {
    /// Appends the text of a row's value as a cast gives it; `false`: it is NULL.
    pub(super) fn print(&self, row: usize, out: &mut Vec<u8>) -> Result<bool, Fault> {
        if self.is_null(row) {
            return Ok(false);
        }
        match &self.of {
            // What a cast of these gives is not what their output functions write.
            Kind::Bool(values) => {
                out.extend_from_slice(if values.value(row) { b"true" } else { b"false" });
            }
            Kind::Bpchar(values, _) => out.extend_from_slice(values.value(row).as_bytes()),
            _ => self.print_part(row, out)?,
        }
        Ok(true)
    }

    /// What the type's output function writes, which is also what stands inside of arrays, composites and ranges.
    fn print_part(&self, row: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        match &self.of {
            Kind::Bool(values) => out.push(if values.value(row) { b't' } else { b'f' }),
            Kind::Int2(values) => put(out, format_args!("{}", values.value(row))),
            Kind::Int4(values) => put(out, format_args!("{}", values.value(row))),
            Kind::Int8(values) => put(out, format_args!("{}", values.value(row))),
            Kind::Oid(values) => put(out, format_args!("{}", values.value(row))),
            Kind::Float4(values) => print_float4(values.value(row), out),
            Kind::Float8(values) => print_float8(values.value(row), out),
            Kind::Decimal(values, scale) => print_decimal(values.value(row), *scale, out)?,
            Kind::NumericText(values)
            | Kind::Text(values)
            | Kind::Xml(values)
            | Kind::Json(values) => out.extend_from_slice(values.value(row).as_bytes()),
            Kind::Bpchar(values, width) => {
                let width = width.ok_or("a char without a length, whose blanks a lake has not")?;
                put(out, format_args!("{:<width$}", values.value(row)));
            }
            Kind::Uuid(values) => print_uuid(values.value(row), out),
            Kind::Bytea(values) => {
                out.extend_from_slice(b"\\x");
                print_hex(values.value(row), out);
            }
            Kind::Date(values) => {
                let is_bc = print_day(values.value(row).into(), out)?;
                out.extend_from_slice(if is_bc { b" BC" } else { b"" });
            }
            Kind::Timestamp(values) => print_moment(values.value(row), "", out)?,
            Kind::TimestampTz(values) => print_moment(values.value(row), "+00", out)?,
            Kind::Time(values) => match values.value(row) {
                micros @ 0..=DAY_MICROS => print_clock(micros.unsigned_abs(), out),
                _ => return Err("a time that PostgreSQL does not have"),
            },
            Kind::Interval(months, days, micros) => {
                print_interval(months.value(row), days.value(row), micros.value(row), out)?;
            }
            Kind::List(list, elements) => {
                let (from, to) = ends(list, row)?;
                print_list((b'{', b'}'), from..to, out, |at, out| {
                    print_element(elements, at, out)
                })?;
            }
            Kind::Struct(attributes) => {
                print_list((b'(', b')'), 0..attributes.len(), out, |at, out| {
                    print_attribute(&attributes[at], row, out)
                })?;
            }
            Kind::Range(range) => range.print(row, out)?,
            Kind::Multirange(list, range) => {
                let (from, to) = ends(list, row)?;
                print_list((b'{', b'}'), from..to, out, |at, out| range.print(at, out))?;
            }
        }
        Ok(())
    }
}

fn put(out: &mut Vec<u8>, what: std::fmt::Arguments<'_>) {
    // Nothing stops a vector from growing but the end of memory, which ends the process.
    out.write_fmt(what).ok();
}

fn print_list(
    (open, close): (u8, u8),
    items: std::ops::Range<usize>,
    out: &mut Vec<u8>,
    mut print: impl FnMut(usize, &mut Vec<u8>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    out.push(open);
    for (number, item) in items.enumerate() {
        if number > 0 {
            out.push(b',');
        }
        print(item, out)?;
    }
    out.push(close);
    Ok(())
}

fn print_element(elements: &Values, at: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
    if elements.is_null(at) {
        out.extend_from_slice(b"NULL");
        return Ok(());
    }
    let mut text = Vec::new();
    elements.print_part(at, &mut text)?;
    let is_quoted = text.eq_ignore_ascii_case(b"NULL") || needs_quotes(&text, b"{}");
    print_quoted(&text, is_quoted, |_| b'\\', out);
    Ok(())
}

fn print_attribute(attribute: &Values, row: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
    if attribute.is_null(row) {
        return Ok(());
    }
    let mut text = Vec::new();
    attribute.print_part(row, &mut text)?;
    print_quoted(&text, needs_quotes(&text, b"()"), |byte| byte, out);
    Ok(())
}

impl Range {
    fn print(&self, row: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        let [is_empty, lower_inc, upper_inc, lower_inf, upper_inf] =
            [0, 1, 2, 3, 4].map(|flag| self.flags[flag].value(row));
        if is_empty {
            out.extend_from_slice(b"empty");
            return Ok(());
        }
        out.push(if lower_inc { b'[' } else { b'(' });
        self.print_bound(0, lower_inf, row, out)?;
        out.push(b',');
        self.print_bound(1, upper_inf, row, out)?;
        out.push(if upper_inc { b']' } else { b')' });
        Ok(())
    }

    fn print_bound(
        &self,
        at: usize,
        is_infinite: bool,
        row: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let bound = &self.bounds[at];
        if is_infinite {
            return Ok(());
        }
        if bound.is_null(row) {
            return Err("a range without one of its bounds, which the lake has no form for");
        }
        let mut text = Vec::new();
        bound.print_part(row, &mut text)?;
        print_quoted(&text, needs_quotes(&text, b"()[]"), |byte| byte, out);
        Ok(())
    }
}

/// Whether a part has to stand in quotes inside of what these brackets are around.
fn needs_quotes(text: &[u8], brackets: &[u8]) -> bool {
    const SPACE: &[u8] = b" \t\n\r\x0b\x0c";
    let is_special =
        |byte: &u8| b"\"\\,".contains(byte) || brackets.contains(byte) || SPACE.contains(byte);
    text.is_empty() || text.iter().any(is_special)
}

fn print_quoted(text: &[u8], is_quoted: bool, escape: impl Fn(u8) -> u8, out: &mut Vec<u8>) {
    if !is_quoted {
        out.extend_from_slice(text);
        return;
    }
    out.push(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(escape(*byte));
        }
        out.push(*byte);
    }
    out.push(b'"');
}

fn print_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.extend([byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)]));
    }
}

fn print_uuid(bytes: &[u8], out: &mut Vec<u8>) {
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        print_hex(&[*byte], out);
    }
}

fn print_decimal(unscaled: i128, scale: i16, out: &mut Vec<u8>) -> Result<(), Fault> {
    let scale = usize::try_from(scale).map_err(|_| "a decimal with a negative scale")?;
    let digits = format!("{:0>1$}", unscaled.unsigned_abs(), scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if unscaled < 0 { "-" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    put(out, format_args!("{sign}{whole}{point}{fraction}"));
    Ok(())
}

/// `YYYY-MM-DD`; whether the year is one before the first.
fn print_day(day: i64, out: &mut Vec<u8>) -> Result<bool, Fault> {
    if !(FIRST_DAY..=LAST_DAY).contains(&day) {
        return Err("a date that PostgreSQL does not have");
    }
    // Years that begin with March, in cycles of 400 years, from 0000-03-01.
    let day = day + 719_468;
    let (cycle, of_cycle) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_cycle - of_cycle / 1460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = cycle * 400 + year + i64::from(month <= 2);
    let shown = if year > 0 { year } else { 1 - year };
    put(out, format_args!("{shown:04}-{month:02}-{of_month:02}"));
    Ok(year <= 0)
}

fn print_moment(micros: i64, zone: &str, out: &mut Vec<u8>) -> Result<(), Fault> {
    let is_bc = print_day(micros.div_euclid(DAY_MICROS), out)?;
    out.push(b' ');
    print_clock(micros.rem_euclid(DAY_MICROS).unsigned_abs(), out);
    let era = if is_bc { " BC" } else { "" };
    put(out, format_args!("{zone}{era}"));
    Ok(())
}

/// `HH:MM:SS` and as many digits behind the point as are not zero.
fn print_clock(micros: u64, out: &mut Vec<u8>) {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let (minutes, second) = (seconds / 60, seconds % 60);
    put(out, format_args!("{:02}:{:02}:{second:02}", minutes / 60, minutes % 60));
    if fraction > 0 {
        let digits = format!("{fraction:06}");
        put(out, format_args!(".{}", digits.trim_end_matches('0')));
    }
}

fn print_interval(months: i32, days: i32, micros: i64, out: &mut Vec<u8>) -> Result<(), Fault> {
    let parts = (months, days, micros);
    if parts == (i32::MAX, i32::MAX, i64::MAX) || parts == (i32::MIN, i32::MIN, i64::MIN) {
        return Err("an interval that is infinite to some versions of PostgreSQL");
    }
    let (mut is_first, mut is_after_minus) = (true, false);
    for (number, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if number == 0 {
            continue;
        }
        let blank = if is_first { "" } else { " " };
        let plus = if is_after_minus && number > 0 { "+" } else { "" };
        let plural = if number == 1 { "" } else { "s" };
        put(out, format_args!("{blank}{plus}{number} {unit}{plural}"));
        (is_first, is_after_minus) = (false, number < 0);
    }
    if is_first || micros != 0 {
        let blank = if is_first { "" } else { " " };
        let sign = match () {
            () if micros < 0 => "-",
            () if is_after_minus => "+",
            () => "",
        };
        put(out, format_args!("{blank}{sign}"));
        print_clock(micros.unsigned_abs(), out);
    }
    Ok(())
}

fn print_float8(value: f64, out: &mut Vec<u8>) {
    if let Some(special) = special(value) {
        return out.extend_from_slice(special.as_bytes());
    }
    let shown = |precision: Option<usize>| match precision {
        None => format!("{value:e}"),
        Some(precision) => format!("{value:.precision$e}"),
    };
    let is_same = |text: &str| text.parse::<f64>().is_ok_and(|back| back == value);
    let finite = Finite::of(value.abs().to_bits(), f64::MANTISSA_DIGITS - 1, -1074);
    print_digits(&finite.digits(shown, is_same), -4..15, out);
}

fn print_float4(value: f32, out: &mut Vec<u8>) {
    if let Some(special) = special(value.into()) {
        return out.extend_from_slice(special.as_bytes());
    }
    let shown = |precision: Option<usize>| match precision {
        None => format!("{value:e}"),
        Some(precision) => format!("{value:.precision$e}"),
    };
    let is_same = |text: &str| text.parse::<f32>().is_ok_and(|back| back == value);
    let finite = Finite::of(value.abs().to_bits().into(), f32::MANTISSA_DIGITS - 1, -149);
    print_digits(&finite.digits(shown, is_same), -4..6, out);
}

fn special(value: f64) -> Option<&'static str> {
    Some(match () {
        () if value.is_nan() => "NaN",
        () if value == f64::INFINITY => "Infinity",
        () if value == f64::NEG_INFINITY => "-Infinity",
        () if value == 0.0 && value.is_sign_negative() => "-0",
        () if value == 0.0 => "0",
        () => return None,
    })
}

/// A finite number: `mantissa` x 2^`exponent`, without its sign.
struct Finite {
    mantissa: u64,
    exponent: i32,
    /// It is a power of two with a neighbour below that is half as far away as the one above.
    is_power: bool,
}

impl Finite {
    /// Of the bits of a number that is not negative, so many of which are of its mantissa; `least`: the exponent of the
    /// smallest numbers.
    fn of(bits: u64, stored: u32, least: i32) -> Self {
        let (exponent, fraction) = ((bits >> stored) as i32, bits & ((1 << stored) - 1));
        Self {
            mantissa: if exponent == 0 { fraction } else { fraction | 1 << stored },
            exponent: least + (exponent - 1).max(0),
            is_power: fraction == 0 && exponent > 1,
        }
    }

    /// The shortest digits that stand for this number, as `-d.dde-7`: of two that are as near to it the even ones. PostgreSQL
    /// leaves out those in the very middle between two numbers, which readers round in different ways.
    fn digits(
        &self,
        shown: impl Fn(Option<usize>) -> String,
        is_same: impl Fn(&str) -> bool,
    ) -> String {
        let shortest = shown(None);
        let (digits, _) = shortest.split_once('e').unwrap_or((&shortest, ""));
        let count = digits.bytes().filter(u8::is_ascii_digit).count();
        let is_good = |text: &String| is_same(text) && !self.is_between(text);
        let nearest = shown(Some(count - 1));
        if is_good(&nearest) {
            return nearest;
        }
        if is_good(&shortest) {
            return shortest;
        }
        let mut longer = (count..17).map(|precision| shown(Some(precision)));
        longer.find(is_good).unwrap_or(shortest)
    }

    /// Whether digits that are read as this number are in the middle between it and one of its neighbours.
    fn is_between(&self, digits: &str) -> bool {
        let Some(decimal) = Decimal::of(digits) else { return false };
        // The number is twice, and four times, its mantissa there.
        let half = decimal.in_units_of(self.exponent - 1);
        let quarter = decimal.in_units_of(self.exponent - 2);
        let mantissa = u128::from(self.mantissa);
        half.is_some_and(|units| units == 2 * mantissa + 1 || units + 1 == 2 * mantissa)
            || self.is_power && quarter.is_some_and(|units| units + 1 == 4 * mantissa)
    }
}

/// `digits` x 10^`tens`.
struct Decimal {
    digits: u128,
    tens: i32,
}

impl Decimal {
    fn of(text: &str) -> Option<Self> {
        let (digits, exponent) = text.trim_start_matches('-').split_once('e')?;
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let exponent: i32 = exponent.parse().ok()?;
        let digits = format!("{whole}{fraction}").parse().ok()?;
        Some(Self { digits, tens: exponent - i32::try_from(fraction.len()).ok()? })
    }

    /// How many times 2^`exponent` it is, if that is a whole number of less than 128 bits.
    fn in_units_of(&self, exponent: i32) -> Option<u128> {
        let fives = 5_u128.checked_pow(self.tens.unsigned_abs())?;
        let units = match self.tens {
            0.. => self.digits.checked_mul(fives)?,
            _ if self.digits.is_multiple_of(fives) => self.digits / fives,
            _ => return None,
        };
        let twos = self.tens - exponent;
        let power = 1_u128.checked_shl(twos.unsigned_abs())?;
        match twos {
            0.. => units.checked_mul(power),
            _ => units.is_multiple_of(power).then(|| units / power),
        }
    }
}

/// Digits of the form `-d.dde-7`, with an exponent only outside of these.
fn print_digits(shown: &str, plain: std::ops::Range<i32>, out: &mut Vec<u8>) {
    let (digits, exponent) = shown.split_once('e').unwrap_or((shown, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", digits),
    };
    let digits = digits.replace('.', "");
    // A longer form may end in zeros.
    let digits = match digits.trim_end_matches('0') {
        "" => "0",
        digits => digits,
    };
    let count = digits.len();
    let before = usize::try_from(exponent + 1).unwrap_or_default();
    put(out, format_args!("{sign}"));
    match () {
        () if !plain.contains(&exponent) => {
            let (first, rest) = digits.split_at(1);
            let point = if rest.is_empty() { "" } else { "." };
            let minus = if exponent < 0 { '-' } else { '+' };
            put(out, format_args!("{first}{point}{rest}e{minus}{:02}", exponent.unsigned_abs()));
        }
        () if exponent < 0 => {
            let zeros = exponent.unsigned_abs() as usize - 1;
            put(out, format_args!("0.{:0>zeros$}{digits}", ""));
        }
        () if before >= count => put(out, format_args!("{digits:0<before$}")),
        () => put(out, format_args!("{}.{}", &digits[..before], &digits[before..])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(print: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        print(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn doubles_have_the_digits_of_postgresql() {
        for (value, text) in [
            (1e15, "1e+15"),
            (123456789012345.0, "123456789012345"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-1.5, "-1.5"),
            (100.0, "100"),
            (0.1 + 0.2, "0.30000000000000004"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            // The shortest digits are in the middle of two numbers.
            (1e23, "9.999999999999999e+22"),
            // Two digits are as near.
            (-2_657_075_535_688_385.0 / 4.0, "-664268883922096.2"),
            (2.0_f64.powi(-25), "2.9802322387695312e-08"),
        ] {
            assert_eq!(printed(|out| print_float8(value, out)), text);
        }
    }

    #[test]
    fn floats_have_the_digits_of_postgresql() {
        for (value, text) in [
            (1e6_f32, "1e+06"),
            (123456.0, "123456"),
            (1.1, "1.1"),
            (1e-45, "1e-45"),
            (f32::MAX, "3.4028235e+38"),
            (16777216.0, "1.6777216e+07"),
            (2.0_f32.powi(-12), "0.00024414062"),
        ] {
            assert_eq!(printed(|out| print_float4(value, out)), text);
        }
    }

    #[test]
    fn what_postgresql_does_not_have_is_not_printed() {
        for day in [FIRST_DAY - 1, LAST_DAY + 1] {
            assert!(print_day(day, &mut Vec::new()).is_err(), "{day}");
        }
        assert_eq!(printed(|out| assert_eq!(print_day(FIRST_DAY, out), Ok(true))), "4714-11-24");
        assert_eq!(printed(|out| assert_eq!(print_day(LAST_DAY, out), Ok(false))), "5874897-12-31");
        assert!(print_moment(i64::MIN, "", &mut Vec::new()).is_err());
        assert!(print_interval(i32::MAX, i32::MAX, i64::MAX, &mut Vec::new()).is_err());
    }
}
