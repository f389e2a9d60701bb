//! Results on stdout: numbers for people, tables, JSON.
//!
//! **Invariant:** only this module writes to stdout. A reader that went away ends the program quietly and well.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::time::Duration;

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ContentArrangement, LineStyle, Table, TableStyle,
};
use serde::Serialize;
use tidemark_model::{Finding, RelationName, Severity};
use tidemark_pipeline::ReconciledTable;
use tidemark_report::{
    DiffKind, Point, SchemaSeverity, ShownKey, TableReport, Verdict, VerifyReport,
};

use crate::exit::{ExitCode, Failure};

/// Prints to stdout.
///
/// # Errors
/// [`Failure::reader_gone`] if nobody reads; exit code 8 for everything else, such as a full disk.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::reader_gone(),
            _ => Failure::new(ExitCode::Unavailable, "write to stdout").because(&error),
        }
    })
}

/// Prints a value as indented JSON.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::internal("write a result as JSON").because(&error))?;
    print(&format!("{text}\n"))
}

/// Prints a value as one line of JSON.
///
/// # Errors
/// As [`print()`].
pub fn print_json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::internal("write a result as JSON").because(&error))?;
    print(&format!("{text}\n"))
}

/// What came of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SummaryRow {
    /// The table.
    #[serde(flatten)]
    pub relation: RelationName,
    /// Rows that left the source.
    pub rows_out: u64,
    /// Rows that the target took.
    pub rows_in: u64,
    /// Bytes as COPY wrote them.
    pub bytes: u64,
    /// From the first chunk's begin to the last one's commit.
    pub duration_ms: u64,
    /// The digest in full, hexadecimal.
    pub digest: String,
    /// Values that were replaced because the target has no form for them.
    pub replaced: u64,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The job.
    pub job: String,
    /// The position that was copied.
    pub lsn: String,
    /// The whole run.
    pub duration_ms: u64,
    /// Every table.
    pub tables: Vec<SummaryRow>,
}

/// The summary for people: a table, a total, and a sentence.
pub fn summary(summary: &Summary, color: bool) -> String {
    let mut table = table(color);
    let titles = ["table", "rows out", "rows in", "bytes", "time", "rows/s", "bytes/s", "digest"];
    table.set_header(titles.map(|title| header(title, color)));
    for row in &summary.tables {
        let name = row.relation.plain();
        table.add_row(cells(&name, row, row.digest.get(..12).unwrap_or(&row.digest), color));
    }
    let total = total(summary);
    if summary.tables.len() > 1 {
        let name = format!("{} tables", summary.tables.len());
        table.add_row(cells(&name, &total, "", color));
    }
    for column in table.column_iter_mut().skip(1).take(6) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("{table}\n");
    let time = duration(Duration::from_millis(summary.duration_ms));
    text.push_str(&format!("job {} at {} in {time}\n", summary.job, summary.lsn));
    if total.replaced > 0 {
        let values = count(total.replaced);
        text.push_str(&format!("{values} values without a form in the target were replaced\n"));
    }
    text
}

