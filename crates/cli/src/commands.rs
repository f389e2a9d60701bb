//! What each command does.
//!
//! **Invariant:** a command prints its result and gives the exit code; everything that goes wrong is a [`Failure`]. What an
//! argument demands (`--yes`, `--snapshot-only`) is asked for here, before any server is.

use clap::CommandFactory as _;
use tidemark_migrate::{Direction, Way};
use tidemark_model::{RelationName, names};

use crate::args::{Cli, Command, ConfigCommand, Global, NotEmpty, SyncArgs, VerifyCommand};
use crate::config::{self, Config, Needs};
use crate::delta;
use crate::demo;
use crate::exit::{ExitCode, Failure};
use crate::jobs;
use crate::log::Screen;
use crate::migrate;
use crate::output;
use crate::redact;
use crate::repair;
use crate::report;
use crate::selftest;
use crate::verify;
use crate::waves;

/// Runs one command.
///
/// # Errors
/// It did not end well.
pub fn run(cli: &Cli, screen: &Screen) -> Result<ExitCode, Failure> {
    match &cli.command {
        Command::Config(args) => config_command(args.command, &cli.global),
        Command::Completions { shell } => completions(*shell),
        Command::Man => man(),
        Command::Sync(args) => {
            demands_of_sync(args)?;
            jobs::sync(&load(&cli.global, Needs::Both)?, args, screen)
        }
        Command::Check(args) => jobs::check(&load(&cli.global, Needs::Both)?, args, screen),
        Command::Verify(args) => {
            let config = load(&cli.global, Needs::Both)?;
            waves::each(&config, screen, |config| match &args.command {
                Some(VerifyCommand::Selftest(args)) => selftest::run(config, args, screen),
                None => verify::run(config, args, screen),
            })
        }
        Command::Repair(args) => repair::run(&load(&cli.global, Needs::Both)?, args, screen),
        Command::Delta(args) => {
            let config = load(&cli.global, Needs::Both)?;
            waves::each(&config, screen, |config| delta::run(config, args, screen))
        }
        Command::Status(args) => jobs::status(&load(&cli.global, Needs::Job)?, args),
        Command::Reset(args) => {
            if !args.yes {
                return Err(Failure::usage(
                    "reset gives the rows of tables on the target up; the next sync copies them again",
                )
                .hint("add --yes if that is meant"));
            }
            let tables =
                args.tables.iter().map(|text| table_name(text)).collect::<Result<_, _>>()?;
            jobs::reset(&load(&cli.global, Needs::Both)?, tables)
        }
        Command::Cutover(args) => {
            migrate::switch(&load(&cli.global, Needs::Both)?, args, Way::Cutover, screen)
        }
        Command::Fallback(args) => {
            migrate::switch(&load(&cli.global, Needs::Both)?, args, Way::Fallback, screen)
        }
        Command::Complete(args) => {
            migrate::complete(&load(&cli.global, Needs::Both)?, args, screen)
        }
        Command::Report(args) => report::run(&load(&cli.global, Needs::Job)?, args, screen),
        Command::Cleanup(args) => {
            let config = load(&cli.global, Needs::Both)?;
            if !args.yes {
                return Err(cleanup_without_yes(&config));
            }
            jobs::cleanup(&config, screen)
        }
        Command::Demo(args) => {
            demands_of_demo(&cli.global)?;
            demo::run(args, screen)
        }
    }
}

/// The demonstration makes its own job.
fn demands_of_demo(global: &Global) -> Result<(), Failure> {
    let is_named = global.source.is_some()
        || global.target.is_some()
        || global.config.is_some()
        || global.job.is_some()
        || global.state_dir.is_some()
        || global.wave.is_some()
        || !global.tables.is_empty();
    if is_named {
        return Err(Failure::usage(
            "demo starts its own servers: it takes no --config, --source, --target, --table, --job, --wave or --state-dir",
        )
        .hint("for your own database: tidemark check, then tidemark sync --snapshot-only"));
    }
    Ok(())
}

