//! Text of dates, times and intervals, under DateStyle ISO and IntervalStyle postgres.
//!
//! PostgreSQL manual, section 8.5.2.

use super::{MALFORMED, parse};
use crate::error::Fault;

const MICROS: i64 = 1_000_000;
const DAY_MICROS: i64 = 86_400 * MICROS;
/// Days from 1970-01-01 to 2000-01-01.
const EPOCH_DAYS: i64 = 10_957;

/// Days since 2000-01-01; the infinities are the ends of the type.
pub(super) fn date(text: &[u8]) -> Result<i32, Fault> {
    match text {
        b"infinity" => Ok(i32::MAX),
        b"-infinity" => Ok(i32::MIN),
        _ => {
            let (text, is_bc) = without_era(text);
            i32::try_from(days(text, is_bc)?).map_err(|_| MALFORMED)
        }
    }
}

/// Microseconds since 2000-01-01, in UTC if the text has a zone, which it must have or not.
pub(super) fn timestamp(text: &[u8], has_zone: bool) -> Result<i64, Fault> {
    match text {
        b"infinity" => return Ok(i64::MAX),
        b"-infinity" => return Ok(i64::MIN),
        _ => {}
    }
    let (text, is_bc) = without_era(text);
    let blank = text.iter().position(|byte| *byte == b' ').ok_or(MALFORMED)?;
    let (day, clock) = (&text[..blank], &text[blank + 1..]);
    let zone = clock.iter().position(|byte| matches!(byte, b'+' | b'-'));
    if zone.is_some() != has_zone {
        return Err(MALFORMED);
    }
    let (clock, offset) = match zone {
        Some(at) => (&clock[..at], zone_micros(&clock[at..])?),
        None => (clock, 0),
    };
    let micros = i128::from(days(day, is_bc)?) * i128::from(DAY_MICROS) + i128::from(time(clock)?)
        - i128::from(offset);
    i64::try_from(micros).map_err(|_| MALFORMED)
}

/// Microseconds since midnight.
pub(super) fn time(text: &[u8]) -> Result<i64, Fault> {
    let micros = clock_micros(text)?;
    i64::try_from(micros).map_err(|_| MALFORMED)
}

/// Appends microseconds, days and months.
pub(super) fn recode_interval(text: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let (micros, days, months) = match text {
        b"infinity" => (i64::MAX, i32::MAX, i32::MAX),
        b"-infinity" => (i64::MIN, i32::MIN, i32::MIN),
        _ => interval(text)?,
    };
    out.extend(micros.to_be_bytes());
    out.extend(days.to_be_bytes());
    out.extend(months.to_be_bytes());
    Ok(())
}

fn interval(text: &[u8]) -> Result<(i64, i32, i32), Fault> {
    let (mut micros, mut days, mut months) = (0_i128, 0_i64, 0_i64);
    let mut words = text.split(|byte| *byte == b' ');
    while let Some(word) = words.next() {
        if word.contains(&b':') {
            let (sign, clock) = match word {
                [b'-', rest @ ..] => (-1, rest),
                [b'+', rest @ ..] => (1, rest),
                _ => (1, word),
            };
            micros = sign * clock_micros(clock)?;
            continue;
        }
        let number: i64 = parse(word)?;
        match words.next().ok_or(MALFORMED)? {
            b"year" | b"years" => months += number.checked_mul(12).ok_or(MALFORMED)?,
            b"mon" | b"mons" => months += number,
            b"day" | b"days" => days = number,
            _ => return Err(MALFORMED),
        }
    }
    let micros = i64::try_from(micros).map_err(|_| MALFORMED)?;
    let days = i32::try_from(days).map_err(|_| MALFORMED)?;
    let months = i32::try_from(months).map_err(|_| MALFORMED)?;
    Ok((micros, days, months))
}

fn without_era(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(rest) => (rest, true),
        None => (text, false),
    }
}

