//! `report.json` and what shows that it was edited.

use serde_json::Value;
use tidemark_report::*;

use crate::samples;

#[test]
fn what_was_written_is_read_again_as_it_was() {
    for (name, report) in samples::all() {
        let text = to_json(&report).unwrap();
        let read = check_json(&text).unwrap();
        assert_eq!(read.checksum, Some(checksum_of(&report).unwrap()), "{name}");
        assert_eq!(VerifyReport { checksum: None, ..read }, report, "{name}");
    }
}

#[test]
fn formatting_and_the_order_of_names_do_not_matter() {
    let text = to_json(&samples::different()).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    check_json(&value.to_string()).unwrap();
    let Value::Object(fields) = &value else { panic!("no object") };
    let turned = fields.iter().rev().map(|(name, value)| format!("{name:?}:\n{value}"));
    check_json(&format!("{{{}}}", turned.collect::<Vec<_>>().join(",\t"))).unwrap();
}

/// Every place in the report where a value is, with another value there.
fn edits(value: &Value, place: &str, into: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                edits(field, &format!("{place}/{name}"), into);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                edits(item, &format!("{place}/{index}"), into);
            }
            into.push((place.to_owned(), Value::Array([&[Value::Null], &items[..]].concat())));
        }
        Value::String(text) => into.push((place.to_owned(), format!("{text} ").into())),
        Value::Number(number) => {
            into.push((place.to_owned(), (number.as_u64().unwrap() ^ 1).into()));
        }
        Value::Bool(_) | Value::Null => into.push((place.to_owned(), "edited".into())),
    }
}

#[test]
fn every_edit_of_a_value_is_seen() {
    let value: Value = serde_json::from_str(&to_json(&samples::different()).unwrap()).unwrap();
    let mut all = Vec::new();
    edits(&value, "", &mut all);
    assert!(all.len() > 300, "only {} edits", all.len());
    for (place, edit) in all {
        let mut edited = value.clone();
        *edited.pointer_mut(&place).unwrap() = edit;
        let error = check_json(&edited.to_string()).unwrap_err();
        assert!(matches!(error, Error::Edited { .. }), "{place}: {error}");
    }
}

#[test]
fn fields_that_come_or_go_are_seen() {
    let value: Value = serde_json::from_str(&to_json(&samples::identical()).unwrap()).unwrap();
    let mut more = value.clone();
    more["note"] = "approved".into();
    assert!(matches!(check_json(&more.to_string()), Err(Error::Edited { .. })));
    let mut less = value.clone();
    less.as_object_mut().unwrap().remove("skipped");
    assert!(matches!(check_json(&less.to_string()), Err(Error::Edited { .. })));
    let mut unsealed = value;
    unsealed.as_object_mut().unwrap().remove("checksum");
    assert!(matches!(check_json(&unsealed.to_string()), Err(Error::NoChecksum)));
}

#[test]
fn a_name_that_stands_twice_is_refused_and_named() {
    let text = to_json(&samples::different()).unwrap();
    let twice = text.replacen('{', "{\"verdict\": \"identical\",", 1);
    let error = check_json(&twice).unwrap_err();
    assert!(matches!(&error, Error::DuplicateName(name) if name == "verdict"), "{error}");
}

#[test]
fn what_is_no_report_is_refused_with_its_place() {
    for text in ["", "[]", "1", "{\"checksum\":", "{\"checksum\":\"00\",}"] {
        assert!(matches!(check_json(text), Err(Error::Malformed(_))), "{text}");
    }
    let text = to_json(&samples::identical()).unwrap();
    let fraction = text.replacen("\"duration_ms\": 42107", "\"duration_ms\": 42107.5", 1);
    assert!(matches!(check_json(&fraction), Err(Error::NotWhole(_))));
    let cut = &text[..text.len() / 2];
    let error = check_json(cut).unwrap_err();
    let place = std::error::Error::source(&error).unwrap().to_string();
    assert!(place.contains("line"), "{place}");
}

#[test]
fn a_verdict_that_was_edited_and_sealed_anew_contradicts_its_tables() {
    let mut report = samples::different();
    report.verdict = Verdict::Identical;
    let message = check_json(&to_json(&report).unwrap()).unwrap_err().to_string();
    assert!(message.contains("calls the whole identical"), "{message}");
    let mut report = samples::different();
    report.tables[1].verdict = Verdict::Identical;
    let message = check_json(&to_json(&report).unwrap()).unwrap_err().to_string();
    assert!(message.contains("table \"public\".\"lineitem\" identical"), "{message}");
    let mut report = samples::incomplete();
    report.proof = Some(Proof::Full);
    assert_eq!(report.contradictions(), [Contradiction::Proof]);
}

#[test]
fn a_diff_that_lacks_rows_contradicts_the_counts() {
    let mut report = samples::different();
    // A declared mapping has rows of its own, which are no lines.
    report.tables[1].lossy = Some(7);
    assert_eq!(report.contradictions(), []);
    report.diff.as_mut().unwrap().rows.missing -= 1;
    assert_eq!(report.contradictions(), [Contradiction::DiffRows { tables: 208, file: 207 }]);
    report.diff.as_mut().unwrap().rows.missing += 2;
    assert_eq!(report.contradictions(), [Contradiction::DiffRows { tables: 208, file: 209 }]);
    report.diff.as_mut().unwrap().rows.missing -= 2;
    // A table that was not localised may have any number of rows in it, but not fewer than the others.
    report.tables[0].missing = None;
    report.diff.as_mut().unwrap().rows.missing += 2;
    assert_eq!(report.contradictions(), []);
}

#[test]
fn a_report_of_a_later_version_is_refused_by_its_version() {
    let mut report = samples::identical();
    report.report_version = REPORT_VERSION + 1;
    let error = check_json(&to_json(&report).unwrap()).unwrap_err();
    assert!(matches!(error, Error::LaterVersion { found: 2, supported: 1 }), "{error}");
}
