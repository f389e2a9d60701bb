//! What the demonstration leaves: `report.json` and `report.html`.
//!
//! **Invariant:** both are written from one value. Nothing that came from a database reaches the HTML unescaped, and the
//! file needs nothing else: no script, no image, no network.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tidemark_pipeline::SyncReport;

use super::follow::Behind;
use super::proof::Found;
use crate::exit::{ExitCode, Failure};
use crate::output;

/// The whole demonstration.
#[derive(Debug, Clone, Serialize)]
pub(super) struct DemoReport {
    /// Version of this program.
    pub(super) tool_version: &'static str,
    /// `identical` or `different`.
    pub(super) verdict: &'static str,
    /// What the verdict stands on.
    pub(super) proof: &'static str,
    /// RFC 3339, UTC.
    pub(super) started_at: String,
    /// RFC 3339, UTC.
    pub(super) finished_at: String,
    /// TPC-H's scale factor.
    pub(super) scale: f64,
    /// PostgreSQL's version, of both servers.
    pub(super) server_version: String,
    /// What was in the source before the writers began.
    pub(super) source: SourceReport,
    /// Both copies.
    pub(super) copies: Vec<CopyReport>,
    /// The load.
    pub(super) writers: WritersReport,
    /// Tables whose number of rows changed since the first snapshot.
    pub(super) moved_on: Vec<Moved>,
}

/// The source.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SourceReport {
    pub(super) tables: usize,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// One copy.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CopyReport {
    /// `PostgreSQL` or `Parquet`.
    pub(super) target: &'static str,
    /// The source's position that the copy showed first.
    pub(super) snapshot_lsn: String,
    /// The one that it shows at the end, and was compared at.
    pub(super) lsn: String,
    /// Of the copy.
    pub(super) duration_ms: u64,
    /// Files and their bytes, of a lake.
    pub(super) files: Option<(u64, u64)>,
    /// Transactions that were committed on the source while it was made.
    pub(super) transactions_meanwhile: u64,
    /// While the writers wrote.
    pub(super) followed: Stretch,
    /// How far behind it was, second by second.
    pub(super) lag: Vec<Behind>,
    /// After the writers had stopped.
    pub(super) caught_up: Stretch,
    /// The sum of all balances, the same in every state that the source ever had.
    pub(super) balance: i64,
    pub(super) tables: Vec<TableRow>,
    /// What was left out and why.
    pub(super) skipped: Vec<String>,
}

/// A run that followed the source.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Stretch {
    pub(super) transactions: u64,
    pub(super) changes: u64,
    pub(super) duration_ms: u64,
}

impl From<&SyncReport> for Stretch {
    fn from(report: &SyncReport) -> Self {
        let SyncReport { transactions, changes, duration_ms, .. } = *report;
        Self { transactions, changes, duration_ms }
    }
}

/// One table of a copy.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TableRow {
    pub(super) schema: String,
    pub(super) table: String,
    pub(super) verdict: &'static str,
    pub(super) source_rows: u64,
    pub(super) target_rows: u64,
    pub(super) bytes: u64,
    pub(super) source_digest: String,
    /// Of rows that were read back; `null` where they were not.
    pub(super) target_digest: Option<String>,
}

/// The writers.
#[derive(Debug, Clone, Serialize)]
pub(super) struct WritersReport {
    pub(super) connections: i64,
    pub(super) transactions: u64,
    pub(super) duration_ms: u64,
}

/// A table that went on after the snapshot.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Moved {
    pub(super) table: String,
    pub(super) rows_at_snapshot: u64,
    pub(super) rows_now: u64,
}

impl TableRow {
    /// Of what was found, and the bytes that were moved.
    pub(super) fn new(found: &Found, bytes: u64) -> Self {
        let hex = |digest: u128| format!("{digest:032x}");
        Self {
            schema: found.relation.schema.clone(),
            table: found.relation.name.clone(),
            verdict: match (found.is_equal(), found.target_digest) {
                (false, _) => "different",
                (true, Some(_)) => "identical",
                (true, None) => "as many rows",
            },
            source_rows: found.source_rows,
            target_rows: found.target_rows,
            bytes,
            source_digest: hex(found.source_digest),
            target_digest: found.target_digest.map(hex),
        }
    }
}

