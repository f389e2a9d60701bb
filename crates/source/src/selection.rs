//! Which tables are moved: globs over `schema.table`.
//!
//! **Invariant:** only relations that hold rows are chosen, each once: leaves of partitioned tables (never the partitioned
//! table itself) and parents of plain inheritance by themselves. System, temporary and our own schemas are never chosen,
//! whatever the globs say.

use globset::{Glob, GlobMatcher};
use tidemark_model::names::SELFTEST_SCHEMAS;
use tidemark_model::{Persistence, Relation, RelationKind, RelationName};

use crate::{Catalog, Disposition, Error, Result};

/// Our own schema on a target; a target may be a source later.
const OUR_SCHEMA: &str = "tidemark";

/// What the user chose. Without any `include` everything is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Globs of what is moved.
    pub include: Vec<String>,
    /// Globs of what is not, applied afterwards.
    pub exclude: Vec<String>,
    /// Globs of a wave: of what was chosen only this. Empty: all of it.
    pub among: Vec<String>,
    /// Globs of the other waves. What is `among` ours must not be theirs, too; without ours, theirs is left out.
    pub apart: Vec<String>,
}

impl Selection {
    /// A selection of two lists of globs.
    pub fn new(include: Vec<String>, exclude: Vec<String>) -> Self {
        Self { include, exclude, ..Self::default() }
    }

    /// The same without waves.
    pub fn whole(&self) -> Self {
        Self::new(self.include.clone(), self.exclude.clone())
    }

    /// What is in and what is out of it, in short, for people.
    pub fn shown(&self) -> (Vec<String>, Vec<String>) {
        let (include, mut exclude) = match self.among.is_empty() {
            true => (&self.include, self.exclude.clone()),
            false => (&self.among, self.exclude.clone()),
        };
        if self.among.is_empty() {
            exclude.extend(self.apart.iter().cloned());
        }
        (include.clone(), exclude)
    }

    /// Whether it is the part of a selection that one wave has.
    pub fn is_part(&self) -> bool {
        !self.among.is_empty() || !self.apart.is_empty()
    }

    /// The chosen tables, in the order of the catalog.
    ///
    /// A partition is matched by its own name and by the names of the partitioned tables above it.
    ///
    /// # Errors
    /// A glob is malformed, or an `include` matches no table, or a table is in two waves.
    pub fn apply(&self, catalog: &Catalog) -> Result<Vec<Relation>> {
        let chosen = self.chosen(catalog)?;
        if self.is_part() { self.of_wave(chosen, catalog) } else { Ok(chosen) }
    }

    /// What the user chose, before it is parted into waves.
    fn chosen(&self, catalog: &Catalog) -> Result<Vec<Relation>> {
        let include = patterns(&self.include)?;
        let exclude = patterns(&self.exclude)?;
        let mut used = vec![false; include.len()];
        let mut chosen = Vec::new();
        for relation in catalog.relations.iter().filter(|relation| can_be_chosen(relation)) {
            let mut names = vec![&relation.name];
            names.extend(catalog.ancestors(relation));
            let mut is_included = include.is_empty();
            for (pattern, used) in include.iter().zip(&mut used) {
                if names.iter().any(|name| pattern.matches(name)) {
                    (*used, is_included) = (true, true);
                }
            }
            let is_excluded =
                exclude.iter().any(|pattern| names.iter().any(|name| pattern.matches(name)));
            if is_included && !is_excluded {
                chosen.push(relation.clone());
            }
        }
        // Of a wave the other side may lack what the others have.
        match include.iter().zip(&used).find(|(_, used)| !**used && !self.is_part()) {
            Some((unused, _)) => Err(matches_nothing(unused, catalog)),
            None => Ok(chosen),
        }
    }

    /// The wave's part of what was chosen.
    fn of_wave(&self, chosen: Vec<Relation>, catalog: &Catalog) -> Result<Vec<Relation>> {
        let (ours, theirs) = (patterns(&self.among)?, patterns(&self.apart)?);
        let (mut kept, mut others) = (Vec::new(), Vec::new());
        for relation in chosen {
            let mut names = vec![&relation.name];
            names.extend(catalog.ancestors(&relation));
            let fits = |pattern: &Pattern| names.iter().any(|name| pattern.matches(name));
            let mine = ours.iter().position(fits);
            match (mine, theirs.iter().find(|pattern| fits(pattern))) {
                (Some(mine), Some(other)) => {
                    return Err(in_two_waves(&relation.name, &ours[mine], other));
                }
                (Some(_), None) => kept.push(relation),
                (None, None) if ours.is_empty() => kept.push(relation),
                (None, _) => others.push(relation),
            }
        }
        // Whoever makes the table above anew would take the other wave's partitions with it.
        let of_other = |relation: &&Relation| {
            relation.partition_root.is_some()
                && others.iter().any(|other| other.partition_root == relation.partition_root)
        };
        if let Some(parted) = kept.iter().find(of_other) {
            return Err(parted_table(parted));
        }
        let tables = || catalog.relations.iter().filter(|relation| can_be_chosen(relation));
        let is_unused = |pattern: &&Pattern| {
            !tables().any(|relation| {
                pattern.matches(&relation.name)
                    || catalog.ancestors(relation).iter().any(|name| pattern.matches(name))
            })
        };
        match ours.iter().find(is_unused) {
            Some(unused) => Err(matches_nothing(unused, catalog)),
            None => Ok(kept),
        }
    }

