//! The arguments, as clap reads them.
//!
//! **Invariant:** nothing is validated here that depends on the configuration file.
//!
//! **Not here:** merging with the file ([`config`](crate::config)).

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tidemark_model::Lsn;

use crate::config::{Allow, DeltaAction, Level, Redact};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Move a live PostgreSQL database to PostgreSQL or Parquet.
///
/// Tidemark copies a database that is being written to, at one exact position, and counts and hashes every row on the
/// way. Results go to stdout, messages and progress to stderr.
#[derive(Debug, Parser)]
#[command(
    name = "tidemark",
    version,
    styles = STYLES,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  tidemark demo
  tidemark check --source postgres://app@db1/shop --target file:///lake
  tidemark sync --source postgres://repl@db1/shop --target postgres://load@db2/shop
  tidemark verify --source postgres://repl@db1/shop --target postgres://load@db2/shop
  tidemark config example > tidemark.toml

Passwords: PGPASSWORD, PGPASSFILE, PGSERVICE, or ${VAR} and ${file:PATH} in the configuration file;
other users of the machine can read the arguments of a process.

Exit codes: 0 done, 1 a difference was found, 2 mend the call or the configuration, 3 incomplete, 4 equal but written in
another way, 5 the check blocks, 6 the source cannot continue, 7 the target refused, 8 not reachable, 9 the job is held,
70 internal error, 130 interrupted."
)]
pub struct Cli {
    /// What is to be done.
    #[command(subcommand)]
    pub command: Command,
    /// What works with every command.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Configuration file; `-` reads it from stdin [default: tidemark.toml, if it exists].
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The database to read: postgres://USER@HOST/DATABASE, or keywords as in "host=db1 dbname=shop".
    #[arg(long, global = true, value_name = "URL", help_heading = "Job")]
    pub source: Option<String>,
    /// Where to write: a PostgreSQL URL, file:///DIRECTORY or s3://BUCKET/PREFIX.
    #[arg(long, global = true, value_name = "URL", help_heading = "Job")]
    pub target: Option<String>,
    /// Tables to move, SCHEMA.TABLE with * and ?; may be given more than once [default: all].
    #[arg(long = "table", global = true, value_name = "GLOB", help_heading = "Job")]
    pub tables: Vec<String>,
    /// Name of the job, 1 to 20 of a-z, 0-9 and - [default: the source database's name].
    #[arg(long, global = true, value_name = "NAME", help_heading = "Job")]
    pub job: Option<String>,
    /// Directory for the job's state [default: tidemark-state].
    #[arg(long, global = true, value_name = "DIR", help_heading = "Job")]
    pub state_dir: Option<PathBuf>,
    /// Only this wave of the configuration; tables that no [[wave]] names are the wave rest [default: all waves].
    #[arg(long, global = true, value_name = "WAVE", help_heading = "Job")]
    pub wave: Option<String>,
    /// Say more; twice: everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    pub verbose: u8,
    /// Say only what is wrong; no progress.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Output")]
    pub quiet: bool,
    /// Form of the messages on stderr.
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "text",
        help_heading = "Output"
    )]
    pub log_format: LogFormat,
    /// Colours; auto follows the terminal and NO_COLOR.
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        help_heading = "Output"
    )]
    pub color: ColorWhen,
    /// Progress: bars on a terminal, plain lines elsewhere.
    #[arg(
        long,
        global = true,
        value_name = "HOW",
        default_value = "auto",
        help_heading = "Output"
    )]
    pub progress: ProgressHow,
}

/// Form of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressHow {
    /// Bars on a terminal, plain lines elsewhere.
    Auto,
    /// Bars.
    Bar,
    /// A line every few seconds.
    Plain,
    /// Nothing.
    None,
}

/// The commands of this version.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show it: a whole migration on two throwaway clusters, while an application writes.
    ///
    /// Check, copies to PostgreSQL and to Parquet, following, verification, a pilot wave that goes over and back, the final
    /// cutover, and a count of every row that the application wrote, on both sides. Ends with 0 only if nothing was lost and no
    /// value of a sequence was given twice. Needs PostgreSQL's programs on this machine and nothing else; leaves nothing running.
    #[command(after_help = "\
