//! What the two sides' definitions do not have in common.
//!
//! **Invariant:** a finding that changes which values a table can hold, or which tables and columns there are, makes the
//! table different; all others are told and change no verdict.

use std::collections::HashSet;

use tidemark_model::{Column, Generated, Relation, RelationName};
use tidemark_report::SchemaSeverity;
use tidemark_source::{Catalog, Sequence};

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

fn finding(
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

/// Columns, keys, indexes and row security of a pair. `columns` are the chosen ones of the source.
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
    of_keys(source, target, &mut found);
    of_indexes(source, target, &mut found);
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
    if one.generated != other.generated {
        let word = |column: &Column| match column.generated {
            Generated::No => "stored as written",
            Generated::Stored => "generated, stored",
            Generated::Virtual => "generated, virtual",
        };
        let kind = ("column-generated", SchemaSeverity::Warning);
        found.push(finding(table, kind, &one.name, Some(word(one)), Some(word(other))));
    }
}

fn of_keys(source: &Relation, target: &Relation, found: &mut Vec<SchemaFinding>) {
    let key = |relation: &Relation| relation.primary_key().map(|key| key.columns.join(", "));
    let (ours, theirs) = (key(source), key(target));
    if ours != theirs {
        let kind = ("primary-key", SchemaSeverity::Warning);
        let (ours, theirs) = (ours.as_deref(), theirs.as_deref());
        found.push(finding(&source.name, kind, "primary key", ours, theirs));
    }
}

fn of_indexes(source: &Relation, target: &Relation, found: &mut Vec<SchemaFinding>) {
    let names = |relation: &Relation| {
        let names = relation.indexes.iter().map(|index| index.name.clone());
        names.collect::<HashSet<_>>()
    };
    let (ours, theirs) = (names(source), names(target));
    for index in source.indexes.iter().filter(|index| !theirs.contains(&index.name)) {
        let kind = ("index-missing", SchemaSeverity::Warning);
        found.push(finding(&source.name, kind, &index.name, Some(&index.definition), None));
    }
    for index in target.indexes.iter().filter(|index| !ours.contains(&index.name)) {
        let kind = ("index-extra", SchemaSeverity::Note);
        found.push(finding(&source.name, kind, &index.name, None, Some(&index.definition)));
    }
}

/// Servers and sequences.
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
    found.extend(source.sequences.iter().filter_map(|sequence| {
        let other = target.sequences.iter().find(|other| other.name == sequence.name);
        of_sequence(sequence, other)
    }));
    found
}

/// The stream does not carry sequences: one that lags behind gives numbers out that rows have already.
fn of_sequence(source: &Sequence, target: Option<&Sequence>) -> Option<SchemaFinding> {
    let (kind, target) = match target {
        None => ("sequence-missing", None),
        Some(target) if !(source.can_select && target.can_select) => return None,
        Some(target) if target.last_value >= source.last_value => return None,
        Some(target) => ("sequence-behind", Some(target.last_value.to_string())),
    };
    let table = source.owned_by.as_ref().map(|(table, _)| table.clone());
    let object = source.name.plain();
    let (severity, source) = (SchemaSeverity::Warning, Some(source.last_value.to_string()));
    Some(SchemaFinding { table, object, kind, severity, source, target })
}
