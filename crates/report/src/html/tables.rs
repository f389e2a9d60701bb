//! The tables of a report, the ones that need attention first.
//!
//! **Invariant:** every table of the report is named once. A table that is not identical always has a row of its own that says
//! why; identical ones have a row each as long as they are few, and are a list of names and rows otherwise.

use super::text::{Esc, time};
use super::{heat, icon, verdict_word};
use crate::words::{count, counted, list};
use crate::{
    ColumnFinding, DiffKind, Digest, Level, Proof, ShownKey, TableReport, Verdict, VerifyReport,
};

/// More identical tables than this are a list.
const ROWS_OF_IDENTICAL_MAX: usize = 40;

pub(super) fn section(report: &VerifyReport) -> String {
    if report.tables.is_empty() {
        return "<section>\n<h2>Tables</h2>\n<p>No table was compared.</p>\n</section>\n"
            .to_owned();
    }
    let mut tables: Vec<&TableReport> = report.tables.iter().collect();
    tables.sort_by(|one, two| {
        let by_name = (&one.schema, &one.table).cmp(&(&two.schema, &two.table));
        rank(one.verdict).cmp(&rank(two.verdict)).then(by_name)
    });
    let first_identical = tables.partition_point(|table| table.verdict != Verdict::Identical);
    let (attention, identical) = tables.split_at(first_identical);
    let (rows, listed) = if identical.len() > ROWS_OF_IDENTICAL_MAX {
        (attention, identical)
    } else {
        (&tables[..], &identical[..0])
    };
    let mut text = String::from("<section>\n<h2>Tables</h2>\n");
    if !rows.is_empty() {
        text += &heat::legend(rows.iter().copied());
        text += "<table class=\"tables\">\n<thead><tr><th>Table</th><th>Verdict</th><th class=\"n\">Rows, source</th>\
                 <th class=\"n\">Rows, target</th><th>Leaves</th></tr></thead>\n";
        text.extend(rows.iter().map(|table| table_rows(report, table)));
        text += "</table>\n";
    }
    text + &compact_list(listed) + "</section>\n"
}

fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Different => 0,
        Verdict::Incomplete => 1,
        Verdict::Equivalent => 2,
        Verdict::Identical => 3,
    }
}

fn table_rows(report: &VerifyReport, table: &TableReport) -> String {
    let number = |rows: Option<u64>| rows.map_or("\u{2013}".to_owned(), count);
    let details: String =
        details(report, table).iter().map(|line| format!("<div>{line}</div>")).collect();
    let below = if details.is_empty() {
        String::new()
    } else {
        format!("<tr class=\"more\"><td colspan=\"5\">{details}</td></tr>\n")
    };
    format!(
        "<tbody class=\"{class}\"><tr><td class=\"name\">{name}{digest}</td><td class=\"verdict\">{icon}{word}{proof}</td>\
         <td class=\"n\">{source}</td><td class=\"n\">{target}</td>{map}</tr>\n{below}</tbody>\n",
        class = table.verdict.word(),
        name = name(table),
        digest = common_digest(table),
        icon = icon(table.verdict),
        word = verdict_word(table.verdict),
        proof = proof(table),
        source = number(table.source_rows),
        target = number(table.target_rows),
        map = heat::cell(table),
    )
}

fn name(table: &TableReport) -> String {
    format!(
        "<span class=\"schema\">{}.</span><wbr>{}",
        breakable(&table.schema),
        breakable(&table.table)
    )
}

/// A name that may go on in the next line after each underscore.
fn breakable(name: &str) -> String {
    Esc(name).to_string().replace('_', "_<wbr>")
}

/// The digest, where both sides have the same one.
fn common_digest(table: &TableReport) -> String {
    match (table.verdict, table.source_digest) {
        (Verdict::Identical, Some(digest)) => {
            format!("<div class=\"digest\">{:032x}</div>", digest.raw)
        }
        _ => String::new(),
    }
}

fn proof(table: &TableReport) -> &'static str {
    match table.proof {
        Some(Proof::Incremental) => " <small>incremental</small>",
        Some(Proof::Full) | None => "",
    }
}

/// What there is to say of a table beside its numbers, each line as markup.
fn details(report: &VerifyReport, table: &TableReport) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(reason) = &table.skipped_reason {
        // What differs is known to differ, whatever else was not looked at.
        let word = if table.verdict == Verdict::Different { "Because" } else { "Not proven" };
        lines.push(format!("<b>{word}:</b> {}", Esc(reason)));
    } else if table.verdict == Verdict::Incomplete {
        lines.push(why_incomplete(table).to_owned());
    }
    if table.differing_definitions > 0 {
        let findings = counted(table.differing_definitions, "finding");
        lines.push(format!("Its definition differs: {findings} under <b>Definitions</b>"));
    }
    lines.extend(differing_rows(table));
    lines.extend(keys(report, table));
    lines.extend(table.columns.iter().map(column));
    if !table.opaque_columns.is_empty() {
        let columns: Vec<_> =
            table.opaque_columns.iter().map(|c| format!("<code>{}</code>", Esc(c))).collect();
        lines.push(format!(
            "Compared by their own output, having no canonical form: {}",
            columns.join(", ")
        ));
    }
    if table.key_columns.is_empty()
        && table.verdict != Verdict::Identical
        && table.level.is_some_and(Level::reads_rows)
    {
        lines.push("It has no key: its rows were compared as a multiset.".to_owned());
    }
    lines.extend(digests(table));
    lines.extend(history(table));
    lines
}