Examples:
  tidemark demo
  tidemark demo --scale 1 --report /tmp/demo-report
  tidemark demo --keep")]
    Demo(DemoArgs),
    /// Say whether source and target are ready, and what would mend what is not.
    ///
    /// Changes nothing. Ends with 5 if something blocks.
    #[command(after_help = "\
Examples:
  tidemark check
  tidemark check --source postgres://app@db1/shop --target file:///lake --json")]
    Check(CheckArgs),
    /// Copy the database while it is being written to, then follow it.
    ///
    /// Every table is copied at one position; every change after it is applied exactly once, in the order of commits, until
    /// the command is stopped. Ctrl-C drains and stops; the same command goes on from there. Rows of the copy are counted and
    /// hashed on the way; the summary on stdout shows rows out = rows in for every table.
    #[command(after_help = "\
Examples:
  tidemark sync
  tidemark sync --until now
  tidemark sync --source postgres://repl@db1/shop --target postgres://load@db2/shop
  tidemark sync --snapshot-only --source postgres://app@db1/shop --target postgres://load@db2/shop
  tidemark sync --snapshot-only --table 'public.*' --target s3://lake/shop --json
  tidemark sync --snapshot-only --target-not-empty truncate --yes")]
    Sync(SyncArgs),
    /// Prove that both sides hold the same rows, or find the tables that do not.
    ///
    /// A job that follows is verified at one exact LSN while both sides are written to; where no process runs it, it is run
    /// up to there. Two databases without a job are compared with --quiesced, while nobody writes to them. Reads every row
    /// of both sides, changes nothing. Ends with 0 if they hold the same, 1 if they differ, 3 if something could not be
    /// proven, 4 if values are equal but written in another way and --allow does not say that this is fine.
    ///
    /// A lake is verified with the job that fills it; its rows are those that its commits describe. Rows that differ and files
    /// that cannot be read are named.
    #[command(after_help = "\
Examples:
  tidemark verify
  tidemark verify --report /tmp/report
  tidemark verify --table 'public.orders*' --rate 50MiB
  tidemark verify --quiesced --source postgres://app@db1/shop --target postgres://app@db2/shop
  tidemark verify --level rows --redact none --report /tmp/report
  tidemark verify --level count --json | jq .verdict
  tidemark verify selftest")]
    Verify(VerifyArgs),
    /// Make the rows that a report calls different what the source has.
    ///
    /// Every row is read again on both sides first, at one LSN of a job while its stream stands there, or of two databases
    /// that stand still where the report is of such. What differs no longer, or in another way, is left alone. Without
    /// --apply nothing is written: the statements are printed, with the values that the source has now.
    ///
    /// PostgreSQL only: tables of a lake that differ are copied anew (tidemark reset).
    #[command(after_long_help = "\
Examples:
  tidemark repair report
  tidemark repair report/report.json --apply")]
    Repair(RepairArgs),
    /// Move what has changed since the last run, without a slot: SELECT on the source is enough.
    ///
    /// Reads every chosen table once, at one moment of the source, and compares each row with what the last run has left in the
    /// state directory: hashes of keys and rows, no values. What is new, modified, deleted, was refused before or is let
    /// through by another filter is applied, reported or skipped, as you say. Without an earlier run everything is new;
    /// --scan-target compares with the target's rows instead, which takes no files and makes them anew. Both sides must be
    /// PostgreSQL, and the target has the tables already. Ends with 7 if the target refused rows: those are noted and tried
    /// again by the next run, the others are moved.
    #[command(after_help = "\
Examples:
  tidemark delta --dry-run
  tidemark delta --source postgres://app@db1/shop --target postgres://load@db2/shop
  tidemark delta --deleted apply
  tidemark delta --scan-target --deleted apply --json | jq .tables")]
    Delta(DeltaArgs),
    /// Show how far a job is, also while another process runs it.
    #[command(after_help = "\
