//! `migration.html`: the report of a migration for people, in the form of the report of a verification.

use serde_json::Value;

use super::text::{Esc, duration, time};
use super::{definition_list, page};
use crate::migration::{AttemptReport, MigrationReport, MigrationSide, Settled, Stage, StepReport};
use crate::words::{count, counted};
use crate::{FindingReport, VerificationReport};

/// The text of `migration.html`.
pub fn migration_to_html(report: &MigrationReport) -> String {
    let title =
        format!("{}: {} \u{2013} tidemark migration", report.stage.word(), Esc(&report.job));
    let sections = [
        banner(report),
        tiles(report),
        sides(report),
        report.attempts.iter().map(attempt).collect(),
        verifications(&report.verifications),
        findings(&report.findings),
        versions(report),
    ];
    page(&title, &sections.concat())
}

/// Green is what is as it should be and asks for nothing more.
fn class(stage: Stage) -> &'static str {
    match stage {
        Stage::Complete => "identical",
        Stage::Following | Stage::Hypercare => "equivalent",
        Stage::Copying | Stage::Switching => "incomplete",
    }
}

fn banner(report: &MigrationReport) -> String {
    let claim = match report.stage {
        Stage::Copying => "Rows are copied; the application is on the source.",
        Stage::Following => "The application is on the source, and the target follows it.",
        Stage::Switching => "A cutover or a fallback is not at its end.",
        Stage::Hypercare => {
            "The application is on the target, and the source follows it: there is a way back."
        }
        Stage::Complete => "The application is on the target; the way back was given up.",
    };
    let last = report.verifications.last().map_or_else(
        || "<p>Nothing was verified.</p>\n".to_owned(),
        |last| format!("<p>{}</p>\n", verified(last)),
    );
    format!(
        "<header class=\"banner {}\">\n<h1><span>{}</span></h1>\n<p class=\"claim\">{claim}</p>\n{last}\
         <p class=\"small\">Job <b>{}</b> \u{b7} written {}</p>\n</header>\n",
        class(report.stage),
        capital(report.stage.word()),
        Esc(&report.job),
        Esc(&time(&report.written_at)),
    )
}

fn capital(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_uppercase() + rest
}

fn verified(last: &VerificationReport) -> String {
    format!(
        "Last verification: <b>{}</b>, {} in {} at the level of {}{}, {}.",
        last.verdict.word(),
        counted(last.rows, "row"),
        counted(last.tables, "table"),
        last.level.word(),
        last.lsn
            .as_deref()
            .map_or_else(String::new, |lsn| format!(", at LSN <code>{}</code>", Esc(lsn))),
        Esc(&time(&last.at)),
    )
}

fn tiles(report: &MigrationReport) -> String {
    let done = |way: &str| {
        let is_it =
            |attempt: &&AttemptReport| attempt.way == way && attempt.outcome == Settled::Done;
        report.attempts.iter().filter(is_it).count() as u64
    };
    let taken_back = report.attempts.iter().filter(|one| one.outcome == Settled::TakenBack).count();
    let open = report.findings.iter().filter(|finding| !finding.is_settled).count();
    let mut tiles = vec![
        (count(report.tables), "tables"),
        (count(done("cutover")), "cutovers done"),
        (count(done("fallback")), "fallbacks done"),
        (count(taken_back as u64), "attempts taken back"),
        (count(report.verifications.len() as u64), "verifications"),
        (count(open as u64), "findings open"),
    ];
    if let Some(block) = report.attempts.iter().filter_map(|one| one.write_block_ms).max() {
        tiles.push((duration(block), "longest write block"));
    }
    let tiles: String = tiles
        .iter()
        .map(|(number, word)| format!("<div><b>{number}</b><span>{word}</span></div>\n"))
        .collect();
    format!("<div class=\"tiles\">\n{tiles}</div>\n")
}

