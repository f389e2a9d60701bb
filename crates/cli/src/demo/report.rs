//! What the demonstration leaves: `report.json` and `report.html`.
//!
//! **Invariant:** both are written from one value. Nothing that came from a database reaches the HTML unescaped, and the
//! file needs nothing else: no script, no image, no network.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

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
    /// The source's position that it shows.
    pub(super) lsn: String,
    pub(super) duration_ms: u64,
    /// Files and their bytes, of a lake.
    pub(super) files: Option<(u64, u64)>,
    /// Transactions that were committed on the source while it was made.
    pub(super) transactions_meanwhile: u64,
    /// The sum of all balances, the same in every state that the source ever had.
    pub(super) balance: i64,
    pub(super) tables: Vec<TableRow>,
    /// What was left out and why.
    pub(super) skipped: Vec<String>,
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
            verdict: if found.is_equal() { "identical" } else { "different" },
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
th.n,td.n{text-align:right}td.d{font-family:ui-monospace,monospace;font-size:.8rem}tr.different{background:#fff0f0}\
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
    let time = Duration::from_millis(report.writers.duration_ms);
    let rate = output::rate(report.writers.transactions, time).unwrap_or_default();
    write!(
        text,
        "<h2>What happened</h2>\n<p>A database of {} tables, {} rows, {} (TPC-H at scale {} and one of everything) was copied \
         while {} connections wrote to it: {} transactions were committed in {}, {} per second.</p>\n\
         <p>Tidemark {}, PostgreSQL {}; from {} to {}.</p>\n",
        report.source.tables,
        output::count(report.source.rows),
        output::bytes(report.source.bytes),
        report.scale,
        report.writers.connections,
        output::count(report.writers.transactions),
        output::duration(time),
        output::count(rate),
        escaped(report.tool_version),
        escaped(&report.server_version),
        escaped(&report.started_at),
        escaped(&report.finished_at),
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
    let time = output::duration(Duration::from_millis(copy.duration_ms));
    write!(
        text,
        "<h2>Copy to {}</h2>\n<p>Shows the source at LSN {}; made in {time}, while {} transactions were committed. \
         The balances in live.account add up to {}.",
        escaped(copy.target),
        escaped(&copy.lsn),
        output::count(copy.transactions_meanwhile),
        copy.balance,
    )
    .ok();
    if let Some((files, bytes)) = copy.files {
        write!(text, " {files} files, {}.", output::bytes(bytes)).ok();
    }
    text.push_str("</p>\n");
    for skipped in &copy.skipped {
        writeln!(text, "<p>{}</p>", escaped(skipped)).ok();
    }
    text.push_str(
        "<div class=\"scroll\"><table><tr><th>table</th><th>verdict</th><th class=\"n\">rows of the source</th>\
         <th class=\"n\">rows found</th><th class=\"n\">bytes</th><th>digest of the source</th><th>digest read back</th></tr>\n",
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
            escaped(&row.source_digest),
            escaped(row.target_digest.as_deref().unwrap_or("-")),
        )
        .ok();
    }
    text.push_str("</table></div>\n");
}

fn moved_html(text: &mut String, moved: &[Moved]) {
    text.push_str(
        "<h2>The source went on</h2>\n<p>A copy at one position does not have what was written after it.</p>\n\
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
            lsn: "0/1".to_owned(),
            duration_ms: 1,
            files: None,
            transactions_meanwhile: 0,
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
        assert_eq!(TableRow::new(&Found { target_rows: 3, ..equal }, 0).verdict, "different");
    }
}
