//! Jobs of the binary, databases to run them on, and what must hold between two runs.
//!
//! **Invariant:** a run sees an empty environment but for the directory of PostgreSQL's client programs; a process that a
//! test started is gone when the test ends.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tidemark_testkit::{Cluster, Database, Version, oracle, shared_filled, workload};

/// No run on these small databases takes longer.
const DEADLINE: Duration = Duration::from_secs(120);

/// A database with more tables and rows than one chunk: TPC-H, a keyless table with doubles, a sequence, an enum.
const EXTRA: &str = "
CREATE TABLE keyless (day date, note text);
INSERT INTO keyless SELECT date '2024-01-01' + i % 50, 'n' || i % 7 FROM generate_series(1, 30000) i;
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE TABLE pet (id serial PRIMARY KEY, mood mood NOT NULL, tags text[], twice integer GENERATED ALWAYS AS (legs * 2) STORED, legs integer);
INSERT INTO pet (mood, tags, legs) SELECT (enum_range(NULL::mood))[1 + i % 2], ARRAY['a,b', NULL, i::text], i % 5 FROM generate_series(1, 3000) i;
CREATE VIEW glad AS SELECT id FROM pet WHERE mood = 'glad';
CREATE MATERIALIZED VIEW days AS SELECT day, count(*) AS n FROM keyless GROUP BY day;
";
const SCALE: f64 = 0.01;

/// Fills a database as most tests of this suite need it.
pub(crate) fn fill(cluster: &Cluster, database: &str) {
    workload::load_tpch(cluster, database, SCALE).unwrap();
    cluster.psql(database, EXTRA).unwrap();
}

/// A filled database in the shared cluster.
pub(crate) fn filled() -> Database {
    static FILLING: Mutex<()> = Mutex::new(());
    let fill_one = |cluster: &Cluster| {
        cluster.create_database("filled")?;
        fill(cluster, "filled");
        Ok(())
    };
    let mut content = DefaultHasher::new();
    (EXTRA, SCALE.to_bits(), workload::TPCH_SCHEMA).hash(&mut content);
    let name = format!("filled-{:016x}", content.finish());
    let database = shared_filled(&name, fill_one).unwrap();
    let cluster = database.cluster();
    let _alone = FILLING.lock().unwrap_or_else(PoisonError::into_inner);
    let there = "SELECT count(*) FROM pg_database WHERE datname = 'filled'";
    if cluster.psql("postgres", there).unwrap() == "0" {
        fill_one(cluster).unwrap();
    }
    let name = database.name();
    let sql = format!("DROP DATABASE {name};\nCREATE DATABASE {name} TEMPLATE filled");
    for statement in sql.lines() {
        cluster.psql("postgres", statement).unwrap();
    }
    database
}

/// The end of a run.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The exit code; 128 + signal for a killed one.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Panics unless it ended so.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// What ended it: its last words from `error:` on.
    pub(crate) fn error(&self) -> &str {
        self.stderr.find("error:").map_or("", |at| &self.stderr[at..])
    }

    /// Panics unless stderr holds all of these.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in\n{}", self.stderr);
        }
        self
    }
}

/// A job: its directory, its configuration and its environment.
pub(crate) struct Job {
    directory: TempDir,
    name: String,
    source: String,
    target: String,
    of_source: String,
    more: String,
    state_dir: PathBuf,
    environment: Vec<(String, String)>,
}

impl Job {
    pub(crate) fn new(name: &str, source: &str, target: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let mut environment = Vec::new();
        if let Some(tools) = Version::from_env().client_dir() {
            environment.push(("TIDEMARK_PG_BIN".to_owned(), tools.display().to_string()));
        }
        Self {
            state_dir: directory.path().join("state"),
            directory,
            name: name.to_owned(),
            source: source.to_owned(),
            target: target.to_owned(),
            of_source: String::new(),
            more: "[snapshot]\nreaders = 2\nchunk_bytes = \"1MiB\"\n".to_owned(),
            environment,
        }
    }