fn sides(report: &MigrationReport) -> String {
    let side = |side: &Option<MigrationSide>| {
        side.as_ref().map_or_else(
            || "not read yet".to_owned(),
            |side| {
                format!(
                    "PostgreSQL {}.{}, database <b>{}</b>, system identifier {}",
                    side.version / 10_000,
                    side.version % 10_000,
                    Esc(&side.database),
                    Esc(&side.system_identifier)
                )
            },
        )
    };
    let at = |at: &Option<String>| {
        at.as_deref().map_or_else(|| "\u{2013}".to_owned(), |at| Esc(&time(at)).to_string())
    };
    let list = definition_list(&[
        ("Source", side(&report.source)),
        ("Target", side(&report.target)),
        ("Copy begun", at(&report.copied_from)),
        ("Copy done", at(&report.copied_to)),
        ("Completed", at(&report.completed_at)),
    ]);
    format!("<section>\n<h2>What was migrated</h2>\n{list}</section>\n")
}

fn attempt(attempt: &AttemptReport) -> String {
    let block = attempt.write_block_ms.map_or_else(String::new, |ms| {
        format!(" Nobody could write for <b>{}</b> ({} ms).", duration(ms), count(ms))
    });
    let because = attempt
        .because
        .as_deref()
        .map_or_else(String::new, |because| format!(" Taken back because: {}.", Esc(because)));
    let lsn = attempt
        .lsn
        .as_deref()
        .map_or_else(String::new, |lsn| format!(" Last barrier at LSN <code>{}</code>.", Esc(lsn)));
    let steps: String = attempt.steps.iter().map(step).collect();
    format!(
        "<section>\n<h2>{}, {}</h2>\n<p><b>{}</b>{}.{block}{lsn}{because}</p>\n\
         <table class=\"facts\">\n<thead><tr><th>Step</th><th>Began</th><th class=\"n\">Took</th><th>Outcome</th><th>Found and done</th></tr></thead>\n{steps}</table>\n</section>\n",
        capital(&Esc(&attempt.way).to_string()),
        Esc(&time(&attempt.began_at)),
        capital(attempt.outcome.word()),
        attempt.ended_at.as_deref().map_or_else(String::new, |at| format!(", {}", Esc(&time(at)))),
    )
}

fn step(step: &StepReport) -> String {
    format!(
        "<tbody><tr><td class=\"line\">{}</td><td class=\"line\">{}</td><td class=\"n\">{}</td><td class=\"line\">{}</td><td>{}</td></tr></tbody>\n",
        Esc(&step.step),
        Esc(clock(&step.began_at)),
        step.duration_ms.map_or_else(|| "\u{2013}".to_owned(), duration),
        step.outcome.word(),
        detail(&step.detail),
    )
}

/// The hour of a time; the day stands above.
fn clock(rfc3339: &str) -> &str {
    let time = rfc3339.split_once('T').map_or(rfc3339, |(_, time)| time);
    time.split_once('.').map_or_else(|| time.trim_end_matches('Z'), |(seconds, _)| seconds)
}

