//! Findings about what is not moved at all, with counts (`hazards.md` H106), and about sequences.

use std::collections::{HashMap, HashSet};

use tidemark_model::sql::Ident;
use tidemark_model::{Column, Finding, Oid, RelationKind, RelationName, Severity, TablePlan};
use tidemark_wire::Client;
use tidemark_wire::tokio_postgres::Row;

use crate::{Catalog, Result, Sequence, sql};

/// Names that a finding shows; the rest is counted.
const NAMES_MAX: usize = 3;
/// A sequence with fewer of a hundred values left is near its end.
const LEFT_MIN: i128 = 20;

pub(super) async fn check(
    client: &Client,
    catalog: &Catalog,
    chosen: &[TablePlan],
) -> Result<Vec<Finding>> {
    let mut findings = not_moved(catalog);
    findings.push(size(client, chosen).await?);
    findings.extend(sequences(catalog, chosen));
    findings.extend(near_end(catalog, chosen));
    findings.extend(of_others(client, catalog, chosen).await?);
    Ok(findings)
}

fn not_moved(catalog: &Catalog) -> Vec<Finding> {
    let mut findings = Vec::new();
    let kinds = [
        (
            RelationKind::ForeignTable,
            Severity::Warning,
            "foreign-tables",
            "foreign table",
            "not moved: their rows are on another server",
        ),
        (
            RelationKind::MaterializedView,
            Severity::Note,
            "materialized-views",
            "materialized view",
            "no rows of their own; a created target gets their definitions and fills them, a lake does not",
        ),
        (
            RelationKind::View,
            Severity::Note,
            "views",
            "view",
            "no rows of their own; a created target gets their definitions, a lake does not",
        ),
    ];
    for (kind, severity, code, word, why) in kinds {
        let names: Vec<&RelationName> = catalog
            .relations
            .iter()
            .filter(|relation| relation.kind == kind && relation.extension.is_none())
            .map(|relation| &relation.name)
            .collect();
        if !names.is_empty() {
            let message = format!("{}: {why} ({})", count(names.len(), word), list(&names));
            findings.push(Finding::new(severity, code, "source", message));
        }
    }
    if catalog.large_objects > 0 {
        let message = format!("{} large objects are not moved", catalog.large_objects);
        findings.push(
            Finding::new(Severity::Warning, "large-objects", "pg_largeobject", message)
                .with_fix("move them with pg_dump --large-objects (pg_dump -b)"),
        );
    }
    if catalog.temporary_tables > 0 {
        let message = format!(
            "{} of other sessions are not moved",
            count_u64(catalog.temporary_tables, "temporary table")
        );
        findings.push(Finding::new(Severity::Note, "temporary-tables", "source", message));
    }
    findings
}

/// What SQL can tell of the room that is needed: nothing of what is free.
async fn size(client: &Client, chosen: &[TablePlan]) -> Result<Finding> {
    let text = "SELECT pg_database_size(current_database()), current_database()::text";
    let row = sql::one(client, "ask for the size of the database", text).await?;
    let bytes: u64 = chosen
        .iter()
        .map(|plan| plan.relation.heap_bytes.saturating_add(plan.relation.toast_bytes))
        .fold(0, u64::saturating_add);
    let message = format!(
        "{} with {} MiB without indexes, of {} MiB of the whole database",
        count(chosen.len(), "table"),
        bytes >> 20,
        sql::unsigned(row.get(0)) >> 20
    );
    Ok(Finding::new(Severity::Note, "size", Ident(row.get(1)).to_string(), message))
}

/// Sequences whose value is moved: of a chosen table, or of none.
fn moved<'a>(catalog: &'a Catalog, chosen: &[TablePlan]) -> impl Iterator<Item = &'a Sequence> {
    // A partitioned table is made where its partitions are, and its sequences with it.
    let above = chosen.iter().flat_map(|plan| catalog.ancestors(&plan.relation)).cloned();
    let chosen: HashSet<RelationName> =
        chosen.iter().map(|plan| plan.relation.name.clone()).chain(above).collect();
    catalog.sequences.iter().filter(move |sequence| {
        sequence.owned_by.as_ref().is_none_or(|(table, _)| chosen.contains(table))
    })
}

/// Sequences of the chosen tables whose values the role may not read.
fn sequences(catalog: &Catalog, chosen: &[TablePlan]) -> Vec<Finding> {
    let unreadable = moved(catalog, chosen).filter(|sequence| !sequence.can_select);
    let finding = |sequence: &Sequence| {
        let object = sequence.name.to_string();
        let fix = format!(
            "GRANT SELECT ON SEQUENCE {object} TO {}",
            super::server::grantee(&catalog.server)
        );
        let message = "the role may not read the sequence: its value is not moved";
        Finding::new(Severity::Warning, "sequence-right", object, message).with_fix(fix)
    };
    unreadable.map(finding).collect()
}

