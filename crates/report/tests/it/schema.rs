//! The published schema of `report.json`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use tidemark_report::*;

use crate::samples;

#[test]
fn the_published_schema_is_up_to_date() {
    for (name, schema) in
        [("report.schema.json", json_schema()), ("migration.schema.json", migration_schema())]
    {
        let path =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(name);
        if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
            std::fs::write(&path, &schema).unwrap();
        }
        let published = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            published == schema,
            "docs/reference/{name} differs from the types: run UPDATE_DOCS=1 cargo test -p tidemark-report"
        );
    }
}

#[test]
fn the_schema_has_every_field_that_the_design_promises() {
    let schema: Value = serde_json::from_str(&json_schema()).unwrap();
    let names = |of: &Value| of["properties"].as_object().unwrap().keys().cloned().collect();
    let report: BTreeSet<String> = names(&schema);
    for field in
        "tool_version job verdict proof lsn started_at finished_at source target tables checksum"
            .split(' ')
    {
        assert!(report.contains(field), "{field}");
    }
    let side: BTreeSet<String> = names(&schema["$defs"]["Side"]);
    assert!(side.contains("version") && side.contains("system_identifier"));
    let table: BTreeSet<String> = names(&schema["$defs"]["TableReport"]);
    let promised = "schema table verdict proof level source_rows target_rows source_digest target_digest missing extra \
                    changed equivalent lossy skipped_reason duration_ms";
    for field in promised.split_whitespace() {
        assert!(table.contains(field), "{field}");
    }
}

/// Whether `value` fits `schema`, for the keywords that the schema uses; an unknown one is an error.
fn check(root: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let no = |why: &str| Err(format!("{place}: {why}: {value}"));
    if schema == &Value::Bool(true) {
        return Ok(());
    }
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$ref" => {
                let pointer = rule.as_str().unwrap().strip_prefix('#').unwrap();
                check(root, root.pointer(pointer).unwrap(), value, place)?;
            }
            "type" if !has_type(rule, value) => return no("type"),
            "const" if rule != value => return no("const"),
            "enum" if !rule.as_array().unwrap().contains(value) => return no("enum"),
            "minimum" if value.as_i64().is_some_and(|n| n < rule.as_i64().unwrap()) => {
                return no("minimum");
            }
            "anyOf" | "oneOf" => {
                let fits =
                    rule.as_array().unwrap().iter().any(|s| check(root, s, value, place).is_ok());
                if !fits {
                    return no(keyword);
                }
            }
            "required" => {
                for name in rule.as_array().unwrap() {
                    if value.get(name.as_str().unwrap()).is_none() {
                        return no(&format!("{name} is missing"));
                    }
                }
            }
            "properties" => {
                for (name, rule) in rule.as_object().unwrap() {
                    if let Some(field) = value.get(name) {
                        check(root, rule, field, &format!("{place}/{name}"))?;
                    }
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, rule, item, &format!("{place}/{index}"))?;
                }
            }
            "additionalProperties" => {
                for (name, field) in value.as_object().into_iter().flatten() {
                    check(root, rule, field, &format!("{place}/{name}"))?;
                }
            }
            "type" | "const" | "enum" | "minimum" => {}
            "description" | "title" | "format" | "$schema" | "$defs" | "pattern" | "maximum" => {}
            other => return Err(format!("the schema uses {other}, which this test does not know")),
        }
    }
    Ok(())
}

fn has_type(rule: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str().unwrap() {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "boolean" => value.is_boolean(),
        other => panic!("type {other}"),
    };
    match rule {
        Value::Array(names) => names.iter().any(is),
        name => is(name),
    }
}

#[test]
fn every_report_fits_the_schema_and_one_with_a_field_missing_or_of_another_type_does_not() {
    let schema: Value = serde_json::from_str(&json_schema()).unwrap();
    for (name, report) in samples::all() {
        let value: Value = serde_json::from_str(&to_json(&report).unwrap()).unwrap();
        check(&schema, &schema, &value, name).unwrap();
        for field in value.as_object().unwrap().keys() {
            let mut without = value.clone();
            without.as_object_mut().unwrap().remove(field);
            assert!(check(&schema, &schema, &without, name).is_err(), "without {field}");
            let mut other = value.clone();
            other[field] = Value::Bool(true);
            assert!(check(&schema, &schema, &other, name).is_err(), "{field} is true");
        }
    }
}

#[test]
fn the_schema_says_which_numbers_may_exceed_what_a_double_holds() {
    assert!(json_schema().contains("may exceed 2^53"));
}

#[test]
fn the_guide_gives_the_same_program_for_the_checksum_as_the_schema() {
    let guide =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides/reading-a-report.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let program = guide.lines().find(|line| line.starts_with("python3 -c ")).unwrap();
    let schema: Value = serde_json::from_str(&json_schema()).unwrap();
    let description = schema["properties"]["checksum"]["description"].as_str().unwrap();
    assert!(description.contains(program), "{program}\n{description}");
}
