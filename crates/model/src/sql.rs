//! The one place that quotes for SQL (`hazards.md` S1).
//!
//! **Invariant:** an identifier or a literal reaches a statement only through [`Ident`], [`Literal`] or a `Display` built on
//! them. PostgreSQL manual, section 4.1.1 and 4.1.2.

use std::fmt;

/// An identifier, displayed in double quotes with inner ones doubled.
#[derive(Debug, Clone, Copy)]
pub struct Ident<'a>(pub &'a str);

impl fmt::Display for Ident<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        quoted(self.0, '"', f)
    }
}

/// A string literal. Backslashes force the `E''` form, so that it reads the same whatever
/// `standard_conforming_strings` says.
#[derive(Debug, Clone, Copy)]
pub struct Literal<'a>(pub &'a str);

impl fmt::Display for Literal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains('\\') {
            f.write_str("E")?;
            return quoted(&self.0.replace('\\', "\\\\"), '\'', f);
        }
        quoted(self.0, '\'', f)
    }
}

fn quoted(text: &str, quote: char, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use fmt::Write as _;

    f.write_char(quote)?;
    for c in text.chars() {
        if c == quote {
            f.write_char(quote)?;
        }
        f.write_char(c)?;
    }
    f.write_char(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_cannot_break_out() {
        assert_eq!(Ident(r#"a"b; drop table x;--"#).to_string(), r#""a""b; drop table x;--""#);
        assert_eq!(Ident("select").to_string(), r#""select""#);
        assert_eq!(Ident("%s\\").to_string(), r#""%s\""#);
    }

    #[test]
    fn literals_cannot_break_out() {
        assert_eq!(Literal("o'clock").to_string(), "'o''clock'");
        assert_eq!(Literal(r"\'; select 1").to_string(), r"E'\\''; select 1'");
    }
}
