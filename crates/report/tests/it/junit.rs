//! What build servers read.

use std::collections::BTreeMap;

use tidemark_report::*;

use crate::samples;

/// An element: its name and its attributes.
type Element = (String, BTreeMap<String, String>);

/// A reader of the subset of XML that is written, strict about everything that a parser would refuse.
fn elements(xml: &str) -> Vec<Element> {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    assert!(xml.chars().all(allowed), "a character that XML cannot hold");
    let mut open = Vec::new();
    let mut found = Vec::new();
    let body = xml.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").unwrap();
    for tag in body.split('<').skip(1) {
        let (tag, text) = tag.split_once('>').unwrap();
        assert_eq!(text.trim(), "", "text outside of attributes");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
            continue;
        }
        let (inner, is_closed) = match tag.strip_suffix('/') {
            Some(inner) => (inner, true),
            None => (tag, false),
        };
        let (name, attributes) = inner.split_once(' ').unwrap_or((inner, ""));
        if !is_closed {
            open.push(name.to_owned());
        }
        found.push((name.to_owned(), attributes_of(attributes)));
    }
    assert!(open.is_empty(), "{open:?} is not closed");
    found
}

fn attributes_of(text: &str) -> BTreeMap<String, String> {
    let mut rest = text;
    let mut found = BTreeMap::new();
    while let Some((name, tail)) = rest.split_once("=\"") {
        let (value, tail) = tail.split_once('"').unwrap();
        for entity in value.split('&').skip(1) {
            let (entity, _) = entity.split_once(';').unwrap();
            assert!(["amp", "lt", "gt", "quot", "apos", "#9", "#10", "#13"].contains(&entity));
        }
        let plain = value
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&apos;", "'")
            .replace("&#10;", "\n")
            .replace("&#9;", "\t")
            .replace("&amp;", "&");
        assert!(found.insert(name.to_owned(), plain).is_none(), "{name} twice");
        rest = tail.trim_start();
    }
    assert_eq!(rest, "");
    found
}

/// Each test case with what came of it: `passed`, `failure` or `skipped`, and why.
fn cases(report: &VerifyReport) -> Vec<(String, String, String, String)> {
    let mut cases: Vec<(String, String, String, String)> = Vec::new();
    for (name, attributes) in elements(&to_junit(report)) {
        match name.as_str() {
            "testcase" => cases.push((
                attributes["classname"].clone(),
                attributes["name"].clone(),
                "passed".to_owned(),
                String::new(),
            )),
            "failure" | "skipped" => {
                let case = cases.last_mut().unwrap();
                (case.2, case.3) = (name, attributes["message"].clone());
            }
            _ => {}
        }
    }
    cases
}

fn result_of(report: &VerifyReport, table: &str) -> (String, String) {
    let found = cases(report).into_iter().find(|(_, name, ..)| name == table).unwrap();
    (found.2, found.3)
}

#[test]
fn each_table_is_a_case_of_its_schema_and_the_numbers_agree() {
    for (name, report) in samples::all() {
        let cases = cases(&report);
        for table in &report.tables {
            let same =
                cases.iter().filter(|case| (&case.0, &case.1) == (&table.schema, &table.table));
            assert_eq!(same.count(), 1, "{name}: {}", table.table);
        }
        let (_, suite) = elements(&to_junit(&report)).swap_remove(0);
        let count = |result| cases.iter().filter(|case| case.2 == result).count().to_string();
        assert_eq!(suite["tests"], cases.len().to_string(), "{name}");
        assert_eq!(suite["failures"], count("failure"), "{name}");
        assert_eq!(suite["skipped"], count("skipped"), "{name}");
    }
}

#[test]
fn different_tables_fail_skipped_ones_are_skipped_and_identical_ones_pass() {
    let different = samples::different();
    let expected =
        "12 rows missing on the target, 3 rows on the target only and 5 rows with other values";
    assert_eq!(result_of(&different, "lineitem"), ("failure".to_owned(), expected.to_owned()));
    assert_eq!(result_of(&different, "nation").0, "passed");
    assert_eq!(result_of(&different, "part").0, "passed", "equivalent, which is allowed");
    assert_eq!(result_of(&different, "public.orders.o_clerk type-differs").0, "failure");
    assert_eq!(result_of(&samples::equivalent(), "part").0, "failure", "equivalent, not allowed");
    let incomplete = samples::incomplete();
    assert_eq!(result_of(&incomplete, "documents").0, "skipped");
    assert!(result_of(&incomplete, "documents").1.contains("row-level security"));
    assert_eq!(result_of(&incomplete, "large objects").0, "skipped");
    assert_eq!(result_of(&incomplete, "ledger_entries").0, "skipped");
}

#[test]
fn a_run_that_did_not_pass_never_has_passed_cases_only() {
    let mut reports: Vec<_> = samples::all().into_iter().map(|(_, report)| report).collect();
    let mut without_tables = samples::identical();
    without_tables.tables.clear();
    let mut without_point = samples::identical();
    without_point.point = Point::None { reason: "no rights".to_owned() };
    let mut key_differs = samples::identical();
    let keys_set_aside = KeysSetAside { equal: 0, different: 1, unsettled: 0 };
    let barrier = Barrier { keys_set_aside, ..samples::barrier(8) };
    key_differs.point = Point::Barrier { barriers: vec![barrier] };
    reports.extend([without_tables, without_point, key_differs]);
    for mut report in reports {
        report.judge();
        let all_passed = cases(&report).iter().all(|case| case.2 == "passed");
        assert_eq!(all_passed, report.outcome() == Outcome::Agreed, "{:?}", report.claim());
    }
}

#[test]
fn position_and_proof_are_properties() {
    let elements = elements(&to_junit(&samples::identical()));
    let properties = elements.iter().filter(|(name, _)| name == "property");
    let found: Vec<_> =
        properties.map(|(_, a)| (a["name"].as_str(), a["value"].as_str())).collect();
    for expected in
        [("verdict", "identical"), ("proof", "full"), ("lsn", "16/B374D848"), ("level", "digest")]
    {
        assert!(found.contains(&expected), "{found:?}");
    }
}

#[test]
fn the_file_is_well_formed_whatever_a_name_holds() {
    let hostile = "a\"b'c<d>&amp;\0\u{1b}\u{7f}\u{fffe}\n\té中]]>";
    for (place, report) in crate::html::with_hostile_texts(hostile) {
        assert!(elements(&to_junit(&report)).len() > 10, "{place}");
    }
    let mut report = samples::identical();
    report.tables[0].table = hostile.to_owned();
    let name = "a\"b'c<d>&amp;\u{fffd}\u{fffd}\u{fffd}\u{fffd}\n\té中]]>";
    assert_eq!(result_of(&report, name).0, "passed");
}
