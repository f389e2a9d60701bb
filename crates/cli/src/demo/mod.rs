//! `tidemark demo`: two throwaway servers, live load, a copy to PostgreSQL and one to Parquet that follow the source, and a
//! comparison of all three.
//!
//! **Invariant:** both copies are made and kept by the functions that `tidemark sync` runs. However it ends, also by Ctrl-C, no
//! server and no temporary file is left; a killed process is cleaned up after by a watchdog (see [`server`]).
//!
//! ```text
//! servers -> data -> writers .. check -> PostgreSQL -> Parquet -> both follow -> nobody follows .. stop -> until now -> compare
//!                       \_______________ write all the time ______________________________________/
//! ```

mod data;
mod follow;
mod proof;
mod report;
mod server;
mod writers;

use std::path::Path;
use std::time::{Duration, Instant};

use tidemark_model::{RelationName, Unrepresentable};
use tidemark_pipeline::{self as pipeline, Job, Report, SyncReport, Target};
use tidemark_sink::parquet::Root;
use tidemark_source::Selection;
use tidemark_wire::Client;

use crate::args::DemoArgs;
use crate::exit::{ExitCode, Failure};
use crate::jobs::{self, Signals};
use crate::log::Screen;
use crate::output;
use data::{Loaded, RowCounts};
use follow::{Behind, Followed};
use proof::{Found, Lake};
use report::{CopyReport, DemoReport, Moved, SourceReport, TableRow, WritersReport};
use server::{DATABASE, Place, Programs, Server, USER, query_failed};
use writers::{WRITERS, Writers, Written};

/// What the verdict stands on.
const PROOF: &str = "After the writers had stopped and both copies had caught up, every table of the source and of the \
    PostgreSQL copy was read and hashed: rows and digests are equal. The rows of the lake were counted in the footers of its \
    files, with what its change files add and take away. This is a check by Tidemark's own code; its test suite compares the \
    databases by another way (psql and SHA-256).";
/// How long both copies follow the writers.
const FOLLOW: Duration = Duration::from_secs(10);
/// How long nobody follows them then.
const ABSENT: Duration = Duration::from_secs(2);
/// A lake commits so often.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// The one table that a lake cannot hold.
const NOT_FOR_LAKES: &str = "zoo.nothing_at_all";
/// Tables with generated columns, which a stream does not carry, and their other columns.
const WITHOUT_GENERATED: [(&str, &[&str]); 2] = [
    (
        "keeper",
        &[
            "id",
            "name",
            "email",
            "badge",
            "hired",
            "salary",
            "home",
            "boss",
            "settings",
            "nicknames",
        ],
    ),
    ("rectangle", &["width", "height", "id"]),
];
/// The source does without the safety of its disk.
const SOURCE_SETTINGS: &str = "fsync = off\nfull_page_writes = off\nmax_wal_size = '4GB'\nwal_level = logical\nshared_buffers = '256MB'";
/// The target is as a server is by default, but for its memory.
const TARGET_SETTINGS: &str = "max_wal_size = '4GB'\nshared_buffers = '256MB'";

/// Runs the demonstration.
///
/// # Errors
/// PostgreSQL's server programs are missing (exit code 2), a copy failed, or it was interrupted (130).
pub(crate) fn run(args: &DemoArgs, screen: &Screen) -> Result<ExitCode, Failure> {
    let programs = Programs::find()?;
    let runtime = jobs::runtime()?;
    let mut place = Place::make(programs.clone())?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let demo = Demo { args, screen, version: programs.version, started: Instant::now() };
        let told = tokio::select! {
            biased;
            () = signals.next() => return Err(interrupted()),
            ended = Box::pin(demo.story(&mut place)) => ended?,
        };
        if args.keep {
            output::print(&told.look_around)?;
            signals.next().await;
        }
        Ok(told)
    });
    screen.bars.clear().ok();
    screen.say("stopping the servers and removing their files\n");
    drop(place);
    let told = ended?;
    output::print(&told.last_line)?;
    Ok(told.code)
}

fn interrupted() -> Failure {
    Failure::new(ExitCode::Interrupted, "run the demonstration: it was interrupted")
}

