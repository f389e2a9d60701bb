//! `report.junit.xml`: one test case a table, for build servers.
//!
//! **Invariant:** the file is well-formed XML 1.0 whatever a name holds: markup is escaped, and characters that XML cannot
//! hold are replaced by U+FFFD. A table that is not proven is never a passed case: a difference is a failure, what was
//! skipped is `skipped`, an equivalence that the policy does not allow is a failure, too.

use std::fmt::{self, Write as _};

use crate::words::{counted, list};
use crate::{
    Deviations, Level, SchemaFinding, SchemaSeverity, Shortfall, TableReport, Verdict, VerifyReport,
};

/// The text of `report.junit.xml`.
pub fn to_junit(report: &VerifyReport) -> String {
    let mut cases: Vec<Case> =
        report.tables.iter().map(|table| table_case(report, table)).collect();
    let differing = report.schema_findings.iter();
    let differing = differing.filter(|finding| finding.severity == SchemaSeverity::Different);
    cases.extend(differing.map(schema_case));
    cases.extend(report.skipped.iter().map(|skipped| Case {
        class: "skipped".to_owned(),
        name: skipped.object.clone(),
        duration_ms: 0,
        result: Status::Skipped(skipped.reason.clone()),
    }));
    if !cases.iter().any(|case| !matches!(case.result, Status::Passed)) {
        cases.extend(whole_case(report));
    }
    suite(report, &cases)
}

struct Case {
    class: String,
    name: String,
    duration_ms: u64,
    result: Status,
}

enum Status {
    Passed,
    Failed(String),
    Skipped(String),
}

fn table_case(report: &VerifyReport, table: &TableReport) -> Case {
    let result = match table.verdict {
        Verdict::Identical => Status::Passed,
        Verdict::Different => Status::Failed(differences(table)),
        Verdict::Equivalent if table.deviations().are_allowed(&report.policy.allow) => {
            Status::Passed
        }
        Verdict::Equivalent => {
            let Deviations { lossy, .. } = table.deviations();
            let kind = if lossy { "lossy" } else { "equivalent" };
            Status::Failed(format!("only {kind} findings, which the policy does not allow"))
        }
        Verdict::Incomplete => unproven(report.level, table),
    };
    Case {
        class: table.schema.clone(),
        name: table.table.clone(),
        duration_ms: table.duration_ms,
        result,
    }
}

fn unproven(asked: Level, table: &TableReport) -> Status {
    match (table.shortfall(asked), &table.skipped_reason) {
        (Some(Shortfall::LevelReadsNoRows), _) => Status::Passed,
        (_, Some(reason)) => Status::Skipped(reason.clone()),
        _ => Status::Skipped("it was not read in full on both sides".to_owned()),
    }
}

fn differences(table: &TableReport) -> String {
    let kinds = [
        (table.missing, "missing on the target"),
        (table.extra, "on the target only"),
        (table.changed, "with other values"),
    ];
    let found = kinds.iter().filter_map(|(rows, kind)| {
        rows.filter(|rows| *rows > 0).map(|rows| format!("{} {kind}", counted(rows, "row")))
    });
    let parts: Vec<_> = found.collect();
    match (parts.is_empty(), table.source_rows, table.target_rows) {
        (false, ..) => list(&parts),
        (true, Some(source), Some(target)) if source != target => {
            format!(
                "{} on the source, {} on the target",
                counted(source, "row"),
                counted(target, "row")
            )
        }
        _ if table.differing_definitions > 0 => {
            format!("{} about its definition", counted(table.differing_definitions, "finding"))
        }
        _ => format!("{} that differ", counted(table.differing_leaves, "leaf range")),
    }
}

fn schema_case(finding: &SchemaFinding) -> Case {
    Case {
        class: "definitions".to_owned(),
        name: format!("{} {}", finding.object, finding.kind),
        duration_ms: 0,
        result: Status::Failed(format!(
            "source: {}; target: {}",
            finding.source.as_deref().unwrap_or("nothing"),
            finding.target.as_deref().unwrap_or("nothing")
        )),
    }
}

/// Where no single case says why the run as a whole did not pass.
fn whole_case(report: &VerifyReport) -> Option<Case> {
    let message = report.claim().join(" ");
    let result = match (report.verdict, report.outcome().exit_code()) {
        (_, 0) => return None,
        (Verdict::Incomplete, _) => Status::Skipped(message),
        _ => Status::Failed(message),
    };
    Some(Case { class: "run".to_owned(), name: report.job.clone(), duration_ms: 0, result })
}

fn suite(report: &VerifyReport, cases: &[Case]) -> String {
    let failures = cases.iter().filter(|case| matches!(case.result, Status::Failed(_))).count();
    let skipped = cases.iter().filter(|case| matches!(case.result, Status::Skipped(_))).count();
    let head = format!(
        r#"<testsuite name="tidemark verify {}" tests="{}" failures="{failures}" errors="0" skipped="{skipped}" time="{}" timestamp="{}">"#,
        Xml(&report.job),
        cases.len(),
        Seconds(report.duration_ms),
        Xml(report.started_at.trim_end_matches('Z')),
    );
    let cases: String = cases.iter().map(case_element).collect();
    let declaration = r#"<?xml version="1.0" encoding="UTF-8"?>"#;
    format!("{declaration}\n{head}\n{}{cases}</testsuite>\n", properties(report))
}

fn properties(report: &VerifyReport) -> String {
    let lsn = report.lsn.map(|lsn| lsn.to_string());
    let properties = [
        ("verdict", Some(report.verdict.word())),
        ("proof", report.proof.map(crate::Proof::word)),
        ("lsn", lsn.as_deref()),
        ("level", Some(report.level.word())),
        ("tool_version", Some(report.tool_version.as_str())),
    ];
    let known = properties.iter().filter_map(|(name, value)| Some((name, (*value)?)));
    let lines = known
        .map(|(name, value)| format!("    <property name=\"{name}\" value=\"{}\"/>\n", Xml(value)));
    format!("  <properties>\n{}  </properties>\n", lines.collect::<String>())
}

fn case_element(case: &Case) -> String {
    let (class, name) = (Xml(&case.class), Xml(&case.name));
    let time = Seconds(case.duration_ms);
    let result = match &case.result {
        Status::Passed => "/>".to_owned(),
        Status::Failed(message) => format!("><failure message=\"{}\"/></testcase>", Xml(message)),
        Status::Skipped(message) => format!("><skipped message=\"{}\"/></testcase>", Xml(message)),
    };
    format!("  <testcase classname=\"{class}\" name=\"{name}\" time=\"{time}\"{result}\n")
}

struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1_000, self.0 % 1_000)
    }
}

/// A text inside an attribute in double quotes.
struct Xml<'a>(&'a str);

impl fmt::Display for Xml<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&apos;")?,
                // A parser would turn them into spaces.
                '\t' | '\n' | '\r' => write!(f, "&#{};", u32::from(character))?,
                '\0'..'\u{20}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => {
                    f.write_char(char::REPLACEMENT_CHARACTER)?;
                }
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}
