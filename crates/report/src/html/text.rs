//! Texts of others inside markup; sizes and times as people read them.
//!
//! **Invariant:** what [`Esc`] prints holds no markup, and no character that hides, reorders or breaks the text around it:
//! control and direction characters are shown by their number.

use std::fmt::{self, Write as _};

/// A text, escaped for HTML's text and for attributes in double quotes.
pub(super) struct Esc<'a>(pub(super) &'a str);

impl fmt::Display for Esc<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other if is_invisible(other) => {
                    write!(f, "\u{27e8}U+{:04X}\u{27e9}", u32::from(other))?
                }
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
}

/// `512 B`, `1.5 GiB`
pub(super) fn bytes(number: u64) -> String {
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
pub(super) fn duration(ms: u64) -> String {
    let (seconds, minutes, hours) = (ms / 1_000, ms / 60_000, ms / 3_600_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{seconds}.{} s", ms % 1_000 / 100),
        60_000..3_600_000 => format!("{minutes} min {} s", seconds % 60),
        _ => format!("{} h {} min", crate::words::count(hours), minutes % 60),
    }
}

/// `2026-11-21 16:08:46 UTC` of RFC 3339's form; another text as it is.
pub(super) fn time(rfc3339: &str) -> String {
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
    fn sizes_and_times_are_rounded_down_to_what_people_read() {
        assert_eq!(
            [0, 1_023, 1_024, 1_610_612_736, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.5 GiB", "15.9 EiB"]
        );
        assert_eq!(
            [0, 999, 3_450, 125_000, 3_725_000].map(duration),
            ["0 ms", "999 ms", "3.4 s", "2 min 5 s", "1 h 2 min"]
        );
        assert_eq!(time("2026-11-21T16:08:46.123Z"), "2026-11-21 16:08:46 UTC");
        assert_eq!(time("soon"), "soon");
    }

    #[test]
    fn markup_is_escaped_and_what_cannot_be_seen_is_shown() {
        let shown =
            Esc("<b a=\"1\" c='2'>&amp;\0\u{202e}gnp.exe\n\u{200b}\u{e9}\u{4e2d}").to_string();
        assert_eq!(
            shown,
            "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;amp;⟨U+0000⟩⟨U+202E⟩gnp.exe⟨U+000A⟩⟨U+200B⟩é中"
        );
    }
}