/// What all steps know.
struct Demo<'a> {
    args: &'a DemoArgs,
    screen: &'a Screen,
    version: String,
    started: Instant,
}

/// What the story ends with.
struct Told {
    code: ExitCode,
    look_around: String,
    last_line: String,
}

/// Both servers and what was loaded.
struct Shop {
    source: Server,
    target: Server,
    loaded: Loaded,
}

/// A copy and how many transactions were committed while it was made.
struct Copied {
    report: Report,
    transactions: u64,
}

/// Both jobs.
struct Jobs {
    postgres: Job,
    lake: Job,
}

/// What both copies did after they were made, PostgreSQL first.
struct Kept {
    followed: Followed,
    /// The last run, after the writers had stopped.
    caught_up: [SyncReport; 2],
}

/// What was found at the end.
struct Compared {
    found: Vec<Found>,
    lake: Lake,
    /// Of the source, of PostgreSQL, of the lake.
    balances: [i64; 3],
    now: RowCounts,
}

impl Compared {
    fn verdict(&self) -> &'static str {
        let tables = self.found.iter().chain(&self.lake.tables);
        let is_identical = { tables }.all(Found::is_equal)
            && self.balances.iter().all(|balance| *balance == self.balances[0]);
        if is_identical { "identical" } else { "different" }
    }
}

