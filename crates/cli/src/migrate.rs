//! `cutover`, `fallback` and `complete`: what they ask, and how what was done is told.

use std::io::{BufRead as _, IsTerminal as _};
use std::time::Duration;

use tidemark_migrate::{Ended, Fence, Hook, How, Migration, Plan, Way};
use tidemark_pipeline::Wave;
use tidemark_report::Verdict;
use tokio_util::sync::CancellationToken;

use crate::args::{CleanupArgs, NotEmpty, SwitchArgs};
use crate::config::{Allow, Config};
use crate::exit::{ExitCode, Failure};
use crate::jobs::with_findings;
use crate::log::Screen;
use crate::running::{Signals, runtime};
use crate::{config, job, output, report, waves};

/// `tidemark cutover` and `tidemark fallback`.
///
/// # Errors
/// A step could not be done; the message says on which side the application writes.
pub(crate) fn switch(
    config: &Config,
    args: &SwitchArgs,
    way: Way,
    screen: &Screen,
) -> Result<ExitCode, Failure> {
    let config = &waves::one(config, way.word())?;
    let migration = migration(config)?;
    if args.abort {
        runtime()?.block_on(tidemark_migrate::abort(&migration, way))?;
        report::keep(config, screen);
        output::print(&format!(
            "the {} was taken back: the application writes where it did before\n",
            way.word()
        ))?;
        return Ok(ExitCode::Done);
    }
    let how = match (args.dry_run, args.resume) {
        (true, _) => How::DryRun,
        (_, true) => How::Resume,
        _ => How::Anew,
    };
    if how == How::Anew && !args.yes && !is_meant(&migration, way, screen)? {
        return Err(Failure::usage(format!("{}: not confirmed, nothing was changed", way.word())));
    }
    let ended = runtime()?.block_on(until_stopped(&migration, way, how, screen));
    let is_begun = ended.as_ref().err().is_none_or(|error| error.code != ExitCode::Usage);
    if how != How::DryRun && is_begun {
        report::keep(config, screen);
    }
    let ended = ended?;
    match args.json {
        true => output::print_json(&ended)?,
        false => output::print(&text(&ended, how, migration.job.wave.as_ref()))?,
    }
    Ok(code(&ended, how))
}

/// `tidemark complete`.
///
/// # Errors
/// The application is not on the target's side.
pub(crate) fn complete(
    config: &Config,
    args: &CleanupArgs,
    screen: &Screen,
) -> Result<ExitCode, Failure> {
    if !args.yes {
        return Err(Failure::usage(
            "complete drops the stream back to the source: there is no way back any more",
        )
        .hint("add --yes if that is meant"));
    }
    let config = &waves::one(config, "complete")?;
    let job = job::job(config, NotEmpty::Refuse, true)?;
    let done = runtime()?.block_on(tidemark_migrate::complete(&job))?;
    output::print(&format!("{}\nthe migration is complete\n", done.join("\n")))?;
    report::keep(config, screen);
    Ok(ExitCode::Done)
}

fn migration(config: &Config) -> Result<Migration, Failure> {
    let (job, cutover) = (job::job(config, NotEmpty::Refuse, true)?, config.cutover.clone());
    let plan = Plan {
        max_lag: cutover.max_lag,
        max_write_block: cutover.max_write_block,
        sequence_margin: cutover.sequence_margin,
        allows_equivalent: config.verify.allow.contains(&Allow::Equivalent),
        fence: match cutover.fence {
            config::Fence::ReadOnly if config.part.is_some() => Fence::Tables,
            config::Fence::ReadOnly => Fence::ReadOnly,
            config::Fence::Hooks(up, down) => Fence::Hooks { up: hook(up), down: hook(down) },
        },
        switch_hook: hook(cutover.switch),
        hook_timeout: cutover.hook_timeout,
    };
    Ok(Migration { job, plan })
}

fn hook(hook: config::Hook) -> Hook {
    match hook {
        config::Hook::None => Hook::None,
        config::Hook::Command(words) => Hook::Command(words),
        config::Hook::Url(url) => Hook::Url(url.reveal().to_owned()),
    }
}

