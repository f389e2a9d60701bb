//! Reads keys from the text that PostgreSQL writes under DateStyle ISO.
//!
//! **Invariant:** what is read equals the integer that the type's send function writes; what cannot be read is `None`.
//!
//! PostgreSQL manual, section 8.5.2.

/// Days from 0000-03-01 to 2000-01-01 in the proleptic Gregorian calendar.
const EPOCH: i64 = 730_425;
const DAY: i64 = 86_400_000_000;

/// A uuid as its 16 bytes.
pub(crate) fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    let mut uuid = 0_u128;
    let mut digits = 0;
    for byte in text.iter().filter(|byte| **byte != b'-') {
        uuid = uuid << 4 | u128::from(char::from(*byte).to_digit(16)?);
        digits += 1;
    }
    (digits == 32).then_some(uuid.to_be_bytes())
}

/// Days since 2000-01-01; the infinities are the extremes of 32 bits.
pub(super) fn date(text: &str) -> Option<i64> {
    match text {
        "infinity" => return Some(i32::MAX.into()),
        "-infinity" => return Some(i32::MIN.into()),
        _ => {}
    }
    let (text, is_before_christ) = era(text);
    days(text, is_before_christ).filter(|days| i32::try_from(*days).is_ok())
}

/// Microseconds since 2000-01-01, in UTC where there is a zone; the infinities are the extremes of 64 bits.
pub(super) fn timestamp(text: &str, has_zone: bool) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (text, is_before_christ) = era(text);
    let (date, clock) = text.split_once(' ')?;
    let (clock, zone) = match clock.find(['+', '-']) {
        Some(at) if has_zone => (&clock[..at], offset(&clock[at..])?),
        None if !has_zone => (clock, 0),
        _ => return None,
    };
    let micros = clock_micros(clock)?;
    days(date, is_before_christ)?
        .checked_mul(DAY)?
        .checked_add(micros)?
        .checked_sub(zone.checked_mul(1_000_000)?)
}

fn era(text: &str) -> (&str, bool) {
    match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    }
}

fn days(text: &str, is_before_christ: bool) -> Option<i64> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let (year, month, day) = (number(year, 4..=7)?, number(month, 2..=2)?, number(day, 2..=2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year == 0 {
        return None;
    }
    let year = if is_before_christ { 1 - year } else { year };
    // Years begin in March here, so that the leap day is the last of its year.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    Some(365 * year + leap_days + day_of_year - EPOCH)
}

/// `HH:MM:SS[.ffffff]`
fn clock_micros(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let seconds = clock_seconds(whole)?;
    let micros = number(fraction, 1..=6)? * 10_i64.pow(6 - fraction.len() as u32);
    Some(seconds * 1_000_000 + micros)
}

/// `HH[:MM[:SS]]`
fn clock_seconds(text: &str) -> Option<i64> {
    let mut seconds = 0;
    let mut unit = 3600;
    for part in text.split(':') {
        if unit == 0 {
            return None;
        }
        seconds += number(part, 2..=2)? * unit;
        unit /= 60;
    }
    Some(seconds)
}

/// `+05:30` in seconds east of UTC.
fn offset(text: &str) -> Option<i64> {
    match text.split_at_checked(1)? {
        ("+", rest) => clock_seconds(rest),
        ("-", rest) => clock_seconds(rest).map(|seconds| -seconds),
        _ => None,
    }
}

fn number(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<i64> {
    let is_number = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_the_days_that_the_server_sends() {
        // Each number is what `select date '..' - date '2000-01-01'` says.
        for (text, wanted) in [
            ("2000-01-01", 0),
            ("1999-12-31", -1),
            ("2000-02-29", 59),
            ("2000-03-01", 60),
            ("1992-01-02", -2921),
            ("0001-01-01", -730_119),
            ("0001-12-31 BC", -730_120),
            ("4713-01-01 BC", -2_451_507),
            ("5874897-12-31", 2_145_031_948),
        ] {
            assert_eq!(date(text), Some(wanted), "{text}");
        }
        for text in ["", "2000", "2000-13-01", "2000-1-1", "0000-01-01", "x", "2000-01-01-01"] {
            assert_eq!(date(text), None, "{text}");
        }
    }

    #[test]
    fn timestamps_are_the_microseconds_that_the_server_sends() {
        for (text, has_zone, wanted) in [
            ("2000-01-01 00:00:00", false, 0),
            ("2000-01-01 00:00:00.5", false, 500_000),
            ("1999-12-31 23:59:59.999999", false, -1),
            ("2000-01-01 00:00:00+00", true, 0),
            ("2000-01-01 05:30:00+05:30", true, 0),
            ("1999-12-31 23:00:00-01", true, 0),
            ("1883-11-18 12:03:57-00:03:57", true, -3_664_353_126_000_000),
            ("infinity", true, i64::MAX),
        ] {
            assert_eq!(timestamp(text, has_zone), Some(wanted), "{text}");
        }
        for text in ["2000-01-01", "2000-01-01 00:00:00", "2000-01-01 00:00:00.1234567+00"] {
            assert_eq!(timestamp(text, true), None, "{text}");
        }
        assert_eq!(timestamp("2000-01-01 00:00:00+00", false), None);
    }
}
