//! Runs the commands that move data: from the configuration to a pipeline's job, and from its end to an exit code.
//!
//! **Invariant:** results go to stdout once, at the end. SIGINT and SIGTERM stop a job cleanly; a second one ends the
//! process at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidemark_model::{Finding, RelationName, Severity};
use tidemark_pipeline as pipeline;
use tidemark_pipeline::{Hypercare, Job, Progress, Report, SequenceRoom, Status, SyncReport};
use tokio_util::sync::CancellationToken;

use crate::args::{CheckArgs, NotEmpty, StatusArgs, SyncArgs, Until};
use crate::config::Config;
use crate::exit::{ExitCode, Failure};
use crate::job;
use crate::log::Screen;
use crate::output;
use crate::progress as bars;
use crate::running::{LOOK_EVERY, runtime, stoppable};
use crate::serve::{Serving, serve};
use crate::waves;

/// Who has not answered for so many seconds is said not to.
const SILENT_FROM: f64 = 5.0;
/// Between two answers of `status --watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// `tidemark check`.
pub fn check(config: &Config, args: &CheckArgs, screen: &Screen) -> Result<ExitCode, Failure> {
    let findings = found(config, !args.snapshot_only)?;
    if args.json {
        output::print_json(&findings)?;
    } else {
        output::print(&output::findings(&findings, screen.color_stdout))?;
    }
    let blocks = findings.iter().any(|finding| finding.severity == Severity::Blocking);
    Ok(if blocks { ExitCode::Blocked } else { ExitCode::Done })
}

/// What is found of every wave, each once, and between them.
fn found(config: &Config, follows: bool) -> Result<Vec<Finding>, Failure> {
    let jobs = |parts: &[Config]| -> Result<Vec<Job>, Failure> {
        parts.iter().map(|part| job::job(part, NotEmpty::Refuse, follows)).collect()
    };
    let meant = jobs(&waves::with_tables(config)?)?;
    let all = jobs(&Config { wave: None, ..config.clone() }.parts())?;
    let found = runtime()?.block_on(async {
        let mut findings: Vec<Finding> = Vec::new();
        for job in &meant {
            let of_job = pipeline::check(job).await?;
            if let Err(error) = tidemark_migrate::note_checked(&job.state_dir, &of_job) {
                tracing::debug!(%error, "what was found is not noted");
            }
            for finding in of_job {
                if !findings.contains(&finding) {
                    findings.push(finding);
                }
            }
        }
        findings.extend(pipeline::ties_between_waves(&all, config.wave.as_deref()).await?);
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Ok::<_, pipeline::Error>(findings)
    });
    Ok(found?)
}

/// `tidemark sync`.
pub fn sync(config: &Config, args: &SyncArgs, screen: &Screen) -> Result<ExitCode, Failure> {
    waves::refuse_begun_whole(config)?;
    let parts = waves::with_tables(config)?;
    match parts.as_slice() {
        [part] => sync_one(part, args, screen),
        _ if args.snapshot_only => waves::each(config, screen, |part| sync_one(part, args, screen)),
        parts => sync_waves(config, parts, args, screen),
    }
}

/// All waves in one process.
fn sync_waves(
    config: &Config,
    parts: &[Config],
    args: &SyncArgs,
    screen: &Screen,
) -> Result<ExitCode, Failure> {
    let jobs = parts.iter().map(|part| job::job(part, args.target_not_empty, true));
    let jobs: Vec<Job> = jobs.collect::<Result<_, _>>()?;
    let ended = runtime()?.block_on(async {
        let _serving = match config.listen {
            Some(listen) => Some(serving(listen, &jobs).await?),
            None => None,
        };
        waves::sync(&jobs, until(args), screen).await
    })?;
    let mut codes = Vec::new();
    let mut reports = Vec::new();
    for ended in ended {
        match ended {
            Ok(report) => {
                codes.push(code_of(&report));
                reports.push(report);
            }
            Err(code) => codes.push(code),
        }
    }
    if args.json {
        output::print_json(&reports)?;
    } else {
        reports.into_iter().try_for_each(|report| tell(report, screen))?;
    }
    Ok(ExitCode::worst(codes))
}