Examples:
  tidemark status --job shop
  tidemark status --watch
  tidemark status --json | jq .snapshot")]
    Status(StatusArgs),
    /// Give tables up: the next sync empties them on the target and copies them again, while the others go on.
    ///
    /// They join the stream at a read snapshot of their own. A lake is without them from here on until they have joined,
    /// and their files are removed. Needs a job that follows and does not run.
    ///
    /// Of tables that tidemark delta moves, what was moved is forgotten: the next delta takes every row of them for new.
    #[command(after_help = "\
Examples:
  tidemark reset public.orders --yes
  tidemark reset public.orders public.lines --job shop --yes")]
    Reset(ResetArgs),
    /// Take the application over to the target, with proof and with a way back.
    ///
    /// Every table is proven while the application writes. Then the source is made read-only and its sessions are ended, the
    /// target gets everything up to a barrier, sequences and what was touched since is proven, and a stream from the target
    /// back to the source is made ready; only then is the switch hook run. If something goes wrong before that, or takes longer
    /// than cutover.max_write_block, everything is taken back and the application writes where it did.
    ///
    /// Of a wave (--wave) only its tables take no more writes, and no session is ended.
    ///
    /// Each step is journaled: what was killed goes on with --resume. Needs a job that follows; tidemark sync that runs beside
    /// it goes on with the stream back by itself.
    #[command(after_help = "\
Examples:
  tidemark cutover --dry-run
  tidemark cutover
  tidemark cutover --wave pilot
  tidemark cutover --resume
  tidemark cutover --abort")]
    Cutover(SwitchArgs),
    /// Take the application back to the source: the cutover backwards.
    ///
    /// Needs a stream back that follows. May be repeated, and so may the cutover after it.
    #[command(after_help = "\
Examples:
  tidemark fallback --dry-run
  tidemark fallback")]
    Fallback(SwitchArgs),
    /// End the migration after a cutover: there is no way back any more.
    ///
    /// Drops the slot, the publication and the records of the stream back. The data stays, and so does the journal. Stop
    /// tidemark sync before.
    #[command(after_help = "Example:\n  tidemark complete --yes")]
    Complete(CleanupArgs),
    /// Tell the whole migration: what was done when, findings, verdicts and write blocks, for whoever has to sign it.
    ///
    /// Made of the job's journal alone; no server is asked. A cutover, a fallback and complete write the same files below the
    /// state directory: report/migration.html and report/migration.json.
    #[command(after_help = "\
Examples:
  tidemark report
  tidemark report --directory change-4711
  tidemark report --json | jq .attempts")]
    Report(ReportArgs),
    /// Drop what the job left on source and target, by exact name.
    ///
    /// Takes our slot, publication and progress rows away. The moved data stays.
    #[command(after_help = "Example:\n  tidemark cleanup --job shop --yes")]
    Cleanup(CleanupArgs),
    /// The configuration file: an example, a check, its JSON schema.
    #[command(after_help = "\
Examples:
  tidemark config example > tidemark.toml
  tidemark config check -c tidemark.toml
  tidemark config schema > tidemark.schema.json")]
    Config(ConfigArgs),
    /// Print completions for a shell.
    #[command(after_help = "\
Examples:
  tidemark completions bash > /etc/bash_completion.d/tidemark
  tidemark completions zsh > ~/.zfunc/_tidemark")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page.
    #[command(after_help = "Example:\n  tidemark man | man -l -")]
    Man,
}

/// Arguments of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Size of the data: TPC-H's scale factor, where 1 is six million order lines.
    #[arg(long, value_name = "FACTOR", default_value = "0.1", env = "TIDEMARK_DEMO_SF", hide_env_values = true, value_parser = scale_factor)]
    pub scale: f64,
    /// Directory for demo.json and, for each wave, the reports of the migration and of the last verification.
    #[arg(long, value_name = "DIR", default_value = "tidemark-demo")]
    pub report: PathBuf,
    /// At the end, however it was, leave the servers and files up until Ctrl-C, and say how to look around.
    #[arg(long)]
    pub keep: bool,
}