impl Demo<'_> {
    /// From nothing to the report; gives the last line for stdout.
    async fn story(&self, place: &mut Place) -> Result<Told, Failure> {
        let started_at = jiff::Timestamp::now();
        let shop = self.make_shop(place).await?;
        self.step(3, &format!("{WRITERS} connections begin to write: orders, payments, deletions"));
        let writers = Writers::start(&shop.source.spec).await?;
        let jobs = Jobs {
            postgres: postgres_job(place.path(), &shop),
            lake: lake_job(place.path(), &shop),
        };

        self.step(4, "copy to PostgreSQL while they write: tidemark sync --until now");
        self.check(&jobs.postgres).await?;
        let to_postgres = self.copy(&jobs.postgres, &writers).await?;
        self.step(5, "copy to Parquet while they write: tidemark sync --until now");
        self.say(&format!("{NOT_FOR_LAKES} has no columns, which Parquet cannot hold: excluded"));
        self.say("zoo.animal has infinite dates and NaN numerics, which Parquet cannot hold: they become NULL, and are counted");
        self.say("zoo.keeper and zoo.rectangle have generated columns, which a stream does not carry: chosen without them");
        let to_lake = self.copy(&jobs.lake, &writers).await?;

        let (kept, written) = Box::pin(self.keep_in_step(&jobs, writers)).await?;
        let compared = self.compare(place, &shop, [&to_postgres, &to_lake]).await?;
        let moved_on = moved_on(&to_postgres.report, &compared.now);
        self.say_moved(&moved_on)?;
        let verdict = compared.verdict();
        let copies = copy_reports([&to_postgres, &to_lake], &kept, &compared);
        let report = DemoReport {
            tool_version: env!("CARGO_PKG_VERSION"),
            verdict,
            proof: PROOF,
            started_at: started_at.to_string(),
            finished_at: jiff::Timestamp::now().to_string(),
            scale: self.args.scale,
            server_version: self.version.clone(),
            source: source_report(&shop.loaded),
            copies,
            writers: WritersReport {
                connections: WRITERS,
                transactions: written.transactions,
                duration_ms: millis(written.time),
            },
            moved_on,
        };
        let path = report::write(&report, &self.args.report)?;
        let total = output::duration(self.started.elapsed());
        let code = if verdict == "identical" { ExitCode::Done } else { ExitCode::Different };
        Ok(Told {
            code,
            look_around: look_around(place, &shop),
            last_line: format!("{verdict} in {total}: {}\n", path.display()),
        })
    }

    /// Both copies follow, are away for a while, and come to where the source is at the end.
    async fn keep_in_step(
        &self,
        jobs: &Jobs,
        writers: Writers,
    ) -> Result<(Kept, Written), Failure> {
        let seconds = FOLLOW.as_secs();
        self.step(
            6,
            &format!(
                "both follow the writers for {seconds} s: tidemark sync, asked by tidemark status"
            ),
        );
        let both = [&jobs.postgres, &jobs.lake];
        let followed = follow::follow(both, FOLLOW, |lag| self.say(&follow::line(lag)));
        let followed = Box::pin(followed).await?;
        let seconds = ABSENT.as_secs();
        self.step(7, &format!("{seconds} s in which nobody follows; then the writers stop, and both catch up: tidemark sync --until now"));
        tokio::time::sleep(ABSENT).await;
        let written = writers.finish().await?;
        self.say(&rate_of(&written));
        let postgres = jobs::sync_until_now(&jobs.postgres, self.screen).await?;
        let lake = jobs::sync_until_now(&jobs.lake, self.screen).await?;
        for (name, report) in [("PostgreSQL", &postgres), ("Parquet", &lake)] {
            let time = Duration::from_millis(report.duration_ms);
            self.say(&format!(
                "{name} is at {}: {} transactions with {} changes in {}",
                report.end_lsn,
                output::count(report.transactions),
                output::count(report.changes),
                output::duration(time),
            ));
        }
        Ok((Kept { followed, caught_up: [postgres, lake] }, written))
    }

    /// Nobody writes any more: the source and both copies are read.
    async fn compare(
        &self,
        place: &Place,
        shop: &Shop,
        [to_postgres, to_lake]: [&Copied; 2],
    ) -> Result<Compared, Failure> {
        self.step(8, "compare the source and both copies");
        let state = place.path().join("state-postgres");
        let sides = (&shop.source.spec, &shop.target.spec);
        let found = proof::compare(sides, &state, &to_postgres.report).await?;
        let lake = proof::read_lake(&place.path().join("lake"), &to_lake.report, &found)?;
        let source = connect(&shop.source).await?;
        let copy = connect(&shop.target).await?;
        let now = data::row_counts(&source).await?;
        let balances = [data::balance(&source).await?, data::balance(&copy).await?, lake.balance];
        let compared = Compared { found, lake, balances, now };
        self.say_proof(&compared)?;
        Ok(compared)
    }

    async fn make_shop(&self, place: &mut Place) -> Result<Shop, Failure> {
        self.step(1, &format!("start two throwaway PostgreSQL {} servers", self.version));
        let begun = Instant::now();
        let source = place.start("source", SOURCE_SETTINGS).await?;
        let target = place.start("target", TARGET_SETTINGS).await?;
        self.say(&format!(
            "source on port {}, target on port {}, files in {}; {}",
            source.port,
            target.port,
            place.path().display(),
            output::duration(begun.elapsed())
        ));
        let scale = self.args.scale;
        self.step(2, &format!("fill the source: TPC-H at scale {scale} and one of everything"));
        let begun = Instant::now();
        let loaded = data::load(&source.spec, scale).await?;
        self.say(&format!(
            "{} tables, {} rows, {} with indexes; {}",
            loaded.counts.len(),
            output::count(loaded.counts.values().sum()),
            output::bytes(loaded.bytes),
            output::duration(begun.elapsed())
        ));
        Ok(Shop { source, target, loaded })
    }

    async fn check(&self, job: &Job) -> Result<(), Failure> {
        let findings = pipeline::check(job).await?;
        output::print(&output::findings(&findings, self.screen.color_stdout))
    }

    async fn copy(&self, job: &Job, writers: &Writers) -> Result<Copied, Failure> {
        let before = writers.committed();
        let synced = jobs::sync_until_now(job, self.screen).await?;
        let report = synced.snapshot;
        let report = report.ok_or_else(|| Failure::internal("copy: there was no snapshot"))?;
        let transactions = writers.committed() - before;
        output::print(&output::summary(&report.clone().into(), self.screen.color_stdout))?;
        self.say(&format!("{} transactions were committed meanwhile", output::count(transactions)));
        Ok(Copied { report, transactions })
    }

    fn say_proof(&self, compared: &Compared) -> Result<(), Failure> {
        let Compared { found, lake, balances, .. } = compared;
        let number_equal =
            |tables: &[Found]| tables.iter().filter(|table| table.is_equal()).count();
        let rows = |tables: &[Found]| output::count(tables.iter().map(|t| t.target_rows).sum());
        let mut text = format!(
            "PostgreSQL  {} of {} tables equal: {} rows read on both sides, counts and digests equal\n\
             Parquet     {} of {} tables equal: {} rows counted in the footers of {} files of {} commits, {}\n\
             one moment  all balances add up to {} on the source, {} in PostgreSQL, {} in Parquet\n",
            number_equal(found),
            found.len(),
            rows(found),
            number_equal(&lake.tables),
            lake.tables.len(),
            rows(&lake.tables),
            output::count(lake.files),
            output::count(lake.commits as u64),
            output::bytes(lake.bytes),
            balances[0],
            balances[1],
            balances[2],
        );
        for table in found.iter().chain(&lake.tables).filter(|table| !table.is_equal()) {
            text.push_str(&format!(
                "different   {}: {} rows at the source, {} found\n",
                table.relation, table.source_rows, table.target_rows
            ));
        }
        output::print(&text)?;
        self.say(
            "this is a second look by our own code; the test suite compares by psql and SHA-256",
        );
        Ok(())
    }

    fn say_moved(&self, moved: &[Moved]) -> Result<(), Failure> {
        let list: Vec<String> = moved
            .iter()
            .map(|table| {
                let then = output::count(table.rows_at_snapshot);
                format!("{} {then} -> {}", table.table, output::count(table.rows_now))
            })
            .collect();
        output::print(&format!("moved on    {}\n", list.join(", ")))
    }

    fn step(&self, number: u32, what: &str) {
        let (bold, plain) =
            if self.screen.color_stderr { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        let at = self.started.elapsed();
        let at = format!("{}.{}s", at.as_secs(), at.subsec_millis() / 100);
        self.talk(&format!("{bold}[{number}/8] {what}{plain}  ({at})\n"));
    }

    fn say(&self, text: &str) {
        self.talk(&format!("      {text}\n"));
    }

    fn talk(&self, text: &str) {
        if !self.args_are_quiet() {
            self.screen.say(text);
        }
    }

    fn args_are_quiet(&self) -> bool {
        self.screen.progress == crate::args::ProgressHow::None
    }
}