fn sync_one(config: &Config, args: &SyncArgs, screen: &Screen) -> Result<ExitCode, Failure> {
    let job = job::job(config, args.target_not_empty, !args.snapshot_only)?;
    if args.snapshot_only {
        tidemark_migrate::refuse_begun(&job, "sync --snapshot-only")?;
        let report = runtime()?.block_on(snapshot(&job, screen))?;
        let code = copied(&report);
        if args.json {
            output::print_json(&report)?;
        } else {
            output::print(&output::summary(&report.into(), screen.color_stdout))?;
        }
        return Ok(code);
    }
    let until = until(args);
    let report = runtime()?.block_on(async {
        let _serving = match config.listen {
            Some(listen) => Some(serving(listen, std::slice::from_ref(&job)).await?),
            None => None,
        };
        let run = async |progress: &Arc<Progress>, stop: &CancellationToken| {
            tidemark_migrate::sync(&job, progress, until, stop).await
        };
        shown(screen, run).await
    })?;
    let code = code_of(&report);
    match args.json {
        true => output::print_json(&report)?,
        false => tell(report, screen)?,
    }
    Ok(code)
}

fn until(args: &SyncArgs) -> Option<pipeline::Until> {
    args.until.map(|until| match until {
        Until::Now => pipeline::Until::Now,
        Until::Lsn(lsn) => pipeline::Until::Lsn(lsn),
    })
}

/// Says what was left out or stands still; the code of a run that has ended.
fn code_of(report: &SyncReport) -> ExitCode {
    let copies = [report.snapshot.as_ref(), report.joined.as_ref()];
    let code = ExitCode::worst(copies.into_iter().flatten().map(copied));
    if stopped(report) { ExitCode::Refused } else { code }
}

fn tell(report: SyncReport, screen: &Screen) -> Result<(), Failure> {
    let is_reconciled = report.snapshot.as_ref().is_some_and(|copy| !copy.reconciled.is_empty());
    let text = format!(
        "{} is at {}: {} transactions with {} changes followed in {:.1} s; {} goes on from there\n",
        report.job,
        report.end_lsn,
        output::count(report.transactions),
        output::count(report.changes),
        Duration::from_millis(report.duration_ms).as_secs_f64(),
        // The other flags would have everything compared again.
        if is_reconciled { "tidemark sync" } else { "the same command" },
    );
    for report in [report.snapshot, report.joined].into_iter().flatten() {
        output::print(&match report.reconciled.as_slice() {
            [] => output::summary(&report.into(), screen.color_stdout),
            tables => output::reconciled(tables, screen.color_stdout),
        })?;
    }
    output::print(&text)
}

/// Listens for whoever watches. Where the job runs already, that is what is wrong, and not the address that it has.
async fn serving(listen: SocketAddr, jobs: &[Job]) -> Result<Serving, Failure> {
    match serve(listen, jobs).await {
        Ok(serving) => Ok(serving),
        Err(failure) => {
            for job in jobs {
                pipeline::refuse_running(job).await?;
            }
            Err(failure)
        }
    }
}

/// Says which tables stand still; whether any does.
fn stopped(report: &pipeline::SyncReport) -> bool {
    for table in &report.stopped {
        tracing::error!(
            table = %table.name, because = table.because,
            "the table is stopped: make the same change on the target by hand, then tidemark reset {} --yes lets it join again",
            table.name.plain()
        );
    }
    !report.stopped.is_empty()
}

/// Says what was not copied; the code of a copy.
fn copied(report: &Report) -> ExitCode {
    for name in &report.gone {
        tracing::error!(relation = %name, "dropped on the source before it could be locked: not copied");
    }
    if report.gone.is_empty() { ExitCode::Done } else { ExitCode::Incomplete }
}