/// Asks on a terminal; a script has said so by running it.
fn is_meant(migration: &Migration, way: Way, screen: &Screen) -> Result<bool, Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Ok(true);
    }
    let (from, to) = match way {
        Way::Cutover => ("source", "target"),
        Way::Fallback => ("target", "source"),
    };
    let what = match &migration.job.wave {
        Some(wave) => format!("the tables of wave {} on the {from} take no more writes", wave.name),
        None => format!("the {from} becomes read-only and its sessions are ended"),
    };
    screen.say(&format!(
        "{}: {what}; the application goes over to the {to}. Go on? [y/N] ",
        way.word()
    ));
    let mut line = String::new();
    let failed = |error: std::io::Error| Failure::internal("read the answer").because(&error);
    stdin.lock().read_line(&mut line).map_err(failed)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// A signal ends the process where it is: the journal knows how to go on.
async fn until_stopped(
    migration: &Migration,
    way: Way,
    how: How,
    screen: &Screen,
) -> Result<Ended, Failure> {
    let stop = CancellationToken::new();
    let mut signals = Signals::new()?;
    tokio::select! {
        ended = Box::pin(tidemark_migrate::run(migration, way, how, &stop)) => ended.map_err(|error| with_findings(error, screen)),
        () = signals.next() => {
            let attempt = format!("{}: interrupted", way.word());
            Err(Failure::new(ExitCode::Interrupted, attempt).hint(
                "--resume goes on, --abort takes it back as long as the other side is not open; until then writes may be blocked",
            ))
        }
    }
}

fn code(ended: &Ended, how: How) -> ExitCode {
    match ended.verdict {
        _ if ended.is_done => ExitCode::Done,
        Verdict::Identical if how == How::DryRun => ExitCode::Done,
        Verdict::Different => ExitCode::Different,
        Verdict::Equivalent => ExitCode::NotAllowed,
        Verdict::Identical | Verdict::Incomplete => ExitCode::Incomplete,
    }
}

fn forecast(ended: &Ended) -> String {
    ended.forecast_ms.map_or_else(String::new, |ms| {
        format!(
            "nobody could write for about {ms} ms, with the application writing as it does now\n"
        )
    })
}

fn text(ended: &Ended, how: How, wave: Option<&Wave>) -> String {
    let mut text = String::new();
    for (step, ms) in &ended.steps {
        text.push_str(&format!(
            "{:<10} {:>9.3} s\n",
            step.word(),
            Duration::from_millis(*ms).as_secs_f64()
        ));
    }
    let way = ended.way.word();
    if !ended.is_done {
        let verdict = serde_json::to_value(ended.verdict).ok();
        let verdict = verdict.as_ref().and_then(|word| word.as_str()).unwrap_or_default();
        text.push_str(&match how {
            How::DryRun => format!("{way}: tried out, nothing was changed; the proof says {verdict}\n{}", forecast(ended)),
            _ => format!("{way}: not done, the proof says {verdict} (tidemark verify tells more); the application writes where it did before\n"),
        });
        return text;
    }
    if let Some(ms) = ended.write_block_ms {
        text.push_str(&format!("writes were blocked for {ms} ms\n"));
    }
    text.push_str(&match (ended.way, wave.map(|wave| &wave.name)) {
        (Way::Cutover, None) => "the application is on the target now; the source is read-only, and tidemark fallback goes back\n".to_owned(),
        (Way::Fallback, None) => {
            "the application is on the source again; the target is read-only\n".to_owned()
        }
        (Way::Cutover, Some(wave)) => format!("wave {wave} is on the target now; its tables on the source take no writes, and tidemark fallback --wave {wave} goes back\n"),
        (Way::Fallback, Some(wave)) => format!("wave {wave} is on the source again; its tables on the target take no writes\n"),
    });
    if !ended.is_followed {
        text.push_str("nothing follows it now: keep tidemark sync running\n");
    }
    text
}
