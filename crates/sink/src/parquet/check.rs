//! What stands in the way of writing these tables to this lake.
//!
//! **Invariant:** changes nothing; every finding names its object.

use std::collections::HashSet;
use std::path::Path;

use arrow_schema::DataType;
use rustix::fs::{Access, access, statvfs};
use tidemark_columnar::{Mapping, map_column};
use tidemark_model::{Column, Finding, Severity, TablePlan, TypeKind, Wire};

use super::manifest;
use super::root::Root;
use crate::NotEmpty;
use crate::Result;

/// Findings about the root.
pub(super) async fn check_root(
    root: &Root,
    not_empty: NotEmpty,
    bytes: u64,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if let Some(path) = root.local_path() {
        check_directory(root, path, bytes, &mut findings);
        if findings.iter().any(|finding| finding.severity == Severity::Blocking) {
            return Ok(findings);
        }
    }
    let blocking =
        |code, message: &str| Finding::new(Severity::Blocking, code, root.to_string(), message);
    if not_empty == NotEmpty::Append {
        findings.push(blocking("target-append", "a lake cannot be appended to yet"));
    }
    if root.read(manifest::SNAPSHOT_COMMIT).await?.is_some() {
        if not_empty != NotEmpty::Truncate {
            let finding = blocking("target-not-empty", "the lake already holds a snapshot");
            findings
                .push(finding.with_fix("--target-not-empty truncate --yes, or another directory"));
        }
    } else if root.read(manifest::JOB).await?.is_none() && !root.is_empty().await? {
        let finding = blocking("target-not-empty", "there are files here that are not ours");
        findings.push(finding.with_fix("name an empty or a new directory"));
    }
    Ok(findings)
}

fn check_directory(root: &Root, path: &Path, bytes: u64, findings: &mut Vec<Finding>) {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let blocking = |message: String| {
        Finding::new(Severity::Blocking, "target-not-writable", root.to_string(), message)
    };
    if !existing.is_dir() {
        findings.push(blocking(format!("{} is not a directory", existing.display())));
    } else if let Err(error) = access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        let message = format!("{} cannot be written: {error}", existing.display());
        findings.push(
            blocking(message)
                .with_fix(format!("give this user the right to write {}", existing.display())),
        );
    }
    if let Ok(disk) = statvfs(existing) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < bytes {
            let message = format!(
                "{} MiB are free; the tables have {} MiB on the source (Parquet usually takes a quarter)",
                free >> 20,
                bytes >> 20
            );
            findings.push(Finding::new(
                Severity::Warning,
                "target-space",
                root.to_string(),
                message,
            ));
        }
    }
}

/// Findings about one table.
pub(super) fn check_table(plan: &TablePlan) -> Vec<Finding> {
    let name = &plan.relation.name;
    let mut findings = Vec::new();
    if plan.columns.is_empty() {
        let message = "the table has no columns; Parquet cannot hold its rows";
        findings.push(Finding::new(Severity::Blocking, "no-columns", name.to_string(), message));
    }
    let mut folded = HashSet::new();
    for column in &plan.columns {
        if !folded.insert(column.name.to_lowercase()) {
            let message = "the name differs from another column's only in case; DuckDB and Spark take them for one";
            findings.push(finding(plan, column, "column-case", message));
        }
        let mapping = map_column(column, plan.unrepresentable);
        if let Some(note) = mapping.note() {
            findings.push(finding(
                plan,
                column,
                "column-mapping",
                &format!("{}: {note}", column.type_name),
            ));
        } else if mapping.wire() == Wire::CastToText || is_opaque_text(column, &mapping) {
            findings.push(finding(
                plan,
                column,
                "column-as-text",
                &format!("{} is written as text", column.type_name),
            ));
        }
    }
    findings
}

/// Whether a value that is no text becomes text, such as a numeric without a declared scale.
fn is_opaque_text(column: &Column, mapping: &Mapping) -> bool {
    let field = mapping.field();
    let is_enum = matches!(column.data_type.kind, TypeKind::Enum(_));
    *field.data_type() == DataType::Utf8
        && field.extension_type_name() == Some("arrow.opaque")
        && !is_enum
}

fn finding(plan: &TablePlan, column: &Column, code: &str, message: &str) -> Finding {
    let object = format!("{}.{}", plan.relation.name, tidemark_model::sql::Ident(&column.name));
    Finding::new(Severity::Note, code, object, message)
}
