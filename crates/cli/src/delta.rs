//! `tidemark delta`: from the configuration to a run, and from what it did to a report and an exit code.

use std::sync::Arc;
use std::time::Duration;

use tidemark_migrate::delta::{
    Action, Actions, ComparedWith, DeltaReport, Request, TableDelta, delta,
};
use tidemark_verify::{Progress, Which};
use tokio_util::sync::CancellationToken;

use crate::args::{DeltaArgs, NotEmpty};
use crate::config::{Config, DeltaAction};
use crate::exit::{ExitCode, Failure};
use crate::log::Screen;
use crate::running::{runtime, stoppable};
use crate::{job, output};

/// Between two lines of progress.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Runs the command.
///
/// # Errors
/// A side cannot be reached or read, or another instance has the job.
pub(crate) fn run(config: &Config, args: &DeltaArgs, screen: &Screen) -> Result<ExitCode, Failure> {
    let request = Request {
        job: job::job(config, NotEmpty::Refuse, false)?,
        actions: actions(config, args),
        dry_run: args.dry_run,
        scan_target: args.scan_target,
        progress: Arc::default(),
    };
    tidemark_migrate::refuse_begun(&request.job, "delta")?;
    let report = runtime()?.block_on(watched(&request, screen))?;
    match args.json {
        true => output::print_json(&report)?,
        false => output::print(&text(&report))?,
    }
    Ok(match () {
        () if report.refused() > 0 || report.has_failed() => ExitCode::Refused,
        () if report.has_skipped() => ExitCode::Incomplete,
        () => ExitCode::Done,
    })
}

fn actions(config: &Config, args: &DeltaArgs) -> Actions {
    let of = |flag: Option<DeltaAction>, configured| match flag.unwrap_or(configured) {
        DeltaAction::Apply => Action::Apply,
        DeltaAction::Report => Action::Report,
        DeltaAction::Skip => Action::Skip,
    };
    Actions {
        new: of(args.new, config.delta.new),
        modified: of(args.modified, config.delta.modified),
        deleted: of(args.deleted, config.delta.deleted),
        failed: of(args.failed, config.delta.failed),
        unfiltered: of(args.unfiltered, config.delta.unfiltered),
    }
}

/// Runs it, and says how far it is.
async fn watched(request: &Request, screen: &Screen) -> Result<DeltaReport, Failure> {
    let stop = CancellationToken::new();
    let say = || screen.progress_line(&line(&request.progress));
    Ok(stoppable(delta(request, &stop), &stop, (SAY_EVERY, say)).await??)
}

fn line(progress: &Progress) -> String {
    let read = progress.read(Which::Source) + progress.read(Which::Target);
    format!("read {} of rows\n", output::bytes(read))
}

fn text(report: &DeltaReport) -> String {
    let mut text = String::new();
    for table in &report.tables {
        text.push_str(&table_text(table, report.dry_run));
    }
    let moved = report.tables.iter().flat_map(|table| &table.classes);
    let (rows, bytes) =
        moved.fold((0, 0), |(rows, bytes), class| (rows + class.moved, bytes + class.bytes));
    let verb = if report.dry_run { "would be moved" } else { "moved" };
    text.push_str(&format!(
        "{}: {} rows {verb}, about {}, {} refused{}, in {:.1} s\n",
        report.job,
        output::count(rows),
        output::bytes(bytes),
        output::count(report.refused()),
        report.lsn.as_ref().map_or(String::new(), |lsn| format!(", as of {lsn} of the source")),
        Duration::from_millis(report.duration_ms).as_secs_f64(),
    ));
    text
}

fn table_text(table: &TableDelta, dry_run: bool) -> String {
    let name = format!("{}.{}", table.schema, table.table);
    if let Some(because) = &table.skipped_reason {
        return format!("{name}  left out: {because}\n");
    }
    if let Some(because) = &table.failed {
        return format!("{name}  nothing was moved: {because}\n");
    }
    let with = match table.compared_with {
        Some(ComparedWith::Ledger) => "the run before",
        Some(ComparedWith::Target) => "the target",
        _ => "nothing",
    };
    let mut text = format!("{name}  {} rows, compared with {with}\n", output::count(table.rows));
    for class in table.classes.iter().filter(|class| class.found > 0) {
        let done = match (class.action, dry_run) {
            (Action::Apply, false) => format!("{} moved", output::count(class.moved)),
            (Action::Apply, true) => {
                format!(
                    "{} to be moved, about {}",
                    output::count(class.moved),
                    output::bytes(class.bytes)
                )
            }
            _ => "only reported".to_owned(),
        };
        let found = output::count(class.found);
        text.push_str(&format!("  {:<11}{found:>12}  {done}\n", class.class.word()));
    }
    for (why, rows) in &table.refusals {
        text.push_str(&format!(
            "  refused    {:>12}  {why}; tried again by the next run\n",
            output::count(*rows)
        ));
    }
    text
}
