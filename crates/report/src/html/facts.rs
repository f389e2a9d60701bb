//! What stands beside the tables: definitions, what was skipped, the proof, the policy, how to run it again.
//!
//! **Invariant:** what was skipped has a section even where it is nothing, so that nobody has to guess.

use std::cmp::Reverse;

use super::definition_list;
use super::text::{Esc, bytes, duration, time};
use crate::words::{count, counted};
use crate::{
    Allowance, Barrier, KeysSetAside, Point, Redaction, SchemaFinding, SchemaSeverity, SideKind,
    SideSnapshot, Verdict, VerifyReport,
};

pub(super) fn definitions(report: &VerifyReport) -> String {
    if report.schema_findings.is_empty() {
        return "<section>\n<h2>Definitions</h2>\n<p>No finding: what was compared of the definitions agrees.</p>\n</section>\n".to_owned();
    }
    let mut findings: Vec<_> = report.schema_findings.iter().collect();
    findings.sort_by_key(|finding| Reverse(finding.severity));
    let rows: String = findings.into_iter().map(definition).collect();
    format!(
        "<section>\n<h2>Definitions</h2>\n<table class=\"facts definitions\">\n<thead><tr><th>Object</th><th>Finding</th>\
         <th>Source</th><th>Target</th></tr></thead>\n{rows}</table>\n</section>\n"
    )
}

fn definition(finding: &SchemaFinding) -> String {
    let severity = match finding.severity {
        SchemaSeverity::Different => "<b class=\"bad\">differs</b>",
        SchemaSeverity::Warning => "<b class=\"warn\">warning</b>",
        SchemaSeverity::Note => "note",
    };
    let there = |text: &Option<String>| match text {
        Some(text) => Esc(text).to_string(),
        None => "\u{2013}".to_owned(),
    };
    let fix = finding.fix.as_ref().map(|fix| {
        format!(
            "<tr class=\"more\"><td colspan=\"4\">Mend it: <code>{}</code></td></tr>\n",
            Esc(fix)
        )
    });
    format!(
        "<tbody><tr><td class=\"name\">{}</td><td>{severity}: {}</td><td>{}</td><td>{}</td></tr>\n{}</tbody>\n",
        Esc(&finding.object),
        in_words(&finding.kind),
        there(&finding.source),
        there(&finding.target),
        fix.unwrap_or_default()
    )
}

/// What a kind of finding is to somebody who reads it for the first time, with its name for scripts.
fn in_words(kind: &str) -> String {
    let words = match kind {
        "table-missing" => "the target has no such table",
        "table-extra" => "the source has no such table",
        "column-missing" => "the target has no such column",
        "column-extra" => "the source has no such column",
        "column-type" => "another type",
        "column-nullability" => "NULL is allowed on one side only",
        "column-collation" => "another collation",
        "column-generated" => "generated in another way",
        "primary-key" => "another primary key",
        "index-missing" => "the target has no such index",
        "index-extra" => "the source has no such index",
        "sequence-missing" => "the target has no such sequence",
        "sequence-behind" => "the target\u{2019}s sequence is behind",
        other => return Esc(other).to_string(),
    };
    format!("{words} <small>{kind}</small>")
}

pub(super) fn skipped(report: &VerifyReport) -> String {
    let tables = report.tables.iter().filter_map(|table| {
        let reason = table.skipped_reason.as_ref()?;
        Some((table.plain_name(), reason))
    });
    let others = report.skipped.iter().map(|skipped| (skipped.object.clone(), &skipped.reason));
    let all: Vec<_> = tables.chain(others).collect();
    let incomplete = report.tables_with(Verdict::Incomplete) > 0;
    let text = match (all.is_empty(), incomplete) {
        (true, false) => "<p>Nothing that was asked for was skipped.</p>\n".to_owned(),
        (true, true) => {
            "<p>Nothing was skipped by name; the tables above that are not proven say why.</p>\n"
                .to_owned()
        }
        (false, _) => {
            let rows = all.iter().map(|(object, reason)| {
                format!(
                    "<tbody><tr><td class=\"name\">{}</td><td>{}</td></tr></tbody>\n",
                    Esc(object),
                    Esc(reason)
                )
            });
            format!(
                "<table class=\"facts\">\n<thead><tr><th>Not compared, or not in full</th><th>Why</th></tr></thead>\n{}</table>\n",
                rows.collect::<String>()
            )
        }
    };
    format!("<section>\n<h2>Skipped</h2>\n{text}</section>\n")
}

