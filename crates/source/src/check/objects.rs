//! Findings about what is not moved at all, with counts (`hazards.md` H106).

use std::collections::HashSet;

use tidemark_model::{Finding, RelationKind, RelationName, Severity, TablePlan};

use crate::Catalog;

/// Names that a finding shows; the rest is counted.
const NAMES_MAX: usize = 3;

pub(super) fn check(catalog: &Catalog, chosen: &[TablePlan]) -> Vec<Finding> {
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
    findings.extend(sequences(catalog, chosen));
    findings
}

/// Sequences of the chosen tables whose values the role may not read.
fn sequences(catalog: &Catalog, chosen: &[TablePlan]) -> Vec<Finding> {
    let chosen: HashSet<&RelationName> = chosen.iter().map(|plan| &plan.relation.name).collect();
    let unreadable = catalog.sequences.iter().filter(|sequence| {
        let is_ours = sequence.owned_by.as_ref().is_none_or(|(table, _)| chosen.contains(table));
        is_ours && !sequence.can_select
    });
    let finding = |sequence: &crate::Sequence| {
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
