//! Numbers as people read them.
//!
//! **Invariant:** a count is printed in full, never rounded; only bytes and times are.

/// `8,661,245`
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 table`, `8 tables`; the plural of the noun is made with an s.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(number))
}

/// `512 B`, `1.5 GiB`
pub(crate) fn bytes(number: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (number.max(1).ilog2() / 10) as usize;
    match power.checked_sub(1).and_then(|index| units.get(index)) {
        None => format!("{number} B"),
        Some(unit) => {
            let one = 1_u128 << (10 * power);
            let tenths = u128::from(number) * 10 / one;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
    }
}

/// `12 ms`, `3.4 s`, `2 min 5 s`, `1 h 2 min`
pub(crate) fn duration(ms: u64) -> String {
    let (seconds, minutes, hours) = (ms / 1_000, ms / 60_000, ms / 3_600_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{seconds}.{} s", ms % 1_000 / 100),
        60_000..3_600_000 => format!("{minutes} min {} s", seconds % 60),
        _ => format!("{} h {} min", count(hours), minutes % 60),
    }
}

/// `a`, `a and b`, `a, b and c`
pub(crate) fn list(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// `2026-11-21 16:08:46 UTC` of RFC 3339's form; another text as it is.
pub(crate) fn time(rfc3339: &str) -> String {
    let utc = rfc3339.strip_suffix('Z').and_then(|rest| rest.split_once('T'));
    match utc {
        Some((date, time)) => {
            let seconds = time.split_once('.').map_or(time, |(seconds, _)| seconds);
            format!("{date} {seconds} UTC")
        }
        None => rfc3339.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_printed_as_people_read_them() {
        assert_eq!(
            [0, 999, 1_000, 8_661_245, u64::MAX].map(count),
            ["0", "999", "1,000", "8,661,245", "18,446,744,073,709,551,615"]
        );
        assert_eq!(
            [0, 1_023, 1_024, 1_610_612_736, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.5 GiB", "15.9 EiB"]
        );
        assert_eq!(
            [0, 999, 3_450, 125_000, 3_725_000].map(duration),
            ["0 ms", "999 ms", "3.4 s", "2 min 5 s", "1 h 2 min"]
        );
        assert_eq!([counted(1, "row"), counted(2, "row")], ["1 row", "2 rows"]);
        assert_eq!(time("2026-11-21T16:08:46.123Z"), "2026-11-21 16:08:46 UTC");
        assert_eq!(time("soon"), "soon");
        let parts = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(
            [list(&parts[..1]), list(&parts[..2]), list(&parts)],
            ["a", "a and b", "a, b and c"]
        );
    }
}