/// Writes both files and gives the path of the HTML.
pub(super) fn write(report: &DemoReport, directory: &Path) -> Result<PathBuf, Failure> {
    let json = serde_json::to_string_pretty(report)
        .map_err(|error| Failure::internal("write the report as JSON").because(&error))?;
    let failed = |path: &Path, error: std::io::Error| {
        Failure::new(ExitCode::Unavailable, format!("write {}", path.display())).because(&error)
    };
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    for (name, text) in [("report.json", json + "\n"), ("report.html", html(report))] {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(|error| failed(&path, error))?;
    }
    Ok(directory.join("report.html"))
}

const STYLE: &str = "\
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}\
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}p{margin:.4rem 0}\
.verdict{padding:1rem 1.2rem;border-left:.4rem solid #1a7f37;background:#eefbf1}\
.verdict.different{border-color:#cf222e;background:#fff0f0}\
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}\
th,td{text-align:left;padding:.25rem .7rem;border-bottom:1px solid #d8dee4;white-space:nowrap}\
.lag{margin:.6rem 0 1.2rem}th.n,td.n{text-align:right}td.d{font-family:ui-monospace,monospace;font-size:.8rem}tr.different{background:#fff0f0}\
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}.verdict{background:#0f2417}\
.verdict.different,tr.different{background:#2d1214}th,td{border-color:#30363d}}";

fn html(report: &DemoReport) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Tidemark demonstration: {verdict}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\n\
         <div class=\"verdict {verdict}\"><h1>{verdict}</h1><p>{proof}</p></div>\n",
        verdict = escaped(report.verdict),
        proof = escaped(report.proof),
    );
    let written = Duration::from_millis(report.writers.duration_ms);
    let rate = output::rate(report.writers.transactions, written).unwrap_or_default();
    write!(
        text,
        "<h2>What happened</h2>\n<p>A database of {} tables, {} rows, {} (TPC-H at scale {} and one of everything) was copied \
         and followed while {} connections wrote to it: {} transactions were committed in {}, {} per second.</p>\n\
         <p>Tidemark {}, PostgreSQL {}; from {} to {}.</p>\n",
        report.source.tables,
        output::count(report.source.rows),
        output::bytes(report.source.bytes),
        report.scale,
        report.writers.connections,
        output::count(report.writers.transactions),
        output::duration(written),
        output::count(rate),
        escaped(report.tool_version),
        escaped(&report.server_version),
        escaped(&to_second(&report.started_at)),
        escaped(&to_second(&report.finished_at)),
    )
    .ok();
    for copy in &report.copies {
        copy_html(&mut text, copy);
    }
    moved_html(&mut text, &report.moved_on);
    text.push_str("</body></html>\n");
    text
}

fn copy_html(text: &mut String, copy: &CopyReport) {
    write!(
        text,
        "<h2>{}</h2>\n<p>The copy showed the source at LSN {} and was made in {}, while {} transactions were committed. \
         At the end it shows the source at LSN {}; the balances in live.account add up to {}.",
        escaped(copy.target),
        escaped(&copy.snapshot_lsn),
        time(copy.duration_ms),
        output::count(copy.transactions_meanwhile),
        escaped(&copy.lsn),
        output::count(copy.balance.unsigned_abs()),
    )
    .ok();
    if let Some((files, bytes)) = copy.files {
        write!(text, " {files} files, {}.", output::bytes(bytes)).ok();
    }
    text.push_str("</p>\n");
    lag_html(text, copy);
    for skipped in &copy.skipped {
        writeln!(text, "<p>{}</p>", escaped(skipped)).ok();
    }
    text.push_str(
        "<div class=\"scroll\"><table><tr><th>table</th><th>verdict</th><th class=\"n\">rows of the source</th>\
         <th class=\"n\">rows found</th><th class=\"n\">bytes copied</th><th>digest of the source</th><th>digest of the copy</th></tr>\n",
    );
    for row in &copy.tables {
        writeln!(
            text,
            "<tr class=\"{}\"><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"d\">{}</td><td class=\"d\">{}</td></tr>",
            escaped(row.verdict),
            escaped(&format!("{}.{}", row.schema, row.table)),
            escaped(row.verdict),
            output::count(row.source_rows),
            output::count(row.target_rows),
            output::bytes(row.bytes),
            escaped(short(&row.source_digest)),
            escaped(row.target_digest.as_deref().map_or("not read", short)),
        )
        .ok();
    }
    text.push_str("</table></div>\n");
}

