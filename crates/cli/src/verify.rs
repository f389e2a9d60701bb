//! `tidemark verify`: from the configuration to a verification, and from what it found to a report.
//!
//! **Invariant:** the report holds what the verification found and nothing else; its verdict is derived by `report`, and the
//! exit code follows from it. Files are written under another name first, so that a report is whole or not there.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tidemark_model::RelationName;
use tidemark_pipeline::Target;
use tidemark_report::{
    Allowance, Barrier, Digest, DigestMethod, HeatMap, KeysSetAside, LastProven, LeafState, Level,
    Point, Proof, Reading, Redaction, Redactor, SchemaFinding, SchemaSeverity, Scope, Side,
    SideKind, SideSnapshot, TableReport, Verdict, VerifyReport, to_html, to_json, to_junit,
};
use tidemark_verify::{
    Lines, Outcome, Progress, Reads, Request, SideReport, TableOutcome, Which, verify_at_barrier,
    verify_quiesced,
};
use tokio_util::sync::CancellationToken;

use crate::args::{NotEmpty, VerifyArgs};
use crate::config::{self, Allow, Config, Redact};
use crate::exit::{ExitCode, Failure};
use crate::files::{self, unfinished, unwritable};
use crate::job;
use crate::log::Screen;
use crate::output::Examples;
use crate::running::{runtime, stoppable};
use crate::{output, redact};

/// Between two lines of progress.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// The rows that differ, beside the report.
const DIFF: &str = "diff.ndjson";

/// Runs the command.
///
/// # Errors
/// A side cannot be reached or read, or the report cannot be written.
pub(crate) fn run(
    config: &Config,
    args: &VerifyArgs,
    screen: &Screen,
) -> Result<ExitCode, Failure> {
    // Each wave has a report of its own.
    let part = config.part.as_ref().map(|part| part.name.as_str());
    let directory =
        args.report.as_ref().map(|report| part.map_or(report.clone(), |name| report.join(name)));
    let args = &VerifyArgs { report: directory, ..args.clone() };
    let mut job = job::job(config, NotEmpty::Refuse, !args.quiesced)?;
    if !args.quiesced {
        job = tidemark_migrate::active(&job)?;
    }
    let level = match args.level.unwrap_or(config.verify.level) {
        config::Level::Schema => Level::Schema,
        config::Level::Count => Level::Count,
        config::Level::Digest => Level::Digest,
        config::Level::Rows => Level::Rows,
    };
    if args.dirty && !level.reads_rows() {
        let attempt =
            "verify --dirty: at this level no rows are hashed, so that nothing is known of them";
        return Err(Failure::new(ExitCode::Usage, attempt).hint("use --level digest or rows"));
    }
    let redaction = match args.redact.unwrap_or(config.verify.redact) {
        Redact::None => Redaction::None,
        Redact::Values => Redaction::Values,
        Redact::Keys => Redaction::Keys,
    };
    let readers = args.jobs.or(config.verify.jobs).unwrap_or(config.snapshot.readers);
    let request = Request {
        readers: usize::try_from(readers).unwrap_or(1),
        rate: args.rate.or(config.verify.rate),
        reads: if args.dirty { Reads::Dirty } else { Reads::All },
        max_snapshot_age: args.max_snapshot_age,
        ..Request::new(job, level, lines(args.report.as_deref(), redaction)?)
    };
    let started_at = jiff::Timestamp::now();
    let outcome = runtime()?.block_on(watched(&request, args.quiesced, screen));
    let outcome = outcome.inspect_err(|_| forget(args.report.as_deref()))?;
    if !args.quiesced {
        note(config, &outcome);
    }
    let examples = examples(&outcome);
    let diff = request.lines.finish(DIFF)?;
    let mut report = report(config, args, &request, outcome);
    report.redaction = redaction;
    report.diff = (args.report.is_some() && request.level.reads_rows()).then_some(diff);
    report.started_at = started_at.to_string();
    report.finished_at = jiff::Timestamp::now().to_string();
    report.judge();
    if let Some(directory) = &args.report {
        write(directory, &report)?;
    }
    match args.json {
        true => output::print(&to_json(&report).map_err(unwritten)?)?,
        false => output::print(&output::verified(&report, &examples, screen.color_stdout))?,
    }
    if let Some(directory) = &args.report {
        screen.say(&format!("report: {}\n", directory.join("report.html").display()));
    }
    Ok(match report.outcome() {
        tidemark_report::Outcome::Agreed => ExitCode::Done,
        tidemark_report::Outcome::Different => ExitCode::Different,
        tidemark_report::Outcome::Incomplete => ExitCode::Incomplete,
        tidemark_report::Outcome::NotAllowed => ExitCode::NotAllowed,
    })
}

