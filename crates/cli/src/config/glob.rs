//! Patterns for tables: `schema.table` with `*` and `?`.
//!
//! **Invariant:** schema and table are matched apart, so a `*` never reaches across the dot; letters are compared as they
//! are; a part in double quotes is literal. System schemas and our own are never selected, whatever a pattern says.

use std::fmt;

use tidemark_model::RelationName;

/// A pattern for qualified names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableGlob {
    text: String,
    schema: Vec<Piece>,
    table: Vec<Piece>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Literal(char),
    One,
    Many,
}

impl TableGlob {
    /// Parses a pattern; the error is a sentence about the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = split(text)?;
        let (Some(table), Some(schema), true) = (parts.pop(), parts.pop(), parts.is_empty()) else {
            return Err(format!(
                "{text:?} is not SCHEMA.TABLE, as in \"public.orders\" or \"public.*\"; a dot inside a name needs double quotes around the name"
            ));
        };
        if schema.is_empty() || table.is_empty() {
            return Err(format!("{text:?} has an empty schema or table; write SCHEMA.TABLE"));
        }
        Ok(Self { text: text.to_owned(), schema, table })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it fits a name.
    pub fn matches(&self, name: &RelationName) -> bool {
        fits(&self.schema, &name.schema) && fits(&self.table, &name.name)
    }

    /// The name, if there is no wildcard in it.
    pub fn exact(&self) -> Option<RelationName> {
        let literal = |pieces: &[Piece]| -> Option<String> {
            pieces
                .iter()
                .map(|piece| match piece {
                    Piece::Literal(c) => Some(*c),
                    Piece::One | Piece::Many => None,
                })
                .collect()
        };
        Some(RelationName::new(literal(&self.schema)?, literal(&self.table)?))
    }
}

impl fmt::Display for TableGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Which tables are moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// What is chosen; empty means every table outside the system schemas.
    pub include: Vec<TableGlob>,
    /// What is left out of it.
    pub exclude: Vec<TableGlob>,
}

impl Selection {
    /// Whether a table is moved.
    pub fn selects(&self, name: &RelationName) -> bool {
        !is_system_schema(&name.schema)
            && (self.include.is_empty() || self.include.iter().any(|glob| glob.matches(name)))
            && !self.exclude.iter().any(|glob| glob.matches(name))
    }
}

/// Schemas of PostgreSQL (every name that begins with `pg_` is reserved) and our own.
pub fn is_system_schema(schema: &str) -> bool {
    schema.starts_with("pg_") || schema == "information_schema" || schema == "tidemark"
}

/// Splits at dots outside quotes.
fn split(text: &str) -> Result<Vec<Vec<Piece>>, String> {
    let mut parts = vec![Vec::new()];
    let mut quoted = false;
    let mut chars = text.trim().chars().peekable();
    while let Some(c) = chars.next() {
        let piece = match c {
            '\0' => return Err(format!("{text:?} holds a NUL, which no name can")),
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                Piece::Literal('"')
            }
            '"' => {
                quoted = !quoted;
                continue;
            }
            '.' if !quoted => {
                parts.push(Vec::new());
                continue;
            }
            // Other tools read these as classes; whoever means the letters says so.
            '[' | ']' | '{' | '}' | '\\' if !quoted => {
                return Err(format!("{text:?} has a {c}: put double quotes around the name"));
            }
            '*' if !quoted => Piece::Many,
            '?' if !quoted => Piece::One,
            c => Piece::Literal(c),
        };
        if let Some(last) = parts.last_mut() {
            last.push(piece);
        }
    }
    if quoted { Err(format!("{text:?} has an unclosed double quote")) } else { Ok(parts) }
}

/// Matches in time proportional to pattern times text: on a mismatch only the last `*` takes one more character.
fn fits(pattern: &[Piece], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut last_many: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(Piece::Many) => {
                last_many = Some((p, t));
                p += 1;
                continue;
            }
            Some(Piece::One) => {
                p += 1;
                t += 1;
                continue;
            }
            Some(Piece::Literal(c)) if *c == text[t] => {
                p += 1;
                t += 1;
                continue;
            }
            _ => {}
        }
        let Some((many, taken)) = last_many else { return false };
        last_many = Some((many, taken + 1));
        p = many + 1;
        t = taken + 1;
    }
    pattern[p..].iter().all(|piece| *piece == Piece::Many)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(glob: &str, schema: &str, table: &str) -> bool {
        TableGlob::parse(glob).unwrap().matches(&RelationName::new(schema, table))
    }

    #[test]
    fn wildcards_stay_on_their_side_of_the_dot() {
        assert!(matches("public.*", "public", "a"));
        assert!(matches("*.*", "s", "t"));
        assert!(matches("p*c.t?_*", "public", "t1_x"));
        assert!(matches("public.*ab*ab", "public", "xabyabzab"));
        assert!(!matches("public.*", "public2", "a"));
        assert!(!matches("pub*.orders", "public", "orders2"));
        assert!(!matches("public.t?", "public", "t"));
        assert!(!matches("public.Orders", "public", "orders"));
    }

    #[test]
    fn quotes_make_dots_and_stars_literal() {
        assert!(matches(r#""my.schema"."a*""#, "my.schema", "a*"));
        assert!(!matches(r#""my.schema"."a*""#, "my.schema", "ab"));
        assert!(matches(r#"public."say ""hi""""#, "public", r#"say "hi""#));
    }

    #[test]
    fn a_pattern_has_exactly_two_parts() {
        for wrong in
            ["", "orders", "a.b.c", ".a", "a.", r#"public."a"#, "a.b\0", "a.[bc]", "a.{b,c}"]
        {
            assert!(TableGlob::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn system_schemas_are_never_selected() {
        let all = Selection { include: vec![TableGlob::parse("*.*").unwrap()], exclude: vec![] };
        for schema in ["pg_catalog", "pg_toast", "information_schema", "tidemark"] {
            assert!(!all.selects(&RelationName::new(schema, "t")));
        }
        assert!(all.selects(&RelationName::new("public", "t")));
        assert!(Selection::default().selects(&RelationName::new("s", "t")));
    }

    #[test]
    fn exclude_wins_over_include() {
        let selection = Selection {
            include: vec![TableGlob::parse("public.*").unwrap()],
            exclude: vec![TableGlob::parse("public.tmp_*").unwrap()],
        };
        assert!(selection.selects(&RelationName::new("public", "orders")));
        assert!(!selection.selects(&RelationName::new("public", "tmp_1")));
        assert!(!selection.selects(&RelationName::new("other", "orders")));
    }
}
