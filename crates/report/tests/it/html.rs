//! What people see.

use serde_json::Value;
use tidemark_report::*;

use crate::samples;

/// Writes the pages of the samples where a person can look at them.
#[test]
fn the_samples_can_be_looked_at() {
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (name, report) in samples::all() {
        let page = to_html(&report);
        assert!(page.len() < 200_000, "{name}: {} bytes", page.len());
        std::fs::write(directory.join(format!("{name}.html")), page).unwrap();
        std::fs::write(directory.join(format!("{name}.json")), to_json(&report).unwrap()).unwrap();
        std::fs::write(directory.join(format!("{name}.junit.xml")), to_junit(&report)).unwrap();
    }
}

fn position(page: &str, text: &str) -> usize {
    page.find(text).unwrap_or_else(|| panic!("the page has no {text:?}"))
}

#[test]
fn the_verdict_comes_first_then_scope_tables_what_was_skipped_and_how_to_run_it_again() {
    for (name, report) in samples::all() {
        let page = to_html(&report);
        let order = [
            "<h1>",
            "class=\"claim\"",
            "<h2>Scope",
            "<h2>Tables",
            "<h2>Definitions",
            "<h2>Skipped",
            "<h2>How it was proven",
            "<h2>Policy",
            "<h2>Run it again",
            "<h2>Versions and checksum",
        ];
        let places = order.map(|part| position(&page, part));
        assert!(places.is_sorted(), "{name}: {places:?}");
        let text = page[places[0]..places[1]].to_lowercase();
        assert!(text.contains(report.verdict.word()), "{name}");
    }
}

#[test]
fn the_page_needs_no_network_and_no_script() {
    for (name, report) in samples::all() {
        let page = to_html(&report);
        for banned in [
            "<script",
            "<link",
            "<img",
            "<iframe",
            "src=",
            "href=",
            "@import",
            "url(",
            "http:",
            "https:",
            "javascript:",
        ] {
            assert!(!page.contains(banned), "{name} has {banned}");
        }
        assert!(page.contains("default-src 'none'"), "{name}");
    }
}

/// Every place of `value` where a text is.
fn text_places(value: &Value, place: &str, into: &mut Vec<String>) {
    match value {
        Value::String(_) => into.push(place.to_owned()),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                text_places(item, &format!("{place}/{index}"), into);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                text_places(field, &format!("{place}/{name}"), into);
            }
        }
        _ => {}
    }
}

/// Reports in which one text each is `hostile`; texts that cannot be free (a verdict, an LSN) are left out.
pub(crate) fn with_hostile_texts(hostile: &str) -> Vec<(String, VerifyReport)> {
    let mut report = samples::different();
    report.tables.truncate(9);
    report.tables.push(TableReport::skipped("public", "gone", "a reason"));
    report.tables[0].opaque_columns = vec!["shape".to_owned()];
    report.skipped = samples::incomplete().skipped;
    report.judge();
    let value = serde_json::to_value(&report).unwrap();
    let mut places = Vec::new();
    text_places(&value, "", &mut places);
    let changed = places.into_iter().filter_map(|place| {
        let mut value = value.clone();
        *value.pointer_mut(&place).unwrap() = hostile.into();
        Some((place, serde_json::from_value(value).ok()?))
    });
    let mut reports: Vec<_> = changed.collect();
    // A column's name is a name in the JSON, too.
    let name = format!("_key\":{{{}:", Value::from(hostile));
    let text = value.to_string().replace("_key\":{\"id\":", &name);
    reports.push(("a key's column".to_owned(), serde_json::from_str(&text).unwrap()));
    // Without a point there is a reason instead of barriers.
    let mut without = report.clone();
    without.point = Point::None { reason: hostile.to_owned() };
    reports.push(("the reason for no point".to_owned(), without));
    assert!(reports.len() > 60, "only {} places", reports.len());
    reports
}

#[test]
fn no_text_of_a_database_becomes_markup() {
    let hostile = "</style></pre><script>alert(\"1\")</script><!--'&\u{202e}";
    let plain = to_html(&samples::different()).matches('<').count();
    for (place, report) in with_hostile_texts(hostile) {
        let page = to_html(&report);
        assert!(!page.contains("<script"), "{place}");
        assert!(!page.contains("<!--"), "{place}");
        assert!(!page.contains("alert(\"1\")"), "{place}");
        assert!(!page.contains('\u{202e}'), "{place}");
        assert_eq!(page.matches("</style>").count(), 1, "{place}");
        let markup = page.matches('<').count();
        assert!(markup < plain + 80, "{place}: {markup} instead of about {plain}");
    }
}

#[test]
fn of_five_hundred_tables_those_that_are_not_proven_come_first_and_each_is_named_once() {
    let report = samples::incomplete();
    let page = to_html(&report);
    let list = position(&page, "495 identical tables");
    for table in &report.tables {
        let escaped = table.table.replace('<', "&lt;").replace('>', "&gt;").replace('_', "_<wbr>");
        let before = match table.verdict {
            Verdict::Identical => format!("<li><span>{escaped}<"),
            _ => format!("<wbr>{escaped}<"),
        };
        let before = if table.proof == Some(Proof::Incremental) {
            format!("<li><span>{escaped} <small>incremental</small>")
        } else {
            before
        };
        assert_eq!(page.matches(&before).count(), 1, "{}", table.table);
        let is_above = position(&page, &before) < list;
        assert_eq!(is_above, table.verdict != Verdict::Identical, "{}", table.table);
    }
}

#[test]
fn different_tables_come_before_unproven_equivalent_and_identical_ones() {
    let mut report = samples::different();
    report.tables.push(TableReport::skipped("public", "gone", "a reason"));
    report.judge();
    let page = to_html(&report);
    let places = [
        "tbody class=\"different",
        "tbody class=\"incomplete",
        "tbody class=\"equivalent",
        "tbody class=\"identical",
    ];
    let first = places.map(|place| position(&page, place));
    let last = places.map(|place| page.rfind(place).unwrap());
    assert!(first.is_sorted() && last.iter().zip(&first[1..]).all(|(last, next)| last < next));
}

#[test]
fn each_verdict_has_a_sign_of_its_own_beside_its_colour_and_its_word() {
    let icons: std::collections::HashSet<_> = samples::all()
        .iter()
        .map(|(_, report)| {
            let page = to_html(report);
            let from = position(&page, "<h1>");
            page[from..position(&page, "</svg>")].to_owned()
        })
        .collect();
    assert_eq!(icons.len(), 4);
}

#[test]
fn the_page_names_the_checksum_of_the_json() {
    for (name, report) in samples::all() {
        assert!(to_html(&report).contains(&checksum_of(&report).unwrap()), "{name}");
    }
}
