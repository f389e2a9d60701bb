//! File names for identifiers.
//!
//! **Invariant:** [`encode`] is injective, also when a file system folds case or normalises Unicode, and its result is a
//! single path segment of at most 189 bytes that no operating system or reader treats specially: never empty, `.` or `..`,
//! never a device name, never with a leading `.` or `_` (which lake readers hide), a `=` (a Hive partition) or a glob sign.
//!
//! Lower-case letters, digits and inner `_` and `-` stay; every other byte becomes `%XX` in upper-case hexadecimal.
//! An identifier of PostgreSQL has at most 63 bytes (manual, section 4.1.1), hence 3 x 63.

use std::fmt::Write as _;

/// Names that Windows takes for devices, whatever follows behind a dot.
const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];

/// The path segment of an identifier.
pub(crate) fn encode(identifier: &str) -> String {
    let escape_first = is_device(identifier);
    let mut segment = String::with_capacity(identifier.len());
    for (index, byte) in identifier.bytes().enumerate() {
        let is_plain = match byte {
            b'a'..=b'z' | b'0'..=b'9' => index > 0 || !escape_first,
            b'_' | b'-' => index > 0,
            _ => false,
        };
        if is_plain {
            segment.push(char::from(byte));
        } else {
            write!(segment, "%{byte:02X}").expect("a String takes everything");
        }
    }
    // PostgreSQL has no empty identifiers; an empty segment would still be a wrong path.
    if segment.is_empty() { "%".to_owned() } else { segment }
}

fn is_device(identifier: &str) -> bool {
    let numbered = identifier
        .strip_prefix("com")
        .or_else(|| identifier.strip_prefix("lpt"))
        .is_some_and(|rest| rest.len() == 1 && rest.as_bytes()[0].is_ascii_digit());
    numbered || DEVICES.contains(&identifier)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ordinary_names_stay_readable() {
        assert_eq!(encode("line_items-2"), "line_items-2");
    }

    #[test]
    fn hostile_names_become_one_harmless_segment() {
        for (name, segment) in [
            ("../../x", "%2E%2E%2F%2E%2E%2Fx"),
            ("..", "%2E%2E"),
            ("con", "%63on"),
            ("com1", "%63om1"),
            ("console", "console"),
            ("_tidemark", "%5Ftidemark"),
            (".hidden", "%2Ehidden"),
            ("a=b", "a%3Db"),
            ("A", "%41"),
            ("%41", "%2541"),
            ("a*?[", "a%2A%3F%5B"),
            ("", "%"),
        ] {
            assert_eq!(encode(name), segment);
        }
    }

    #[test]
    fn names_that_differ_stay_different_when_case_is_folded() {
        let names = ["A", "a", "%41", "%61", "Ä", "ä", "a\u{308}", "con", "CON", "Con", ".", "%2e"];
        let folded: BTreeSet<_> = names.iter().map(|name| encode(name).to_lowercase()).collect();
        assert_eq!(folded.len(), names.len());
    }

    #[test]
    fn the_longest_name_fits_into_a_file_name() {
        let longest = "\u{1F40B}".repeat(15) + "ÄÄ";
        assert!(longest.len() <= 64 && encode(&longest).len() <= 192);
    }
}