/// So that the state of the migration, and its report, can tell. What was found stays true if that cannot be written.
fn note(config: &Config, outcome: &Outcome) {
    let lsn = match outcome.point {
        Some(tidemark_verify::Point::Barrier { lsn, .. }) => Some(lsn),
        _ => None,
    };
    let verified = tidemark_migrate::Verified {
        verdict: outcome.verdict(),
        lsn,
        level: outcome.level,
        tables: outcome.tables.len() as u64,
        rows: outcome.tables.iter().map(|table| table.source.count).sum(),
    };
    if let Err(error) = tidemark_migrate::note_verified(&config.job.state_dir, &verified) {
        tracing::debug!(%error, "the verification is not noted");
    }
}

/// Of a verification that failed no rows are left lying about.
fn forget(directory: Option<&Path>) {
    if let Some(directory) = directory {
        std::fs::remove_file(directory.join(unfinished(DIFF))).ok();
    }
}

/// Some rows of each table that differs, as people read them.
fn examples(outcome: &Outcome) -> Examples {
    let of_table = |table: &TableOutcome| {
        let named = table.named.as_ref()?;
        Some((table.name.plain(), named.examples.clone()))
    };
    outcome.tables.iter().filter_map(of_table).collect()
}

/// Lines into the report's directory, under another name until the report is written; without one nobody reads them.
fn lines(directory: Option<&Path>, redaction: Redaction) -> Result<Lines, Failure> {
    let file: Box<dyn Write + Send> = match directory {
        None => Box::new(std::io::sink()),
        Some(directory) => {
            let path = directory.join(unfinished(DIFF));
            let made = std::fs::create_dir_all(directory).and_then(|()| File::create(&path));
            Box::new(BufWriter::new(made.map_err(|error| unwritable(&path, &error))?))
        }
    };
    // Of this report alone, so that the hashes of two reports cannot be linked.
    Ok(Lines::new(file, Redactor::new(redaction, rand::random())))
}

/// Verifies, and says how far it is.
async fn watched(request: &Request, quiesced: bool, screen: &Screen) -> Result<Outcome, Failure> {
    let stop = CancellationToken::new();
    let verifying = async {
        match quiesced {
            true => verify_quiesced(request, &stop).await,
            false => verify_at_barrier(request, &stop).await,
        }
    };
    let say = || screen.progress_line(&line(&request.progress));
    Ok(Box::pin(stoppable(verifying, &stop, (SAY_EVERY, say))).await??)
}

fn line(progress: &Progress) -> String {
    let read = progress.read(Which::Source) + progress.read(Which::Target);
    let expected = progress.expected();
    match progress.reading() {
        0 => "bringing both sides to one point\n".to_owned(),
        1 => format!("read {} of about {}\n", output::bytes(read), output::bytes(expected)),
        n => {
            format!("reading what differs for the {n}. time, {} read in all\n", output::bytes(read))
        }
    }
}

fn report(config: &Config, args: &VerifyArgs, request: &Request, outcome: Outcome) -> VerifyReport {
    let level = request.level;
    let target = match &request.job.target {
        Target::Postgres(target) => target.spec.host_display(),
        Target::Lake(target) => target.root.to_string(),
    };
    let mut report = VerifyReport::new(
        &request.job.name,
        level,
        side(&outcome.source, request.job.source.host_display()),
        side(&outcome.target, target),
    );
    if matches!(request.job.target, Target::Lake(_)) {
        report.target.kind = SideKind::Lake;
    }
    report.tool_version = env!("CARGO_PKG_VERSION").to_owned();
    report.duration_ms = milliseconds(outcome.duration);
    report.scope = Scope {
        include: request.job.selection.shown().0,
        exclude: request.job.selection.shown().1,
        ..Scope::default()
    };
    report.point = point(&outcome, request.progress.read_again());
    report.tables = outcome.tables.iter().map(|table| table_of(table, &outcome, level)).collect();
    report.tables.extend(outcome.alone.iter().map(|name| alone(name, &outcome)));
    let skipped = outcome.skipped.iter();
    report.tables.extend(skipped.map(|skipped| {
        TableReport::skipped(&skipped.name.schema, &skipped.name.name, &skipped.because)
    }));
    report.schema_findings = outcome.findings.iter().map(finding).collect();
    let allow = if args.allow.is_empty() { &config.verify.allow } else { &args.allow };
    report.policy.allow = allow.iter().map(|allow| allowance(*allow)).collect();
    report.digest = DigestMethod {
        algorithm: "xxh3-128 of each row under a random key, added modulo 2^128 by leaf".to_owned(),
        key_id: outcome.key_id.clone(),
        canonical_version: tidemark_digest::CANONICAL_VERSION,
        collision_bound: "about 2^-96 for each leaf, for whoever does not know the key".to_owned(),
    };
    report.reading = reading(request, outcome.duration);
    report.config_hash = config_hash(config);
    report.command = command(std::env::args().skip(1));
    report
}

