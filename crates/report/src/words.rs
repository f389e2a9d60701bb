//! Counts and lists as people read them.
//!
//! **Invariant:** a count is printed in full, never rounded.

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

/// `a`, `a and b`, `a, b and c`
pub(crate) fn list(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
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
        assert_eq!([counted(1, "row"), counted(2, "row")], ["1 row", "2 rows"]);
        let parts = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(
            [list(&parts[..1]), list(&parts[..2]), list(&parts)],
            ["a", "a and b", "a, b and c"]
        );
    }
}
