//! What the two sides' definitions do not have in common.
//!
//! **Invariant:** a finding that changes which values a table can hold, or which tables and columns there are, makes the
//! table different; all others are told and change no verdict.

use std::collections::HashSet;

use tidemark_model::{Column, Generated, Relation, RelationName};
use tidemark_source::{Catalog, Sequence};

/// What follows from a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concern {
    /// The sides are not the same.
    Different,
    /// Nothing for the rows; it may matter to whoever uses them.
    Warning,
    /// To be known.
    Note,
}

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
    pub concern: Concern,
    /// As the source has it.
    pub source: String,
    /// As the target has it.
    pub target: String,
}

const NONE: &str = "none";

fn finding(
    table: &RelationName,
    (kind, concern): (&'static str, Concern),
    object: impl Into<String>,
    source: impl Into<String>,
    target: impl Into<String>,
) -> SchemaFinding {
    let (source, target) = (source.into(), target.into());
    SchemaFinding {
        table: Some(table.clone()),
        object: object.into(),
        kind,
        concern,
        source,
        target,
    }
}

/// A table that one side has not.
pub(crate) fn missing_table(name: &RelationName, is_on_source: bool) -> SchemaFinding {
    let (kind, source, target) = match is_on_source {
        true => ("table-missing", "table", NONE),
        false => ("table-extra", NONE, "table"),
    };
    finding(name, (kind, Concern::Different), "table", source, target)
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
                ("column-missing", Concern::Different),
                &column.name,
                &column.type_name,
                NONE,
            )),
            Some(other) => of_columns(&source.name, column, other, &mut found),
        }
    }
    let is_known = |column: &&Column| source.columns.iter().any(|known| known.name == column.name);
    for column in target.columns.iter().filter(|column| !is_known(column)) {
        let kind = ("column-extra", Concern::Different);
        found.push(finding(&source.name, kind, &column.name, NONE, &column.type_name));
    }
    of_keys(source, target, &mut found);
    of_indexes(source, target, &mut found);
    found
}

fn of_columns(table: &RelationName, one: &Column, other: &Column, found: &mut Vec<SchemaFinding>) {
    if one.type_name != other.type_name {
        // Whether a value was lost by it the rows themselves say.
        let kind = ("column-type", Concern::Warning);
        found.push(finding(table, kind, &one.name, &one.type_name, &other.type_name));
    }
    if one.is_nullable != other.is_nullable {
        let word = |column: &Column| if column.is_nullable { "NULL" } else { "NOT NULL" };
        let kind = ("column-nullability", Concern::Warning);
        found.push(finding(table, kind, &one.name, word(one), word(other)));
    }
    if one.collation != other.collation {
        let word = |column: &Column| column.collation.clone().unwrap_or_else(|| NONE.to_owned());
        let kind = ("column-collation", Concern::Note);
        found.push(finding(table, kind, &one.name, word(one), word(other)));
    }
    if one.generated != other.generated {
        let word = |column: &Column| match column.generated {
            Generated::No => "stored as written",
            Generated::Stored => "generated, stored",
            Generated::Virtual => "generated, virtual",
        };
        let kind = ("column-generated", Concern::Warning);
        found.push(finding(table, kind, &one.name, word(one), word(other)));
    }
}

fn of_keys(source: &Relation, target: &Relation, found: &mut Vec<SchemaFinding>) {
    let key = |relation: &Relation| {
        relation.primary_key().map_or(NONE.to_owned(), |key| key.columns.join(", "))
    };
    if key(source) != key(target) {
        let kind = ("primary-key", Concern::Warning);
        found.push(finding(&source.name, kind, "primary key", key(source), key(target)));
    }
}

fn of_indexes(source: &Relation, target: &Relation, found: &mut Vec<SchemaFinding>) {
    let names = |relation: &Relation| {
        let names = relation.indexes.iter().map(|index| index.name.clone());
        names.collect::<HashSet<_>>()
    };
    let (ours, theirs) = (names(source), names(target));
    for index in source.indexes.iter().filter(|index| !theirs.contains(&index.name)) {
        let kind = ("index-missing", Concern::Warning);
        found.push(finding(&source.name, kind, &index.name, &index.definition, NONE));
    }
    for index in target.indexes.iter().filter(|index| !ours.contains(&index.name)) {
        let kind = ("index-extra", Concern::Note);
        found.push(finding(&source.name, kind, &index.name, NONE, &index.definition));
    }
}

/// Servers and sequences.
pub(crate) fn of_sides(source: &Catalog, target: &Catalog) -> Vec<SchemaFinding> {
    let about = |object: &str, concern, one: &str, other: &str| SchemaFinding {
        table: None,
        object: object.to_owned(),
        kind: "server",
        concern,
        source: one.to_owned(),
        target: other.to_owned(),
    };
    let (one, other) = (&source.server, &target.server);
    let mut found = Vec::new();
    if one.version != other.version {
        found.push(about("server version", Concern::Note, &one.version, &other.version));
    }
    if one.encoding != other.encoding {
        found.push(about("encoding", Concern::Warning, &one.encoding, &other.encoding));
    }
    if one.collation != other.collation {
        found.push(about("default collation", Concern::Note, &one.collation, &other.collation));
    }
    found.extend(source.sequences.iter().filter_map(|sequence| {
        let other = target.sequences.iter().find(|other| other.name == sequence.name);
        of_sequence(sequence, other)
    }));
    found
}

/// The stream does not carry sequences: one that lags behind gives numbers out that rows have already.
fn of_sequence(source: &Sequence, target: Option<&Sequence>) -> Option<SchemaFinding> {
    let (kind, value) = match target {
        None => ("sequence-missing", NONE.to_owned()),
        Some(target) if !(source.can_select && target.can_select) => return None,
        Some(target) if target.last_value >= source.last_value => return None,
        Some(target) => ("sequence-behind", target.last_value.to_string()),
    };
    let table = source.owned_by.as_ref().map(|(table, _)| table.clone());
    let object = source.name.plain();
    let source = source.last_value.to_string();
    Some(SchemaFinding { table, object, kind, concern: Concern::Warning, source, target: value })
}