/// Sequences that would soon give out no more values, or more than their column can hold.
fn near_end(catalog: &Catalog, chosen: &[TablePlan]) -> Vec<Finding> {
    let columns: HashMap<(&RelationName, &str), &Column> = chosen
        .iter()
        .flat_map(|plan| {
            let of_table = plan.relation.columns.iter();
            of_table.map(|column| ((&plan.relation.name, column.name.as_str()), column))
        })
        .collect();
    let finding = |sequence: &Sequence| {
        let owner = sequence.owned_by.as_ref();
        let column = owner.and_then(|(table, column)| columns.get(&(table, column.as_str())));
        let left = left_in_a_hundred(sequence, column.map_or(i64::MAX, |column| most(column)));
        let (object, message) = match column {
            Some(column) if most(column) < sequence.bounds.1 => {
                let object = format!("{}.{}", owner?.0, Ident(&column.name));
                (object, format!("{left} % of the values of type {} are left", column.type_name))
            }
            _ => (sequence.name.to_string(), format!("{left} % of its values are left")),
        };
        let fix = "make the column, and its sequence (ALTER SEQUENCE .. AS bigint), bigint before the migration";
        (left < LEFT_MIN).then(|| {
            Finding::new(Severity::Warning, "sequence-near-end", object, message).with_fix(fix)
        })
    };
    moved(catalog, chosen)
        .filter(|sequence| sequence.can_select && sequence.is_called && !sequence.cycles)
        .filter_map(finding)
        .collect()
}

/// How many of a hundred values a sequence has still to give out, where nothing above `most` has room.
fn left_in_a_hundred(sequence: &Sequence, most: i64) -> i128 {
    let (low, high) = (i128::from(sequence.bounds.0), i128::from(sequence.bounds.1.min(most)));
    let last = i128::from(sequence.last_value);
    let left = if sequence.increment < 0 { last - low } else { high - last };
    left * 100 / (high - low).max(1)
}

/// The largest value of an integer column.
fn most(column: &Column) -> i64 {
    if column.data_type.is_builtin("int2") {
        i64::from(i16::MAX)
    } else if column.data_type.is_builtin("int4") {
        i64::from(i32::MAX)
    } else {
        i64::MAX
    }
}

/// Sequences that chosen tables take defaults from although they belong to a table that is not chosen.
async fn of_others(
    client: &Client,
    catalog: &Catalog,
    chosen: &[TablePlan],
) -> Result<Vec<Finding>> {
    let is_moved: HashSet<&RelationName> =
        moved(catalog, chosen).map(|sequence| &sequence.name).collect();
    let oids: Vec<Oid> = chosen.iter().map(|plan| plan.relation.oid).collect();
    let text = format!(
        "SELECT DISTINCT tn.nspname::text, t.relname::text, a.attname::text, sn.nspname::text, s.relname::text \
         FROM pg_catalog.pg_attrdef f JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::regclass \
           AND d.objid = f.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass \
         JOIN pg_catalog.pg_class s ON s.oid = d.refobjid AND s.relkind = 'S' \
         JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace \
         JOIN pg_catalog.pg_class t ON t.oid = f.adrelid JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum \
         WHERE f.adrelid = ANY ({}) ORDER BY 1, 2, 3",
        sql::oid_array(&oids)
    );
    let rows = sql::rows(client, "look which sequences fill the tables", &text).await?;
    let finding = |row: &Row| {
        let table = RelationName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let sequence = RelationName::new(row.get::<_, String>(3), row.get::<_, String>(4));
        let object = format!("{table}.{}", Ident(row.get(2)));
        let message = format!(
            "its default is from sequence {sequence}, which belongs to a table that is not chosen and is not moved"
        );
        let fix = "choose that table too, or make and set the sequence on the target yourself";
        (!is_moved.contains(&sequence)).then(|| {
            Finding::new(Severity::Warning, "sequence-not-moved", object, message).with_fix(fix)
        })
    };
    Ok(rows.iter().filter_map(finding).collect())
}

fn count(number: usize, word: &str) -> String {
    count_u64(u64::try_from(number).unwrap_or(u64::MAX), word)
}

fn count_u64(number: u64, word: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {word}{s}")
}

fn list(names: &[&RelationName]) -> String {
    let shown: Vec<String> = names.iter().take(NAMES_MAX).map(ToString::to_string).collect();
    let more = if names.len() > NAMES_MAX { ", .." } else { "" };
    format!("{}{more}", shown.join(", "))
}