fn load(global: &Global, needs: Needs) -> Result<Config, Failure> {
    let config = config::load(global, needs)?;
    tracing::debug!(
        job = config.job.name,
        file = config.file.as_ref().map(|file| file.display().to_string()),
        source = config.source.as_ref().map(|source| redact::connection(source.url.reveal())),
        target = config.target.as_ref().map(|target| target.url.redacted()),
        "configuration loaded"
    );
    Ok(config)
}

/// Refuses what `sync` cannot do, or must not do without being told twice.
///
/// # Errors
/// Exit code 2.
pub fn demands_of_sync(args: &SyncArgs) -> Result<(), Failure> {
    match args.target_not_empty {
        NotEmpty::Reconcile if args.snapshot_only => Err(Failure::usage(
            "--target-not-empty reconcile: it begins a stream, and --snapshot-only has none",
        )
        .hint("tidemark delta --scan-target moves what differs without following")),
        NotEmpty::Reconcile if !args.yes => Err(Failure::usage(
            "--target-not-empty reconcile overwrites and deletes rows of the chosen tables that differ from the source's",
        )
        .hint("add --yes if that is meant; before a cutover tidemark delta --scan-target --dry-run tells how many")),
        NotEmpty::Truncate if !args.yes => Err(Failure::usage(
            "--target-not-empty truncate empties the chosen tables of the target",
        )
        .hint("add --yes if that is meant")),
        _ => Ok(()),
    }
}

/// One table, not a pattern.
fn table_name(text: &str) -> Result<RelationName, Failure> {
    let parsed = config::TableGlob::parse(text).ok().and_then(|glob| glob.exact());
    parsed.ok_or_else(|| {
        Failure::usage(format!("reset: {text:?} is no table's name"))
            .hint("write schema.table, such as public.orders")
    })
}

fn cleanup_without_yes(config: &Config) -> Failure {
    let parts = config.parts();
    let objects: Vec<String> = parts.iter().map(|part| names::slot_name(&part.job.name)).collect();
    let jobs: Vec<String> = parts.iter().map(|part| format!("{:?}", part.job.name)).collect();
    let of_a_migration = parts.iter().any(|part| {
        tidemark_migrate::state(&part.job.state_dir)
            .is_ok_and(|state| state.direction == Direction::Back && !state.is_complete)
    });
    let more = match of_a_migration {
        true => "; the stream back goes, too: there is no way back then",
        false => "",
    };
    Failure::usage(format!(
        "cleanup would drop slot and publication {} on the source and the progress rows of the job {} and what a killed verify selftest left on the target, if they are there{more}",
        objects.join(", "),
        jobs.join(", "),
    ))
    .hint("add --yes if that is meant; the moved data stays")
}

fn config_command(command: ConfigCommand, global: &Global) -> Result<ExitCode, Failure> {
    match command {
        ConfigCommand::Example => output::print(&config::example::text())?,
        ConfigCommand::Schema => output::print_json(&config::schema::schema())?,
        ConfigCommand::Check => output::print(&in_force(&load(global, Needs::Both)?))?,
    }
    Ok(ExitCode::Done)
}

/// What is in force, aligned, with where each value comes from.
fn in_force(config: &Config) -> String {
    let mut text = match &config.file {
        Some(file) => format!("# {} is valid; in force:\n", file.display()),
        None => "# no file; in force:\n".to_owned(),
    };
    let width = config
        .in_force
        .iter()
        .map(|entry| entry.key.len() + entry.value.chars().count() + 3)
        .max()
        .unwrap_or_default()
        .min(80);
    for entry in &config.in_force {
        let line = format!("{} = {}", entry.key, entry.value);
        text.push_str(&format!("{line:width$}  # {}\n", entry.origin));
    }
    text
}

fn completions(shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tidemark", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::Done)
}

fn man() -> Result<ExitCode, Failure> {
    output::print(&crate::docs::man_page()?)?;
    Ok(ExitCode::Done)
}
