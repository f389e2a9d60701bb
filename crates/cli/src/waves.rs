//! Commands of a configuration with waves: each wave is a job of its own, and a command is about all of them or about one.
//!
//! **Invariant:** one wave that fails takes no other with it, and is told: the exit code is that of the worst.

use std::sync::Arc;

use tidemark_migrate::state;
use tidemark_model::names::{REST, other_way};
use tidemark_pipeline as pipeline;
use tidemark_pipeline::{Job, Phase, Progress, Status, SyncReport, WaveStatus};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::args::NotEmpty;
use crate::config::Config;
use crate::exit::{ExitCode, Failure};
use crate::job;
use crate::log::Screen;
use crate::output;
use crate::progress::{self as bars, View};
use crate::running::{LOOK_EVERY, runtime, stoppable};

/// The wave that a command is about which takes one at a time; the configuration itself where there are none.
///
/// # Errors
/// There are several, and none is named.
pub(crate) fn one(config: &Config, what: &str) -> Result<Config, Failure> {
    let mut parts = config.parts();
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let names: Vec<&str> = parts.iter().map(name).collect();
    Err(Failure::usage(format!("{what}: the configuration has several waves"))
        .hint(format!("name one by --wave: {}", names.join(", "))))
}

/// The wave of a job's name, in either direction.
///
/// # Errors
/// There is none.
pub(crate) fn of_job(config: &Config, job: &str) -> Result<Config, Failure> {
    let parts = config.parts();
    let is_it = |part: &Config| part.job.name == job || other_way(&part.job.name) == job;
    let found = parts.iter().find(|part| config.waves.is_empty() || is_it(part)).cloned();
    found.ok_or_else(|| {
        Failure::usage(format!("find the wave of job {job:?}: the configuration has none"))
    })
}

/// Runs a command for one wave after the other.
///
/// # Errors
/// Of the one wave or the one job that there is; of several it is told, and the others come all the same.
pub(crate) fn each(
    config: &Config,
    screen: &Screen,
    mut run: impl FnMut(&Config) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    of_each(&with_tables(config)?, screen, &mut run)
}

/// The same, for those that have a state directory; no server is asked which that are.
///
/// # Errors
/// As [`each`].
pub(crate) fn each_that_has_run(
    config: &Config,
    screen: &Screen,
    mut run: impl FnMut(&Config) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let mut parts = config.parts();
    if parts.iter().any(|part| part.job.state_dir.exists()) {
        parts.retain(|part| part.job.state_dir.exists());
    }
    of_each(&parts, screen, &mut run)
}

fn of_each(
    parts: &[Config],
    screen: &Screen,
    run: &mut impl FnMut(&Config) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    if let [part] = parts {
        return run(part);
    }
    let codes = parts.iter().map(|part| {
        screen.say(&format!("wave {}:\n", name(part)));
        run(part).unwrap_or_else(|failure| {
            screen.say(&failure.to_text());
            failure.code
        })
    });
    Ok(ExitCode::worst(codes.collect::<Vec<_>>()))
}

/// The waves that have tables, which others may name or `--table` leave out, and are not at their end.
///
/// # Errors
/// The source cannot be reached, or a table is in two waves.
pub(crate) fn with_tables(config: &Config) -> Result<Vec<Config>, Failure> {
    let parts = config.parts();
    if config.waves.is_empty() || parts.len() == 1 {
        return Ok(parts);
    }
    runtime()?.block_on(async {
        let mut kept = Vec::new();
        for part in &parts {
            if state(&part.job.state_dir)?.is_complete {
                tracing::info!(
                    wave = name(part),
                    "the migration of this wave is complete: it is left out"
                );
                continue;
            }
            if pipeline::has_tables(&job::job(part, NotEmpty::Refuse, true)?).await? {
                kept.push(part.clone());
            } else if part.job.state_dir.exists() {
                tracing::warn!(
                    wave = name(part),
                    "it has no tables any more and is left out, and its slot keeps WAL: tidemark cleanup --wave W --yes drops it"
                );
            }
        }
        Ok(if kept.is_empty() { parts } else { kept })
    })
}

