//! `report.html`: the report for people.
//!
//! **Invariant:** one file that needs no network and no script; the verdict comes first. Every text that is not written here
//! is escaped ([`text::Esc`]), so that no name in a database becomes markup, nor turns the text around it. Colour is never
//! the only sign. Tables that differ come first, then those that are not proven, then equivalent ones; many identical tables
//! are a compact list.
//!
//! ```text
//! verdict, claim          what was proven, in words
//! scope                   which servers, which tables
//! tables                  a row each, with a map of its leaves
//! definitions, skipped    what is beside the rows
//! how it was proven       the barrier, snapshots, digests, policy
//! run it again            the command, versions, checksum
//! ```

mod facts;
mod heat;
mod migration;
mod tables;
mod text;

use crate::words::{count, counted};
use crate::{Point, Side, SideKind, Verdict, VerifyReport, checksum_of};
use text::{Esc, bytes, duration, time};

pub use migration::migration_to_html;

const STYLE: &str = include_str!("html/style.css");

/// The text of `report.html`.
pub fn to_html(report: &VerifyReport) -> String {
    let sections = [
        banner(report),
        tiles(report),
        scope(report),
        tables::section(report),
        facts::definitions(report),
        facts::skipped(report),
        facts::proof(report),
        facts::policy(report),
        facts::again(report),
        facts::versions(report, &checksum_of(report).unwrap_or_default()),
    ];
    let title =
        format!("{}: {} \u{2013} tidemark verify", verdict_word(report.verdict), Esc(&report.job));
    page(&title, &sections.concat())
}

/// One file with all that it needs.
fn page(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// The verdict in a word for people.
fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Identical => "Identical",
        Verdict::Equivalent => "Equivalent",
        Verdict::Incomplete => "Incomplete",
        Verdict::Different => "Different",
    }
}

/// A sign that can be told from the others without its colour.
fn icon(verdict: Verdict) -> String {
    let path = match verdict {
        Verdict::Identical => "M6.5 12.5l4 4 7.5-9",
        Verdict::Equivalent => "M6 10c2-3 4-3 6 0s4 3 6 0M6 15c2-3 4-3 6 0s4 3 6 0",
        Verdict::Incomplete => {
            "M9 9.3a3 3 0 1 1 4.6 2.6c-1 .7-1.6 1.200-1.600 2.300M12 17.300v.400"
        }
        Verdict::Different => "M7.500 7.500l9 9M16.500 7.500l-9 9",
    };
    format!(
        "<svg class=\"icon\" viewBox=\"0 0 24 24\" aria-hidden=\"true\"><circle cx=\"12\" cy=\"12\" r=\"11\"/><path d=\"{path}\"/></svg>"
    )
}

fn banner(report: &VerifyReport) -> String {
    let claim = report.claim();
    let (first, rest) = claim.split_first().map_or(("", &[][..]), |(one, rest)| (one, rest));
    let rest: String = rest.iter().map(|sentence| format!("<p>{}</p>\n", Esc(sentence))).collect();
    format!(
        "<header class=\"banner {class}\">\n<h1>{icon}<span>{word}</span></h1>\n\
         <p class=\"claim\">{first}</p>\n{rest}\
         <p class=\"small\">Job <b>{job}</b> \u{b7} {from} to {to} \u{b7} exit code {code}</p>\n</header>\n",
        class = report.verdict.word(),
        icon = icon(report.verdict),
        word = verdict_word(report.verdict),
        first = Esc(first),
        job = Esc(&report.job),
        from = Esc(&time(&report.started_at)),
        to = Esc(&time(&report.finished_at)),
        code = report.outcome().exit_code(),
    )
}

fn tiles(report: &VerifyReport) -> String {
    let rows = |field: fn(&crate::TableReport) -> Option<u64>| {
        count(report.tables.iter().filter_map(field).fold(0, u64::saturating_add))
    };
    let verdicts =
        [Verdict::Identical, Verdict::Equivalent, Verdict::Different, Verdict::Incomplete];
    let tables = verdicts
        .into_iter()
        .filter(|verdict| report.tables_with(*verdict) > 0 || *verdict == Verdict::Identical);
    let mut tiles: Vec<(String, String)> = tables
        .map(|verdict| {
            let word = match verdict {
                Verdict::Incomplete => "tables not proven".to_owned(),
                other => format!("tables {}", other.word()),
            };
            (count(report.tables_with(verdict)), word)
        })
        .collect();
    let (source, target) = (rows(|table| table.source_rows), rows(|table| table.target_rows));
    if source == target {
        tiles.push((source, "rows on each side".to_owned()));
    } else {
        tiles.push((source, "rows on the source".to_owned()));
        tiles.push((target, "rows on the target".to_owned()));
    }
    let read = report.reading.source_bytes.saturating_add(report.reading.target_bytes);
    tiles.push((bytes(read), "read".to_owned()));
    tiles.push((duration(report.duration_ms), "taken".to_owned()));
    if let Point::Barrier { barriers } = &report.point
        && let Some(pause) = barriers.iter().map(|barrier| barrier.pause_ms).max()
    {
        tiles.push((duration(pause), "apply paused".to_owned()));
    }
    let tiles: String = tiles
        .iter()
        .map(|(number, label)| format!("<div><b>{number}</b><span>{label}</span></div>\n"))
        .collect();
    format!("<section class=\"tiles\">\n{tiles}</section>\n")
}

fn scope(report: &VerifyReport) -> String {
    let chosen = |patterns: &[String]| {
        patterns.iter().map(|p| format!("<code>{}</code>", Esc(p))).collect::<Vec<_>>().join(", ")
    };
    let mut lines = vec![
        ("Source", side(&report.source)),
        ("Target", side(&report.target)),
        (
            "Compared",
            format!(
                "{} at level <b>{}</b>",
                counted(report.tables.len() as u64, "table"),
                report.level.word()
            ),
        ),
    ];
    if !report.scope.include.is_empty() {
        lines.push(("Chosen", chosen(&report.scope.include)));
    }
    if !report.scope.exclude.is_empty() {
        lines.push(("Left out", chosen(&report.scope.exclude)));
    }
    if report.scope.not_chosen > 0 {
        let tables = counted(report.scope.not_chosen, "table");
        lines.push((
            "Not chosen",
            format!("{tables} of the source, of which this report says nothing"),
        ));
    }
    format!("<section>\n<h2>Scope</h2>\n{}</section>\n", definition_list(&lines))
}

fn side(side: &Side) -> String {
    let kind = match side.kind {
        SideKind::Postgresql => "PostgreSQL",
        SideKind::Lake => "Parquet lake",
    };
    let mut parts = vec![format!("<b>{kind} {}</b>", Esc(&side.version))];
    if let Some(database) = &side.database {
        parts.push(format!("database <code>{}</code>", Esc(database)));
    }
    parts.push(format!("at <code>{}</code>", Esc(&side.address)));
    let named = [
        ("commit", side.commit.map(|number| number.to_string())),
        ("system identifier", side.system_identifier.clone()),
        ("timeline", side.timeline.map(|number| number.to_string())),
        ("encoding", side.encoding.clone()),
        ("collation", side.collation.clone()),
    ];
    for (name, value) in named {
        parts.extend(value.map(|value| format!("{name} {}", Esc(&value))));
    }
    parts.join(", ")
}

/// Names with texts that are markup already.
fn definition_list(lines: &[(&str, String)]) -> String {
    let lines: String =
        lines.iter().map(|(name, text)| format!("<dt>{name}</dt><dd>{text}</dd>\n")).collect();
    format!("<dl>\n{lines}</dl>\n")
}