    /// In place of the sections after `[target]`'s url.
    pub(crate) fn configured(mut self, more: &str) -> Self {
        more.clone_into(&mut self.more);
        self
    }

    /// More lines of `[source]`.
    pub(crate) fn of_source(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.of_source);
        self
    }

    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(there, _)| there != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn state_at(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.state_dir);
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let text = format!(
            "[job]\nname = {:?}\nstate_dir = {:?}\n[source]\nurl = {:?}\n{}\n[target]\nurl = {:?}\n{}",
            self.name,
            self.state_dir.display().to_string(),
            self.source,
            self.of_source,
            self.target,
            self.more
        );
        fs::write(self.path().join("job.toml"), text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
        command.args(args).args(["-c", "job.toml"]).current_dir(self.path());
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    /// Any command, to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.start(args).end()
    }

    /// `sync --snapshot-only` to its end.
    pub(crate) fn sync(&self, more: &[&str]) -> Ran {
        self.run(&[&["sync", "--snapshot-only"], more].concat())
    }

    /// The same with one variable more.
    pub(crate) fn run_with(&self, (name, value): (&str, &str), args: &[&str]) -> Ran {
        let mut command = self.command(args);
        command.env(name, value);
        self.spawn(command).end()
    }

    pub(crate) fn start(&self, args: &[&str]) -> Running {
        self.spawn(self.command(args))
    }

    fn spawn(&self, mut command: Command) -> Running {
        let output = TempDir::new_in(self.path()).unwrap();
        let file = |name: &str| File::create(output.path().join(name)).unwrap();
        let child = command.stdout(file("out")).stderr(file("err")).spawn().unwrap();
        Running { child, output }
    }

    pub(crate) fn start_sync(&self) -> Running {
        self.start(&["sync", "--snapshot-only"])
    }

    /// `status --json` from another process.
    pub(crate) fn status(&self) -> Option<serde_json::Value> {
        let ran = self.run(&["status", "--json"]);
        (ran.code == 0).then(|| serde_json::from_str(&ran.stdout).unwrap())
    }
}

/// A process of the binary; killed when dropped.
pub(crate) struct Running {
    child: Child,
    output: TempDir,
}

impl Running {
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What it has said on stderr so far.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(self.output.path().join("err")).unwrap()
    }

    /// Its end, and the most memory that it was seen to have.
    pub(crate) fn end_and_peak(mut self) -> (Ran, u64) {
        let mut peak = 0;
        while !self.has_ended() {
            peak = peak_memory(self.child.id()).unwrap_or(0).max(peak);
            pause();
        }
        (self.end(), peak)
    }

    pub(crate) fn end(mut self) -> Ran {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it goes on and on: {}", self.stderr());
            pause();
        };
        let read = |name: &str| {
            String::from_utf8_lossy(&fs::read(self.output.path().join(name)).unwrap()).into_owned()
        };
        Ran {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
            stdout: read("out"),
            stderr: read("err"),
        }
    }
}

/// The most memory that a process has had so far, in bytes; nothing once it is gone.
fn peak_memory(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that polls: a state, with a deadline")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

/// Says how a test went: shown when it fails.
#[expect(clippy::print_stdout, reason = "the test harness keeps it for a failed test")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// Asks until it is so.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut probe: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !probe() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        pause();
    }
}

/// Asks until it is so or the process has ended; whether it was so.
pub(crate) fn reached(running: &mut Running, mut probe: impl FnMut() -> bool) -> bool {
    loop {
        if probe() {
            return true;
        }
        if running.has_ended() {
            return false;
        }
        pause();
    }
}

/// One side: a cluster and a database.
pub(crate) type Side<'a> = (&'a Cluster, &'a str);

pub(crate) fn side(database: &Database) -> Side<'_> {
    (database.cluster(), database.name())
}