/// A table that one side lacks is different, whatever its rows are.
fn alone(name: &RelationName, outcome: &Outcome) -> TableReport {
    let findings = outcome.findings.iter().filter(|found| found.table.as_ref() == Some(name));
    let is_on_source = findings.clone().any(|found| found.source.is_some());
    let because = if is_on_source { "only the source has it" } else { "only the target has it" };
    let mut report = TableReport::skipped(&name.schema, &name.name, because);
    report.differing_definitions = findings.count() as u64;
    report
}

fn reading(request: &Request, duration: Duration) -> Reading {
    let progress = &request.progress;
    let [source_bytes, target_bytes] =
        [Which::Source, Which::Target].map(|side| progress.read(side));
    Reading {
        source_bytes,
        target_bytes,
        bytes_per_second: per_second(source_bytes + target_bytes, duration),
        throttled_ms: milliseconds(progress.throttled()),
        retries: progress.retries(),
        jobs: u32::try_from(request.readers).unwrap_or(u32::MAX),
    }
}

fn side(found: &SideReport, address: String) -> Side {
    Side {
        version: found.version.clone(),
        system_identifier: found.system_identifier.map(|system| system.to_string()),
        database: found.database.clone(),
        address,
        ..Side::default()
    }
}

fn point(outcome: &Outcome, leaves_read_twice: u64) -> Point {
    let snapshot = |side: &SideReport| {
        let shows = side.read_snapshot.as_ref().and_then(|shown| shown.parse().ok());
        SideSnapshot { id: None, shows }
    };
    let (source_snapshot, target_snapshot) = (snapshot(&outcome.source), snapshot(&outcome.target));
    match &outcome.point {
        None => Point::None { reason: "only definitions were compared".to_owned() },
        Some(tidemark_verify::Point::Barrier { lsn, pause, at, held, earlier }) => {
            let last = tidemark_verify::Barrier { lsn: *lsn, pause: *pause, at: *at, held: *held };
            let mut barriers: Vec<Barrier> =
                earlier.iter().map(|earlier| barrier(earlier, outcome)).collect();
            barriers.push(Barrier { source_snapshot, target_snapshot, ..barrier(&last, outcome) });
            Point::Barrier { barriers }
        }
        Some(tidemark_verify::Point::Quiesced) => Point::Quiesced {
            source_lsn: outcome.source.lsn,
            target_lsn: outcome.target.lsn,
            source_snapshot,
            target_snapshot,
            leaves_read_twice,
        },
    }
}

fn barrier(met: &tidemark_verify::Barrier, outcome: &Outcome) -> Barrier {
    let unknown = || SideSnapshot { id: None, shows: None };
    Barrier {
        lsn: met.lsn,
        at: jiff::Timestamp::try_from(met.at).map(|at| at.to_string()).unwrap_or_default(),
        source_snapshot: unknown(),
        target_snapshot: unknown(),
        keys_set_aside: KeysSetAside::default(),
        pause_ms: milliseconds(met.pause),
        snapshot_age_ms: milliseconds(met.held),
        tables: outcome.tables.len() as u64,
    }
}

