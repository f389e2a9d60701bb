//! Sizes and lengths of time: `64MiB`, `5s`.
//!
//! **Invariant:** a unit is always written, because a bare `64` means something else to everybody; what does not fit u64 is
//! refused, never cut.

use std::time::Duration;

const BYTE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

const TIME_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Parses a size; the error is a sentence about the text.
pub fn bytes(text: &str) -> Result<u64, String> {
    scaled(text, &BYTE_UNITS, |given, unit| given.eq_ignore_ascii_case(unit)).ok_or_else(|| {
        format!("{text:?} is not a size: write a whole number and B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, as in \"64MiB\"")
    })
}

/// Parses a length of time; the error is a sentence about the text.
pub fn duration(text: &str) -> Result<Duration, String> {
    scaled(text, &TIME_UNITS, |given, unit| given == unit).map(Duration::from_millis).ok_or_else(
        || format!("{text:?} is not a duration: write a whole number and ms, s, m, h or d, as in \"5s\""),
    )
}

fn scaled(text: &str, units: &[(&str, u64)], same: impl Fn(&str, &str) -> bool) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let (_, factor) = units.iter().find(|(name, _)| same(unit, name))?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_and_fit() {
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes(" 1 gib "), Ok(1 << 30));
        assert_eq!(bytes("3kB"), Ok(3000));
        assert_eq!(bytes("0B"), Ok(0));
        for wrong in ["", "64", "MiB", "-1MiB", "1.5GiB", "64MiBs", "64 M", "99999999999TiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_tell_minutes_from_milliseconds() {
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("5 m"), Ok(Duration::from_secs(300)));
        for wrong in ["", "5", "5M", "s", "-5s", "1e3s", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