    /// Whether a table of this name is left out, be it there or not.
    ///
    /// # Errors
    /// A pattern is not valid.
    pub fn excludes(&self, name: &RelationName) -> Result<bool> {
        Ok(patterns(&self.exclude)?.iter().any(|pattern| pattern.matches(name)))
    }
}

/// Whether globs are asked at all.
fn can_be_chosen(relation: &Relation) -> bool {
    relation.holds_rows()
        && relation.persistence != Persistence::Temporary
        && relation.name.schema != OUR_SCHEMA
        && !relation.name.schema.starts_with(SELFTEST_SCHEMAS)
        && !relation.name.schema.starts_with("pg_")
        && relation.name.schema != "information_schema"
}

/// Moved with the wrong wave, a table would be taken over at the wrong time: nobody is to be surprised by that.
fn in_two_waves(table: &RelationName, ours: &Pattern, other: &Pattern) -> Error {
    Error::new(Disposition::Usage, "part the tables into waves: this one is in two of them")
        .on(table.plain())
        .hint(format!(
            "{:?} of one wave and {:?} of another match it: mend wave.tables so that one of them does; tables that no wave names are the wave \"rest\"",
            ours.text, other.text
        ))
}

fn parted_table(partition: &Relation) -> Error {
    let root = partition.partition_root.as_ref().map(RelationName::plain).unwrap_or_default();
    Error::new(
        Disposition::Usage,
        "part the tables into waves: its other partitions are in another one",
    )
    .on(partition.name.plain())
    .hint(format!(
        "partitions of one table go together: name {root} in wave.tables, or none of them"
    ))
}

fn matches_nothing(pattern: &Pattern, catalog: &Catalog) -> Error {
    let error = Error::new(Disposition::Usage, "choose tables: the pattern matches no table")
        .on(&pattern.text);
    let other = catalog.relations.iter().find(|relation| pattern.matches(&relation.name));
    match other.map(|relation| relation.kind) {
        Some(RelationKind::View | RelationKind::MaterializedView) => {
            error.hint("it matches a view; views hold no rows of their own and are not moved")
        }
        Some(RelationKind::ForeignTable) => error
            .hint("it matches a foreign table; its rows are on another server and are not moved"),
        Some(RelationKind::PartitionedTable) => {
            error.hint("it matches a partitioned table without partitions")
        }
        _ => error.hint("patterns are written schema.table, such as public.orders or public.*"),
    }
}

struct Pattern {
    text: String,
    schema: Part,
    name: Part,
}

enum Part {
    Exact(String),
    Glob(GlobMatcher),
}

impl Pattern {
    fn matches(&self, name: &RelationName) -> bool {
        self.text == name.plain()
            || (self.schema.matches(&name.schema) && self.name.matches(&name.name))
    }
}

impl Part {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            // A glob sees a path; a name with a slash is still one name.
            Self::Glob(glob) => glob.is_match(name),
        }
    }
}

fn patterns(texts: &[String]) -> Result<Vec<Pattern>> {
    texts.iter().map(|text| pattern(text)).collect()
}

fn pattern(text: &str) -> Result<Pattern> {
    let error = |hint: String| {
        Error::new(Disposition::Usage, "choose tables: the pattern is not valid")
            .on(text)
            .hint(hint)
    };
    let (schema, name) = if text == "*" {
        ("*", "*")
    } else {
        split(text).ok_or_else(|| error("write schema.table, such as public.orders".to_owned()))?
    };
    let part = |part: &str| match unquote(part) {
        Some(exact) => Ok(Part::Exact(exact)),
        None => Glob::new(part)
            .map(|glob| Part::Glob(glob.compile_matcher()))
            .map_err(|cause| error(cause.kind().to_string())),
    };
    Ok(Pattern { text: text.to_owned(), schema: part(schema)?, name: part(name)? })
}

/// The two sides of the first dot that is not inside double quotes.
fn split(text: &str) -> Option<(&str, &str)> {
    let mut is_quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => is_quoted = !is_quoted,
            '.' if !is_quoted => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    // An odd number of quotes: they belong to the name.
    is_quoted.then(|| text.split_once('.')).flatten()
}

/// The name inside double quotes, as SQL writes it; such a part is taken literally.
fn unquote(part: &str) -> Option<String> {
    let inner = part.strip_prefix('"')?.strip_suffix('"')?;
    Some(inner.replace("\"\"", "\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(text: &str, schema: &str, name: &str) -> bool {
        pattern(text).unwrap().matches(&RelationName::new(schema, name))
    }

    #[test]
    fn globs_match_schema_and_table_apart() {
        assert!(matches("public.*", "public", "orders"));
        assert!(matches("public.*", "public", "a.b"));
        assert!(!matches("public.*", "public.a", "b"));
        assert!(matches("*.tmp_?", "x", "tmp_1"));
        assert!(matches("{a,b}.t[0-9]", "b", "t3"));
        assert!(matches("*", "any", "thing"));
        assert!(!matches("public.order", "public", "orders"));
    }

    #[test]
    fn quoted_parts_are_taken_literally() {
        assert!(matches(r#""my.schema".*"#, "my.schema", "t"));
        assert!(matches(r#"public."a*b""#, "public", "a*b"));
        assert!(!matches(r#"public."a*b""#, "public", "axb"));
        assert!(matches(r#"public."a""b""#, "public", "a\"b"));
    }

    #[test]
    fn a_pattern_without_a_schema_is_refused_with_the_way_out() {
        let error = pattern("orders").err().unwrap();
        assert_eq!(error.disposition(), Disposition::Usage);
        assert!(error.way_out().unwrap().contains("schema.table"));
        assert!(pattern("public.[").is_err());
    }
}