pub(crate) fn name(part: &Config) -> &str {
    part.part.as_ref().map_or(&part.job.name, |part| &part.name)
}

/// Follows all of them in this process, until the last has ended; what came of each. What one ends with is told at once.
pub(crate) async fn sync(
    jobs: &[Job],
    until: Option<pipeline::Until>,
    screen: &Screen,
) -> Result<Vec<Result<SyncReport, ExitCode>>, Failure> {
    let stop = CancellationToken::new();
    let progresses: Vec<Arc<Progress>> = jobs.iter().map(|_| Arc::default()).collect();
    let _stopped = stop.clone().drop_guard();
    let (runtime, mut running) = (Handle::current(), JoinSet::new());
    for (index, (job, progress)) in jobs.iter().zip(&progresses).enumerate() {
        let (job, progress) = (job.clone(), Arc::clone(progress));
        let (stop, screen, runtime) = (stop.clone(), screen.clone(), runtime.clone());
        // A thread for each, as a process with one job has one.
        running.spawn_blocking(move || {
            let ended = runtime.block_on(tidemark_migrate::sync(&job, &progress, until, &stop));
            (index, ended.map_err(|error| tell(&job, error, &screen)))
        });
    }
    let all = async {
        let mut ended = Vec::new();
        while let Some(one) = running.join_next().await {
            // A panic of one is a panic of the process, as it is with one job.
            ended.push(one.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
        }
        ended.sort_by_key(|(index, _)| *index);
        Ok(ended.into_iter().map(|(_, ended)| ended).collect())
    };
    let mut shower = bars::Progress::new(screen);
    let show = || shower.show(&together(jobs, &progresses));
    let ended = stoppable(all, &stop, (LOOK_EVERY, show)).await?;
    shower.finish();
    Ok(ended?)
}

/// Says what a wave has ended with, while the others go on.
fn tell(job: &Job, error: pipeline::Error, screen: &Screen) -> ExitCode {
    if !error.findings.is_empty() {
        screen.say(&output::findings(&error.findings, screen.color_stderr));
    }
    let failure = Failure::from(error);
    screen.say(&format!("wave {} has ended:\n{}", wave_of(job), failure.to_text()));
    failure.code
}

fn wave_of(job: &Job) -> &str {
    job.wave.as_ref().map_or(&job.name, |wave| &wave.name)
}

/// How far all of them are.
fn together(jobs: &[Job], progresses: &[Arc<Progress>]) -> View {
    let views = progresses.iter().map(|progress| View::from(progress.view()));
    let mut sum = View::default();
    let mut phases: Vec<String> = Vec::new();
    for (job, view) in jobs.iter().zip(views) {
        phases.push(format!("{} {}", wave_of(job), view.phase));
        sum.tables_done += view.tables_done;
        sum.tables_total += view.tables_total;
        sum.rows_done += view.rows_done;
        sum.bytes_done += view.bytes_done;
        sum.bytes_total += view.bytes_total;
        sum.active.extend(view.active);
        sum.elapsed = sum.elapsed.max(view.elapsed);
    }
    sum.phase = phases.join(", ");
    sum
}

/// Of one job.
pub(crate) async fn read_status(config: &Config) -> Result<Status, Failure> {
    let state_dir = &config.job.state_dir;
    match tidemark_migrate::ask_status(state_dir).await? {
        Some(status) => Ok(status),
        None => Ok(tidemark_migrate::stored_status(state_dir, &config.job.name)?),
    }
}

/// The status of all waves: that of the slowest, with a line for each.
///
/// # Errors
/// None has ever run, or a ledger cannot be read.
pub(crate) async fn status(config: &Config) -> Result<Status, Failure> {
    let mut statuses = Vec::new();
    for part in config.parts() {
        if !part.job.state_dir.exists() && name(&part) == REST && config.wave.is_none() {
            continue;
        }
        let status = match read_status(&part).await {
            Err(failure) if failure.code == ExitCode::Usage => Status {
                job: part.job.name.clone(),
                phase: Phase::Stopped,
                activity: "it has never run; start it with tidemark sync".to_owned(),
                ..Status::default()
            },
            status => status?,
        };
        statuses.push((name(&part).to_owned(), part.job.state_dir.clone(), status));
    }
    summary(statuses)
}

/// Of several waves one status; `state_dir` is the wave's own.
pub(crate) fn summary(
    statuses: Vec<(String, std::path::PathBuf, Status)>,
) -> Result<Status, Failure> {
    let mut waves = Vec::new();
    for (name, state_dir, status) in &statuses {
        waves.push(wave_status(name, state_dir, status)?);
    }
    let is_running = statuses.iter().any(|(_, _, status)| status.is_running);
    let slowest = statuses.into_iter().map(|(_, _, status)| status).min_by(|one, other| {
        let seconds = |status: &Status| status.lag.seconds.unwrap_or_default();
        let by_lag = seconds(other).total_cmp(&seconds(one));
        rank(one).cmp(&rank(other)).then(by_lag).then(other.lag.bytes.cmp(&one.lag.bytes))
    });
    let Some(slowest) = slowest else {
        return Err(Failure::internal("read the status of a configuration without waves"));
    };
    Ok(Status { is_running, waves, ..slowest })
}

/// The earlier, the further it has to go.
fn rank(status: &Status) -> usize {
    let order = [
        Phase::Stopped,
        Phase::Check,
        Phase::Prepare,
        Phase::Snapshot,
        Phase::Follow,
        Phase::Fence,
        Phase::Drain,
        Phase::Verify,
        Phase::Switch,
        Phase::Fallback,
        Phase::Hypercare,
        Phase::Complete,
    ];
    order.iter().position(|phase| *phase == status.phase).unwrap_or_default()
}

fn wave_status(
    name: &str,
    state_dir: &std::path::Path,
    status: &Status,
) -> Result<WaveStatus, Failure> {
    // One that has never run has no journal.
    let has_run = state_dir.exists();
    let verdict = if has_run { tidemark_migrate::last_verdict(state_dir)? } else { None };
    Ok(WaveStatus {
        name: name.to_owned(),
        phase: status.phase,
        lag: status.lag.clone(),
        verdict: verdict.map(|verdict| verdict.word().to_owned()),
    })
}

/// A line for each wave.
pub(crate) fn text(waves: &[WaveStatus]) -> String {
    let line = |wave: &WaveStatus| {
        let lag = match (wave.lag.bytes, wave.lag.seconds) {
            (Some(bytes), seconds) => {
                format!("{} and {:.1} s behind", output::bytes(bytes), seconds.unwrap_or_default())
            }
            (None, _) => "no stream".to_owned(),
        };
        let verdict = wave.verdict.as_ref().map_or_else(String::new, |v| format!("  {v}"));
        let phase = serde_json::to_value(wave.phase).unwrap_or_default();
        let phase = phase.as_str().unwrap_or_default();
        format!("wave       {:<20} {phase:<10} {lag}{verdict}\n", wave.name)
    };
    waves.iter().map(line).collect()
}

/// Refuses to part what was begun as a whole: its slot would stay, and the source would keep WAL for it.
///
/// # Errors
/// It was.
pub(crate) fn refuse_begun_whole(config: &Config) -> Result<(), Failure> {
    let (state_dir, name) = (&config.job.state_dir, &config.job.name);
    let whole = match config.waves.is_empty() {
        true => return Ok(()),
        false => tidemark_ledger::LedgerReader::open(state_dir).ok(),
    };
    let run = whole.and_then(|ledger| ledger.run().ok().flatten());
    if run.is_none_or(|run| run.phase == "cleaned") {
        return Ok(());
    }
    Err(Failure::usage(format!("job {name:?} was begun without waves: {} has its state", state_dir.display()))
        .hint("give it another state_dir and job.name; or take [[wave]] out, run tidemark cleanup --yes, and begin anew on an empty target"))
}