/// Days from 2000-01-01 to `YYYY-MM-DD`; the year before 1 is 1 BC.
fn days(text: &[u8], is_bc: bool) -> Result<i64, Fault> {
    let mut parts = text.split(|byte| *byte == b'-');
    let mut part = || parts.next().ok_or(MALFORMED).and_then(unsigned);
    let (year, month, day) = (part()?, part()?, part()?);
    if parts.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Err(MALFORMED);
    }
    if !(1..=10_000_000).contains(&year) {
        return Err(MALFORMED);
    }
    let year = if is_bc { 1 - year } else { year };
    // Years that begin with March, so that the leap day is the last one, in cycles of 400 years.
    let year = if month <= 2 { year - 1 } else { year };
    let cycle = year.div_euclid(400);
    let year_of_cycle = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_cycle = year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year;
    Ok(cycle * 146_097 + day_of_cycle - 719_468 - EPOCH_DAYS)
}

/// Digits only: a sign inside a date is not what PostgreSQL prints.
fn unsigned(text: &[u8]) -> Result<i64, Fault> {
    if text.iter().all(u8::is_ascii_digit) { parse(text) } else { Err(MALFORMED) }
}

/// `HH:MM:SS` with up to six digits behind the point; as wide as the hours of an interval need it.
fn clock_micros(text: &[u8]) -> Result<i128, Fault> {
    let mut parts = text.split(|byte| *byte == b':');
    let mut part = || parts.next().ok_or(MALFORMED);
    let (hours, minutes, seconds) = (unsigned(part()?)?, unsigned(part()?)?, part()?);
    if parts.next().is_some() {
        return Err(MALFORMED);
    }
    let point = seconds.iter().position(|byte| *byte == b'.').unwrap_or(seconds.len());
    let fraction = seconds.get(point + 1..).unwrap_or_default();
    if fraction.len() > 6 {
        return Err(MALFORMED);
    }
    let seconds = unsigned(&seconds[..point])?;
    let mut micros = if fraction.is_empty() { 0 } else { unsigned(fraction)? };
    micros *= 10_i64.pow(6 - fraction.len() as u32);
    let seconds = (i128::from(hours) * 60 + i128::from(minutes)) * 60 + i128::from(seconds);
    Ok(seconds * i128::from(MICROS) + i128::from(micros))
}

/// `+HH`, `+HH:MM` or `+HH:MM:SS`.
fn zone_micros(text: &[u8]) -> Result<i64, Fault> {
    let (sign, text) = match text {
        [b'-', rest @ ..] => (-1, rest),
        [_, rest @ ..] => (1, rest),
        [] => return Err(MALFORMED),
    };
    let mut seconds = 0;
    let mut unit = 3600;
    for part in text.split(|byte| *byte == b':') {
        let part = unsigned(part)?;
        if unit == 0 || part > 60 {
            return Err(MALFORMED);
        }
        seconds += part * unit;
        unit /= 60;
    }
    Ok(sign * seconds * MICROS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_is_that_of_postgresql() {
        for (text, expected) in [
            ("2000-01-01", 0),
            ("1999-12-31", -1),
            ("2000-03-01", 60),
            ("1900-03-01", -36_465),
            ("0001-01-01", -730_119),
            ("0001-12-31 BC", -730_120),
            ("4714-11-24 BC", -2_451_545),
            ("5874897-12-31", 2_145_031_948),
        ] {
            assert_eq!(date(text.as_bytes()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn zones_and_fractions_count() {
        assert_eq!(timestamp(b"2000-01-01 05:30:00.5+05:30", true), Ok(500_000));
        assert_eq!(timestamp(b"2000-01-01 00:00:00-00:00:01", true), Ok(1_000_000));
        assert_eq!(timestamp(b"2000-01-01 00:00:00.000001", false), Ok(1));
        assert_eq!(time(b"24:00:00"), Ok(DAY_MICROS));
    }

    #[test]
    fn what_postgresql_does_not_print_is_refused() {
        for text in ["", "2000", "2000-01", "2000-13-01", "2000-01-01-01", "x-01-01", "--1-01-01"] {
            assert!(date(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["2000-01-01", "2000-01-01 00:00", "2000-01-01 00:00:00+00"] {
            assert!(timestamp(text.as_bytes(), false).is_err(), "{text}");
        }
        for text in ["1", "1 fortnight", "1 day ago", "1:2", "9999999999 days"] {
            assert!(recode_interval(text.as_bytes(), &mut Vec::new()).is_err(), "{text}");
        }
    }
}