/// `tidemark status`.
pub fn status(config: &Config, args: &StatusArgs) -> Result<ExitCode, Failure> {
    runtime()?.block_on(async {
        loop {
            let status = match config.waves.is_empty() {
                true => waves::read_status(config).await?,
                false => waves::status(config).await?,
            };
            match (args.json, args.watch) {
                (true, true) => output::print_json_line(&status)?,
                (true, false) => output::print_json(&status)?,
                (false, _) => output::print(&status_text(&status))?,
            }
            if !args.watch || !status.is_running {
                return Ok(ExitCode::Done);
            }
            tokio::select! {
                () = tokio::time::sleep(WATCH_EVERY) => {}
                _ = tokio::signal::ctrl_c() => return Ok(ExitCode::Done),
            }
        }
    })
}

/// `tidemark reset TABLE... --yes`.
pub fn reset(config: &Config, tables: Vec<RelationName>) -> Result<ExitCode, Failure> {
    let config = &waves::one(config, "reset")?;
    let job = tidemark_migrate::active(&job::job(config, NotEmpty::Refuse, true)?)?;
    let mut text = String::new();
    runtime()?.block_on(async {
        let of_delta = tidemark_migrate::delta::forget(&job, &tables).await?;
        for table in &of_delta {
            text.push_str(&format!("{table} is all new to the next tidemark delta\n"));
        }
        let others: Vec<RelationName> =
            tables.into_iter().filter(|table| !of_delta.contains(table)).collect();
        if others.is_empty() {
            return Ok(());
        }
        for table in pipeline::reset(&job, &others).await? {
            text.push_str(&format!("{table} joins again with the next tidemark sync\n"));
        }
        Ok::<_, pipeline::Error>(())
    })?;
    output::print(&text)?;
    Ok(ExitCode::Done)
}

/// `tidemark cleanup --yes`.
pub fn cleanup(config: &Config, screen: &Screen) -> Result<ExitCode, Failure> {
    waves::each_that_has_run(config, screen, cleanup_one)
}

fn cleanup_one(config: &Config) -> Result<ExitCode, Failure> {
    let job = job::job(config, NotEmpty::Refuse, false)?;
    let done = runtime()?.block_on(async {
        let mut done = tidemark_migrate::cleanup(&job).await?;
        done.extend(tidemark_verify::cleanup_selftest(&job).await?);
        Ok::<_, pipeline::Error>(done)
    })?;
    let text =
        if done.is_empty() { "nothing to clean up\n".to_owned() } else { done.join("\n") + "\n" };
    output::print(&text)?;
    Ok(ExitCode::Done)
}

/// Runs the snapshot with progress and signals.
async fn snapshot(job: &Job, screen: &Screen) -> Result<Report, Failure> {
    shown(screen, async |progress, stop| pipeline::snapshot_only(job, progress, stop).await).await
}

/// Runs a job with progress and signals.
async fn shown<T>(
    screen: &Screen,
    run: impl AsyncFnOnce(&Arc<Progress>, &CancellationToken) -> pipeline::Result<T>,
) -> Result<T, Failure> {
    let progress = Arc::new(Progress::default());
    let stop = CancellationToken::new();
    let mut shower = bars::Progress::new(screen);
    let show = || shower.show(&progress.view().into());
    let ended = stoppable(run(&progress, &stop), &stop, (LOOK_EVERY, show)).await?;
    shower.finish();
    ended.map_err(|error| with_findings(error, screen))
}

/// An error, after what blocks was told.
pub(crate) fn with_findings(error: pipeline::Error, screen: &Screen) -> Failure {
    if !error.findings.is_empty() {
        screen.say(&output::findings(&error.findings, screen.color_stderr));
    }
    error.into()
}