/// A name and its value, one after the other.
fn detail(detail: &Value) -> String {
    let Value::Object(fields) = detail else { return String::new() };
    let told = fields.iter().filter(|(_, value)| !is_nothing(value)).map(|(name, value)| {
        let value = match value {
            Value::String(text) => text.trim_end().to_owned(),
            Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
            other => plain(other),
        };
        format!("{} <b>{}</b>", Esc(&name.replace('_', " ")), Esc(&value))
    });
    told.collect::<Vec<_>>().join(" \u{b7} ")
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn verifications(all: &[VerificationReport]) -> String {
    let row = |one: &VerificationReport| {
        format!(
            "<tbody class=\"{verdict}\"><tr><td class=\"line\">{}</td><td class=\"verdict\">{verdict}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td><code>{}</code></td><td>{}</td></tr></tbody>\n",
            Esc(&time(&one.at)),
            one.level.word(),
            count(one.tables),
            count(one.rows),
            Esc(one.lsn.as_deref().unwrap_or("\u{2013}")),
            one.step_of
                .as_deref()
                .map_or_else(|| "asked for".to_owned(), |way| format!("step of a {}", Esc(way))),
            verdict = one.verdict.word(),
        )
    };
    let rows: String = all.iter().map(row).collect();
    table(
        "Verifications",
        "<tr><th>At</th><th>Verdict</th><th>Level</th><th class=\"n\">Tables</th><th class=\"n\">Rows</th><th>LSN</th><th>Why</th></tr>",
        &rows,
    )
}

fn findings(all: &[FindingReport]) -> String {
    let row = |one: &FindingReport| {
        let fix = one
            .fix
            .as_deref()
            .map_or_else(String::new, |fix| format!("<br><code>{}</code>", Esc(fix)));
        format!(
            "<tbody><tr><td>{}</td><td>{}</td><td>{}</td><td>{}{fix}</td><td>{}</td></tr></tbody>\n",
            Esc(&one.severity),
            Esc(&one.code),
            Esc(&one.object),
            Esc(&one.message),
            match one.is_settled {
                true => format!("settled; seen until {}", Esc(&time(&one.last_seen))),
                false => format!("open since {}", Esc(&time(&one.first_seen))),
            },
        )
    };
    let rows: String = all.iter().map(row).collect();
    table(
        "Findings and what became of them",
        "<tr><th>Severity</th><th>Code</th><th>Object</th><th>Finding</th><th>State</th></tr>",
        &rows,
    )
}

fn table(title: &str, head: &str, rows: &str) -> String {
    if rows.is_empty() {
        return format!("<section>\n<h2>{title}</h2>\n<p>None.</p>\n</section>\n");
    }
    format!(
        "<section>\n<h2>{title}</h2>\n<table class=\"facts\">\n<thead>{head}</thead>\n{rows}</table>\n</section>\n"
    )
}

fn versions(report: &MigrationReport) -> String {
    let list = definition_list(&[
        ("Tidemark", Esc(&report.tool_version).to_string()),
        ("Form of the report", report.report_version.to_string()),
        (
            "migration.json",
            format!(
                "checksum <code>{}</code>",
                Esc(report.checksum.as_deref().unwrap_or("\u{2013}"))
            ),
        ),
    ]);
    format!("<section>\n<h2>Versions and checksum</h2>\n{list}</section>\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::migration::{MIGRATION_VERSION, migration_to_json};
    use crate::{Level, Verdict, check_migration_json};

    fn report() -> MigrationReport {
        let at = || "2026-11-22T08:00:00.5Z".to_owned();
        let step = StepReport {
            step: "fence".to_owned(),
            began_at: at(),
            duration_ms: Some(35),
            outcome: Settled::Done,
            detail: json!({ "ended": 4, "said": "<script>alert(1)</script>", "empty": [] }),
        };
        MigrationReport {
            report_version: MIGRATION_VERSION,
            tool_version: "1".to_owned(),
            written_at: at(),
            job: "shop".to_owned(),
            stage: Stage::Hypercare,
            source: Some(MigrationSide {
                version: 150_006,
                system_identifier: "7".to_owned(),
                database: "shop".to_owned(),
            }),
            target: None,
            copied_from: Some(at()),
            copied_to: None,
            tables: 3,
            attempts: vec![AttemptReport {
                way: "cutover".to_owned(),
                began_at: at(),
                ended_at: Some(at()),
                outcome: Settled::Done,
                because: None,
                lsn: Some("0/10".to_owned()),
                write_block_ms: Some(1_234),
                steps: vec![step],
            }],
            verifications: vec![VerificationReport {
                at: at(),
                verdict: Verdict::Identical,
                lsn: Some("0/10".to_owned()),
                level: Level::Digest,
                tables: 3,
                rows: 1_000_000,
                step_of: None,
            }],
            findings: vec![FindingReport {
                severity: "warning".to_owned(),
                code: "slot-left".to_owned(),
                object: "slot \"a<b\"".to_owned(),
                message: "it keeps WAL".to_owned(),
                fix: Some("SELECT 1".to_owned()),
                first_seen: at(),
                last_seen: at(),
                is_settled: false,
            }],
            completed_at: None,
            checksum: None,
        }
    }

    #[test]
    fn everything_is_told_and_nothing_of_others_becomes_markup() {
        let html = migration_to_html(&report());
        for told in [
            "Hypercare",
            "1.2 s",
            "1,234 ms",
            "identical",
            "1,000,000 rows",
            "open since",
            "ended <b>4</b>",
            "PostgreSQL 15.6",
        ] {
            assert!(html.contains(told), "{told}: {html}");
        }
        assert!(!html.contains("<script") && html.contains("a&lt;b") && !html.contains("empty"));
    }

    #[test]
    fn the_file_is_held_against_its_checksum() {
        let text = migration_to_json(&report()).unwrap();
        let read = check_migration_json(&text).unwrap();
        assert_eq!(MigrationReport { checksum: None, ..read }, report());
        assert!(check_migration_json(&text.replace("1234", "1235")).is_err());
    }
}