fn table_of(table: &TableOutcome, outcome: &Outcome, level: Level) -> TableReport {
    let mut report = TableReport::new(&table.name.schema, &table.name.name);
    report.skipped_reason.clone_from(&table.because);
    if let (Verdict::Different, Some(because)) = (table.verdict, &table.unnamed) {
        report.skipped_reason = Some(format!("the rows that differ are not all named: {because}"));
    }
    report.level = Some(level);
    report.lsn = match outcome.point {
        Some(tidemark_verify::Point::Barrier { lsn, .. }) => Some(lsn),
        _ => table.lsn,
    };
    let differs = |found: &&tidemark_verify::SchemaFinding| {
        found.severity == SchemaSeverity::Different && found.table.as_ref() == Some(&table.name)
    };
    report.differing_definitions = outcome.findings.iter().filter(differs).count() as u64;
    report.readings = table.readings;
    report.last_proven = table.last_proven.map(|(lsn, at)| LastProven {
        lsn: Some(lsn),
        at: jiff::Timestamp::from_millisecond(at).map(|at| at.to_string()).unwrap_or_default(),
    });
    if table.readings == 0 {
        return report;
    }
    report.source_rows = Some(table.source.count);
    report.target_rows = Some(table.target.count);
    if !level.reads_rows() {
        return report;
    }
    report.key_columns.clone_from(&table.key_columns);
    if let Some(named) = &table.named {
        let rows = &named.rows;
        report.missing = Some(rows.missing);
        report.extra = Some(rows.extra);
        report.changed = Some(rows.changed);
        report.equivalent = Some(rows.equivalent);
        report.lossy = Some(rows.lossy);
        (report.first_key, report.last_key) = named.ends.clone().unzip();
        report.columns.clone_from(&named.columns);
    }
    report.lossy = table.lossy.or(report.lossy);
    report.proof = Some(match table.oldest_leaf {
        None => Proof::Full,
        Some(_) => Proof::Incremental,
    });
    report.oldest_leaf_lsn = table.oldest_leaf;
    report.source_digest = Some(Digest::from(table.source));
    report.target_digest = Some(Digest::from(table.target));
    report.leaves = table.leaves.len() as u64;
    report.differing_leaves = table.different.len() as u64;
    let states = (0_u32..).zip(&table.leaves).map(|(leaf, (source, target))| {
        let state = match () {
            () if table.different.contains(&leaf) => LeafState::Different,
            () if table.unsettled.contains(&leaf) => LeafState::Unproven,
            () if source.raw != target.raw => LeafState::Equivalent,
            () => LeafState::Same,
        };
        (source.count, state)
    });
    report.heat_map = Some(HeatMap::of(&states.collect::<Vec<_>>()));
    report
}

fn finding(found: &tidemark_verify::SchemaFinding) -> SchemaFinding {
    SchemaFinding {
        object: match &found.table {
            Some(table) => format!("{table} {}", found.object),
            None => found.object.clone(),
        },
        kind: found.kind.to_owned(),
        severity: found.severity,
        source: found.source.clone(),
        target: found.target.clone(),
        fix: None,
    }
}

fn allowance(allow: Allow) -> Allowance {
    match allow {
        Allow::Equivalent => Allowance::Equivalent,
        Allow::Lossy => Allowance::Lossy,
    }
}

/// Over what is in force, in which secrets are hidden.
fn config_hash(config: &Config) -> String {
    let mut hasher = Sha256::new();
    for entry in &config.in_force {
        hasher.update(format!("{} = {}\n", entry.key, entry.value));
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The command that does the same again, without its secrets.
fn command(args: impl Iterator<Item = String>) -> String {
    let quoted = args.map(|arg| {
        let arg = redact::connection(&arg);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,%+".contains(c);
        match !arg.is_empty() && arg.chars().all(is_plain) {
            true => arg,
            false => format!("'{}'", arg.replace('\'', "'\\''")),
        }
    });
    std::iter::once("tidemark".to_owned()).chain(quoted).collect::<Vec<_>>().join(" ")
}

fn write(directory: &Path, report: &VerifyReport) -> Result<(), Failure> {
    let files = [
        ("report.json", to_json(report).map_err(unwritten)?),
        ("report.html", to_html(report)),
        ("report.junit.xml", to_junit(report)),
    ];
    let path = directory.join(DIFF);
    // An earlier report's rows are none of this one's.
    let placed = match report.diff.is_some() {
        true => std::fs::rename(directory.join(unfinished(DIFF)), &path),
        false => std::fs::remove_file(directory.join(unfinished(DIFF)))
            .and_then(|()| std::fs::remove_file(&path).or_else(unless_gone)),
    };
    placed.map_err(|error| unwritable(&path, &error))?;
    files.iter().try_for_each(|(name, text)| files::write(directory, name, text))
}

fn unless_gone(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn unwritten(error: tidemark_report::Error) -> Failure {
    Failure::internal("write the report").because(&error)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn per_second(bytes: u64, duration: Duration) -> u64 {
    (bytes as f64 / duration.as_secs_f64().max(0.001)) as u64
}

#[cfg(test)]
mod tests {
    use super::command;

    fn line(args: &[&str]) -> String {
        command(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn the_command_to_run_it_again_can_be_pasted_and_shows_no_secret() {
        assert_eq!(line(&["verify", "--table", "public.*"]), "tidemark verify --table 'public.*'");
        assert_eq!(line(&["-c", "it's"]), r"tidemark -c 'it'\''s'");
        for secret in [
            vec!["--source", "postgres://a:geheim@h/d"],
            vec!["--source=postgres://a:geheim@h/d"],
            vec!["--source", "host=h dbname=d password=geheim"],
            vec!["--target=host=h password='geheim' dbname=d"],
            vec!["--target", "postgres://a@h/d?password=geheim"],
        ] {
            assert!(!line(&secret).contains("geheim"), "{}", line(&secret));
        }
    }
}