/// How to reach what is still up.
fn look_around(place: &Place, shop: &Shop) -> String {
    let psql = |server: &Server| {
        format!("psql 'host=127.0.0.1 port={} user={USER} dbname={DATABASE}'", server.port)
    };
    format!(
        "look around, then Ctrl-C:\n  export PGPASSWORD={}\n  {}   # source\n  {}   # target\n  ls {}/lake\n",
        place.password(),
        psql(&shop.source),
        psql(&shop.target),
        place.path().display()
    )
}

async fn connect(server: &Server) -> Result<Client, Failure> {
    server.spec.connect().await.map_err(|error| query_failed(&error))
}

fn postgres_job(place: &Path, shop: &Shop) -> Job {
    let target = Target::Postgres(pipeline::PostgresTarget {
        spec: shop.target.spec.clone(),
        schema: pipeline::SchemaMode::Create,
        triggers: pipeline::Triggers::Replica,
        not_empty: pipeline::NotEmpty::Refuse,
    });
    job(place, shop, "postgres", target)
}

fn lake_job(place: &Path, shop: &Shop) -> Job {
    let target = Target::Lake(pipeline::LakeTarget {
        root: Root::local(place.join("lake")),
        compression: pipeline::Compression::Zstd { level: crate::job::ZSTD_LEVEL },
        file_bytes: 256 << 20,
        not_empty: pipeline::NotEmpty::Refuse,
    });
    let mut job = job(place, shop, "lake", target);
    job.selection = Selection::new(Vec::new(), vec![NOT_FOR_LAKES.to_owned()]);
    let table = |name: &str| pipeline::TableOptions {
        name: RelationName::new("zoo", name),
        filter: None,
        columns: None,
        unrepresentable: Unrepresentable::default(),
    };
    let with_columns = |(name, columns): &(&str, &[&str])| pipeline::TableOptions {
        columns: Some(columns.iter().map(|&column| column.to_owned()).collect()),
        ..table(name)
    };
    job.tables = WITHOUT_GENERATED.iter().map(with_columns).collect();
    job.tables
        .push(pipeline::TableOptions { unrepresentable: Unrepresentable::Null, ..table("animal") });
    job
}