pub(super) fn proof(report: &VerifyReport) -> String {
    let point = match &report.point {
        Point::Barrier { barriers } => at_barriers(barriers),
        Point::Quiesced {
            source_lsn,
            target_lsn,
            source_snapshot,
            target_snapshot,
            leaves_read_twice,
        } => {
            let lsn = |lsn: &Option<tidemark_model::Lsn>| match lsn {
                Some(lsn) => format!(" at its LSN {lsn}"),
                None => String::new(),
            };
            let text = "<p>Nothing was to write to either side meanwhile. Two snapshots with equal digests are a proof by themselves; \
                        leaves that differed were read a second time before they were called different.</p>\n";
            text.to_owned()
                + &definition_list(&[
                    ("Source", snapshot(source_snapshot) + &lsn(source_lsn)),
                    ("Target", snapshot(target_snapshot) + &lsn(target_lsn)),
                    ("Read a second time", counted_leaves(*leaves_read_twice)),
                ])
        }
        Point::None { reason } => {
            format!(
                "<p><b>There was no point at which both sides could be compared:</b> {}</p>\n",
                Esc(reason)
            )
        }
    };
    let reading = &report.reading;
    let digest = &report.digest;
    let lines = definition_list(&[
        (
            "Digest",
            format!(
                "{}, key <code>{}</code>, canonical form {}",
                Esc(&digest.algorithm),
                Esc(&digest.key_id),
                digest.canonical_version
            ),
        ),
        ("Chance of a false match", Esc(&digest.collision_bound).to_string()),
        (
            "Read",
            format!(
                "{} from the source, {} from the target, {} a second, {} at a time on each side",
                bytes(reading.source_bytes),
                bytes(reading.target_bytes),
                bytes(reading.bytes_per_second),
                counted(u64::from(reading.jobs), "connection")
            ),
        ),
        (
            "Held back",
            format!(
                "{} (rate limit); {}",
                duration(reading.throttled_ms),
                retries(reading.retries)
            ),
        ),
    ]);
    format!("<section>\n<h2>How it was proven</h2>\n{point}{lines}</section>\n")
}

fn retries(number: u64) -> String {
    match number {
        0 => "nothing had to be read again after an error".to_owned(),
        1 => "1 part was read again after an error".to_owned(),
        more => format!("{} parts were read again after an error", count(more)),
    }
}

fn counted_leaves(number: u64) -> String {
    if number == 1 { "1 leaf".to_owned() } else { format!("{} leaves", count(number)) }
}

const AT_BARRIER: &str = "<p>The barrier is one position in the source\u{2019}s WAL. The source was read under a snapshot that belongs to \
     it. The stream was held there, with all that committed before it on the target and nothing that came after, until the target\u{2019}s \
     snapshot was taken; then it went on. Both sides were then read, each under its snapshot.</p>\n";
const KEYS_APART: &str = "<p>Keys of transactions that lay between the source\u{2019}s snapshot and the barrier were set aside and compared \
     one by one.</p>\n";
const SEVERAL: &str = "<p>Snapshots were held for a bounded time: parts were read at each of these barriers, and what the stream touched afterwards was read again, so that all of it is as of the last one.</p>\n";

fn at_barriers(barriers: &[Barrier]) -> String {
    let keys = barriers.iter().any(|barrier| barrier.keys_set_aside.total() > 0);
    let lists: String = barriers.iter().map(at_barrier).collect();
    let only_if = |holds: bool, text: &'static str| if holds { text } else { "" };
    [AT_BARRIER, only_if(keys, KEYS_APART), only_if(barriers.len() > 1, SEVERAL), &lists].concat()
}

fn at_barrier(barrier: &Barrier) -> String {
    definition_list(&[
        (
            "Barrier",
            format!(
                "LSN <b>{}</b>, {}, {} read at it",
                barrier.lsn,
                Esc(&time(&barrier.at)),
                counted(barrier.tables, "table")
            ),
        ),
        ("Source read under", snapshot(&barrier.source_snapshot)),
        ("Target read under", snapshot(&barrier.target_snapshot)),
        ("Keys compared apart", set_aside(barrier.keys_set_aside)),
        ("Apply paused for", duration(barrier.pause_ms)),
        ("Snapshots held for", duration(barrier.snapshot_age_ms)),
    ])
}

