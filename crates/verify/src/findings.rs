//! What the two sides' definitions do not have in common.
//!
//! **Invariant:** a table or a column that one side lacks makes the table different. All else changes no verdict, because the
//! rows themselves say whether they are the same: a warning is what changes which values a table can hold from now on, or
//! how it works once it is used; a note is the rest.
//!
//! **Not here:** what is declared beyond tables and columns (`definitions`).

use tidemark_model::{Column, Relation, RelationName, TypeKind};
use tidemark_report::SchemaSeverity;
use tidemark_source::Catalog;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaFinding {
    /// The table; none where it is about the whole side.
    pub table: Option<RelationName>,
    /// What of it: a column, an index, a key, a sequence.
    pub object: String,
    /// What kind of finding, for scripts.
    pub kind: &'static str,
    /// What follows.
    pub severity: SchemaSeverity,
    /// What the source has.
    pub source: Option<String>,
    /// What the target has.
    pub target: Option<String>,
}

pub(crate) fn finding(
    table: &RelationName,
    (kind, severity): (&'static str, SchemaSeverity),
    object: impl Into<String>,
    source: Option<&str>,
    target: Option<&str>,
) -> SchemaFinding {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    SchemaFinding {
        table: Some(table.clone()),
        object: object.into(),
        kind,
        severity,
        source: owned(source),
        target: owned(target),
    }
}

/// A table that one side has not.
pub(crate) fn missing_table(name: &RelationName, is_on_source: bool) -> SchemaFinding {
    let (kind, source, target) = match is_on_source {
        true => ("table-missing", Some("table"), None),
        false => ("table-extra", None, Some("table")),
    };
    finding(name, (kind, SchemaSeverity::Different), "table", source, target)
}

/// Columns of a pair. `columns` are the chosen ones of the source.
pub(crate) fn of_tables(
    source: &Relation,
    columns: &[Column],
    target: &Relation,
) -> Vec<SchemaFinding> {
    let mut found = Vec::new();
    for column in columns {
        match target.columns.iter().find(|other| other.name == column.name) {
            None => found.push(finding(
                &source.name,
                ("column-missing", SchemaSeverity::Different),
                &column.name,
                Some(&column.type_name),
                None,
            )),
            Some(other) => of_columns(&source.name, column, other, &mut found),
        }
    }
    let is_known = |column: &&Column| source.columns.iter().any(|known| known.name == column.name);
    for column in target.columns.iter().filter(|column| !is_known(column)) {
        let kind = ("column-extra", SchemaSeverity::Different);
        found.push(finding(&source.name, kind, &column.name, None, Some(&column.type_name)));
    }
    found
}

fn of_columns(table: &RelationName, one: &Column, other: &Column, found: &mut Vec<SchemaFinding>) {
    if one.type_name != other.type_name {
        // Whether a value was lost by it the rows themselves say.
        let kind = ("column-type", SchemaSeverity::Warning);
        found.push(finding(table, kind, &one.name, Some(&one.type_name), Some(&other.type_name)));
    }
    if one.is_nullable != other.is_nullable {
        let word = |column: &Column| if column.is_nullable { "NULL" } else { "NOT NULL" };
        let kind = ("column-nullability", SchemaSeverity::Warning);
        found.push(finding(table, kind, &one.name, Some(word(one)), Some(word(other))));
    }
    if one.collation != other.collation {
        let kind = ("column-collation", SchemaSeverity::Note);
        let (ours, theirs) = (one.collation.as_deref(), other.collation.as_deref());
        found.push(finding(table, kind, &one.name, ours, theirs));
    }
    if let (TypeKind::Enum(ours), TypeKind::Enum(theirs)) =
        (&one.data_type.kind, &other.data_type.kind)
        && ours != theirs
    {
        let kind = ("enum-labels", SchemaSeverity::Warning);
        let (ours, theirs) = (ours.join(", "), theirs.join(", "));
        found.push(finding(table, kind, &one.name, Some(&ours), Some(&theirs)));
    }
}

/// The servers.
pub(crate) fn of_sides(source: &Catalog, target: &Catalog) -> Vec<SchemaFinding> {
    let about = |object: &str, severity, one: &str, other: &str| SchemaFinding {
        table: None,
        object: object.to_owned(),
        kind: "server",
        severity,
        source: Some(one.to_owned()),
        target: Some(other.to_owned()),
    };
    let (one, other) = (&source.server, &target.server);
    let mut found = Vec::new();
    if one.version != other.version {
        found.push(about("server version", SchemaSeverity::Note, &one.version, &other.version));
    }
    if one.encoding != other.encoding {
        found.push(about("encoding", SchemaSeverity::Warning, &one.encoding, &other.encoding));
    }
    if one.collation != other.collation {
        found.push(about(
            "default collation",
            SchemaSeverity::Note,
            &one.collation,
            &other.collation,
        ));
    }
    found
}
