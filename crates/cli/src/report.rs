//! `report`, and the files that a migration keeps of itself.

use std::path::{Path, PathBuf};

use tidemark_report::{MigrationReport, migration_to_html, migration_to_json};

use crate::args::ReportArgs;
use crate::config::Config;
use crate::exit::{ExitCode, Failure};
use crate::files;
use crate::log::Screen;
use crate::{output, waves};

/// Below the state directory, where a cutover keeps its report.
const DIRECTORY: &str = "report";
/// The one for people.
const HTML: &str = "migration.html";

/// `tidemark report`.
///
/// # Errors
/// The job has never run, or the files cannot be written.
pub(crate) fn run(
    config: &Config,
    args: &ReportArgs,
    screen: &Screen,
) -> Result<ExitCode, Failure> {
    waves::each_that_has_run(config, screen, |part| one(part, args, screen))
}

/// Of one job; a wave has a directory of its own.
fn one(config: &Config, args: &ReportArgs, screen: &Screen) -> Result<ExitCode, Failure> {
    let report = tidemark_migrate::report(&config.job.state_dir, &config.job.name)?;
    let directory = match (&args.directory, &config.part) {
        (None, _) => kept(config),
        (Some(directory), None) => directory.clone(),
        (Some(directory), Some(_)) => directory.join(waves::name(config)),
    };
    let html = write(&directory, &report)?;
    if args.json {
        output::print(&migration_to_json(&report).map_err(unwritten)?)?;
    } else {
        output::print(&text(&report))?;
    }
    screen.say(&format!("report: {}\n", html.display()));
    Ok(ExitCode::Done)
}

/// Writes the report where the job keeps it. What was done stays done if that cannot be.
pub(crate) fn keep(config: &Config, screen: &Screen) {
    let report = tidemark_migrate::report(&config.job.state_dir, &config.job.name);
    let written = report.map_err(Failure::from).and_then(|report| write(&kept(config), &report));
    match written {
        Ok(html) => screen.say(&format!("report: {}\n", html.display())),
        Err(error) => {
            let because = error.chain.join(": ");
            tracing::warn!(because, "the report of the migration cannot be written");
        }
    }
}

fn kept(config: &Config) -> PathBuf {
    config.job.state_dir.join(DIRECTORY)
}

/// Gives the path of the one for people.
fn write(directory: &Path, report: &MigrationReport) -> Result<PathBuf, Failure> {
    let json = migration_to_json(report).map_err(unwritten)?;
    let sealed = tidemark_report::check_migration_json(&json).map_err(unwritten)?;
    std::fs::create_dir_all(directory).map_err(|error| files::unwritable(directory, &error))?;
    files::write(directory, "migration.json", &json)?;
    files::write(directory, HTML, &migration_to_html(&sealed))?;
    Ok(directory.join(HTML))
}

fn unwritten(error: tidemark_report::Error) -> Failure {
    Failure::internal("write the report of the migration").because(&error)
}

fn text(report: &MigrationReport) -> String {
    let mut text = format!("job        {}\nstage      {}\n", report.job, report.stage.word());
    for attempt in &report.attempts {
        let block = attempt
            .write_block_ms
            .map_or_else(String::new, |ms| format!(", writes were blocked for {ms} ms"));
        let because =
            attempt.because.as_deref().map_or_else(String::new, |because| format!(": {because}"));
        text.push_str(&format!(
            "{:<10} {} {}{block}{because}\n",
            attempt.way,
            attempt.began_at,
            attempt.outcome.word()
        ));
    }
    if let Some(last) = report.verifications.last() {
        text.push_str(&format!(
            "verified   {} {} ({} rows of {} tables)\n",
            last.at,
            last.verdict.word(),
            output::count(last.rows),
            last.tables
        ));
    }
    let open = report.findings.iter().filter(|finding| !finding.is_settled).count();
    let settled = report.findings.len() - open;
    text.push_str(&format!("findings   {open} open, {settled} settled\n"));
    text
}