fn status_text(status: &Status) -> String {
    let snapshot = &status.snapshot;
    let mut text = waves::text(&status.waves);
    text.push_str(&format!(
        "job        {}\nphase      {}{}\n",
        status.job,
        serde_json::to_value(status.phase)
            .ok()
            .and_then(|phase| phase.as_str().map(str::to_owned))
            .unwrap_or_default(),
        if status.activity.is_empty() { String::new() } else { format!(" ({})", status.activity) },
    ));
    // A process that goes on after the snapshot copies nothing.
    if snapshot.tables_total > 0 {
        text.push_str(&format!(
            "snapshot   {} of {} tables, {} rows, {} of {}\n",
            snapshot.tables_done,
            snapshot.tables_total,
            output::count(snapshot.rows_done),
            output::bytes(snapshot.bytes_done),
            output::bytes(snapshot.bytes_total),
        ));
    }
    for table in &snapshot.active {
        text.push_str(&format!(
            "  {:<9}{}  {} of about {} rows\n",
            table.stage,
            table.name,
            output::count(table.rows_done),
            output::count(table.rows_estimate)
        ));
    }
    text.push_str(&lag_text(status));
    if let Some(hypercare) = &status.hypercare {
        text.push_str(&hypercare_text(hypercare));
    }
    if let Some(error) = &status.last_error {
        text.push_str(&format!("last error {error}\n"));
    }
    text
}

/// What is to be watched after a cutover.
fn hypercare_text(hypercare: &Hypercare) -> String {
    let ago = |seconds: f64| output::duration(Duration::from_secs_f64(seconds.max(0.0)));
    let mut text =
        format!("on target  for {}; tidemark fallback goes back\n", ago(hypercare.seconds));
    if let (Some(verdict), Some(seconds)) =
        (&hypercare.last_verdict, hypercare.last_verdict_seconds)
    {
        let lsn = hypercare.last_verdict_lsn.map_or_else(String::new, |lsn| format!(" at {lsn}"));
        text.push_str(&format!("verified   {verdict}{lsn}, {} ago\n", ago(seconds)));
    }
    if let Some(SequenceRoom { name, free }) = &hypercare.fullest_sequence {
        text.push_str(&format!("sequences  {:.1} % left of {name}, the fullest\n", free * 100.0));
    }
    text
}

/// The lag ladder: each step with what lies between it and the source's head.
fn lag_text(status: &Status) -> String {
    let lag = &status.lag;
    let Some(head) = lag.head_lsn else {
        return lag.durable_lsn.map_or_else(String::new, |lsn| format!("durable    {lsn}\n"));
    };
    let mut text = String::new();
    let steps = [
        ("head", lag.head_lsn),
        ("sent", lag.sent_lsn),
        ("received", lag.received_lsn),
        ("applied", lag.applied_lsn),
        ("durable", lag.durable_lsn),
    ];
    for (name, lsn) in steps {
        let Some(lsn) = lsn else { continue };
        let behind = output::bytes(head.bytes_since(lsn));
        text.push_str(&format!("{name:<11}{lsn}  {behind} behind\n"));
    }
    let stream = &status.stream;
    text.push_str(&format!(
        "lag        {} and {:.1} s\nstream     {} transactions, {} changes, {} changes/s\nkept       {} of WAL on the source, {} in the spool\n",
        output::bytes(lag.bytes.unwrap_or_default()),
        lag.seconds.unwrap_or_default(),
        output::count(stream.transactions),
        output::count(stream.changes),
        output::count(stream.changes_per_second as u64),
        output::bytes(status.retained_wal_bytes),
        output::bytes(status.spool_bytes),
    ));
    if let Some(silent) = lag.source_silent_seconds.filter(|silent| *silent >= SILENT_FROM) {
        text.push_str(&format!(
            "silent     {}, which is followed, has not answered for {silent:.0} s: the lag is as of then\n",
            if status.hypercare.is_some() { "the target's server" } else { "the source" },
        ));
    }
    if stream.lanes > 1 {
        text.push_str(&format!(
            "lanes      {}: the target is one state of the source between batches only\n",
            stream.lanes
        ));
    }
    if let Some(others) = &status.retained_by_others {
        text.push_str(&format!("kept by    {others}\n"));
    }
    text
}