fn scale_factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (0.0001..=100.0).contains(&factor) => Ok(factor),
        _ => Err("a number from 0.0001 to 100 is expected".to_owned()),
    }
}

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Look only at what a copy needs, not at what following the source needs.
    #[arg(long)]
    pub snapshot_only: bool,
    /// Print the findings as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `sync`.
#[derive(Debug, Clone, Args)]
pub struct SyncArgs {
    /// Copy once and stop; needs no slot, no wal_level = logical and no replication rights.
    #[arg(long)]
    pub snapshot_only: bool,
    /// Stop once everything up to there is durable on the target; `now` is what the source has when the command begins.
    #[arg(long, value_name = "LSN|now", conflicts_with = "snapshot_only", value_parser = until)]
    pub until: Option<Until>,
    /// What to do with tables of the target that hold rows.
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    pub target_not_empty: NotEmpty,
    /// Agree to --target-not-empty truncate or reconcile.
    #[arg(long)]
    pub yes: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Where following stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// What the source has when the command begins.
    Now,
    /// A position.
    Lsn(Lsn),
}

fn until(text: &str) -> Result<Until, String> {
    if text == "now" {
        return Ok(Until::Now);
    }
    text.parse().map(Until::Lsn).map_err(|error: tidemark_model::ParseLsnError| error.to_string())
}

/// What to do with a target that holds rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NotEmpty {
    /// Do not start.
    Refuse,
    /// Add to them.
    Append,
    /// Empty the chosen tables first; needs --yes.
    Truncate,
    /// Compare every row with the source's, move only what differs, and follow from there; needs --yes.
    Reconcile,
}

/// Arguments of `repair`.
#[derive(Debug, Clone, Args)]
pub struct RepairArgs {
    /// The report: its directory, or its report.json with diff.ndjson beside it.
    #[arg(value_name = "REPORT")]
    pub report: PathBuf,
    /// Write to the target, and look at the same rows again.
    #[arg(long)]
    pub apply: bool,
}