/// What was moved where the target held rows already.
pub fn reconciled(tables: &[ReconciledTable], color: bool) -> String {
    let mut table = table(color);
    let titles = ["table", "rows compared", "new", "modified", "deleted"];
    table.set_header(titles.map(|title| header(title, color)));
    let mut line = |name: String, of: [u64; 4]| {
        table.add_row(std::iter::once(name).chain(of.map(count)).collect::<Vec<_>>());
    };
    let mut total = [0; 4];
    for row in tables {
        let numbers = [row.rows, row.new, row.modified, row.deleted];
        line(row.relation.plain(), numbers);
        total = std::array::from_fn(|at| total[at] + numbers[at]);
    }
    if tables.len() > 1 {
        line(format!("{} tables", tables.len()), total);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

/// By the name of a table: some of the rows that differ, as the redaction lets them be seen.
pub type Examples = HashMap<String, Vec<(DiffKind, ShownKey)>>;

/// How many rows of a table differ, the first of them, and where the others are.
fn differing_rows(table: &TableReport, some: &[(DiffKind, ShownKey)], is_in_file: bool) -> String {
    let total: u64 = table.differing_rows().map(|(_, rows)| rows).sum();
    if total == 0 {
        return String::new();
    }
    let counts =
        table.differing_rows().map(|(kind, rows)| format!("{} {}", count(rows), kind.word()));
    let counts: Vec<String> = counts.collect();
    let mut text = format!("{}: {}\n", table.plain_name(), counts.join(", "));
    for (kind, key) in some {
        let columns = key.columns().map(|(column, shown)| format!("{column}={}", shown.as_text()));
        let columns: Vec<String> = columns.collect();
        text.push_str(&format!("  {} {}\n", kind.word(), columns.join(" ")));
    }
    if total > some.len() as u64 {
        text.push_str(match is_in_file {
            true => "  all of them are in diff.ndjson\n",
            false => "  --report DIR writes all of them to diff.ndjson\n",
        });
    }
    text
}

/// More identical tables than this are one line: who looks for what differs must not have to scroll.
const IDENTICAL_MAX: usize = 40;

/// What a verification found: the verdict, a line for each table, what was found of definitions.
pub fn verified(report: &VerifyReport, examples: &Examples, color: bool) -> String {
    let mut table = table(color);
    let titles = ["table", "verdict", "source rows", "target rows", "digest", "leaves", "differ"];
    table.set_header(titles.map(|title| header(title, color)));
    let rows = |rows: Option<u64>| rows.map_or("-".to_owned(), count);
    let is_identical = |one: &&TableReport| one.verdict == Verdict::Identical;
    let identical = report.tables.iter().filter(is_identical);
    let are_shown = identical.clone().count() <= IDENTICAL_MAX;
    let shown = report.tables.iter().filter(|one| are_shown || !is_identical(one));
    for one in shown.clone() {
        let digest = one.source_digest.map(|digest| format!("{:032x}", digest.raw));
        table.add_row([
            Cell::new(one.plain_name()),
            Cell::new(one.verdict.word()),
            Cell::new(rows(one.source_rows)),
            Cell::new(rows(one.target_rows)),
            Cell::new(digest.as_deref().and_then(|digest| digest.get(..12)).unwrap_or("-")),
            Cell::new(count(one.leaves)),
            Cell::new(count(one.differing_leaves)),
        ]);
    }
    for column in [2, 3, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = match shown.count() {
        0 => String::new(),
        _ => format!("{table}\n"),
    };
    if !are_shown {
        let (tables, all) = (identical.clone().count() as u64, identical);
        let all = all.filter_map(|one| one.source_rows).fold(0, u64::saturating_add);
        text.push_str(&format!(
            "{} tables are identical, with {} rows; --report and --json name each\n",
            count(tables),
            count(all)
        ));
    }
    for one in report.tables.iter().filter(|one| one.skipped_reason.is_some()) {
        let reason = one.skipped_reason.as_deref().unwrap_or_default();
        text.push_str(&format!("{}: {reason}\n", one.plain_name()));
    }
    for one in &report.tables {
        let some = examples.get(&one.plain_name()).map(Vec::as_slice).unwrap_or_default();
        text.push_str(&differing_rows(one, some, report.diff.is_some()));
    }
    for found in report.schema_findings.iter().filter(|f| f.severity > SchemaSeverity::Note) {
        let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "nothing".to_owned());
        let (source, target) = (side(&found.source), side(&found.target));
        text.push_str(&format!(
            "{}: {} ({source} on the source, {target} on the target)\n",
            found.object, found.kind
        ));
    }
    let time = duration(Duration::from_millis(report.duration_ms));
    let at = match &report.point {
        Point::Barrier { barriers } => barriers.last().map_or(String::new(), |last| {
            let pause = barriers.iter().map(|barrier| barrier.pause_ms).max().unwrap_or_default();
            let snapshots = match barriers.len() {
                1 => String::new(),
                more => format!(", read at {more} points"),
            };
            format!(" at {}{snapshots} (the stream stood for {pause} ms)", last.lsn)
        }),
        Point::Quiesced { .. } => " while nothing was to change".to_owned(),
        Point::None { .. } => String::new(),
    };
    text.push_str(&format!(
        "{}: source and target{at}, {} tables in {time}\n",
        report.verdict.word(),
        report.tables.len()
    ));
    if let (Some(assumption), Some(oldest)) = (&report.assumption, report.oldest_leaf_lsn) {
        text.push_str(&format!(
            "incremental: what the stream has not touched was not read again, the oldest part since {oldest}; this assumes that {assumption}\n"
        ));
    }
    text
}

fn total(summary: &Summary) -> SummaryRow {
    let sum = |pick: fn(&SummaryRow) -> u64| summary.tables.iter().map(pick).sum();
    SummaryRow {
        relation: RelationName::new("", ""),
        rows_out: sum(|row| row.rows_out),
        rows_in: sum(|row| row.rows_in),
        bytes: sum(|row| row.bytes),
        duration_ms: summary.duration_ms,
        digest: String::new(),
        replaced: sum(|row| row.replaced),
    }
}

fn cells(name: &str, row: &SummaryRow, digest: &str, color: bool) -> Vec<Cell> {
    let time = Duration::from_millis(row.duration_ms);
    let mut rows_in = Cell::new(count(row.rows_in));
    if row.rows_in != row.rows_out && color {
        rows_in = rows_in.fg(Color::Red).add_attribute(Attribute::Bold);
    }
    vec![
        Cell::new(name),
        Cell::new(count(row.rows_out)),
        rows_in,
        Cell::new(bytes(row.bytes)),
        Cell::new(duration(time)),
        Cell::new(
            rate(row.rows_out, time).map_or("-".to_owned(), |rows| format!("{}/s", short(rows))),
        ),
        Cell::new(
            rate(row.bytes, time).map_or("-".to_owned(), |rate| format!("{}/s", bytes(rate))),
        ),
        Cell::new(digest),
    ]
}

/// Findings for people, the worst first, each with what mends it.
pub fn findings(findings: &[Finding], color: bool) -> String {
    if findings.is_empty() {
        return "ready: nothing was found\n".to_owned();
    }
    let mut text = String::new();
    for alike in alike(findings) {
        text.push_str(&told(&alike, color));
    }
    let blocking = number_of(findings, Severity::Blocking);
    let warnings = number_of(findings, Severity::Warning);
    let notes = number_of(findings, Severity::Note);
    let verdict = if blocking > 0 { "not ready" } else { "ready" };
    text.push_str(&format!("{verdict}: {blocking} blocking, {warnings} warnings, {notes} notes\n"));
    text
}

/// Findings that are one but for their object, the worst first: a database has more tables than a screen has lines.
fn alike(findings: &[Finding]) -> Vec<Vec<&Finding>> {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let mut groups: Vec<Vec<&Finding>> = Vec::new();
    for finding in sorted {
        let is_alike = |group: &&mut Vec<&Finding>| {
            group.first().is_some_and(|first| {
                (first.severity, &first.code, &first.message)
                    == (finding.severity, &finding.code, &finding.message)
            })
        };
        match groups.iter_mut().find(is_alike) {
            Some(group) => group.push(finding),
            None => groups.push(vec![finding]),
        }
    }
    groups
}

/// So many findings that are alike are shown with what mends each of them.
const ALIKE_MAX: usize = 3;

fn told(alike: &[&Finding], color: bool) -> String {
    let Some(first) = alike.first() else { return String::new() };
    let style = match first.severity {
        Severity::Blocking => "\x1b[1;31m",
        Severity::Warning => "\x1b[1;33m",
        Severity::Note => "\x1b[1;36m",
    };
    let word = first.severity.word();
    let (style, reset) = if color { (style, "\x1b[0m") } else { ("", "") };
    let shown = alike.get(..ALIKE_MAX).unwrap_or(alike);
    let more = alike.len() - shown.len();
    let mut objects: Vec<&str> = shown.iter().map(|finding| finding.object.as_str()).collect();
    let others = format!("{more} more");
    if more > 0 {
        objects.push(&others);
    }
    let (code, objects) = (&first.code, objects.join(", "));
    let mut text = format!("{style}{word}{reset} [{code}] {objects}: {}\n", first.message);
    let mut fixes: Vec<&str> = shown.iter().filter_map(|finding| finding.fix.as_deref()).collect();
    fixes.dedup();
    for fix in &fixes {
        text.push_str(&format!("  mend: {fix}\n"));
    }
    if more > 0 && fixes.len() > 1 {
        text.push_str(&format!("  and so for {more} more: --json has all of them\n"));
    }
    text
}

fn number_of(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.severity == severity).count()
}

/// An empty table in the house's form.
pub fn table(color: bool) -> Table {
    let mut table = Table::new();
    // Without lines between rows: a database has more tables than a screen has lines.
    let style = TableStyle::new()
        .top_border(LineStyle::none().fill('─').junction('─'))
        .header_separator(LineStyle::none().fill('─').junction('─'))
        .bottom_border(LineStyle::none().fill('─').junction('─'));
    table.load_style(style).set_content_arrangement(ContentArrangement::Disabled);
    if color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

/// The title of a column.
pub fn header(title: &str, color: bool) -> Cell {
    let cell = Cell::new(title);
    if color { cell.add_attribute(Attribute::Bold) } else { cell }
}

/// Things per second; nothing where no time has passed.
pub fn rate(amount: u64, time: Duration) -> Option<u64> {
    let millis = time.as_millis();
    if millis == 0 {
        return None;
    }
    u64::try_from(u128::from(amount) * 1000 / millis).ok()
}

/// A size with its unit: `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    scaled(bytes, 1024, &UNITS)
}

/// A large number, short: `1.5 M`.
pub fn short(number: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if number < 10_000 {
        return number.to_string();
    }
    scaled(number, 1000, &UNITS)
}

/// One decimal, without floating point: the last unit whose number is at least 1. Cut, not rounded, so that it never says
/// `1024.0 MiB`.
fn scaled(number: u64, base: u64, units: &[&str]) -> String {
    let mut divisor = base;
    let mut unit = 0;
    while unit + 1 < units.len() && number / divisor >= base {
        divisor *= base;
        unit += 1;
    }
    let tenths = u128::from(number % divisor) * 10 / u128::from(divisor);
    format!("{}.{tenths} {}", number / divisor, units[unit])
}

/// A number in full, in groups of three: `6,001,215`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A length of time, short: `350 ms`, `4.2 s`, `3m07s`, `2h05m`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..=59 => format!("{seconds}.{} s", time.subsec_millis() / 100),
        60..=3599 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, rows_in: u64) -> SummaryRow {
        SummaryRow {
            relation: RelationName::new("public", name),
            rows_out: 6_001_215,
            rows_in,
            bytes: 1 << 30,
            duration_ms: 2000,
            digest: "0123456789abcdef0123456789abcdef".to_owned(),
            replaced: 0,
        }
    }

    #[test]
    fn numbers_are_cut_to_one_decimal() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes((1 << 30) - 1), "1023.9 MiB");
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
        assert_eq!(short(9_999), "9999");
        assert_eq!(short(1_250_000), "1.2 M");
        assert_eq!(count(6_001_215), "6,001,215");
        assert_eq!(count(100), "100");
        assert_eq!(duration(Duration::from_millis(350)), "350 ms");
        assert_eq!(duration(Duration::from_millis(4_290)), "4.2 s");
        assert_eq!(duration(Duration::from_secs(187)), "3m07s");
        assert_eq!(duration(Duration::from_secs(7_500)), "2h05m");
        assert_eq!(rate(10, Duration::ZERO), None);
        assert_eq!(rate(u64::MAX, Duration::from_secs(1)), Some(u64::MAX));
    }

    #[test]
    fn of_many_tables_those_that_are_identical_are_one_line() {
        let verified = |identical: usize, different: bool| {
            let side = tidemark_report::Side::default;
            let level = tidemark_report::Level::Digest;
            let mut report = VerifyReport::new("shop", level, side(), side());
            report.tables = (0..identical)
                .map(|number| {
                    let mut table = TableReport::new("public", format!("t{number}"));
                    (table.verdict, table.source_rows) = (Verdict::Identical, Some(1_000));
                    table
                })
                .collect();
            if different {
                report.tables.push(TableReport::skipped("public", "other", "the reason"));
            }
            super::verified(&report, &Examples::new(), false)
        };
        let few = verified(IDENTICAL_MAX, true);
        assert!(few.contains("public.t39") && few.contains("public.other"), "{few}");
        let many = verified(500, true);
        assert!(many.contains("500 tables are identical, with 500,000 rows"), "{many}");
        assert!(many.contains("public.other: the reason"), "{many}");
        assert!(!many.contains("public.t39") && many.lines().count() < 10, "{many}");
        assert!(!verified(500, false).contains("verdict"), "a table without a row");
    }

    #[test]
    fn the_summary_shows_every_table_and_the_total() {
        let tables = vec![row("lineitem", 6_001_215), row("orders", 6_001_215)];
        let all =
            Summary { job: "shop".to_owned(), lsn: "0/1".to_owned(), duration_ms: 4000, tables };
        let text = summary(&all, false);
        assert!(text.contains("public.lineitem"), "{text}");
        assert!(text.contains("2 tables"), "{text}");
        assert!(text.contains("12,002,430"), "{text}");
        assert!(text.contains("0123456789ab "), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(summary(&all, true).contains('\x1b'));
    }

    #[test]
    fn the_summary_as_json_names_schema_and_table_apart() {
        let json = serde_json::to_value(row("orders", 1)).unwrap();
        assert_eq!(json["schema"], "public");
        assert_eq!(json["name"], "orders");
        assert_eq!(json["rows_in"], 1);
    }

    #[test]
    fn blocking_findings_come_first() {
        let list = [
            Finding::new(Severity::Note, "size", "\"shop\"", "12 tables"),
            Finding::new(Severity::Blocking, "select-right", "\"public\".\"a\"", "no SELECT right")
                .with_fix("GRANT SELECT ON \"public\".\"a\" TO app"),
        ];
        let text = findings(&list, false);
        assert!(text.starts_with("blocking [select-right]"), "{text}");
        assert!(text.contains("mend: GRANT"), "{text}");
        assert!(text.ends_with("not ready: 1 blocking, 0 warnings, 1 notes\n"), "{text}");
    }

    #[test]
    fn findings_of_many_tables_are_a_few_lines() {
        let of_table = |number: u32| {
            Finding::new(
                Severity::Blocking,
                "select-right",
                format!("t{number}"),
                "no SELECT right",
            )
            .with_fix(format!("GRANT SELECT ON t{number} TO app"))
        };
        let list: Vec<Finding> = (1..=500).map(of_table).collect();
        let text = findings(&list, false);
        assert!(text.starts_with("blocking [select-right] t1, t2, t3, 497 more: no"), "{text}");
        assert!(text.contains("mend: GRANT SELECT ON t3 TO app\n"), "{text}");
        assert!(text.contains("for 497 more: --json"), "{text}");
        assert_eq!(text.lines().count(), 6, "{text}");
        assert!(text.ends_with("not ready: 500 blocking, 0 warnings, 0 notes\n"), "{text}");
        let two = findings(list.get(..2).unwrap(), false);
        assert!(two.starts_with("blocking [select-right] t1, t2: no"), "{two}");
        assert!(!two.contains("more"), "{two}");
    }
}
