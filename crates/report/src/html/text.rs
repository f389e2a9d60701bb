//! Texts of others inside markup.
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

#[cfg(test)]
mod tests {
    use super::*;

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
