//! `tidemark repair`: from a report to the rows that it calls different.
//!
//! **Invariant:** a report that was edited or cut, or is of other databases, repairs nothing.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tidemark_model::RelationName;
use tidemark_pipeline::{Error, Kind, Target};
use tidemark_report::{
    DiffFile, DiffLine, DiffReader, Level, Point, Redaction, Verdict, VerifyReport, check_json,
};
use tidemark_verify::{How, Lines, Repaired, Request, Suspect, repair};
use tokio_util::sync::CancellationToken;

use crate::args::{NotEmpty, RepairArgs};
use crate::config::Config;
use crate::exit::{ExitCode, Failure};
use crate::log::Screen;
use crate::running::{Signals, runtime};
use crate::{job, output, waves};

/// Runs the command.
///
/// # Errors
/// The report cannot be used, a side cannot be read, or the target refuses a row.
pub(crate) fn run(
    config: &Config,
    args: &RepairArgs,
    screen: &Screen,
) -> Result<ExitCode, Failure> {
    let place = match args.report.is_dir() {
        true => args.report.join("report.json"),
        false => args.report.clone(),
    };
    let report = read(&place)?;
    let config = &waves::of_job(config, &report.job)?;
    let moves = matches!(report.point, Point::Barrier { .. });
    let mut job = job::job(config, NotEmpty::Refuse, moves)?;
    if moves {
        job = tidemark_migrate::active(&job)?;
    }
    if let Target::Lake(target) = &job.target {
        return Err(unrepairable(&format!("the lake {}", target.root), &report));
    }
    let diff = rows_of(&place, &report)?;
    let request = Request { readers: 1, ..Request::new(job, Level::Rows, Lines::nowhere()) };
    let sides = [&report.source, &report.target]
        .map(|side| (side.system_identifier.clone(), side.database.clone()));
    let how = How { sides, applies: args.apply, moves };
    let lines = File::open(&diff)
        .map_err(|error| Failure::usage(format!("read {}", diff.display())).because(&error))?;
    let lines = DiffReader::new(BufReader::new(lines));
    let mut hidden = 0;
    let mut suspects = lines.filter_map(|line| match line {
        Err(error) => Some(Err(Error::new(Kind::Usage, "read diff.ndjson").because(error))),
        Ok(line) => suspect(line).map(Ok).or_else(|| {
            hidden += 1;
            None
        }),
    });
    let mut say = |sql: &str| {
        output::print(&format!("{sql};\n"))
            .map_err(|_| Error::new(Kind::Unavailable, "print the statements"))
    };
    let stop = CancellationToken::new();
    let repaired = runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        tokio::select! {
            repaired = repair(&request, how, &mut suspects, &mut say, &stop) => Ok(repaired?),
            () = signals.next() => Err(Failure::from(Error::interrupted())),
        }
    })?;
    drop(suspects);
    Ok(told(repaired, hidden, args.apply, screen))
}

/// A lake's files are never written anew: its tables are copied again.
fn unrepairable(lake: &str, report: &VerifyReport) -> Failure {
    let of_report = report.tables.iter().filter(|table| table.verdict == Verdict::Different);
    let names: Vec<String> = of_report.map(|table| quoted(&table.plain_name())).collect();
    let names = if names.is_empty() { "TABLE...".to_owned() } else { names.join(" ") };
    Failure::usage(format!(
        "repair {lake}: its files are never written anew, so that its rows cannot be repaired one by one"
    ))
    .hint(format!(
        "let its tables be copied anew: stop tidemark sync, run tidemark reset {names} --yes, and run tidemark sync again"
    ))
}

/// As a shell reads it.
fn quoted(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.chars().all(is_plain) {
        name.to_owned()
    } else {
        format!("'{}'", name.replace('\'', "'\\''"))
    }
}

fn unusable(place: &Path, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::usage(format!("repair by {}", place.display()))
        .because(error)
        .hint("verify again with --report DIR, and name that directory")
}

/// The report as it was written.
fn read(place: &Path) -> Result<VerifyReport, Failure> {
    let text = std::fs::read_to_string(place).map_err(|error| unusable(place, &error))?;
    check_json(&text).map_err(|error| unusable(place, &error))
}

/// Where its rows are, as they were written.
fn rows_of(place: &Path, report: &VerifyReport) -> Result<PathBuf, Failure> {
    let Some(diff) = &report.diff else {
        return Err(Failure::usage(format!("repair by {}: it names no rows", place.display()))
            .hint("verify with --level digest or rows, and --report DIR"));
    };
    if report.redaction == Redaction::Keys {
        return Err(Failure::usage(format!("repair by {}: its keys are hidden", place.display()))
            .hint("verify again with --redact values or none"));
    }
    let path = place.with_file_name(&diff.name);
    is_whole(&path, diff).map_err(|error| unusable(place, &*error))?;
    Ok(path)
}

/// Nothing is repaired by a file that was cut or edited.
fn is_whole(path: &Path, diff: &DiffFile) -> Result<(), Box<dyn std::error::Error>> {
    let mut lines = DiffReader::new(BufReader::new(File::open(path)?));
    for line in &mut lines {
        line?;
    }
    Ok(lines.finish(diff)?)
}

/// What a line says of a row; nothing where its key is hidden, as that of a table without a key is with its values.
fn suspect(line: DiffLine) -> Option<Suspect> {
    let key = line.key.columns().map(|(column, shown)| {
        let text = match shown.as_json() {
            Value::Null => None,
            Value::Object(_) => return None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        Some((column.to_owned(), text))
    });
    let key: Option<Vec<_>> = key.collect();
    let table = RelationName::new(line.schema.clone(), line.table.clone());
    Some(Suspect { table, kind: line.kind, key: key? })
}

fn told(repaired: Repaired, hidden: u64, applied: bool, screen: &Screen) -> ExitCode {
    let Repaired { written, healed, stale, left } = repaired;
    let done = if applied { "written" } else { "to be written, with --apply" };
    screen.say(&format!("{written} rows {done}; {healed} are equal by now\n"));
    if stale > 0 {
        screen.say(&format!(
            "{stale} differ in another way by now and were left alone: verify again\n"
        ));
    }
    if hidden > 0 {
        screen.say(&format!("{hidden} lines hide the row of a table without a key: verify again with --redact none\n"));
    }
    if left > 0 {
        screen.say(&format!("{left} rows still differ after they were written: a trigger, a generated column, or another writer on the target\n"));
    }
    match () {
        () if left > 0 => ExitCode::Different,
        () if stale + hidden > 0 => ExitCode::Incomplete,
        () => ExitCode::Done,
    }
}