fn snapshot(snapshot: &SideSnapshot) -> String {
    let id = snapshot.id.as_ref().map(|id| format!(" <code>{}</code>", Esc(id)));
    let shows = snapshot.shows.as_ref().map(|shows| format!(", which shows <code>{shows}</code>"));
    format!("snapshot{}{}", id.unwrap_or_default(), shows.unwrap_or_default())
}

fn set_aside(keys: KeysSetAside) -> String {
    match keys.total() {
        0 => "none".to_owned(),
        total => format!(
            "{}: {} equal, {} different, {} not settled",
            count(total),
            count(keys.equal),
            count(keys.different),
            count(keys.unsettled)
        ),
    }
}

pub(super) fn policy(report: &VerifyReport) -> String {
    let class = |class: &Allowance| match class {
        Allowance::Equivalent => "equivalent",
        Allowance::Lossy => "lossy",
    };
    let allowed = report.policy.allow.iter().map(class).collect::<Vec<_>>().join(" and ");
    let allowed = match allowed.as_str() {
        "" => "Nothing but identical is allowed.".to_owned(),
        some => format!("Findings that are {some} are allowed."),
    };
    let rows: String = report
        .policy
        .mappings
        .iter()
        .map(|mapping| {
            format!(
                "<tbody><tr><td class=\"name\">{}.<wbr>{}.<wbr>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td></tr></tbody>\n",
                Esc(&mapping.schema), Esc(&mapping.table), Esc(&mapping.column), Esc(&mapping.mapping),
                class(&mapping.class), count(mapping.values)
            )
        })
        .collect();
    let table = if rows.is_empty() {
        String::new()
    } else {
        format!(
            "<table class=\"facts\">\n<thead><tr><th>Column</th><th>Mapping</th><th>Makes values</th><th class=\"n\">Values touched</th></tr></thead>\n{rows}</table>\n"
        )
    };
    format!("<section>\n<h2>Policy</h2>\n<p>{allowed}</p>\n{table}</section>\n")
}

pub(super) fn again(report: &VerifyReport) -> String {
    let diff = report.diff.as_ref().map(|diff| {
        format!(
            "<p>{} in <code>{}</code> (SHA-256 <code>{}</code>).</p>\n",
            counted(diff.lines, "line"),
            Esc(&diff.name),
            Esc(&diff.sha256)
        )
    });
    format!(
        "<section>\n<h2>Run it again</h2>\n<pre>{}</pre>\n{}{}</section>\n",
        Esc(&report.command),
        diff.unwrap_or_default(),
        if can_be_repaired(report) { REPAIR } else { "" }
    )
}

const REPAIR: &str = "<p><code>tidemark repair DIRECTORY</code>, with the directory of this file and the options above that name \
     the job, reads these rows again and prints the statements that give the target what the source has now; with \
     <code>--apply</code> it runs them.</p>\n";

/// Whether `tidemark repair` has something to begin with.
fn can_be_repaired(report: &VerifyReport) -> bool {
    let names_rows = report.diff.as_ref().is_some_and(|diff| diff.lines > 0);
    let is_in_a_database = report.target.kind == SideKind::Postgresql;
    names_rows && is_in_a_database && report.redaction != Redaction::Keys
}

pub(super) fn versions(report: &VerifyReport, checksum: &str) -> String {
    let redaction = match report.redaction {
        Redaction::None => "none: keys and values are in the files",
        Redaction::Values => "values: keys are in the files, values are hashes",
        Redaction::Keys => "keys: keys and values are hashes",
    };
    let lines = definition_list(&[
        ("Tidemark", Esc(&report.tool_version).to_string()),
        ("Form of the report", report.report_version.to_string()),
        ("Configuration", format!("SHA-256 <code>{}</code>", Esc(&report.config_hash))),
        ("Redaction", redaction.to_owned()),
        ("report.json", format!("checksum <code>{checksum}</code>")),
    ]);
    format!("<section>\n<h2>Versions and checksum</h2>\n{lines}</section>\n")
}