fn job(place: &Path, shop: &Shop, name: &str, target: Target) -> Job {
    Job {
        name: format!("demo-{name}"),
        state_dir: place.join(format!("state-{name}")),
        source: shop.source.spec.clone().with_application_name("tidemark"),
        target,
        selection: Selection::default(),
        tables: Vec::new(),
        readers: std::thread::available_parallelism().map_or(2, usize::from).min(8),
        // Small, so that also a small demonstration has more than one chunk.
        chunk_bytes: 16 << 20,
        lock_timeout: Duration::from_secs(5),
        memory: 256 << 20,
        follows: true,
        stream: pipeline::StreamJob { commit_interval: COMMIT_EVERY, ..Default::default() },
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        wave: None,
    }
}

fn rate_of(written: &Written) -> String {
    let rate = output::rate(written.transactions, written.time).unwrap_or_default();
    format!(
        "the writers stop: {} transactions in {}, {} per second",
        output::count(written.transactions),
        output::duration(written.time),
        output::count(rate)
    )
}

fn source_report(loaded: &Loaded) -> SourceReport {
    SourceReport {
        tables: loaded.counts.len(),
        rows: loaded.counts.values().sum(),
        bytes: loaded.bytes,
    }
}

fn copy_reports(
    [to_postgres, to_lake]: [&Copied; 2],
    kept: &Kept,
    compared: &Compared,
) -> Vec<CopyReport> {
    let lake = &compared.lake;
    let tables = to_lake.report.tables.iter();
    let replaced = tables.flat_map(|table| &table.summary.replaced).map(|(_, count)| count).sum();
    let kept = |number: usize| {
        let (followed, caught_up) = (&kept.followed, &kept.caught_up[number]);
        (&followed.reports[number], followed.lag[number].as_slice(), caught_up)
    };
    vec![
        copy_report("PostgreSQL", to_postgres, kept(0), (&compared.found, compared.balances[1])),
        CopyReport {
            files: Some((lake.files, lake.bytes)),
            skipped: vec![
                format!("{NOT_FOR_LAKES} was left out: it has no columns."),
                "The generated columns of zoo.keeper and zoo.rectangle were left out: a stream does not carry them.".to_owned(),
                format!(
                    "{} values of zoo.animal that Parquet cannot hold (infinite dates, NaN numerics, 24:00:00) are NULL.",
                    output::count(replaced)
                ),
            ],
            ..copy_report("Parquet", to_lake, kept(1), (&lake.tables, lake.balance))
        },
    ]
}

fn copy_report(
    target: &'static str,
    copied: &Copied,
    (followed, lag, caught_up): (&SyncReport, &[Behind], &SyncReport),
    (found, balance): (&[Found], i64),
) -> CopyReport {
    let bytes = copied.report.tables.iter().map(|table| table.summary.bytes);
    CopyReport {
        target,
        snapshot_lsn: copied.report.lsn.to_string(),
        lsn: caught_up.end_lsn.to_string(),
        duration_ms: copied.report.duration_ms,
        files: None,
        transactions_meanwhile: copied.transactions,
        followed: followed.into(),
        lag: lag.to_vec(),
        caught_up: caught_up.into(),
        balance,
        tables: found.iter().zip(bytes).map(|(found, bytes)| TableRow::new(found, bytes)).collect(),
        skipped: Vec::new(),
    }
}

fn moved_on(report: &Report, now: &RowCounts) -> Vec<Moved> {
    let moved = report.tables.iter().filter_map(|table| {
        let (relation, rows_at_snapshot) = (&table.summary.relation, table.summary.rows_out);
        let rows_now = *now.get(relation)?;
        (rows_now != rows_at_snapshot).then(|| Moved {
            table: relation.plain(),
            rows_at_snapshot,
            rows_now,
        })
    });
    moved.collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