/// The same in schema, rows and sequences.
#[track_caller]
pub(crate) fn assert_same(source: Side<'_>, target: Side<'_>) {
    oracle::assert_same(source, target);
}

/// Moves a slot beyond all that was committed, as somebody else would. The test kit's servers commit asynchronously, and a
/// slot goes only where the WAL is flushed: a switch of the file flushes it.
pub(crate) fn move_slot(source: &Database, slot: &str) {
    source.psql("SELECT pg_switch_wal()").unwrap();
    let sql = format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_flush_lsn())");
    source.psql(&sql).unwrap();
}

/// The number of markers on the target; 0 before there is a place for them.
pub(crate) fn markers((cluster, database): Side<'_>, job: &str) -> u64 {
    let sql = format!("SELECT count(*) FROM tidemark.chunk WHERE job = '{job}'");
    cluster.psql(database, &sql).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The run that the target knows; empty before it knows one.
pub(crate) fn run_of((cluster, database): Side<'_>, job: &str) -> String {
    let sql = format!("SELECT run FROM tidemark.progress WHERE job = '{job}'");
    cluster.psql(database, &sql).unwrap_or_default()
}

/// Waits until a run that began after `before` has so many chunks in; whether it came to that.
pub(crate) fn loads(
    running: &mut Running,
    target: Side<'_>,
    job: &str,
    before: &str,
    count: u64,
) -> bool {
    reached(running, || {
        run_of(target, job) != before
            && phase(target, job) == "snapshot"
            && markers(target, job) >= count
    })
}

/// Where the run stands, as the target knows it; empty before it knows.
pub(crate) fn phase((cluster, database): Side<'_>, job: &str) -> String {
    let sql = format!("SELECT phase FROM tidemark.progress WHERE job = '{job}'");
    cluster.psql(database, &sql).unwrap_or_default()
}

/// Sessions of ours in a database, `pg_dump` and `pg_restore` included.
const OURS: &str = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
    AND (application_name LIKE 'tidemark%' OR application_name LIKE 'pg\\_%')";

/// Waits until no session of ours is left in a database.
#[track_caller]
pub(crate) fn sessions_end((cluster, database): Side<'_>) {
    wait_until("our sessions have ended", || {
        cluster.psql(database, &format!("SELECT count(*) {OURS}")).unwrap() == "0"
    });
}

/// Nothing of ours is on the source.
#[track_caller]
pub(crate) fn assert_source_clean(source: Side<'_>) {
    sessions_end(source);
    let (cluster, database) = source;
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) + \
        (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_namespace WHERE nspname = 'tidemark')";
    assert_eq!(cluster.psql(database, left).unwrap(), "0", "something is left on the source");
}

/// What the target's markers say is what its tables hold: no chunk is half there.
#[track_caller]
pub(crate) fn assert_markers_true(source: Side<'_>, target: Side<'_>, job: &str) {
    sessions_end(target);
    let names = "SELECT oid || ' ' || oid::regclass FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
    for line in source.0.psql(source.1, names).unwrap().lines() {
        let (oid, name) = line.split_once(' ').unwrap();
        if target.0.psql(target.1, &format!("SELECT to_regclass('{name}') IS NULL")).unwrap() == "t"
        {
            continue;
        }
        let sql = format!(
            "SELECT (SELECT count(*) FROM ONLY {name}), (SELECT coalesce(sum(rows), 0) FROM tidemark.chunk WHERE job = '{job}' AND relation_oid = {oid})"
        );
        let counts = target.0.psql(target.1, &sql).unwrap_or_else(|_| "0|0".to_owned());
        let (rows, marked) = counts.split_once('|').unwrap();
        assert_eq!(rows, marked, "rows and markers of {name}");
    }
}

/// Everything below a directory, files only, relative.
pub(crate) fn files_below(root: &Path) -> Vec<String> {
    let mut open = vec![root.to_owned()];
    let mut found = Vec::new();
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                let path = entry.path();
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}