/// Arguments of `delta`.
#[derive(Debug, Clone, Args)]
pub struct DeltaArgs {
    /// Say what would be done, with rows and bytes; nothing is written.
    #[arg(long)]
    pub dry_run: bool,
    /// Compare with the target's rows instead of what earlier runs have left in the state directory.
    #[arg(long)]
    pub scan_target: bool,
    /// Rows that the target does not have [default: delta.new, which is apply].
    #[arg(long, value_name = "WHAT")]
    pub new: Option<DeltaAction>,
    /// Rows that are others than the target's [default: delta.modified, which is apply].
    #[arg(long, value_name = "WHAT")]
    pub modified: Option<DeltaAction>,
    /// Rows that the source does not have any more [default: delta.deleted, which is report].
    #[arg(long, value_name = "WHAT")]
    pub deleted: Option<DeltaAction>,
    /// Rows that the target refused the last time [default: delta.failed, which is apply].
    #[arg(long, value_name = "WHAT")]
    pub failed: Option<DeltaAction>,
    /// Rows that the filter of a table lets through now and did not before, or the other way round [default:
    /// delta.unfiltered, which is apply].
    #[arg(long, value_name = "WHAT")]
    pub unfiltered: Option<DeltaAction>,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct VerifyArgs {
    /// Something else than a verification.
    #[command(subcommand)]
    pub command: Option<VerifyCommand>,
    /// How deep: each level has the earlier ones in it, and only digest and rows prove anything about rows [default:
    /// verify.level, which is digest].
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<Level>,
    /// Directory for report.json, report.html, report.junit.xml and diff.ndjson, which names every row that differs.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Nobody writes to either side: compare them without a job, each at a moment of its own. Both must be PostgreSQL.
    #[arg(long)]
    pub quiesced: bool,
    /// Of a job that follows: read only what the stream has touched since the copy or an earlier verification read it. Writes of
    /// others to the target are not seen.
    #[arg(long, conflicts_with_all = ["quiesced", "scrub"])]
    pub dirty: bool,
    /// Read everything on both sides, which is the default.
    #[arg(long)]
    pub scrub: bool,
    /// Of a job that follows: give read snapshots up at about this age, such as 10m, and read the rest under new ones; what the
    /// stream has touched meanwhile is read again [default: one snapshot for everything].
    #[arg(long, value_name = "DURATION", conflicts_with = "quiesced", value_parser = crate::config::units::duration)]
    pub max_snapshot_age: Option<std::time::Duration>,
    /// Connections that read each side [default: verify.jobs, or else snapshot.readers].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: Option<u32>,
    /// Bytes a second that are read from both sides together, such as 50MiB [default: verify.rate, or else as fast as it goes].
    #[arg(long, value_name = "BYTES/S", value_parser = crate::config::units::bytes)]
    pub rate: Option<u64>,
    /// Deviations that do not count; may be given more than once or as a list [default: verify.allow, which is empty].
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub allow: Vec<Allow>,
    /// What is hidden of the rows that differ [default: verify.redact, which is values].
    #[arg(long, value_name = "WHAT")]
    pub redact: Option<Redact>,
    /// Print the report as JSON; the rows that differ are in it by their numbers, first and last key only.
    #[arg(long)]
    pub json: bool,
}

/// What else `verify` does.
#[derive(Debug, Clone, Subcommand)]
pub enum VerifyCommand {
    /// Show on your own data and servers that verify finds what it has to.
    ///
    /// Copies a few rows of some of the chosen tables into a schema of its own on the target, tidemark_selftest_JOB, plants
    /// every kind of difference there (a bit, a row that is missing or doubled, NULL for an empty text, a blank, an hour, and
    /// more), and compares each copy with its sample as verify does. What none of the tables lets be planted is planted in a
    /// table of its own. The source is only read, no table of yours is written to, no value is shown, and the schema is
    /// dropped at the end; what a killed run leaves goes with the next one, or with cleanup.
    ///
    /// Needs SELECT on the source and CREATE on the target's database, which must be PostgreSQL. Ends with 0 if everything was
    /// found, 1 if not.
    #[command(after_help = "\
Examples:
  tidemark verify selftest
  tidemark verify selftest --source postgres://app@db1/shop --target postgres://load@db2/shop
  tidemark verify selftest --table 'public.orders*' --json | jq .missed")]
    Selftest(SelftestArgs),
}

/// Arguments of `verify selftest`.
#[derive(Debug, Clone, Args)]
pub struct SelftestArgs {
    /// Print what was tried and found as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `cutover` and `fallback`.
#[derive(Debug, Clone, Args)]
pub struct SwitchArgs {
    /// Look and prove only: nothing is fenced and nothing is switched.
    #[arg(long)]
    pub dry_run: bool,
    /// Go on with the one that was not ended.
    #[arg(long, conflicts_with = "dry_run")]
    pub resume: bool,
    /// Take back the one that was not ended, as long as the other side is not open.
    #[arg(long, conflicts_with_all = ["dry_run", "resume"])]
    pub abort: bool,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
    /// Print what was done as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Show it again and again until the job ends or Ctrl-C.
    #[arg(long)]
    pub watch: bool,
    /// Print it as JSON; with --watch one object per line.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Where the files are written, instead of below the state directory.
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Print migration.json, too.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `reset`.
#[derive(Debug, Clone, Args)]
pub struct ResetArgs {
    /// The tables, each written schema.table.
    #[arg(required = true, value_name = "TABLE")]
    pub tables: Vec<String>,
    /// Do it; without it nothing is changed.
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `cleanup`.
#[derive(Debug, Clone, Args)]
pub struct CleanupArgs {
    /// Do it; without it nothing is dropped.
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `config`.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// What to do with the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum ConfigCommand {
    /// Print a commented file with every key, its default and why.
    Example,
    /// Read the file and print what is in force and where it comes from, without secrets.
    Check,
    /// Print the JSON schema, for editors.
    Schema,
}