/// The head of a digest; report.json has the whole of it.
fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}

/// A time without the parts of its second.
fn to_second(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(second, _)| format!("{second}Z"))
}

fn time(ms: u64) -> String {
    output::duration(Duration::from_millis(ms))
}

/// What it did after it was made, and how far behind it was second by second.
fn lag_html(text: &mut String, copy: &CopyReport) {
    let Stretch { transactions, changes, duration_ms } = copy.followed;
    let worst = copy.lag.iter().map(|lag| lag.seconds).fold(0.0, f64::max);
    write!(
        text,
        "<p>Followed for {}: {} transactions with {} changes, at most {worst:.1} s behind. \
         Caught up after the writers had stopped: {} transactions with {} changes in {}.</p>\n\
         <div class=\"scroll\"><table class=\"lag\"><tr><th>following for</th>",
        time(duration_ms),
        output::count(transactions),
        output::count(changes),
        output::count(copy.caught_up.transactions),
        output::count(copy.caught_up.changes),
        time(copy.caught_up.duration_ms),
    )
    .ok();
    for lag in &copy.lag {
        write!(text, "<th class=\"n\">{} s</th>", lag.after_ms / 1000).ok();
    }
    text.push_str("</tr><tr><td>seconds behind</td>");
    for lag in &copy.lag {
        write!(text, "<td class=\"n\">{:.1}</td>", lag.seconds).ok();
    }
    text.push_str("</tr><tr><td>WAL behind</td>");
    for lag in &copy.lag {
        write!(text, "<td class=\"n\">{}</td>", output::bytes(lag.bytes)).ok();
    }
    text.push_str("</tr></table></div>\n");
}

fn moved_html(text: &mut String, moved: &[Moved]) {
    text.push_str(
        "<h2>The source went on</h2>\n<p>Tables that have more or fewer rows than in the first copy; both copies went on with them.</p>\n\
         <div class=\"scroll\"><table><tr><th>table</th><th class=\"n\">rows in the first copy</th><th class=\"n\">rows now</th></tr>\n",
    );
    for row in moved {
        writeln!(
            text,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escaped(&row.table),
            output::count(row.rows_at_snapshot),
            output::count(row.rows_now),
        )
        .ok();
    }
    text.push_str("</table></div>\n");
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            _ => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use tidemark_model::RelationName;

    use super::*;

    #[test]
    fn a_name_from_a_database_cannot_become_markup() {
        let found = Found {
            relation: RelationName::new("a\"b", "<script>alert('&')</script>"),
            source_rows: 1,
            target_rows: 1,
            source_digest: 1,
            target_digest: Some(1),
        };
        let mut text = String::new();
        let copy = CopyReport {
            target: "PostgreSQL",
            snapshot_lsn: "0/1".to_owned(),
            lsn: "0/2".to_owned(),
            duration_ms: 1,
            files: None,
            transactions_meanwhile: 0,
            followed: Stretch::default(),
            lag: Vec::new(),
            caught_up: Stretch::default(),
            balance: 0,
            tables: vec![TableRow::new(&found, 1)],
            skipped: Vec::new(),
        };
        copy_html(&mut text, &copy);
        assert!(!text.contains("<script"), "{text}");
        assert!(text.contains("a&quot;b.&lt;script&gt;alert(&#39;&amp;&#39;)"), "{text}");
    }

    #[test]
    fn one_row_too_many_or_another_digest_is_a_difference() {
        let equal = Found {
            relation: RelationName::new("public", "a"),
            source_rows: 2,
            target_rows: 2,
            source_digest: 7,
            target_digest: Some(7),
        };
        assert!(equal.is_equal());
        assert!(!Found { target_rows: 3, ..equal.clone() }.is_equal());
        assert!(!Found { target_digest: Some(8), ..equal.clone() }.is_equal());
        assert!(Found { target_digest: None, ..equal.clone() }.is_equal());
        assert_eq!(TableRow::new(&equal, 0).verdict, "identical");
        let counted = Found { target_digest: None, ..equal.clone() };
        assert_eq!(TableRow::new(&counted, 0).verdict, "as many rows");
        assert_eq!(TableRow::new(&Found { target_rows: 3, ..equal }, 0).verdict, "different");
    }
}