fn why_incomplete(table: &TableReport) -> &'static str {
    match table.level {
        None => "<b>Not proven:</b> it was not compared.",
        Some(Level::Schema) => "Only its definition was compared.",
        Some(Level::Count) => "Only its number of rows was compared.",
        Some(Level::Digest | Level::Rows) => {
            "<b>Not proven:</b> it was not read in full on both sides."
        }
    }
}

fn differing_rows(table: &TableReport) -> Option<String> {
    let words = |kind| match kind {
        DiffKind::Missing => "missing on the target",
        DiffKind::Extra => "on the target only",
        DiffKind::Changed => "with other values",
        DiffKind::Equivalent => "with equal values in another representation",
        DiffKind::Lossy => "with values that a declared mapping cannot carry in full",
    };
    let found: Vec<_> = table
        .differing_rows()
        .map(|(kind, rows)| format!("<b>{}</b> {}", counted(rows, "row"), words(kind)))
        .collect();
    if !found.is_empty() {
        return Some(list(&found));
    }
    // Where they were looked for and not all found, the reason stands there already.
    let unknown = (table.missing.is_none() || table.changed.is_none())
        && table.differing_definitions == 0
        && table.skipped_reason.is_none();
    (table.verdict == Verdict::Different && unknown)
        .then(|| "Which rows differ was not looked for; level <b>digest</b> names them.".to_owned())
}

fn keys(report: &VerifyReport, table: &TableReport) -> Option<String> {
    let (first, last) = (table.first_key.as_ref()?, table.last_key.as_ref()?);
    let file = match &report.diff {
        Some(diff) => format!("; all of them are in <code>{}</code>", Esc(&diff.name)),
        None => String::new(),
    };
    let span = if first == last {
        format!("Differing key: {}", key(first))
    } else {
        format!("First differing key: {}, last: {}", key(first), key(last))
    };
    Some(span + &file)
}

fn key(key: &ShownKey) -> String {
    let columns =
        key.columns().map(|(column, shown)| format!("{}={}", Esc(column), Esc(&shown.as_text())));
    format!("<code>{}</code>", columns.collect::<Vec<_>>().join(", "))
}

fn column(found: &ColumnFinding) -> String {
    let kinds = [
        (found.changed, "with another value"),
        (found.equivalent, "with an equal value, written in another way"),
        (found.lossy, "with a value that a declared mapping cannot carry in full"),
    ];
    let parts: Vec<_> = kinds
        .iter()
        .filter(|(rows, _)| *rows > 0)
        .map(|(rows, kind)| format!("{} {kind}", counted(*rows, "row")))
        .collect();
    let hint = found.hint.as_ref().map(|hint| format!(" \u{2014} {}", Esc(hint)));
    format!(
        "Column <code>{}</code>: {}{}",
        Esc(&found.column),
        list(&parts),
        hint.unwrap_or_default()
    )
}

fn digests(table: &TableReport) -> Option<String> {
    if matches!(table.verdict, Verdict::Identical | Verdict::Incomplete) {
        return None;
    }
    let (source, target) = (table.source_digest?, table.target_digest?);
    let sum = |digest: u128| format!("<code>{digest:032x}</code>");
    if source == target {
        return Some(format!("Digest on both sides: {}", sum(source.raw)));
    }
    let Digest { raw, value } = source;
    Some(if value == target.value {
        format!(
            "Digest of the values on both sides: {}; of the exact bytes: source {}, target {}",
            sum(value),
            sum(raw),
            sum(target.raw)
        )
    } else {
        format!("Digest: source {}, target {}", sum(value), sum(target.value))
    })
}

fn history(table: &TableReport) -> Option<String> {
    let oldest = table.oldest_leaf_lsn.map(|lsn| format!("Its oldest leaf was read at LSN {lsn}."));
    let proven = || {
        let last = table.last_proven.as_ref()?;
        let lsn = last.lsn.map(|lsn| format!(" at LSN {lsn}")).unwrap_or_default();
        Some(format!("Last proven {}{lsn}.", Esc(&time(&last.at))))
    };
    let is_new = matches!(table.verdict, Verdict::Identical | Verdict::Equivalent);
    oldest.or_else(|| if is_new { None } else { proven() })
}

fn compact_list(tables: &[&TableReport]) -> String {
    if tables.is_empty() {
        return String::new();
    }
    let schemas = tables.chunk_by(|one, two| one.schema == two.schema);
    let lists: String = schemas.map(list_of_schema).collect();
    format!(
        "<h3>{} {}</h3>\n<p>Each with its number of rows, the same on both sides; digests and leaves are in <code>report.json</code>.</p>\n{lists}",
        icon(Verdict::Identical),
        counted(tables.len() as u64, "identical table"),
    )
}

fn list_of_schema(tables: &[&TableReport]) -> String {
    let items: String = tables
        .iter()
        .map(|table| {
            let rows = table.source_rows.map_or_else(String::new, count);
            let (name, proof) = (breakable(&table.table), proof(table));
            format!("<li><span>{name}{proof}</span><i>{rows}</i></li>\n")
        })
        .collect();
    let schema = tables.first().map_or("", |table| table.schema.as_str());
    let tables = counted(tables.len() as u64, "table");
    format!(
        "<h4>{}<span class=\"schema\">: {tables}</span></h4>\n<ul class=\"identical-list\">\n{items}</ul>\n",
        Esc(schema)
    )
}
